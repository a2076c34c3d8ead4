//! The servers under measurement: each a process, on a core of its own where there are two.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::sync::oneshot;

/// The program as `cargo bench` has built it.
const DOORWARD: &str = env!("CARGO_BIN_EXE_doorward");
/// Linux counts a process's CPU time for `/proc` in these, whatever its own tick (proc(5), `USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
/// A server that does not listen by then does not come up.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// Whether servers and driver have cores of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// The servers on the first, the driver on the second.
    Apart,
    /// There is one core, or no `taskset`.
    Shared,
}

impl Cores {
    fn find() -> Self {
        let two = std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 2);
        let taskset = Command::new("taskset").arg("--version").output().is_ok();
        if two && taskset { Self::Apart } else { Self::Shared }
    }

    /// Puts this process on the driver's core; for a process that has one thread yet.
    fn take_the_drivers(self) -> Result<()> {
        if self == Self::Apart {
            let this = std::process::id().to_string();
            let output = Command::new("taskset").args(["-pc", "1", &this]).output()?;
            ensure!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Runs the driver on its core, on the one thread that it has there.
    pub(crate) fn drive(run: impl AsyncFnOnce(Self) -> Result<()>) -> Result<()> {
        let cores = Self::find();
        cores.take_the_drivers()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run(cores))
    }

    /// A load beside what is measured: on the driver's core, and in its way as little as can be.
    pub(crate) fn load(self, program: &Path) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]);
        if self == Self::Apart {
            command.args(["taskset", "-c", "1"]);
        }
        command.arg(program);
        command
    }

    fn command(self, program: &Path) -> Command {
        match self {
            Self::Shared => Command::new(program),
            Self::Apart => {
                let mut command = Command::new("taskset");
                command.args(["-c", "0"]).arg(program);
                command
            }
        }
    }
}

/// A process; dropped, it is killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running server.
pub(crate) struct Server {
    // Held for its drop.
    _running: Running,
    pid: u32,
    gateway: bool,
    /// Where devices connect to.
    pub(crate) url: String,
    /// Where a gateway's measures are to be had.
    pub(crate) metrics: Option<SocketAddr>,
}

/// The operator's program, unpinned, on a database or on the home's own.
pub(crate) fn doorward(home: &Path, database: Option<&str>) -> Command {
    let mut command = Command::new(DOORWARD);
    command.arg("--home").arg(home);
    on(&mut command, database);
    command
}

fn on(command: &mut Command, database: Option<&str>) {
    match database {
        Some(url) => command.env("DATABASE_URL", url),
        None => command.env_remove("DATABASE_URL"),
    };
}

/// A home as it is made for everybody.
pub(crate) fn init(home: &Path, database: Option<&str>) -> Result<()> {
    let output = doorward(home, database).arg("init").output()?;
    ensure!(output.status.success(), "init: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A home whose limits are out of the way: a device's rate is not what is measured, nor that of the one address that all
/// of them connect from.
pub(crate) fn prepare(home: &Path, database: Option<&str>) -> Result<()> {
    init(home, database)?;
    let file = home.join("config.toml");
    let mut config = std::fs::read_to_string(&file)?;
    for (default, wanted) in [
        ("rate_per_second = 100\n", "rate_per_second = 100000\n"),
        ("rate_burst = 1000\n", "rate_burst = 100000\n"),
        ("\nrate = 200\n", "\nrate = 1000000\n"),
        ("\nburst = 4000\n", "\nburst = 1000000\n"),
        ("\nhandshakes = 2000\n", "\nhandshakes = 100000\n"),
        ("\nnetwork_rate = 1000\n", "\nnetwork_rate = 1000000\n"),
        ("\nnetwork_burst = 20000\n", "\nnetwork_burst = 1000000\n"),
        ("\nnetwork_handshakes = 8000\n", "\nnetwork_handshakes = 100000\n"),
        ("bytes_per_second = 262144\n", "bytes_per_second = 1073741824\n"),
        ("bytes_burst = 4194304\n", "bytes_burst = 1073741824\n"),
        ("connects_per_minute = 30\n", "connects_per_minute = 1000000\n"),
    ] {
        ensure!(config.contains(default), "config.toml has no {default}");
        config = config.replace(default, wanted);
    }
    Ok(std::fs::write(file, config)?)
}

impl Server {
    pub(crate) async fn gateway(home: &Path, database: Option<&str>, cores: Cores) -> Result<Self> {
        let mut command = cores.command(Path::new(DOORWARD));
        command.arg("--home").arg(home).args(["gateway", "run", "--listen", "127.0.0.1:0"]);
        // Its log lines are part of its work, their reading is not.
        command.env("DOORWARD_LOG", "info");
        on(&mut command, database);
        Self::start(command, true).await
    }

    pub(crate) async fn bare(home: &Path, cores: Cores) -> Result<Self> {
        let mut command = cores.command(&std::env::current_exe()?);
        command.arg("--bare").arg(home);
        Self::start(command, false).await
    }

    async fn start(mut command: Command, gateway: bool) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut running = Running(child);
        let stderr = running.0.stderr.take().context("standard error")?;
        let (tell, told) = oneshot::channel();
        // A pipe that nobody reads would stop the server when it is full.
        std::thread::spawn(move || {
            let (mut tell, mut metrics) = (Some(tell), None);
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("/metrics are served by HTTP address=") {
                    metrics = address.trim().parse().ok();
                }
                if let Some(address) = line.strip_prefix("listening on ")
                    && let Some(tell) = tell.take()
                {
                    let _ = tell.send((address.to_owned(), metrics));
                }
            }
        });
        let told = tokio::time::timeout(UP_WITHIN, told).await.context("a server does not come up")?;
        let (address, metrics) = told.context("a server ended before it listened")?;
        let port = address.rsplit_once(':').context("a port")?.1;
        let url = format!("wss://localhost:{port}/v1/device");
        Ok(Self { pid: running.0.id(), _running: running, gateway, url, metrics })
    }

    pub(crate) fn is_gateway(&self) -> bool {
        self.gateway
    }

    /// CPU time so far, user and system, of all its threads, in µs.
    pub(crate) fn cpu_us(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The second field is a name in parentheses and may hold anything: what follows it is counted from its end.
        let fields = stat.rsplit_once(')').context("stat")?.1;
        let times: Vec<f64> =
            fields.split_whitespace().skip(11).take(2).map_while(|n| n.parse().ok()).collect();
        ensure!(times.len() == 2, "no CPU times in stat");
        Ok(times.iter().sum::<f64>() * 1e6 / TICKS_PER_SECOND)
    }

    pub(crate) fn resident_kib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }
}
