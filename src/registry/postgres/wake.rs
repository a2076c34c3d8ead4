//! The wake-up: a connection of its own that listens for `NOTIFY doorward`.
//!
//! It may be lost, doubled or early, and nothing but the time to the next look depends on it: who follows the feed looks
//! every now and then all the same. Every so often the connection sends itself a notification: one that is half-open, and
//! one behind a pooler that hands each statement to another session, are found out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

/// What the migration's trigger notifies.
const CHANNEL: &str = "doorward";
/// How often the connection proves that it lives.
const BEAT: Duration = Duration::from_secs(10);
/// How long connecting, or the proof, may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Between tries to connect.
const RETRY: Duration = Duration::from_secs(1);

/// Listens from the first time that it is waited for, until it is dropped.
#[derive(Debug)]
pub(super) struct Wake {
    options: PgConnectOptions,
    notify: Arc<Notify>,
    listening: Mutex<Option<DropGuard>>,
}

impl Wake {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self { options, notify: Arc::default(), listening: Mutex::new(None) }
    }

    /// Returns when there may be news, or after `patience`.
    pub(super) async fn next(&self, patience: Duration) {
        self.start();
        // Patience that is over is no failure.
        let _ = tokio::time::timeout(patience, self.notify.notified()).await;
    }

    fn start(&self) {
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if listening.is_none() {
            let stop = CancellationToken::new();
            *listening = Some(stop.clone().drop_guard());
            let (options, notify) = (self.options.clone(), Arc::clone(&self.notify));
            tokio::spawn(async move { stop.run_until_cancelled(run(&options, &notify)).await });
        }
    }
}

async fn run(options: &PgConnectOptions, notify: &Notify) {
    let mut silent = false;
    loop {
        let why = match connect(options).await {
            Ok((mut listener, channel)) => {
                if std::mem::take(&mut silent) {
                    info!("the registry's notifications come again");
                }
                // What was notified before is unknown.
                notify.notify_one();
                hear(&mut listener, &channel, notify).await
            }
            Err(why) => why,
        };
        if !std::mem::replace(&mut silent, true) {
            warn!(%why, "the registry's notifications do not come; its changes are looked for every half second instead");
        }
        notify.notify_one();
        tokio::time::sleep(RETRY).await;
    }
}

/// A connection that has shown that notifications reach it, and the channel on which it shows that.
async fn connect(options: &PgConnectOptions) -> Result<(PgListener, String), String> {
    let connecting = async {
        // A pool for one connection, which no other caller can be kept waiting by.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(WITHIN)
            .connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        let channel = format!("doorward_probe_{:016x}", fastrand::u64(..));
        listener.listen_all([CHANNEL, channel.as_str()]).await?;
        Ok::<_, sqlx::Error>((listener, channel))
    };
    let (mut listener, channel) = tokio::time::timeout(WITHIN, connecting)
        .await
        .map_err(|_| format!("no connection within {} s", WITHIN.as_secs()))?
        .map_err(|error| error.to_string())?;
    prove(&mut listener, &channel).await.map_err(|why| {
        format!("{why}; behind a pooler in transaction mode LISTEN does not work: let database.url name Postgres itself")
    })?;
    Ok((listener, channel))
}

/// Wakes the follower as often as it should be; why that is over.
async fn hear(listener: &mut PgListener, channel: &str, notify: &Notify) -> String {
    loop {
        match tokio::time::timeout(BEAT, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                if notification.channel() == CHANNEL {
                    notify.notify_one();
                }
            }
            Ok(Ok(None)) => return "the connection was closed".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => match prove(listener, channel).await {
                // What came before the proof came too, and was passed over.
                Ok(woken) if woken => notify.notify_one(),
                Ok(_) => {}
                Err(why) => return why,
            },
        }
    }
}

/// Sends itself a notification and waits for it; whether another came before.
async fn prove(listener: &mut PgListener, channel: &str) -> Result<bool, String> {
    let proof = async {
        let mut woken = false;
        sqlx::query("SELECT pg_notify($1, '')").bind(channel).execute(&mut *listener).await?;
        loop {
            match listener.try_recv().await? {
                Some(notification) if notification.channel() == channel => return Ok(woken),
                Some(_) => woken = true,
                None => return Err(sqlx::Error::WorkerCrashed),
            }
        }
    };
    tokio::time::timeout(WITHIN, proof)
        .await
        .map_err(|_| "a notification to itself did not arrive".to_owned())?
        .map_err(|error| error.to_string())
}
