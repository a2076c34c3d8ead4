//! The registry in Postgres: everything in the schema `doorward`.

mod admission;
mod audit;
mod certificates;
mod crl;
mod custody;
mod devices;
mod error;
mod events;
mod feed;
mod fleets;
mod gateways;
mod insight;
mod keys;
mod quarantine;
mod renewals;
mod roles;
mod rotations;
mod rows;
mod schema;
mod store;
mod wake;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use async_trait::async_trait;
use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use time::OffsetDateTime;

use super::audit::os_user;
use super::shared::{Phase, within};
use super::{
    Act, Acted, Applied, AuditFilter, AuditHead, AuditRow, Batch, CertificateFilter, CertificateRecord,
    ChangeText, DeviceDetail, DeviceFilter, DeviceSummary, Done, Enrolment, EventFilter, Fate, Fleet,
    GatewayStatus, IssuerUse, Mark, MessageFilter, NewCertificate, NewCrl, NewDevice, NewKey, News,
    NumberedCrl, OPERATOR_DEADLINE, Position, Presence, QUERY_DEADLINE, Records, Registry, Renewal, Result,
    RevokedCertificate, RevokedCertificates, RevokedFilter, Rotations, StoredEvent, StoredMessage,
};

/// Where every name is looked up: nobody else's table or function stands before ours.
const SEARCH_PATH: &str = "doorward,pg_temp";
const GATEWAY_CONNECTIONS: u32 = 8;
const OPERATOR_CONNECTIONS: u32 = 4;
/// How long a connection may take to be made, or to show that it lives. Less than [`QUERY_DEADLINE`]: so that a pool
/// learns that its connections hang before its callers give up.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// A registry in Postgres.
#[derive(Debug)]
pub struct Postgres {
    /// For what a device waits for.
    gateway: PgPool,
    /// For what a person waits for. Apart, so that a long list never takes a gateway's last connection.
    operator: PgPool,
    wake: wake::Wake,
    /// Who acts, as operators' transactions claim.
    actor: String,
    place: String,
}

impl Postgres {
    /// A registry that connects when it is first asked; `place` is what it is called without a password.
    #[must_use]
    pub fn new(options: &PgConnectOptions, place: String) -> Self {
        let pool = |deadline: Duration, connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(CONNECT_WITHIN)
                .connect_lazy_with(session(options, deadline))
        };
        let gateway = pool(QUERY_DEADLINE, GATEWAY_CONNECTIONS);
        Self {
            wake: wake::Wake::new(session(options, QUERY_DEADLINE), gateway.clone()),
            gateway,
            operator: pool(OPERATOR_DEADLINE, OPERATOR_CONNECTIONS),
            actor: os_user(),
            place,
        }
    }

    async fn gateway(&self) -> Result<Held> {
        Held::from(&self.gateway).await
    }

    async fn operator(&self) -> Result<Held> {
        Held::from(&self.operator).await
    }
}

/// The server gives up when the caller does: else a statement that waits for a lock would outlive its deadline, and a
/// transaction whose caller is gone without a word would keep its locks from the caller's next try.
fn session(options: &PgConnectOptions, deadline: Duration) -> PgConnectOptions {
    let statement = deadline.as_millis().to_string();
    let lock = (deadline * 4 / 5).as_millis().to_string();
    let options = match options.get_application_name() {
        Some(_) => options.clone(),
        None => options.clone().application_name("doorward"),
    };
    options.options([
        ("search_path", SEARCH_PATH),
        ("statement_timeout", statement.as_str()),
        ("lock_timeout", lock.as_str()),
        ("idle_in_transaction_session_timeout", statement.as_str()),
    ])
}

/// A connection that is closed unless [`Held::release`] gives it back: one whose deadline passed may be half-open, and
/// would keep the next caller waiting too.
struct Held {
    connection: PoolConnection<sqlx::Postgres>,
    sound: bool,
}

impl Held {
    async fn from(pool: &PgPool) -> Result<Self> {
        match pool.acquire().await {
            Ok(connection) => Ok(Self { connection, sound: false }),
            Err(failed) => {
                // One that hangs is seldom alone: a firewall that has forgotten it has forgotten its neighbours. Waiting for
                // each in its turn would be an outage that goes on when the network is back.
                if matches!(failed, sqlx::Error::PoolTimedOut) {
                    while let Some(mut idle) = pool.try_acquire() {
                        idle.close_on_drop();
                    }
                }
                Err(error::read(failed))
            }
        }
    }

    fn release(mut self) {
        self.sound = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.sound {
            self.connection.close_on_drop();
            return;
        }
        // The driver asks once more whether the connection answers, and would wait for that as long as TCP does: a
        // quarter of an hour without its place in the pool.
        let returned = tokio::time::timeout(CONNECT_WITHIN, self.connection.return_to_pool());
        tokio::spawn(returned);
    }
}

impl Deref for Held {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

#[async_trait]
impl Registry for Postgres {
    fn place(&self) -> &str {
        &self.place
    }

    async fn migrate(&self) -> Result<Done> {
        within(OPERATOR_DEADLINE, schema::migrate(self)).await
    }

    async fn check_schema(&self) -> Result<()> {
        within(QUERY_DEADLINE, schema::check(self)).await
    }

    async fn excess_rights(&self) -> Result<Option<String>> {
        within(QUERY_DEADLINE, roles::excess(self)).await
    }

    async fn look_up_all(&self, certificates: &[Fingerprint]) -> Result<Records> {
        within(QUERY_DEADLINE, admission::look_up(self, certificates)).await
    }

    async fn position(&self) -> Result<Position> {
        Ok(within(QUERY_DEADLINE, feed::end(self)).await?.0)
    }

