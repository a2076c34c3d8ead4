//! A whole gateway in this process: a home with its PKI, a registry, a socket on a free port.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use doorward::admin::Admin;
use doorward::config::{Config, Span};
use doorward::gateway::{Gateway, serve};
use doorward::home::{self, Home, PUBLIC, SECRET};
use doorward::registry::{NewCertificate, NewDevice, Registry, RegistryError};
use doorward::{clock, entropy};
use doorward_pki::{Authority, Fingerprint, Host, MasterKey, Serial, key_to_pem, profile};
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use doorward_proto::key::Key;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::database::Database;

/// The longest that anything awaited may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Awaits what must happen.
pub(crate) async fn within<T>(what: &str, happening: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, happening).await {
        Ok(value) => value,
        Err(_) => panic!("did not happen within {} s: {what}", PATIENCE.as_secs()),
    }
}

/// Asks again and again until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The same for what is slow by nature: a connection that says nothing is found out by its heartbeat.
pub(crate) async fn eventually_late(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(4 * PATIENCE, asking).await.is_ok(), "did not happen: {what}");
}

/// Times for a configuration.
pub(crate) fn seconds(seconds: u64) -> Span {
    Span(Duration::from_secs(seconds))
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// From here on the log is kept. A house does it.
pub(crate) fn start_log() {
    static START: Once = Once::new();
    START.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::new("doorward=debug");
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| Log).init();
    });
}

/// What the gateways of this process have logged so far.
pub(crate) fn log() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// Forgets what was logged so far: where memory is measured, the test's own log is not meant.
pub(crate) fn forget_log() {
    drop(std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner)));
}

/// A running gateway.
pub(crate) struct House {
    pub(crate) db: Database,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) address: SocketAddr,
    pub(crate) root: Authority,
    pub(crate) issuing: Authority,
    config: Config,
    registry: Arc<dyn Registry>,
    home: Home,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), RegistryError>>,
    _folder: tempfile::TempDir,
}

/// What a device has.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) id: DeviceId,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) hmac: [u8; 32],
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { key: self.key.clone_key(), chain: self.chain.clone(), id: self.id.clone(), ..*self }
    }
}

impl Credentials {
    pub(crate) fn signer(&self) -> Key {
        Key::new(KeyVersion::FIRST, &self.hmac)
    }
}

impl House {
    /// On SQLite, as configured by default.
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// On SQLite.
    pub(crate) async fn with(edit: impl FnOnce(&mut Config)) -> Self {
        Self::on(Database::sqlite().await, edit).await
    }

    /// On a database.
    pub(crate) async fn on(db: Database, edit: impl FnOnce(&mut Config)) -> Self {
        let registry = db.for_gateway();
        Self::behind(db, registry, edit).await
    }

