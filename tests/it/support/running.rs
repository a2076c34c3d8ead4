//! `gateway run` as a process of its own, as a service manager has it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::Duration;

use super::command::{Desk, Ran, signal};

/// A gateway's process; one that a test leaves behind is killed.
pub(crate) struct Running {
    child: Option<Child>,
    pub(crate) address: String,
    /// What it said before it listened.
    pub(crate) said: String,
    rest: mpsc::Receiver<String>,
}

impl Running {
    /// On a free port of 127.0.0.1; in Postgres as a gateway's login role.
    pub(crate) fn start(desk: &Desk) -> Self {
        Self::spawn(&mut desk.gateway_command("gateway run --listen 127.0.0.1:0"))
    }

    /// By a command that ends up as `gateway run`.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended: {said}");
            if let Some(address) = line.trim().strip_prefix("listening on ") {
                break address.to_owned();
            }
            said.push_str(&line);
        };
        let (sender, rest) = mpsc::channel();
        // A pipe that nobody reads would stop the gateway when it is full.
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = lines.read_to_string(&mut text);
            let _ = sender.send(text);
        });
        Self { child: Some(child), address, said, rest }
    }

    /// Where devices connect to.
    pub(crate) fn url(&self) -> String {
        let (_, port) = self.address.rsplit_once(':').unwrap();
        format!("wss://localhost:{port}/v1/device")
    }

    /// Where its operator asks.
    pub(crate) fn admin(&self) -> std::net::SocketAddr {
        let line = self.said.lines().find(|line| line.contains("/metrics"));
        let address = line.and_then(|line| line.split("address=").nth(1)?.split(' ').next()?.parse().ok());
        address.unwrap_or_else(|| panic!("no admin listener: {}", self.said))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Its arguments, as everybody on the host may read them.
    pub(crate) fn arguments(&self) -> Vec<u8> {
        let child = self.child.as_ref().unwrap();
        std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.as_ref().unwrap(), name);
    }

    /// Ends it by a signal that it drains at; what it has said since it listened, on standard error.
    pub(crate) fn ended_by(mut self, name: &str) -> String {
        self.signal(name);
        let ended = Ran::ended(self.child.take().unwrap()).done();
        assert_eq!(ended.out, "");
        self.rest.recv().unwrap()
    }

    /// Waits for an end that is a failure; what it has said.
    pub(crate) fn ends_by_itself(mut self, within: Duration) -> String {
        let said = self.rest.recv_timeout(within).expect("it goes on");
        let ended = Ran::ended(self.child.take().unwrap());
        assert_ne!(ended.code, Some(0), "{said}");
        said
    }

    /// Ends it at once, in the midst of whatever it does.
    pub(crate) fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
