//! Floods of connections, from one address and from many, and a process without descriptors: honest sessions go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use device_sim::{Plan, Scenario};
use serde_json::json;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::support::command::Desk;
use crate::support::device::Device;
use crate::support::house::{House, eventually, log};
use crate::support::http::get;
use crate::support::running::Running;

/// Connections that are made and left open, as fast as they can be, from addresses of 127.0.0.0/8, until this is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Flood {
    /// Each of `held` tasks makes one connection after the other, and holds the last few.
    fn start(
        gateway: std::net::SocketAddr,
        source: impl Fn(u64) -> [u8; 4] + Clone + Send + 'static,
    ) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (stop, made, source) = (Arc::clone(&stop), Arc::clone(&made), source.clone());
            tasks.spawn(async move {
                let mut held = std::collections::VecDeque::new();
                while !stop.load(Ordering::SeqCst) {
                    let number = made.fetch_add(1, Ordering::SeqCst);
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind((source(number), 0).into()).unwrap();
                    // A refusal is what a flood is for.
                    if let Ok(tcp) = socket.connect(gateway).await {
                        held.push_back(tcp);
                    }
                    if held.len() > 100 {
                        held.pop_front();
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        Self { stop, made, tasks }
    }

    async fn has_made(&self, count: u64) {
        eventually("a flood", async || self.made.load(Ordering::SeqCst) >= count).await;
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn honest_through(house: &House, device: &mut Device, flood: &Flood, until: u64) {
    let mut sent = 0;
    while flood.made.load(Ordering::SeqCst) < until || sent < 20 {
        let seq = device.publish(&format!("m{sent}"), json!(sent)).await;
        device.acked(seq).await;
        sent += 1;
        // Within its rate, however little it notices of the flood.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(house.stored().await.len(), sent, "each was acked, and each is there once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_address_reaches_no_other() {
    let house = House::with(|config| {
        (config.addresses.rate, config.addresses.burst, config.addresses.handshakes) = (50, 200, 100);
        config.limits.connections = 1000;
    })
    .await;
    let mut honest = Device::prove(&house, &house.add_device("honest").await).await;
    let other = house.add_device("other").await;
    let flood = Flood::start(house.address, |_| [127, 9, 0, 1]);
    honest_through(&house, &mut honest, &flood, 3000).await;
    // A newcomer's first try gets through in the midst of it.
    Device::prove(&house, &other).await;
    flood.end().await;
    let closed: Vec<_> = house.gateway.counters().door().closed().filter(|(_, count)| *count > 0).collect();
    assert!(closed.iter().map(|(_, count)| count).sum::<u64>() > 1000, "{closed:?}");
    assert_eq!(house.gateway.counters().totals().over_limit, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_many_addresses_ends_no_session_and_keeps_no_known_site_out() {
    let house = House::with(|config| {
        config.limits.connections = 160;
        config.addresses.remembered = 1024;
    })
    .await;
    let mut honest = Device::prove(&house, &house.add_device("honest").await).await;
    let other = house.add_device("other").await;
    let flood = Flood::start(house.address, |number| {
        let [.., a, b, c] = (number * 7919).to_be_bytes();
        [127, 100 + a % 100, b, c]
    });
    honest_through(&house, &mut honest, &flood, 3000).await;
    // The last places are for addresses that are known, and this one is: also when it has been pushed hard.
    Device::prove(&house, &other).await;
    let reserved = house.gateway.counters().door().closed_for("reserved");
    assert!(reserved > 100, "{reserved}");
    flood.end().await;
}

/// The niceness (proc(5)) of a process's threads of that name.
fn niceness(pid: u32, name: &str) -> Vec<i32> {
    let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).ok();
    let tasks =
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(|task| stat(task.unwrap()));
    tasks
        .filter(|stat| stat.contains(&format!("({name})")))
        // The 19th field; the second ends with the last parenthesis.
        .map(|stat| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap())
        .collect()
}

#[tokio::test]
async fn handshakes_are_computed_by_threads_that_leave_the_processor_to_sessions() {
    let desk = Desk::new();
    let gateway = Running::start(&desk);
    let are_nicer = async || {
        let sessions = niceness(gateway.pid(), "tokio-rt-worker");
        let door = niceness(gateway.pid(), "door");
        !door.is_empty()
            && sessions.iter().all(|theirs| door.iter().all(|nice| *nice == (theirs + 10).min(19)))
    };
    // They give themselves their name, then their niceness.
    eventually("the door's threads are nicer", are_nicer).await;
}

/// The gateway is a process that may open few files.
#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_sessions_go_on_and_who_waits_is_closed() {
    let desk = Desk::new();
    desk.run("device add --count 4 --prefix dev- --out fleet.jsonl").done();
    let command = desk.command("gateway run --listen 127.0.0.1:0");
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 112 && exec \"$0\" \"$@\""]).arg(command.get_program());
    limited.args(command.get_args()).current_dir(desk.path("."));
    limited.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    limited.stderr(std::process::Stdio::piped());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let gateway = Running::spawn(&mut limited);
    let devices = device_sim::fleet::load(&desk.path("fleet.jsonl")).unwrap();
    let mut plan = Plan::new(devices.clone(), &gateway.url(), Scenario::Steady);
    (plan.rate, plan.duration) = (Some(40.0), Duration::from_secs(4));
    let (address, admin) = (gateway.address.parse().unwrap(), gateway.admin());
    let flooding = async {
        let up = async || get(admin, "/metrics").await.value("doorward_sessions", "") == 4.0;
        eventually("four sessions", up).await;
        let flood = Flood::start(address, |number| [127, 9, 0, u8::try_from(number % 200).unwrap() + 1]);
        flood.has_made(500).await;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Who looks after it finds it, with descriptors of its own.
            let page = get(admin, "/metrics").await;
            assert_eq!(page.value("doorward_sessions", ""), 4.0);
            assert_eq!(get(admin, "/healthz").await.status, 200);
        }
        flood.end().await;
    };
    let (report, ()) = tokio::join!(device_sim::run(plan), flooding);
    let report = report.unwrap();
    assert!(report.met, "{report}");
    assert_eq!((report.connections.sessions, report.messages.lost), (4, 0), "{report}");
    // When the flood is over, all is as before, for who was here and for who never was.
    desk.run("device add --count 2 --prefix new- --out new.jsonl").done();
    let new = device_sim::fleet::load(&desk.path("new.jsonl")).unwrap();
    let mut plan = Plan::new([devices, new].concat(), &gateway.url(), Scenario::Steady);
    (plan.rate, plan.duration) = (Some(40.0), Duration::from_secs(1));
    let report = device_sim::run(plan).await.unwrap();
    assert!(report.met, "{report}");
    let said = gateway.ended_by("TERM");
    assert!(said.contains("cannot accept; raise the limit of open files"), "{said}");
    assert!(said.matches("cannot accept").count() < 5, "once in a while is enough: {said}");
    assert!(!log().contains("cannot accept"));
}
