//! `gateway renew-cert`: a new certificate and key for this home's gateway.

use std::path::PathBuf;

use clap::Args;
use doorward_pki::Host;
use serde_json::json;

use super::failure::Outcome;
use super::{Shared, cas, init, issue, output};
use crate::clock;
use crate::own_certificate::Pair;

#[derive(Args, Debug)]
pub(super) struct RenewCert {
    /// A name or address that devices reach the gateway by [default: those of the certificate that it has]
    #[arg(long = "host", value_name = "NAME_OR_IP", value_parser = init::parse_host)]
    hosts: Vec<Host>,
    /// Into this folder, as gateway.crt and gateway.key: for a home on another host, which has no CA key
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl RenewCert {
    pub(super) fn run(&self, shared: &Shared) -> Outcome {
        let (home, config) = (shared.home(), shared.config()?);
        let _held = cas::share(&home)?;
        let authority = issue::authority(&home, "issuing", shared)?;
        let pair = match &self.out {
            Some(folder) => Pair::within(folder),
            None => Pair::of(&config.tls, &home),
        };
        let renewed = pair.renew(&home, &authority, &self.hosts)?;
        let hosts: Vec<String> = renewed.hosts.iter().map(Host::to_string).collect();
        let not_after = clock::rfc3339(renewed.not_after);
        let [certificate, key] = pair.files();
        if shared.json {
            return output::json(&json!({
                "certificate": certificate,
                "key": key,
                "hosts": hosts,
                "not_after": not_after,
            }));
        }
        output::say(format!(
            "{} is renewed, with a new key, until {not_after}, for {}; a gateway that runs takes it within some seconds",
            certificate.display(),
            hosts.join(", ")
        ));
        Ok(())
    }
}
