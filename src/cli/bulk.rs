//! `device add --count`: many devices into one file, a line a device.
//!
//! A batch's lines are written and synced first, then its devices commit together. A run that is cut short leaves
//! `FILE.part`; a repeat reads it, commits what stands there and was not recorded, and goes on. `FILE` itself appears
//! when all is done.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use doorward_pki::bundle::{BulkLine, PrivateKeyPem};
use doorward_pki::{Fingerprint, Leaf};
use doorward_proto::ids::{DeviceId, FleetId};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::OFlags;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::device::{self, Add};
use super::failure::{Failure, Outcome};
use super::issue::{Credentials, Issuer};
use super::issuer::{self, Stamps};
use super::{Shared, cas, output};
use crate::home::{self, SECRET};
use crate::registry::{NewCertificate, NewDevice, Registry, RegistryError};

/// Devices of one transaction.
const BATCH: usize = 500;
/// A line is about 3 KiB; one of this length is not ours.
const MAX_LINE: usize = 64 << 10;

/// Neither another's file by a link, nor a wait for whoever opens the other end of a pipe.
fn own_file() -> i32 {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    flags.bits().cast_signed()
}

/// One run, begun now or earlier.
struct Run<'a> {
    add: &'a Add,
    ids: Vec<DeviceId>,
    file: PathBuf,
    registry: &'a dyn Registry,
    maker: Arc<Maker>,
}

/// What makes credentials, on a thread of its own.
struct Maker {
    shared: Shared,
    /// As it was when it was last read.
    issuer: Mutex<Option<(Stamps, Arc<Issuer>)>>,
    fleet: FleetId,
    lifetime: time::Duration,
}

/// The lines of a batch for the file, its rows for the registry, and what keeps their CA until they are committed.
type Made = (Zeroizing<String>, Vec<NewDevice>, File);

pub(super) async fn run(args: &Add, shared: &Shared) -> Outcome {
    let made = add(args, shared).await?;
    let (Some(count), Some(file)) = (args.count, &args.out) else { return Ok(()) };
    if shared.json {
        return output::json(&json!({ "file": file, "devices": count, "added": made }));
    }
    let words = match made {
        0 => "were there already".to_owned(),
        made if made == count as usize => "are registered".to_owned(),
        made => format!("are registered, {made} of them by this run"),
    };
    output::say(format!("{count} devices {words}; their credentials are in {}", file.display()));
    Ok(())
}

/// Adds the devices; how many were not there before.
pub(super) async fn add(add: &Add, shared: &Shared) -> Result<usize, Failure> {
    let (Some(count), Some(prefix), Some(file)) = (add.count, &add.prefix, &add.out) else {
        return Err(Failure::usage("--count needs --prefix and --out"));
    };
    let id = |n: u32| {
        let id = format!("{prefix}{n:06}");
        DeviceId::new(&id).map_err(|error| Failure::usage(format!("'{id}' cannot be a device: {error}")))
    };
    let ids: Vec<DeviceId> = (1..=count).map(id).collect::<Result<_, _>>()?;
    let registry = shared.registry().await?;
    device::check_fleet(&*registry, &add.fleet).await?;
    let maker = Maker {
        shared: shared.clone(),
        issuer: Mutex::default(),
        fleet: add.fleet.clone(),
        lifetime: add.lifetime(),
    };
    // What it cannot sign by is said before a file is begun.
    maker.issuer()?;
    let run = Run { add, ids, file: file.clone(), registry: &*registry, maker: Arc::new(maker) };
    run.go().await
}

