//! What the process itself takes, as Linux tells it. Where it does not, nothing is said.

use std::fs;

use super::page::Page;
use crate::clock;

/// Linux counts CPU time in these, whatever its own tick (proc(5), `USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory, CPU time, open files.
pub(crate) fn collect(page: &mut Page) {
    if let Some(kib) = status("VmRSS:") {
        page.gauge("doorward_process_resident_memory_bytes", "Memory in use, in bytes.", kib * 1024.0);
    }
    if let Some(seconds) = cpu_seconds() {
        page.counter_of("doorward_process_cpu_seconds_total", "CPU time so far, user and system.", seconds);
    }
    // Listing them takes a descriptor: when none is left this is missing, and doorward_accept_failures_total grows.
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        page.gauge("doorward_process_open_fds", "Open file descriptors.", files.count() as f64);
    }
    if let Ok((most, _)) = rlimit::getrlimit(rlimit::Resource::NOFILE) {
        page.gauge("doorward_process_max_fds", "File descriptors that the process may open.", most as f64);
    }
    page.gauge(
        "doorward_process_uptime_seconds",
        "How long the process has been running.",
        clock::now().monotonic.as_secs_f64(),
    );
}

fn status(field: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses and may hold anything: what follows it is counted from its end.
    let (_, fields) = stat.rsplit_once(')')?;
    let times: Vec<f64> = fields.split_whitespace().skip(11).take(2).map_while(|n| n.parse().ok()).collect();
    (times.len() == 2).then(|| times.iter().sum::<f64>() / TICKS_PER_SECOND)
}
