//! A pooler in transaction mode between a gateway and Postgres: it does not work, and says so in words that help.

use std::sync::Arc;
use std::time::Duration;

use doorward::registry::{Access, Registry, connect};
use doorward_pki::Fingerprint;

use crate::support::database::Database;
use crate::support::house::{eventually, log, start_log};
use crate::support::pooler::Pooler;

const ADVICE: &str = "let database.url name Postgres itself";
const LENIENT: &str = "ignore_startup_parameters = extra_float_digits,options";
const PATH: &str = "connect_query='SET search_path TO doorward,pg_temp'";

async fn behind(lines: &str, database: &str) -> (Database, Pooler, Arc<dyn Registry>) {
    let db = Database::postgres().await;
    let pooler = Pooler::before(&db, lines, database).await;
    let registry = connect(&pooler.url, Access::Existing).unwrap();
    (db, pooler, registry)
}

/// As it comes it refuses what a gateway asks for when it connects.
#[tokio::test]
async fn a_pooler_that_refuses_our_settings_is_named() {
    let (_db, _pooler, registry) = behind("", "").await;
    let words = registry.check_schema().await.unwrap_err().to_string();
    assert!(words.contains("unsupported startup parameter") && words.contains(ADVICE), "{words}");
}

/// Told to ignore them, it finds another schema.
#[tokio::test]
async fn a_pooler_that_drops_our_settings_is_named() {
    let (_db, _pooler, registry) = behind(LENIENT, "").await;
    let words = registry.check_schema().await.unwrap_err().to_string();
    assert!(words.contains("search_path") && words.contains(ADVICE), "{words}");
}

/// With the settings made otherwise, statements that one connection has prepared meet another.
#[tokio::test]
async fn a_pooler_that_mixes_up_statements_is_named() {
    let (_db, _pooler, registry) = behind(&format!("{LENIENT}\ndefault_pool_size = 1"), PATH).await;
    let fingerprint = Fingerprint::of(b"nobody's");
    let look_ups = || futures_util::future::join_all((0..8).map(|_| registry.look_up(&fingerprint)));
    let mut words = Vec::new();
    eventually("a mix-up", async || {
        words.extend(
            look_ups().await.into_iter().filter_map(|found| found.err().map(|error| error.to_string())),
        );
        !words.is_empty()
    })
    .await;
    assert!(
        words.iter().all(|words| words.contains("prepared statement") && words.contains(ADVICE)),
        "{words:?}"
    );
}

/// Even where everything else works: nobody else uses the pooler, so that each connection gets the session that listens.
#[tokio::test]
async fn a_pooler_that_hides_notifications_is_named() {
    start_log();
    let (_db, _pooler, registry) = behind(LENIENT, PATH).await;
    eventually("the pooler is found out", async || {
        registry.changed(Duration::from_millis(10)).await.unwrap();
        let log = log();
        let line = log.lines().find(|line| line.contains("the registry's notifications do not come"));
        line.inspect(|line| {
            assert!(line.contains("LISTEN does not work") && line.contains(ADVICE), "{line}");
            assert!(!line.contains("prepared statement"), "{line}");
        })
        .is_some()
    })
    .await;
}
