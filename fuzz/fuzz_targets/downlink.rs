//! For cargo-fuzz: `cargo fuzz run downlink fuzz/corpus/downlink fuzz/seeds/downlink`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doorward_fuzz::downlink(data);
});

#[cfg(not(fuzzing))]
fn main() {
    doorward_fuzz::without_libfuzzer("downlink");
}