impl Maker {
    /// What signs now, which may be replaced between two batches, and a lock that keeps it.
    fn issuer(&self) -> Result<(Arc<Issuer>, File), Failure> {
        let home = self.shared.home();
        let held = cas::share(&home)?;
        let stamps = issuer::stamps(&home);
        let mut known = self.issuer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, issuer)) = &*known
            && *of == stamps
        {
            return Ok((Arc::clone(issuer), held));
        }
        let issuer = Arc::new(Issuer::read(&self.shared)?);
        *known = Some((stamps, Arc::clone(&issuer)));
        Ok((issuer, held))
    }

    /// Credentials for some devices.
    fn make(&self, ids: &[DeviceId]) -> Result<Made, Failure> {
        let (issuer, held) = self.issuer()?;
        let mut text = Zeroizing::new(String::with_capacity(ids.len() * 4096));
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            let issued = issuer.issue(id, &self.fleet, self.lifetime)?;
            let Credentials { record, file, chain, private_key, .. } = issued;
            let private_key = private_key.ok_or_else(|| Failure::new("no private key was made"))?;
            let line = BulkLine::new(file, chain, PrivateKeyPem::new(private_key), issuer.ca.clone());
            text.push_str(&line.to_line()?);
            records.push(record);
        }
        Ok((text, records, held))
    }
}

