//! What the command line promises: names, exit codes, what is written and with which modes (the operators' contract).

mod audit;
mod bulk;
mod cert;
mod certificate;
mod clock;
mod config;
mod crl;
mod csr;
mod device;
mod event;
mod explain;
mod external_ca;
mod fleet;
mod gateway;
mod gateway_add;
mod handed;
mod help;
mod init;
mod lost;
mod message;
mod modes;
mod passphrase;
mod pki;
mod policy;
pub(crate) mod profiles;
mod receipt;
mod refusals;
mod renew_cert;
mod rewrap;
mod rollover;
mod rotation;
mod schema;
mod secrets;

/// What a command says of its act, apart from where that has taken effect.
fn without_receipt(mut value: serde_json::Value) -> serde_json::Value {
    value.as_object_mut().unwrap().remove("receipt");
    value
}

/// Runs each function with a fresh desk on a registry of each kind.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test] async fn $name() {
                let database = crate::support::database::Database::bare_sqlite().await;
                let desk = crate::support::command::Desk::on(&database);
                super::$name(database, desk).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test] async fn $name() {
                let database = crate::support::database::Database::bare_postgres().await;
                let desk = crate::support::command::Desk::on(&database);
                super::$name(database, desk).await;
            })*
        }
    };
}
pub(crate) use on_both;

/// The same, with devices that go on while a command is waited for.
macro_rules! on_both_threaded {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
                let database = crate::support::database::Database::bare_sqlite().await;
                let desk = crate::support::command::Desk::on(&database);
                super::$name(database, desk).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
                let database = crate::support::database::Database::bare_postgres().await;
                let desk = crate::support::command::Desk::on(&database);
                super::$name(database, desk).await;
            })*
        }
    };
}
pub(crate) use on_both_threaded;
