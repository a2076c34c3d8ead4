//! For cargo-fuzz: `cargo fuzz run envelope fuzz/corpus/envelope fuzz/seeds/envelope`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::envelope(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("envelope");
}