    /// On a database that the gateway reaches by another way than the test.
    pub(crate) async fn behind(
        db: Database,
        registry: Arc<dyn Registry>,
        edit: impl FnOnce(&mut Config),
    ) -> Self {
        start_log();
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path());
        let (root, issuing) = make_pki(&home);
        let mut config = Config::default();
        config.gateway.drain = seconds(5);
        edit(&mut config);
        let config = Config::parse(&toml::to_string(&config).unwrap(), &home.config()).unwrap();
        std::fs::write(home.config(), toml::to_string(&config).unwrap()).unwrap();
        let (gateway, address, stop, serving) = open(&config, &home, &registry).await;
        Self { db, gateway, address, root, issuing, config, registry, home, stop, serving, _folder: folder }
    }

    /// Changes the home's configuration; the gateway goes by it when it reads it again.
    pub(crate) fn write_config(&self, edit: impl FnOnce(&mut Config)) {
        let mut config = self.config.clone();
        edit(&mut config);
        std::fs::write(self.home.config(), toml::to_string(&config).unwrap()).unwrap();
    }

    /// A file of the home.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// A certificate for the gateway and its key, both PEM.
    pub(crate) fn server_pair(&self, lifetime: time::Duration) -> (String, String) {
        let key = entropy::key_pair().unwrap();
        let hosts = ["localhost".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let leaf = self.issuing.issue_gateway("localhost", &hosts, &key, serial(), clock::utc(), lifetime);
        (format!("{}{}", leaf.unwrap().pem(), self.issuing.certificate_pem()), key_to_pem(&key).to_string())
    }

    /// The registry as the gateway has it.
    pub(crate) fn registry(&self) -> &Arc<dyn Registry> {
        &self.registry
    }

    /// An admin listener for this house's gateway, on a free port; it stays as long as the test.
    pub(crate) async fn admin(&self) -> SocketAddr {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::start(any, CancellationToken::new()).await;
        admin.show(&self.gateway);
        admin.address().unwrap()
    }

    /// Ends the gateway as SIGTERM does.
    pub(crate) fn shut_down(&self) {
        self.stop.cancel();
    }

    /// Waits for an end that is a failure.
    pub(crate) async fn failed(&mut self) -> RegistryError {
        within("the end of serve", &mut self.serving).await.unwrap().unwrap_err()
    }

    /// Waits for the end of the drain.
    pub(crate) async fn ended(&mut self) {
        within("the end of serve", &mut self.serving).await.unwrap().unwrap();
    }

    /// The same home's gateway goes on as another one of a house's: its registry, its CAs, its master key.
    pub(crate) async fn joins(&mut self, house: &House, name: &str) {
        self.shut_down();
        self.ended().await;
        for file in ["issuing.crt", "gateway.crt", "gateway.key", "master.key"] {
            let path = self.home.pki(file);
            std::fs::remove_file(&path).unwrap();
            std::fs::copy(house.home.pki(file), &path).unwrap();
        }
        self.root = Authority::load(&house.root.certificate_pem(), &house.root.key_pem()).unwrap();
        self.registry = Arc::clone(&house.registry);
        name.clone_into(&mut self.config.gateway.name);
        (self.gateway, self.address, self.stop, self.serving) =
            open(&self.config, &self.home, &self.registry).await;
    }

    /// Another run of the gateway on the same home and registry.
    pub(crate) async fn restart(&mut self) {
        self.shut_down();
        self.ended().await;
        self.reopen().await;
    }

    /// Ends the gateway as a kill does: nothing that it does at its end is done.
    pub(crate) async fn kill(&mut self) {
        self.serving.abort();
        assert!((&mut self.serving).await.unwrap_err().is_cancelled());
    }

    /// The next run, after the last one has ended.
    pub(crate) async fn reopen(&mut self) {
        (self.gateway, self.address, self.stop, self.serving) =
            open(&self.config, &self.home, &self.registry).await;
    }

    /// Why the next run does not start, by what the home's configuration says now.
    pub(crate) async fn start_error(&self) -> String {
        let config = Config::load(&self.home).unwrap();
        let master = MasterKey::parse(&home::read_secret(&self.home.pki("master.key")).unwrap()).unwrap();
        let started = Gateway::new(config, self.home.clone(), Arc::clone(&self.registry), master).await;
        started.err().expect("it starts").to_string()
    }

    /// What the gateway keeps of its registry.
    pub(crate) fn copy(&self) -> std::path::PathBuf {
        self.home.state().join("records.db")
    }

    /// A device of the default fleet, registered as `device add` does it.
    pub(crate) async fn add_device(&self, id: &str) -> Credentials {
        let credentials = self.certify(id, |_| {});
        self.record(id, "default", &credentials).await;
        credentials
    }

    /// Credentials that nobody has recorded, their certificate altered.
    pub(crate) fn certify(&self, id: &str, alter: impl FnOnce(&mut CertificateParams)) -> Credentials {
        certify(&self.issuing, id, alter)
    }

    /// Records credentials as a device's, whatever their certificate says.
    pub(crate) async fn record(&self, id: &str, fleet: &str, credentials: &Credentials) {
        let id = DeviceId::new(id).unwrap();
        let master = MasterKey::parse(&home::read_secret(&self.home.pki("master.key")).unwrap()).unwrap();
        let device = NewDevice {
            fleet: FleetId::new(fleet).unwrap(),
            certificate: self.row_of(credentials),
            sealed_key: master.seal(&id, KeyVersion::FIRST, &credentials.hmac, entropy::random().unwrap()),
            id,
        };
        self.db.registry.add_devices(&[device]).await.unwrap();
    }

    /// A certificate as the registry keeps it.
    pub(crate) fn row_of(&self, credentials: &Credentials) -> NewCertificate {
        let leaf = &credentials.chain[0];
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
        NewCertificate {
            fingerprint: Fingerprint::of(leaf),
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            issuer: self.issuing.key_id().to_owned(),
            der: leaf.to_vec(),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
        }
    }

    /// A key as the registry keeps it.
    pub(crate) fn seal(&self, id: &DeviceId, version: KeyVersion, bytes: &[u8; 32]) -> Vec<u8> {
        let master = MasterKey::parse(&home::read_secret(&self.home.pki("master.key")).unwrap()).unwrap();
        master.seal(id, version, bytes, entropy::random().unwrap())
    }

    /// Gives a device another key version in a state.
    pub(crate) async fn add_key(&self, id: &DeviceId, version: u32, state: &str) -> (Key, [u8; 32]) {
        let bytes: [u8; 32] = entropy::random().unwrap();
        let version: KeyVersion = version.to_string().parse().unwrap();
        let sealed = self.seal(id, version, &bytes);
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        let blob = match &self.db.sql {
            super::database::Sql::Sqlite(_) => format!("x'{hex}'"),
            super::database::Sql::Postgres(_) => format!("'\\x{hex}'"),
        };
        let sql = format!(
            "INSERT INTO hmac_keys (device, version, sealed, state) VALUES ('{id}', {version}, {blob}, '{state}')"
        );
        self.db.execute(&sql).await.unwrap();
        (Key::new(version, &bytes), bytes)
    }

    /// Waits until everything committed so far has been applied by every gateway, and all of it has taken effect.
    pub(crate) async fn followed(&self) {
        let registry = &self.db.registry;
        let fleet = FleetId::new("default").unwrap();
        let policy = registry.fleet(&fleet).await.unwrap().unwrap().policy;
        // What changes nothing is said again.
        let acted = registry.set_policy(&fleet, &policy).await.unwrap();
        eventually("a confirmation", async || {
            let gateways = registry.gateways(Some(acted.mark)).await.unwrap();
            !gateways.is_empty() && gateways.iter().all(|gateway| gateway.confirmed)
        })
        .await;
    }

    /// The data of all stored messages, in the order of storing.
    pub(crate) async fn stored(&self) -> Vec<(String, String)> {
        let all = doorward::registry::MessageFilter { limit: 100_000, ..Default::default() };
        let found = self.db.registry.messages(&all).await.unwrap();
        found.into_iter().map(|message| (message.id.to_string(), message.data)).collect()
    }

    /// How many messages with an id are stored.
    pub(crate) async fn stored_as(&self, id: &str) -> usize {
        self.stored().await.iter().filter(|(stored, _)| stored == id).count()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

type Running = (Arc<Gateway>, SocketAddr, CancellationToken, JoinHandle<Result<(), RegistryError>>);

async fn open(config: &Config, home: &Home, registry: &Arc<dyn Registry>) -> Running {
    let master = MasterKey::parse(&home::read_secret(&home.pki("master.key")).unwrap()).unwrap();
    let gateway = Gateway::new(config.clone(), home.clone(), Arc::clone(registry), master).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(Arc::clone(&gateway), listener, stop.clone()));
    (gateway, address, stop, serving)
}

pub(crate) fn serial() -> Serial {
    Serial::from_random(entropy::random().unwrap())
}

/// A root and the issuing CA of a name below it. A house's own is called `Test issuing CA`.
pub(crate) fn authorities(issuing: &str) -> (Authority, Authority) {
    let now = clock::utc();
    let root = Authority::root("Test root CA", entropy::key_pair().unwrap(), serial(), now).unwrap();
    let issuing = root.issuing(issuing, entropy::key_pair().unwrap(), serial(), now).unwrap();
    (root, issuing)
}

fn make_pki(home: &Home) -> (Authority, Authority) {
    home::make_folder(&home.path().join("pki")).unwrap();
    home::make_folder(&home.state()).unwrap();
    let (root, issuing) = authorities("Test issuing CA");
    let key = entropy::key_pair().unwrap();
    let hosts: Vec<Host> = ["localhost", "127.0.0.1"].map(|host| host.parse().unwrap()).into();
    let lifetime = profile::GATEWAY.lifetime;
    let leaf = issuing.issue_gateway("localhost", &hosts, &key, serial(), clock::utc(), lifetime).unwrap();
    let master = MasterKey::from_bytes(entropy::random().unwrap()).to_file();
    for (name, text, mode) in [
        ("root.crt", root.certificate_pem(), PUBLIC),
        ("issuing.crt", issuing.certificate_pem(), PUBLIC),
        ("gateway.crt", format!("{}{}", leaf.pem(), issuing.certificate_pem()), PUBLIC),
        ("gateway.key", key_to_pem(&key).to_string(), SECRET),
        ("master.key", master.to_string(), SECRET),
    ] {
        home::write_new(&home.pki(name), &text, mode).unwrap();
    }
    (root, issuing)
}

/// Credentials whose certificate is a device's but for what `alter` does to it.
pub(crate) fn certify(
    authority: &Authority,
    id: &str,
    alter: impl FnOnce(&mut CertificateParams),
) -> Credentials {
    let key = entropy::key_pair().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, id);
    params.serial_number = Some(serial().as_bytes().to_vec().into());
    (params.not_before, params.not_after) = (from_now(-300), from_now(365 * 86_400));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    alter(&mut params);
    let signer = KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate_pem(), signer).unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    Credentials {
        // A stranger's name need be no id.
        id: DeviceId::new(id).unwrap_or_else(|_| DeviceId::new("stranger").unwrap()),
        chain: vec![leaf.der().clone(), authority.certificate_der().to_vec().into()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        hmac: entropy::random().unwrap(),
    }
}

/// A time for a certificate or a row, in seconds from now.
pub(crate) fn from_now(seconds: i64) -> OffsetDateTime {
    clock::utc() + time::Duration::seconds(seconds)
}

/// A time as both databases read it.
pub(crate) fn stamp(time: OffsetDateTime) -> String {
    let form = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    time.format(form).unwrap()
}
