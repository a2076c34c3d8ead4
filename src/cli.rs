//! The command line: what operators say and what they are told. Words and progress go to standard error, results to
//! standard output.

mod audit;
mod bulk;
mod bundle;
mod ca_lock;
mod campaign;
mod cas;
mod cert;
mod completions;
mod config;
mod crl;
mod custody;
mod demo;
mod device;
mod event;
mod explain;
mod failure;
mod fleet;
mod follow;
mod gateway;
mod init;
mod issue;
mod issuer;
mod log;
mod message;
mod output;
mod pki;
mod policy;
mod receipt;
mod renew_cert;
mod rewrap;
mod rotate;
mod rotation;
mod session;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::home::{self, Home};
use crate::registry::{self, Access, DatabaseUrl, Registry};

use failure::{Failure, Outcome};

#[derive(Parser, Debug)]
#[command(name = "doorward", version, about, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Example:\n  doorward init\n  doorward device add press-7\n  doorward gateway run")]
struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Debug, Clone)]
struct Shared {
    /// The home: configuration, keys and local state
    #[arg(long, global = true, env = "DOORWARD_HOME", default_value = "./doorward-home", value_name = "DIR")]
    home: PathBuf,
    /// The registry: sqlite://PATH or postgres://USER@HOST/DATABASE [default: database.url of the configuration,
    /// else HOME/registry.db]
    #[arg(long, global = true, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database: Option<String>,
    /// One JSON value on standard output
    #[arg(long, global = true)]
    json: bool,
    /// The passphrase of the CA keys, in the first line of a file; the systemd credential doorward-ca-passphrase or the
    /// variable DOORWARD_CA_PASSPHRASE may hold it instead
    #[arg(long, global = true, env = "DOORWARD_PASSPHRASE_FILE", value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Secrets that the process was handed are not this command's
    #[arg(skip)]
    own_secrets: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a home: PKI, configuration and registry; repeating it changes nothing
    Init(init::Init),
    /// Show the whole path in a temporary home, and print what happened
    Demo(demo::Demo),
    /// Run the gateway
    #[command(subcommand)]
    Gateway(gateway::Gateway),
    /// Sign what devices ask for in their sessions
    #[command(subcommand)]
    Issuer(issuer::Issuer),
    /// Groups of devices that share a policy
    #[command(subcommand)]
    Fleet(fleet::Fleet),
    /// What a device may do
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Devices and their credentials
    #[command(subcommand)]
    Device(Box<device::Device>),
    /// Why a device can or cannot connect and publish now, and what mends it
    Explain(explain::Explain),
    /// Certificates of devices
    #[command(subcommand)]
    Cert(cert::Cert),
    /// The CAs and the master key of the home: move the root away, replace the issuing CA or the master key
    #[command(subcommand)]
    Pki(pki::Pki),
    /// New credentials for whole fleets, in waves
    #[command(subcommand)]
    Rotation(rotation::RotationCommand),
    /// Who is connected
    #[command(subcommand)]
    Session(session::Session),
    /// What was stored
    #[command(subcommand)]
    Message(message::Message),
    /// What has been refused, and other things that a security officer reads
    #[command(subcommand)]
    Event(event::Event),
    /// Who did what when
    #[command(subcommand)]
    Audit(audit::Audit),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  doorward completions bash > /etc/bash_completion.d/doorward")]
    Completions(completions::Completions),
    /// Write the manual pages into a folder
    #[command(after_help = "Example:\n  doorward man /usr/local/share/man/man1")]
    Man(completions::Man),
}

/// Tasks that a thread runs before it looks whether a socket has something: who has just sent waits for no more of those who
/// have much to say. Tokio's 61 are made for tasks that take microseconds.
const LOOKS_EVERY: u32 = 4;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(LOOKS_EVERY).build() {
            Ok(runtime) => runtime,
            Err(error) => return Failure::new(format!("cannot start: {error}")).report(),
        };
    let outcome = runtime.block_on(run(cli));
    // A thread that is still busy with the file system does not keep the command from ending.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(cli: Cli) -> Outcome {
    let Cli { shared, command } = cli;
    home::sweep(&shared.home());
    match command {
        Command::Init(init) => init.run(&shared).await,
        Command::Demo(demo) => demo.run(&shared).await,
        Command::Gateway(gateway) => gateway.run(&shared).await,
        Command::Issuer(issuer) => issuer.run(&shared).await,
        Command::Fleet(fleet) => fleet.run(&shared).await,
        Command::Policy(policy) => policy.run(&shared).await,
        Command::Device(device) => device.run(&shared).await,
        Command::Explain(explain) => explain.run(&shared).await,
        Command::Cert(cert) => cert.run(&shared).await,
        Command::Pki(pki) => pki.run(&shared).await,
        Command::Rotation(rotation) => rotation.run(&shared).await,
        Command::Session(session) => session.run(&shared).await,
        Command::Message(message) => message.run(&shared).await,
        Command::Event(event) => event.run(&shared).await,
        Command::Audit(audit) => audit.run(&shared).await,
        Command::Config(config) => config.run(&shared),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    }
}

impl Shared {
    fn home(&self) -> Home {
        Home::new(&self.home)
    }

    /// The configuration of the home. Without a file it is the default where a registry is named, for then a command
    /// needs nothing else of the home.
    fn config(&self) -> Result<Config, Failure> {
        let home = self.home();
        if !home.config().exists() {
            if self.database().is_some() {
                return Ok(Config::default());
            }
            return Err(Failure::new(format!("there is no home at {}", self.home.display()))
                .next("make one with 'doorward init', or name another with --home or DOORWARD_HOME"));
        }
        Ok(Config::load(&home)?)
    }

    /// What the option or the environment says of the registry. An empty variable says nothing.
    fn database(&self) -> Option<&str> {
        self.database.as_deref().filter(|url| !url.is_empty())
    }

    /// Which registry: the option or the environment, else the configuration, else SQLite in the home.
    fn database_url(&self, config: &Config) -> Result<DatabaseUrl, Failure> {
        if let Some(url) = self.database() {
            return Ok(DatabaseUrl::parse(url)?);
        }
        match config.database.url.as_str() {
            "" => Ok(DatabaseUrl::file(&self.home().database())),
            url => DatabaseUrl::parse(url).map_err(|error| {
                Failure::new(format!("{}: database.url: {error}", self.home().config().display()))
            }),
        }
    }

    /// The registry, which must have this version's schema.
    async fn registry(&self) -> Result<Arc<dyn Registry>, Failure> {
        let url = self.database_url(&self.config()?)?;
        let opened = match registry::connect(&url, Access::Existing) {
            Ok(registry) => registry.check_schema().await.map(|()| registry),
            Err(error) => Err(error),
        };
        opened.map_err(|error| Failure::registry_at(&url, error))
    }
}
