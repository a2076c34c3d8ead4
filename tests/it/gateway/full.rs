//! A disk that is full while devices publish: nothing is acked that is not stored, whoever asks is told why, a revocation
//! counts all the same, and with room again everything goes on by itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use doorward_client::backoff::BackoffOptions;
use doorward_client::{Credentials, Device, Options, State};
use tokio::task::JoinHandle;

use crate::support::command::Desk;
use crate::support::house::{eventually_late, within};
use crate::support::http::get;
use crate::support::running::Running;

/// A device that publishes the numbers from one on, each once the one before is acked.
struct Publisher {
    acked: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    state: tokio::sync::watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Publisher {
    fn start(desk: &Desk, gateway: &Running, id: &str) -> Self {
        let credentials = Credentials::load(desk.home(&format!("devices/{id}"))).unwrap();
        let backoff = BackoffOptions { cap: Duration::from_secs(2), ..BackoffOptions::default() };
        let options = Options { backoff, ..Options::default() };
        let device = Device::connect(credentials.with_url(&gateway.url()), options).unwrap();
        let (acked, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (state, channel) = (device.state(), format!("devices/{id}/t"));
        let (count, stop) = (Arc::clone(&acked), Arc::clone(&over));
        let task = tokio::spawn(async move {
            let mut next = 1;
            while !stop.load(Ordering::SeqCst) && device.publish(&channel, &next).await.is_ok() {
                count.store(next, Ordering::SeqCst);
                next += 1;
            }
        });
        Self { acked, over, state, task }
    }

    fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst)
    }

    async fn goes_on(&self, more: u64) {
        let wanted = self.acked() + more;
        eventually_late("acks", async || self.acked() >= wanted).await;
    }
}

/// The numbers that are stored of a device, in the order of storing.
fn stored(desk: &Desk, id: &str) -> Vec<u64> {
    let listed = desk.run(&format!("message list --device {id} --json")).json();
    listed.as_array().unwrap().iter().map(|message| message["data"].as_u64().unwrap()).collect()
}

/// Why the store is not ready, if it is not.
async fn store_trouble(admin: SocketAddr) -> Option<String> {
    let answer = get(admin, "/readyz").await.json();
    let checks = answer["checks"].as_array().unwrap().clone();
    let store = checks.into_iter().find(|check| check["check"] == "store").unwrap();
    (store["ok"] == false).then(|| store["reason"].as_str().unwrap().to_owned())
}

fn with_short_patience(desk: &Desk) {
    let config = std::fs::read_to_string(desk.home("config.toml")).unwrap();
    // A publish may wait for a tenth of it.
    let short = config.replace("\nmax_skew = \"1m\"\n", "\nmax_skew = \"20s\"\n");
    assert_ne!(short, config);
    std::fs::write(desk.home("config.toml"), short).unwrap();
}

