//! A registry that a test can hold up, make fail and watch; everything else it hands on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use doorward::config::Config;

use doorward::registry::custody::{Custody, Holder, KeyRow, MasterKeyUse, Resealed};
use doorward::registry::insight::{Insight, Insights};
use doorward::registry::quarantine::Quarantine;
use doorward::registry::renewals::{
    Decision, NewRequest, Renewals, RequestSummary, Requested, Shown, WaitingRequest,
};
use doorward::registry::{
    Act, Acted, Applied, AuditFilter, AuditHead, AuditRow, Batch, CertificateFilter, CertificateRecord,
    ChangeText, DeviceDetail, DeviceFilter, DeviceSummary, Done, Enrolment, EventFilter, Fate, Fleet,
    GatewayStatus, IssuerUse, Mark, MessageFilter, NewCertificate, NewCrl, NewDevice, NewKey, News,
    NumberedCrl, Position, Presence, Records, Registry, RegistryError, Renewal, Result, RevokedCertificate,
    RevokedCertificates, RevokedFilter, Rotations, StoredEvent, StoredMessage,
};
use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::support::database::Database;
use crate::support::house::{House, eventually};

/// A place where calls wait while it is closed.
pub(super) struct Gate {
    closed: watch::Sender<bool>,
    waiting: AtomicUsize,
}