impl Run<'_> {
    /// How many devices this run has added.
    async fn go(&self) -> Result<usize, Failure> {
        if self.file.exists() {
            return self.go_through_finished().await;
        }
        let part = self.part();
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(SECRET)
            .custom_flags(own_file())
            .open(&part)
            .map_err(|error| self.failed(&part, &error))?;
        self.refuse_strange(&file, &part)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(format!("another run is writing {}", part.display()))
                    .next("wait for it to end"));
            }
            Err(TryLockError::Error(error)) => return Err(self.failed(&part, &error)),
        }
        // The lock may be one on a file that another run has just given its final name.
        let same =
            |of: &File| Ok::<_, std::io::Error>(of.metadata()?.ino() == std::fs::metadata(&part)?.ino());
        if self.file.exists() || !same(&file).unwrap_or(false) {
            return Err(Failure::new(format!(
                "another run was writing {} and has just ended",
                part.display()
            ))
            .next("repeat the command"));
        }
        // Made by somebody else it may be open to all; and its name must outlast a power cut, as its lines do.
        file.set_permissions(Permissions::from_mode(SECRET))
            .and_then(|()| home::sync_folder(&part))
            .map_err(|error| self.failed(&part, &error))?;
        let copy = file.try_clone().map_err(|error| self.failed(&part, &error))?;
        let (lines, whole) = self.read(copy, &part)?;
        // The last line, where it was cut short, was never committed.
        file.set_len(whole)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(|error| self.failed(&part, &error))?;
        let begun = lines.len();
        let checked = self.refuse_taken(self.ids.get(begun..).unwrap_or_default()).await;
        if checked.is_err() && begun == 0 {
            // Nothing was begun: no file is left behind to wonder about.
            let _ = std::fs::remove_file(&part);
        }
        checked?;
        let mut added = self.commit_missing(lines).await?;
        let mut done = begun;

        let bar = ProgressBar::new(self.ids.len() as u64).with_position(begun as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} devices  {per_sec}  {eta}") {
            bar.set_style(style);
        }
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut batches = self.ids.get(begun..).unwrap_or_default().chunks(BATCH);
        let mut made = self.make(batches.next());
        while let Some((lines, records, held)) = made.await? {
            // Between batches alone: a batch is written and committed whole.
            if futures_util::poll!(interrupt.as_mut()).is_ready() {
                bar.abandon();
                return Err(Failure::new(format!(
                    "interrupted after {done} of {} devices, each of them whole",
                    self.ids.len()
                ))
                .next("repeat the command to go on where it stopped"));
            }
            file.write_all(lines.as_bytes())
                .and_then(|()| file.sync_data())
                .map_err(|error| self.failed(&part, &error))?;
            // While this batch commits the next one is made: keys cost the processor, a commit the disk.
            made = self.make(batches.next());
            self.registry.add_devices(&records).await.map_err(stopped)?;
            drop(held);
            added += records.len();
            done += records.len();
            bar.inc(records.len() as u64);
        }
        bar.finish_and_clear();
        home::rename(&part, &self.file)?;
        Ok(added)
    }

    /// Begins to make a batch at once; what is returned waits for it.
    fn make(
        &self,
        batch: Option<&[DeviceId]>,
    ) -> impl Future<Output = Result<Option<Made>, Failure>> + use<> {
        let making = batch.map(|ids| {
            let (maker, ids) = (Arc::clone(&self.maker), ids.to_vec());
            tokio::task::spawn_blocking(move || maker.make(&ids))
        });
        async move {
            match making {
                None => Ok(None),
                Some(making) => match making.await {
                    Ok(made) => made.map(Some),
                    Err(error) => Err(Failure::new(format!("credentials could not be made: {error}"))),
                },
            }
        }
    }

    /// `FILE` is there: whatever of it the registry lacks is added.
    async fn go_through_finished(&self) -> Result<usize, Failure> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(own_file()).open(&self.file);
        let file = opened.map_err(|error| self.failed(&self.file, &error))?;
        self.refuse_strange(&file, &self.file)?;
        // As it was made; somebody may have opened it to all since.
        file.set_permissions(Permissions::from_mode(SECRET))
            .map_err(|error| self.failed(&self.file, &error))?;
        let length = file.metadata().map_err(|error| self.failed(&self.file, &error))?.len();
        let (lines, whole) = self.read(file, &self.file)?;
        if lines.len() != self.ids.len() || whole != length {
            return Err(self.another(&self.file, &format!("it has {} devices", lines.len())));
        }
        self.commit_missing(lines).await
    }

    /// Keys are written into a file of our own alone: in a folder that others may write to, somebody may have put another
    /// thing under its name.
    fn refuse_strange(&self, file: &File, path: &Path) -> Outcome {
        let metadata = file.metadata().map_err(|error| self.failed(path, &error))?;
        if !metadata.is_file() {
            return Err(Failure::new(format!("{} is no regular file", path.display()))
                .next("name another file with --out"));
        }
        let why = if metadata.uid() != rustix::process::geteuid().as_raw() {
            "it belongs to somebody else"
        } else {
            return Ok(());
        };
        Err(Failure::refused(format!("{}: {why}; no key is written into it", path.display()))
            .next("remove it, or name another file with --out"))
    }

    fn part(&self) -> PathBuf {
        let mut name = self.file.clone().into_os_string();
        name.push(".part");
        name.into()
    }

    /// The devices of a file, which must be the first of this run's, and how long its whole lines are together.
    fn read(&self, file: File, path: &Path) -> Result<(Vec<NewDevice>, u64), Failure> {
        let (issuer, _) = self.maker.issuer()?;
        let mut reader = BufReader::new(file);
        let mut devices = Vec::new();
        let mut whole = 0;
        loop {
            let mut line = Zeroizing::new(String::with_capacity(4096));
            let read = std::io::Read::take(&mut reader, MAX_LINE as u64).read_line(&mut line);
            match read {
                Ok(0) => return Ok((devices, whole)),
                Ok(_) if !line.ends_with('\n') => {
                    if self.may_begin(&line, devices.len()) {
                        return Ok((devices, whole));
                    }
                    return Err(self.another(path, &format!("line {} is no device", devices.len() + 1)));
                }
                Ok(read) => whole += read as u64,
                Err(error) => return Err(self.failed(path, &error)),
            }
            let line: BulkLine = serde_json::from_str(&line).map_err(|error| {
                self.another(path, &format!("line {} is no device: {error}", devices.len() + 1))
            })?;
            match self.ids.get(devices.len()) {
                Some(id) if *id == line.device && line.fleet == self.add.fleet => {}
                _ => {
                    return Err(
                        self.another(path, &format!("it holds '{}' of fleet '{}'", line.device, line.fleet))
                    );
                }
            }
            devices.push(self.record(&line, path, &issuer)?);
        }
    }

    /// Whether a text is the beginning of this run's line at a place, as a run that was killed leaves it; a power cut
    /// can leave zeros in place of what had not reached the disk. Anything else is somebody else's and is not cut off.
    fn may_begin(&self, text: &str, place: usize) -> bool {
        let Some(id) = self.ids.get(place) else { return false };
        let beginning = format!("{{\"device\":\"{id}\",");
        let text = text.trim_end_matches('\0');
        text.len() < MAX_LINE && (text.starts_with(&beginning) || beginning.starts_with(text))
    }

    /// The registry's rows of a device, from its line.
    fn record(&self, line: &BulkLine, path: &Path, issuer: &Issuer) -> Result<NewDevice, Failure> {
        let broken =
            |why: String| self.another(path, &format!("the certificate of '{}': {why}", line.device));
        let der =
            CertificateDer::from_pem_slice(line.certificate.as_bytes()).map_err(|e| broken(e.to_string()))?;
        let leaf = Leaf::parse(&der).map_err(|error| broken(error.to_string()))?;
        let time =
            |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| broken(error.to_string()));
        // By the one that signs now, or the one that did when the run was cut short.
        let trusted = leaf.issuer_key_id().filter(|key_id| issuer.trusts(key_id));
        let Some(signer) = trusted else {
            return Err(broken("it is signed by another CA than this home's".to_owned()));
        };
        Ok(NewDevice {
            id: line.device.clone(),
            fleet: line.fleet.clone(),
            certificate: NewCertificate {
                fingerprint: Fingerprint::of(&der),
                serial: leaf.serial().to_owned(),
                issuer: signer.to_owned(),
                not_before: time(leaf.not_before())?,
                not_after: time(leaf.not_after())?,
                der: der.to_vec(),
            },
            sealed_key: issuer.seal(&line.device, line.key.hmac.as_bytes())?,
        })
    }

    /// Commits those devices of a file that are not in the registry yet.
    async fn commit_missing(&self, devices: Vec<NewDevice>) -> Result<usize, Failure> {
        let mut added = 0;
        for batch in devices.chunks(BATCH) {
            let ids: Vec<DeviceId> = batch.iter().map(|device| device.id.clone()).collect();
            let known: HashMap<String, Vec<Fingerprint>> = self
                .registry
                .known(&ids)
                .await?
                .into_iter()
                .map(|(id, certificates)| (id.as_str().to_ascii_lowercase(), certificates))
                .collect();
            let mut missing = Vec::new();
            for device in batch {
                match known.get(&device.id.as_str().to_ascii_lowercase()) {
                    None => missing.push(device.clone()),
                    Some(certificates) if certificates.contains(&device.certificate.fingerprint) => {}
                    Some(_) => return Err(taken(&device.id)),
                }
            }
            if !missing.is_empty() {
                // A CA may have gone since the lines were read.
                let (issuer, _held) = self.maker.issuer()?;
                if let Some(gone) = missing.iter().find(|device| !issuer.trusts(&device.certificate.issuer)) {
                    return Err(Failure::refused(format!(
                        "the certificate of '{}' is signed by CA {}, which is trusted no more",
                        gone.id, gone.certificate.issuer
                    ))
                    .next("move the file away and repeat the command; what was added stands"));
                }
                self.registry.add_devices(&missing).await.map_err(stopped)?;
                added += missing.len();
            }
        }
        Ok(added)
    }

    /// Refuses before anything is made where an id is somebody else's.
    async fn refuse_taken(&self, ids: &[DeviceId]) -> Outcome {
        for batch in ids.chunks(BATCH) {
            if let Some((id, _)) = self.registry.known(batch).await?.first() {
                return Err(taken(id));
            }
        }
        Ok(())
    }

    fn failed(&self, path: &Path, error: &std::io::Error) -> Failure {
        Failure::new(format!("cannot use {}: {error}", path.display()))
    }

    fn another(&self, path: &Path, why: &str) -> Failure {
        Failure::refused(format!("{} is not of this run: {why}", path.display()))
            .next("repeat the command that began it, or name another file with --out")
    }
}

fn stopped(error: RegistryError) -> Failure {
    let failure = Failure::from(error);
    if failure.is_refusal() {
        return failure;
    }
    failure.next("what was added stands; repeat the command to go on where it stopped")
}

fn taken(id: &DeviceId) -> Failure {
    Failure::refused(format!("the device '{id}' exists already, and not from this run"))
        .next("choose another --prefix; nothing was added for it")
}
