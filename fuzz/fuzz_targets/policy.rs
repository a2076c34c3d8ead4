//! For cargo-fuzz: `cargo fuzz run policy fuzz/corpus/policy fuzz/seeds/policy`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::policy(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("policy");
}