impl Gate {
    fn new() -> Self {
        Self { closed: watch::Sender::new(false), waiting: AtomicUsize::new(0) }
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(super) fn open(&self) {
        self.closed.send_replace(false);
    }

    /// Waits until somebody waits.
    pub(super) async fn reached(&self) {
        eventually("a call that is held up", async || self.waiting.load(Ordering::SeqCst) > 0).await;
    }

    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _ = self.closed.subscribe().wait_for(|closed| !closed).await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How writing fails.
#[derive(Clone, Copy)]
pub(super) enum Failure {
    /// Nothing has happened.
    Unavailable,
    /// The commit happens, and its answer is lost.
    UnknownAfterCommit,
    /// Nothing has happened, and nobody knows.
    Unknown,
}

pub(super) struct Hooked {
    inner: Arc<dyn Registry>,
    /// Nothing answers.
    pub(super) away: AtomicBool,
    /// Look-ups wait here with their answer in hand: it may be old by the time they pass.
    pub(super) look_ups: Gate,
    pub(super) fail_look_ups: AtomicBool,
    /// How many certificates each look-up asked for.
    pub(super) look_up_sizes: Mutex<Vec<usize>>,
    /// The feed does not answer.
    pub(super) fail_changes: AtomicBool,
    /// The gateway may not write its own row.
    pub(super) fail_reports: AtomicBool,
    /// Whoever follows the feed dies of it.
    pub(super) panic_in_changes: AtomicBool,
    /// Writes wait here before they begin.
    pub(super) writes: Gate,
    pub(super) fail_writes: Mutex<Option<Failure>>,
    /// Messages of each batch that was written.
    pub(super) batches: Mutex<Vec<usize>>,
    /// What each pruning of messages asked for and did.
    pub(super) prunings: Mutex<Vec<(u32, u64)>>,
}

impl Hooked {
    /// How many messages the store has been given so far, whatever it made of them.
    pub(super) fn messages_written(&self) -> usize {
        self.batches.lock().unwrap().iter().sum()
    }
}

/// A house on SQLite whose gateway goes through a hooked registry.
pub(super) async fn house(edit: impl FnOnce(&mut Config)) -> (House, Arc<Hooked>) {
    house_on(Database::sqlite().await, edit).await
}

pub(super) async fn house_on(db: Database, edit: impl FnOnce(&mut Config)) -> (House, Arc<Hooked>) {
    let hooked = Arc::new(Hooked {
        inner: db.for_gateway(),
        away: AtomicBool::new(false),
        look_ups: Gate::new(),
        fail_look_ups: AtomicBool::new(false),
        look_up_sizes: Mutex::new(Vec::new()),
        fail_changes: AtomicBool::new(false),
        fail_reports: AtomicBool::new(false),
        panic_in_changes: AtomicBool::new(false),
        writes: Gate::new(),
        fail_writes: Mutex::new(None),
        batches: Mutex::new(Vec::new()),
        prunings: Mutex::new(Vec::new()),
    });
    let registry: Arc<dyn Registry> = Arc::clone(&hooked) as _;
    (House::behind(db, registry, edit).await, hooked)
}

impl Hooked {
    /// What is asked for while it is away.
    fn asked(&self) -> Result<&dyn Registry> {
        if self.away.load(Ordering::SeqCst) {
            return Err(RegistryError::Unavailable("the test says so".to_owned()));
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl Registry for Hooked {
    fn place(&self) -> &str {
        self.inner.place()
    }

    async fn look_up_all(&self, certificates: &[Fingerprint]) -> Result<Records> {
        self.look_up_sizes.lock().unwrap().push(certificates.len());
        let records = match self.asked() {
            Ok(inner) => inner.look_up_all(certificates).await,
            Err(error) => Err(error),
        };
        self.look_ups.pass().await;
        if self.fail_look_ups.load(Ordering::SeqCst) {
            return Err(RegistryError::Unavailable("the test says so".to_owned()));
        }
        records
    }

    async fn write(&self, batch: &Batch) -> Result<Vec<Fate>> {
        self.writes.pass().await;
        let failure = *self.fail_writes.lock().unwrap();
        match failure {
            None => {}
            Some(Failure::Unavailable) => {
                return Err(RegistryError::Unavailable("the test says so".to_owned()));
            }
            Some(Failure::Unknown) => {
                return Err(RegistryError::Unknown("the test says so".to_owned()));
            }
            Some(Failure::UnknownAfterCommit) => {
                self.asked()?.write(batch).await?;
                return Err(RegistryError::Unknown("the test says so".to_owned()));
            }
        }
        let fates = self.asked()?.write(batch).await?;
        self.batches.lock().unwrap().push(batch.messages.len());
        Ok(fates)
    }

    async fn prune_messages(&self, before: OffsetDateTime, limit: u32) -> Result<u64> {
        let deleted = self.asked()?.prune_messages(before, limit).await?;
        self.prunings.lock().unwrap().push((limit, deleted));
        Ok(deleted)
    }

    async fn migrate(&self) -> Result<Done> {
        self.asked()?.migrate().await
    }
    async fn check_schema(&self) -> Result<()> {
        self.asked()?.check_schema().await
    }
    async fn position(&self) -> Result<Position> {
        self.asked()?.position().await
    }
    async fn read_changes(&self, position: &mut Position) -> Result<News> {
        assert!(!self.panic_in_changes.load(Ordering::SeqCst), "the test says so");
        if self.fail_changes.load(Ordering::SeqCst) {
            return Err(RegistryError::Unavailable("the test says so".to_owned()));
        }
        self.asked()?.read_changes(position).await
    }
    async fn changed(&self, patience: Duration) -> Result<()> {
        self.asked()?.changed(patience).await
    }
    async fn enrol(&self, gateway: &Enrolment) -> Result<()> {
        if self.fail_reports.load(Ordering::SeqCst) {
            return Err(RegistryError::Forbidden("the test says so".to_owned()));
        }
        self.asked()?.enrol(gateway).await
    }
    async fn report(&self, name: &str, instance: &str, applied: &Applied) -> Result<bool> {
        if self.fail_reports.load(Ordering::SeqCst) {
            return Err(RegistryError::Forbidden("the test says so".to_owned()));
        }
        self.asked()?.report(name, instance, applied).await
    }
    async fn sign_off(&self, name: &str, instance: &str) -> Result<()> {
        self.asked()?.sign_off(name, instance).await
    }
    async fn remove_gateway(&self, name: &str) -> Result<()> {
        self.asked()?.remove_gateway(name).await
    }
    async fn gateways(&self, mark: Option<Mark>) -> Result<Vec<GatewayStatus>> {
        self.asked()?.gateways(mark).await
    }
    async fn forget_sessions(&self, gateway: &str) -> Result<u64> {
        self.asked()?.forget_sessions(gateway).await
    }
    async fn prune_history(&self, before: OffsetDateTime, limit: u32) -> Result<u64> {
        self.asked()?.prune_history(before, limit).await
    }
    async fn add_fleet(&self, id: &FleetId, policy: &str) -> Result<()> {
        self.asked()?.add_fleet(id, policy).await
    }
    async fn fleets(&self) -> Result<Vec<Fleet>> {
        self.asked()?.fleets().await
    }
    async fn fleet(&self, id: &FleetId) -> Result<Option<Fleet>> {
        self.asked()?.fleet(id).await
    }
    async fn set_policy(&self, id: &FleetId, policy: &str) -> Result<Acted> {
        self.asked()?.set_policy(id, policy).await
    }
    async fn change_schemas(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted> {
        self.asked()?.change_schemas(id, change).await
    }
    async fn change_limits(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted> {
        self.asked()?.change_limits(id, change).await
    }
    async fn add_devices(&self, devices: &[NewDevice]) -> Result<()> {
        self.asked()?.add_devices(devices).await
    }
    async fn known(&self, ids: &[DeviceId]) -> Result<Vec<(DeviceId, Vec<Fingerprint>)>> {
        self.asked()?.known(ids).await
    }
    async fn devices(&self, filter: &DeviceFilter) -> Result<Vec<DeviceSummary>> {
        self.asked()?.devices(filter).await
    }
    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDetail>> {
        self.asked()?.device(id).await
    }
    async fn set_status(&self, id: &DeviceId, act: Act, reason: Option<&str>) -> Result<Acted> {
        self.asked()?.set_status(id, act, reason).await
    }
    async fn certificates(&self, filter: &CertificateFilter) -> Result<Vec<(DeviceId, CertificateRecord)>> {
        self.asked()?.certificates(filter).await
    }
    async fn issuers(&self, late: Duration) -> Result<Vec<IssuerUse>> {
        self.asked()?.issuers(late).await
    }
    async fn revoke_certificate(
        &self,
        certificate: &Fingerprint,
        reason: &str,
        only: bool,
    ) -> Result<RevokedCertificates> {
        self.asked()?.revoke_certificate(certificate, reason, only).await
    }
    async fn number_crl(&self, crl: &NewCrl) -> Result<NumberedCrl> {
        self.asked()?.number_crl(crl).await
    }
    async fn revoked(&self, filter: &RevokedFilter) -> Result<Vec<RevokedCertificate>> {
        self.asked()?.revoked(filter).await
    }

    async fn add_certificate(
        &self,
        id: &DeviceId,
        certificate: &NewCertificate,
        renewal: &Renewal,
    ) -> Result<Acted> {
        self.asked()?.add_certificate(id, certificate, renewal).await
    }
    async fn add_key(&self, id: &DeviceId, key: &NewKey) -> Result<Acted> {
        self.asked()?.add_key(id, key).await
    }
    fn rotations(&self) -> &dyn Rotations {
        self.inner.rotations()
    }
    async fn kick(&self, id: &DeviceId) -> Result<Acted> {
        self.asked()?.kick(id).await
    }
    async fn sessions(&self, fresh: OffsetDateTime) -> Result<Vec<Presence>> {
        self.asked()?.sessions(fresh).await
    }
    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<StoredMessage>> {
        self.asked()?.messages(filter).await
    }
    async fn events(&self, filter: &EventFilter) -> Result<Vec<StoredEvent>> {
        self.asked()?.events(filter).await
    }
    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
        self.asked()?.audit(filter).await
    }
    async fn audit_head(&self) -> Result<AuditHead> {
        self.asked()?.audit_head().await
    }
    async fn excess_rights(&self) -> Result<Option<String>> {
        self.asked()?.excess_rights().await
    }
}

#[async_trait]
impl Renewals for Hooked {
    async fn confirm(&self, shown: &[(DeviceId, Shown)]) -> Result<Vec<Result<bool, String>>> {
        self.asked()?.confirm(shown).await
    }

    async fn request_renewals(&self, requests: &[NewRequest]) -> Result<Vec<Requested>> {
        self.asked()?.request_renewals(requests).await
    }

    async fn requested(&self, ids: &[i64]) -> Result<HashMap<i64, Requested>> {
        self.asked()?.requested(ids).await
    }

    async fn waiting_requests(&self, limit: u32) -> Result<Vec<WaitingRequest>> {
        self.asked()?.waiting_requests(limit).await
    }

    async fn requests(
        &self,
        device: Option<&DeviceId>,
        waiting: bool,
        limit: u32,
    ) -> Result<Vec<RequestSummary>> {
        self.asked()?.requests(device, waiting, limit).await
    }

    async fn may_issue(&self) -> Result<bool> {
        self.asked()?.may_issue().await
    }

    async fn decide_requests(&self, decisions: &[(i64, Decision)]) -> Result<Vec<Option<String>>> {
        self.asked()?.decide_requests(decisions).await
    }
}

#[async_trait]
impl Custody for Hooked {
    async fn note_master_keys(&self, name: &str, instance: &str, ids: &[String]) -> Result<bool> {
        self.asked()?.note_master_keys(name, instance, ids).await
    }
    async fn master_key_holders(&self) -> Result<Vec<Holder>> {
        self.asked()?.master_key_holders().await
    }
    async fn master_keys(&self) -> Result<MasterKeyUse> {
        self.asked()?.master_keys().await
    }
    async fn begin_rewrap(&self, next: &str) -> Result<Option<String>> {
        self.asked()?.begin_rewrap(next).await
    }
    async fn not_sealed_by(
        &self,
        id: &str,
        after: Option<&(DeviceId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<KeyRow>> {
        self.asked()?.not_sealed_by(id, after, limit).await
    }
    async fn reseal(&self, keys: &[Resealed]) -> Result<u64> {
        self.asked()?.reseal(keys).await
    }
    async fn finish_rewrap(&self, old: &str, next: &str, most: u64) -> Result<u64> {
        self.asked()?.finish_rewrap(old, next, most).await
    }
}

#[async_trait]
impl Quarantine for Hooked {
    async fn quarantine(
        &self,
        id: &DeviceId,
        gateway: &str,
        reason: &str,
        lasts: Option<Duration>,
    ) -> Result<bool> {
        self.asked()?.quarantine(id, gateway, reason, lasts).await
    }
    async fn end_quarantines(&self) -> Result<u64> {
        self.asked()?.end_quarantines().await
    }
}

#[async_trait]
impl Insights for Hooked {
    async fn insight(&self, device: &DeviceId, fleet: &FleetId) -> Result<Insight> {
        self.asked()?.insight(device, fleet).await
    }
}
