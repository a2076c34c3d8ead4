//! Making the schema, and refusing one that is not ours.

use doorward::registry::{Access, Done, RegistryError, SchemaError, connect};

use super::{add, certificate_of};
use crate::support::database::Database;

#[tokio::test]
async fn on_sqlite() {
    contract(Database::bare_sqlite().await).await;
}

#[tokio::test]
async fn on_postgres() {
    contract(Database::bare_postgres().await).await;
}

async fn contract(db: Database) {
    let registry = &db.registry;
    let missing = |error: &RegistryError| matches!(error, RegistryError::Schema(SchemaError::Missing));
    let error = registry.check_schema().await.unwrap_err();
    assert!(missing(&error), "{error:?}");
    let error = registry.look_up(&certificate_of("a").fingerprint).await.unwrap_err();
    assert!(missing(&error), "{error:?}");

    // Two at once: both end well, one of them has done it.
    let other = connect(&db.url, Access::Existing).unwrap();
    let (one, two) = tokio::join!(registry.migrate(), other.migrate());
    let done = [one.unwrap(), two.unwrap()];
    assert!(done.contains(&Done::Changed), "{done:?}");
    registry.check_schema().await.unwrap();
    add(registry, &["a"]).await;
    assert_eq!(registry.migrate().await.unwrap(), Done::Already);
    assert!(registry.look_up(&certificate_of("a").fingerprint).await.unwrap().is_some());

    db.execute("UPDATE _sqlx_migrations SET version = version - 100").await.unwrap();
    let error = registry.check_schema().await.unwrap_err();
    let RegistryError::Schema(SchemaError::Older { found, needed: newest }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(found, newest - 100);
    db.execute("UPDATE _sqlx_migrations SET version = version + 200").await.unwrap();
    for error in [registry.check_schema().await.unwrap_err(), registry.migrate().await.unwrap_err()] {
        assert!(
            matches!(error, RegistryError::Schema(SchemaError::Newer { found, needed }) if found == newest + 100 && needed == newest),
            "{error:?}"
        );
    }
}
