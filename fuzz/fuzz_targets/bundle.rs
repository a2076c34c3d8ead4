//! For cargo-fuzz: `cargo fuzz run bundle fuzz/corpus/bundle fuzz/seeds/bundle`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::bundle(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("bundle");
}
