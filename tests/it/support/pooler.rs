//! PgBouncer between a gateway and its registry. Debian: `pgbouncer`.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use doorward::registry::DatabaseUrl;

use super::database::{Database, uid};
use super::house::eventually;

/// A pooler in transaction mode on a free port; it ends with this.
pub(crate) struct Pooler {
    child: Child,
    /// The registry by way of the pooler, as a gateway has it.
    pub(crate) url: DatabaseUrl,
    _folder: tempfile::TempDir,
}

impl Pooler {
    /// With lines for its section `[pgbouncer]`, and words for each database.
    pub(crate) async fn before(db: &Database, lines: &str, database: &str) -> Self {
        let url = db.url_as("gateway").to_string();
        let (front, name) = url.rsplit_once('/').unwrap();
        let (front, server) = front.rsplit_once(':').unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        let (ini, users) = (folder.path().join("pgbouncer.ini"), folder.path().join("users"));
        std::fs::write(&users, "\"t_gateway\" \"\"\n").unwrap();
        let text = format!(
            "[databases]\n{name} = host=127.0.0.1 port={server} {database}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n{lines}\n",
            users.display()
        );
        std::fs::write(&ini, text).unwrap();
        let mut command = Command::new("pgbouncer");
        command.arg(&ini).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if uid() == 0 {
            // Nobody: it refuses root.
            command.uid(65534).gid(65534);
        }
        let child =
            command.spawn().expect("pgbouncer is not installed; on Debian: apt-get install pgbouncer");
        let url = DatabaseUrl::parse(&format!("{front}:{port}/{name}")).unwrap();
        let pooler = Self { child, url, _folder: folder };
        eventually("the pooler", async || TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
        pooler
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
