//! For cargo-fuzz: `cargo fuzz run revocation_list fuzz/corpus/revocation_list fuzz/seeds/revocation_list`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::revocation_list(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("revocation_list");
}
