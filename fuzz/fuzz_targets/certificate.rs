//! For cargo-fuzz: `cargo fuzz run certificate fuzz/corpus/certificate fuzz/seeds/certificate`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::certificate(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("certificate");
}
