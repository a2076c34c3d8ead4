//! The wake-up: a connection of its own that listens for `NOTIFY doorward`.
//!
//! It may be lost, doubled or early, and nothing but the time to the next look depends on it: who follows the feed looks
//! every now and then all the same. Every so often another connection sends it a notification: one that is half-open, and
//! one behind a pooler that hands each statement to any session, are found out. It does not do that itself: a pooler with
//! little to do would give it the session that listens, and the answer with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::error::NO_POOLER;
use super::{Held, error};

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
    others: PgPool,
    notify: Arc<Notify>,
    listening: Mutex<Option<DropGuard>>,
}

impl Wake {
    /// `others` are the connections by which it is tried.
    pub(super) fn new(options: PgConnectOptions, others: PgPool) -> Self {
        Self { options, others, notify: Arc::default(), listening: Mutex::new(None) }
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
            let (options, others, notify) =
                (self.options.clone(), self.others.clone(), Arc::clone(&self.notify));
            tokio::spawn(async move { stop.run_until_cancelled(run(&options, &others, &notify)).await });
        }
    }
}

async fn run(options: &PgConnectOptions, others: &PgPool, notify: &Notify) {
    let mut silent = false;
    loop {
        let why = match connect(options, others).await {
            Ok((mut listener, channel)) => {
                if std::mem::take(&mut silent) {
                    info!("the registry's notifications come again");
                }
                // What was notified before is unknown.
                notify.notify_one();
                hear(&mut listener, &channel, others, notify).await
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
async fn connect(options: &PgConnectOptions, others: &PgPool) -> Result<(PgListener, String), String> {
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
    prove(&mut listener, &channel, others).await.map_err(|why| {
        format!("{why}; behind a pooler in transaction mode LISTEN does not work: {NO_POOLER}")
    })?;
    Ok((listener, channel))
}

/// Wakes the follower as often as it should be; why that is over.
async fn hear(listener: &mut PgListener, channel: &str, others: &PgPool, notify: &Notify) -> String {
    loop {
        match tokio::time::timeout(BEAT, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                if notification.channel() == CHANNEL {
                    notify.notify_one();
                }
            }
            Ok(Ok(None)) => return "the connection was closed".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => match prove(listener, channel, others).await {
                // What came before the proof came too, and was passed over.
                Ok(woken) if woken => notify.notify_one(),
                Ok(_) => {}
                Err(why) => return why,
            },
        }
    }
}

/// Has a notification sent and waits for it; whether another came before.
async fn prove(listener: &mut PgListener, channel: &str, others: &PgPool) -> Result<bool, String> {
    let proof = async {
        let mut other = Held::from(others).await.map_err(|error| error.to_string())?;
        let sent = sqlx::query("SELECT pg_notify($1, '')").bind(channel).execute(&mut *other).await;
        sent.map_err(|error| error::read(error).to_string())?;
        other.release();
        let mut woken = false;
        loop {
            match listener.try_recv().await.map_err(|error| error.to_string())? {
                Some(notification) if notification.channel() == channel => return Ok(woken),
                Some(_) => woken = true,
                None => return Err("the connection was closed".to_owned()),
            }
        }
    };
    tokio::time::timeout(WITHIN, proof)
        .await
        .unwrap_or_else(|_| Err("a notification sent to it did not arrive".to_owned()))
}
