//! For cargo-fuzz: `cargo fuzz run csr fuzz/corpus/csr fuzz/seeds/csr`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::csr(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("csr");
}