    async fn read_changes(&self, position: &mut Position) -> Result<News> {
        within(QUERY_DEADLINE, feed::read(self, position)).await
    }

    async fn changed(&self, patience: Duration) -> Result<()> {
        self.wake.next(patience).await;
        Ok(())
    }

    async fn write(&self, batch: &Batch) -> Result<Vec<Fate>> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, store::write(self, &phase, batch)).await
    }

    async fn enrol(&self, gateway: &Enrolment) -> Result<()> {
        within(QUERY_DEADLINE, gateways::enrol(self, gateway)).await
    }

    async fn report(&self, name: &str, instance: &str, applied: &Applied) -> Result<bool> {
        within(QUERY_DEADLINE, gateways::report(self, name, instance, applied)).await
    }

    async fn sign_off(&self, name: &str, instance: &str) -> Result<()> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, gateways::sign_off(self, &phase, name, instance)).await
    }

    async fn remove_gateway(&self, name: &str) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, gateways::remove(self, &phase, name)).await
    }

    async fn gateways(&self, mark: Option<Mark>) -> Result<Vec<GatewayStatus>> {
        within(OPERATOR_DEADLINE, gateways::list(self, mark)).await
    }

    async fn forget_sessions(&self, gateway: &str) -> Result<u64> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, store::forget_sessions(self, &phase, gateway)).await
    }

    async fn prune_messages(&self, before: OffsetDateTime, limit: u32) -> Result<u64> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, store::prune_messages(self, &phase, before, limit)).await
    }

    async fn prune_history(&self, before: OffsetDateTime, limit: u32) -> Result<u64> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, store::prune_history(self, &phase, before, limit)).await
    }

    async fn add_fleet(&self, id: &FleetId, policy: &str) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, fleets::add(self, &phase, id, policy)).await
    }

    async fn fleets(&self) -> Result<Vec<Fleet>> {
        within(OPERATOR_DEADLINE, fleets::read(self, None)).await
    }

    async fn fleet(&self, id: &FleetId) -> Result<Option<Fleet>> {
        Ok(within(OPERATOR_DEADLINE, fleets::read(self, Some(id))).await?.pop())
    }

    async fn set_policy(&self, id: &FleetId, policy: &str) -> Result<Acted> {
        let phase = Phase::default();
        phase
            .within(
                OPERATOR_DEADLINE,
                fleets::set(self, &phase, id, fleets::Part::Policy, &|_| Ok(policy.to_owned())),
            )
            .await
    }

    async fn change_limits(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, fleets::set(self, &phase, id, fleets::Part::Limits, change)).await
    }

    async fn change_schemas(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, fleets::set(self, &phase, id, fleets::Part::Schemas, change)).await
    }

    async fn add_devices(&self, devices: &[NewDevice]) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, devices::add(self, &phase, devices)).await
    }

    async fn known(&self, ids: &[DeviceId]) -> Result<Vec<(DeviceId, Vec<Fingerprint>)>> {
        within(OPERATOR_DEADLINE, devices::known(self, ids)).await
    }

    async fn devices(&self, filter: &DeviceFilter) -> Result<Vec<DeviceSummary>> {
        within(OPERATOR_DEADLINE, devices::list(self, filter)).await
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDetail>> {
        within(OPERATOR_DEADLINE, devices::detail(self, id)).await
    }

    async fn set_status(&self, id: &DeviceId, act: Act, reason: Option<&str>) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, devices::set_status(self, &phase, id, act, reason)).await
    }

    async fn certificates(&self, filter: &CertificateFilter) -> Result<Vec<(DeviceId, CertificateRecord)>> {
        within(OPERATOR_DEADLINE, certificates::list(self, filter)).await
    }

    async fn issuers(&self, late: Duration) -> Result<Vec<IssuerUse>> {
        within(OPERATOR_DEADLINE, certificates::issuers(self, late)).await
    }

    async fn revoke_certificate(
        &self,
        certificate: &Fingerprint,
        reason: &str,
        only: bool,
    ) -> Result<RevokedCertificates> {
        let phase = Phase::default();
        let fingerprint = certificate.to_string();
        phase.within(OPERATOR_DEADLINE, certificates::revoke(self, &phase, &fingerprint, reason, only)).await
    }

    async fn number_crl(&self, crl: &NewCrl) -> Result<NumberedCrl> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, crl::number(self, &phase, crl)).await
    }

    async fn revoked(&self, filter: &RevokedFilter) -> Result<Vec<RevokedCertificate>> {
        within(OPERATOR_DEADLINE, crl::revoked(self, filter)).await
    }

    async fn add_certificate(
        &self,
        id: &DeviceId,
        certificate: &NewCertificate,
        renewal: &Renewal,
    ) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, certificates::add(self, &phase, id, certificate, renewal)).await
    }

    async fn add_key(&self, id: &DeviceId, key: &NewKey) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, keys::add(self, &phase, id, key)).await
    }

    fn rotations(&self) -> &dyn Rotations {
        self
    }

    async fn kick(&self, id: &DeviceId) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, devices::kick(self, &phase, id)).await
    }

    async fn sessions(&self, fresh: OffsetDateTime) -> Result<Vec<Presence>> {
        within(OPERATOR_DEADLINE, devices::sessions(self, fresh)).await
    }

    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
        within(OPERATOR_DEADLINE, audit::rows(self, filter)).await
    }

    async fn audit_head(&self) -> Result<AuditHead> {
        within(OPERATOR_DEADLINE, audit::head(self)).await
    }

    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<StoredMessage>> {
        within(OPERATOR_DEADLINE, store::messages(self, filter)).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Vec<StoredEvent>> {
        within(OPERATOR_DEADLINE, events::list(self, filter)).await
    }
}
