//! `gateway add`: a home for a gateway on another host. It can let devices in; it can sign nothing.

use std::path::{Path, PathBuf};

use clap::Args;
use doorward_pki::authority::HostError;
use doorward_pki::{Host, Serial, key_to_pem, profile};
use serde_json::json;
use zeroize::Zeroizing;

use super::super::failure::{Failure, Outcome};
use super::super::{Shared, cas, issue, output};
use crate::config::{Config, DEFAULT_TEXT};
use crate::home::{self, FileError, Home, PUBLIC, SECRET};
use crate::registry::DatabaseUrl;
use crate::{clock, entropy};

#[derive(Args, Debug)]
pub(in super::super) struct Add {
    /// Its name, which no other gateway of the registry has
    name: String,
    /// A name or address that devices reach it by; the first one stands in its URL
    #[arg(long = "host", value_name = "NAME_OR_IP", required = true, value_parser = parse_host)]
    hosts: Vec<Host>,
    /// The folder to make: the home, to be copied to the other host
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn parse_host(text: &str) -> Result<Host, HostError> {
    text.parse()
}

impl Add {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let url = shared.database_url(&shared.config()?)?;
        if url.path().is_some() {
            return Err(Failure::refused(format!(
                "the registry at {url} is a file of this host, which a gateway on another one cannot reach"
            ))
            .next("name a Postgres registry with --database, or in database.url of this home"));
        }
        if shared.config()?.gateway.name == self.name {
            return Err(Failure::refused(format!(
                "'{}' is the name of this home's own gateway (gateway.name); each has a name of its own",
                output::plain(&self.name)
            ))
            .next("take another name"));
        }
        if std::fs::symlink_metadata(&self.out).is_ok() {
            return Err(
                Failure::from(FileError::Exists(self.out.clone())).next("name another folder with --out")
            );
        }
        let text = self.config_text(&url)?;
        let registry = shared.registry().await?;
        let taken = registry.gateways(None).await?;
        if taken.iter().any(|gateway| gateway.name == self.name) {
            return Err(Failure::refused(format!(
                "there is a gateway '{}' already; each has a name of its own",
                output::plain(&self.name)
            ))
            .next("take another name, or forget one that is gone for good with 'doorward gateway remove'"));
        }
        let ends = self.write(shared, &text)?;
        if shared.json {
            return output::json(&json!({
                "gateway": self.name, "home": self.out, "certificate_expires": output::time(ends),
            }));
        }
        output::say(format!(
            "the home of gateway '{}' is in {}; its certificate ends on {}\n\
             look over its config.toml: it has the defaults, and not what you have changed in this home's (limits, other CAs, \
             revocation lists); database.url has no password and no path of this host, and wants a login role of its own with \
             the rights of doorward_gateway alone\n\
             then move it to its host, remove what stays here, and run 'doorward gateway run --home DIR' there",
            output::plain(&self.name),
            self.out.display(),
            output::time(ends),
        ));
        Ok(())
    }

    /// The default configuration, with what is this gateway's own.
    fn config_text(&self, database: &DatabaseUrl) -> Result<String, Failure> {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let host = match self.hosts.first() {
            Some(Host::Ip(std::net::IpAddr::V6(address))) => format!("[{address}]"),
            Some(host) => host.to_string(),
            None => return Err(Failure::usage("a gateway needs at least one --host")),
        };
        let mut text = DEFAULT_TEXT.to_owned();
        for (default, own) in [
            ("name = \"gateway-1\"", format!("name = {}", quoted(&self.name))),
            ("wss://localhost:8443/", format!("wss://{host}:8443/")),
            ("\nurl = \"\"", format!("\nurl = {}", quoted(&database.to_string()))),
            // Devices of a CA that this gateway has not heard of come with its certificate, which the root has signed.
            ("[\"pki/issuing.crt\"]", "[\"pki/issuing.crt\", \"pki/root.crt\"]".to_owned()),
        ] {
            text = text.replacen(default, &own, 1);
        }
        // What it would not start with is not written.
        let config = Config::parse(&text, Path::new("config.toml"))
            .map_err(|error| Failure::usage(error.to_string()))?;
        debug_assert_eq!(
            (config.gateway.name.as_str(), config.tls.device_cas.len()),
            (self.name.as_str(), 2)
        );
        Ok(text)
    }

    /// Makes the folder whole or not at all; when its certificate ends.
    fn write(&self, shared: &Shared, config: &str) -> Result<time::OffsetDateTime, Failure> {
        let ours = shared.home();
        let _held = cas::share(&ours)?;
        let issuing = issue::authority(&ours, "issuing", shared)?;
        let mut key = entropy::key_pair()?;
        let name = self.hosts.first().map(Host::to_string).unwrap_or_default();
        let (serial, lifetime) = (Serial::from_random(entropy::random()?), profile::GATEWAY.lifetime);
        let leaf = issuing.issue_gateway(&name, &self.hosts, &key, serial, clock::utc(), lifetime)?;
        let private_key = key_to_pem(&key);
        zeroize::Zeroize::zeroize(&mut key);
        let public = |text: String| (Zeroizing::new(text), PUBLIC);
        let files = [
            ("gateway.crt", public(format!("{}{}", leaf.pem(), issuing.certificate_pem()))),
            ("gateway.key", (private_key, SECRET)),
            ("issuing.crt", public(home::read(&ours.pki("issuing.crt"))?)),
            ("root.crt", public(home::read(&ours.pki("root.crt"))?)),
        ];
        // Both, where one is about to take the other's place.
        let master = shared.master_keys()?.to_files().into_iter().map(|(name, text)| (name, (text, SECRET)));
        let files: Vec<_> = files.into_iter().chain(master).collect();
        let parent = self.out.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        home::make_folder(parent)?;
        let mut unfinished = self.out.clone().into_os_string();
        unfinished.push(".unfinished");
        let unfinished = Home::new(PathBuf::from(unfinished));
        // What a run that was killed has left: keys that nobody else has seen, of no use to anybody but a thief.
        match std::fs::remove_dir_all(unfinished.path()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                let path = unfinished.path().to_owned();
                return Err(FileError::Io { act: "remove", path, source }.into());
            }
            _ => {}
        }
        let write = || -> Outcome {
            home::make_folder(&unfinished.path().join("pki"))?;
            home::write_new(&unfinished.config(), config, PUBLIC)?;
            for (name, (text, mode)) in &files {
                home::write_new(&unfinished.pki(name), text, *mode)?;
            }
            home::rename(unfinished.path(), &self.out)?;
            Ok(())
        };
        let written = write();
        if written.is_err() {
            let _ = std::fs::remove_dir_all(unfinished.path());
        }
        written.map(|()| leaf.not_after)
    }
}
