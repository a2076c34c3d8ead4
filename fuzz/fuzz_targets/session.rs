//! For cargo-fuzz: `cargo fuzz run session fuzz/corpus/session fuzz/seeds/session`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::session(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("session");
}
