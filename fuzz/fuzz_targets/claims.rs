//! For cargo-fuzz: `cargo fuzz run claims fuzz/corpus/claims fuzz/seeds/claims`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::claims(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("claims");
}