/// Publishes through a time without room. `fill` and `make_room` do that; `others_may_write`: commands have room meanwhile.
async fn full(desk: Desk, gateway: Running, fill: impl Fn(), make_room: impl Fn(), others_may_write: bool) {
    let admin = gateway.admin();
    let ids = ["press-1", "press-2", "press-3"];
    let all: Vec<Publisher> = ids.iter().map(|id| Publisher::start(&desk, &gateway, id)).collect();
    let [one, two, thief] = all.as_slice() else { unreachable!() };
    for publisher in &all {
        publisher.goes_on(3).await;
    }
    fill();
    eventually_late("publishes are refused", async || store_trouble(admin).await.is_some()).await;
    // The reason is the system's own; a moment of waiting behind another process may be the last word for a while.
    eventually_late("the reason", async || {
        let why = store_trouble(admin).await.unwrap_or_default();
        why.contains("full") || why.contains("disk I/O error")
    })
    .await;
    assert_eq!(get(admin, "/healthz").await.status, 200, "a restart would help nobody");
    for (id, publisher) in ids.iter().zip(&all) {
        let acked = publisher.acked();
        let stored = stored(&desk, id);
        assert!(stored.len() as u64 >= acked, "{id}: {acked} acked, and stored are {stored:?}");
    }
    let revoked = |state: &State| matches!(state, State::Stopped(doorward_client::Stop::Revoked));
    let mut state = thief.state.clone();
    let revoke = "device revoke press-3 --reason stolen --no-wait";
    if others_may_write {
        desk.run(revoke).done();
        // In a session, or as it comes back after one that the store's trouble has ended.
        tokio::time::timeout(Duration::from_secs(60), state.wait_for(revoked))
            .await
            .expect("it goes on")
            .unwrap();
    } else {
        desk.run(revoke).fails(1, &["full"]);
    }
    make_room();
    eventually_late("the store writes again", async || store_trouble(admin).await.is_none()).await;
    if !others_may_write {
        desk.run(revoke).done();
        tokio::time::timeout(Duration::from_secs(60), state.wait_for(revoked))
            .await
            .expect("it goes on")
            .unwrap();
    }
    for publisher in [one, two] {
        publisher.goes_on(3).await;
    }
    for (id, publisher) in ids.into_iter().zip(all) {
        publisher.over.store(true, Ordering::SeqCst);
        within("the publisher's end", publisher.task).await.unwrap();
        let (acked, stored) = (publisher.acked.load(Ordering::SeqCst), stored(&desk, id));
        // What was stored and whose ack was lost is no loss; nothing is there twice, and nothing that was acked is missing.
        let numbers: Vec<u64> = (1..=stored.len() as u64).collect();
        assert_eq!(stored, numbers, "{id}");
        assert!(
            (acked..=acked + 1).contains(&(stored.len() as u64)),
            "{id}: {acked} acked of {}",
            stored.len()
        );
    }
    let said = gateway.ended_by("TERM");
    assert!(said.contains("the store does not write") && said.contains("the store is back"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

fn add_devices(desk: &Desk) {
    for n in 1..=3 {
        desk.run(&format!("device add press-{n}")).done();
    }
}

/// Sets the largest file that a process may write, while it runs.
fn limit_files(pid: u32, limit: &str) {
    let done = Command::new("prlimit").args([format!("--pid={pid}"), format!("--fsize={limit}")]).status();
    assert!(done.expect("prlimit is of util-linux, which Debian always has").success());
}

/// Every file of the gateway's is at its end at once, as on a disk that is full. Nobody needs rights for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_may_not_grow_stop_the_store_and_nothing_else() {
    let desk = Desk::new();
    add_devices(&desk);
    with_short_patience(&desk);
    let command = desk.command("gateway run --listen 127.0.0.1:0");
    let mut shell = Command::new("sh");
    // Past its limit a write is an error, and not the end of the process.
    shell
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    shell.current_dir(desk.path(".")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let gateway = Running::spawn(&mut shell);
    let pid = gateway.pid();
    let (fill, room) =
        (move || limit_files(pid, "1:unlimited"), move || limit_files(pid, "unlimited:unlimited"));
    full(desk, gateway, fill, room, true).await;
}

/// A small file system of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        // SQLite's log alone grows to 4 MB before it begins anew: what the ballast leaves must be room again.
        mount
            .args(["-t", "tmpfs", "-o", "size=16m,mode=0700", "doorward-test"])
            .arg(&at)
            .stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(at))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file there keeps it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Writes until there is no room for a byte more.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_stops_the_store_and_nothing_else() {
    let desk = Desk::empty();
    let Some(disk) = SmallDisk::mount(desk.path("disk")) else {
        eprintln!(
            "skipped: mounting a file system needs root with CAP_SYS_ADMIN; the test beside this one needs neither"
        );
        return;
    };
    let url = format!("sqlite://{}", desk.path("disk/registry.db").display());
    let desk = desk.told(&url);
    desk.run("init").done();
    add_devices(&desk);
    with_short_patience(&desk);
    let gateway = Running::start(&desk);
    let ballast = disk.ballast();
    full(desk, gateway, || fill(&ballast), || std::fs::remove_file(&ballast).unwrap(), false).await;
}
