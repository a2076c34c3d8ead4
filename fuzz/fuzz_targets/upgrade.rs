//! For cargo-fuzz: `cargo fuzz run upgrade fuzz/corpus/upgrade fuzz/seeds/upgrade`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::upgrade(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("upgrade");
}
