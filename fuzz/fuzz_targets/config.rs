//! For cargo-fuzz: `cargo fuzz run config fuzz/corpus/config fuzz/seeds/config`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::config(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("config");
}
