//! A bundle's folder, as a device was handed it.

use std::path::Path;
use std::time::Duration;

use doorward_client::backoff::BackoffOptions;
use doorward_client::{Options, RenewalOptions};
use serde_json::Value;

use super::Gateway;

/// Writes the bundle of a gateway's device.
pub fn write(gateway: &Gateway, device: usize, folder: &Path) {
    let mut line: Value = serde_json::from_str(&gateway.shared.records[device].line).unwrap();
    for (member, file) in [("certificate", "device.crt"), ("private_key", "device.key"), ("ca", "ca.crt")] {
        let text = line.as_object_mut().unwrap().remove(member).unwrap();
        std::fs::write(folder.join(file), text.as_str().unwrap()).unwrap();
    }
    std::fs::write(folder.join("device.json"), line.to_string()).unwrap();
}

/// What is in a folder, by name.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The names that a bundle has.
pub const WHOLE: [&str; 4] = ["ca.crt", "device.crt", "device.json", "device.key"];

/// Everything that waits, waits for milliseconds.
pub fn quick() -> Options {
    let ms = Duration::from_millis;
    let backoff = BackoffOptions { base: ms(20), cap: ms(100), ..BackoffOptions::default() };
    let renewal = RenewalOptions {
        spread: ms(10),
        retry: ms(50),
        retry_cap: ms(200),
        give_up_after: 3,
        ..RenewalOptions::default()
    };
    Options { backoff, connect_within: Duration::from_secs(10), renewal, ..Options::default() }
}
