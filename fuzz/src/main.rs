//! Mutates the seeds of each target for some seconds, on a stable toolchain and without instrumentation. Where cargo-fuzz builds it
//! with the others, it is one more target: all of them on the same input.
#![cfg_attr(fuzzing, no_main)]

#[cfg(not(fuzzing))]
mod driver;

#[cfg(not(fuzzing))]
fn main() -> anyhow::Result<()> {
    driver::main()
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for (_, target) in doorward_fuzz::TARGETS {
        target(data);
    }
});
