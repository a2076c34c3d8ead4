//! `[crl]`: revocation lists for others, by HTTP (RFC 5280 §4.2.1.13, RFC 2585). Each configured file and nothing else, in
//! DER whatever the file is in, and only if it is a list: a private key that was named by mistake is not served.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use doorward_pki::Fingerprint;
use doorward_pki::crl::{self, MAX_FILE_BYTES};
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock;
use crate::config::served_as;
use crate::gateway::Gateway;
use crate::http::{self, Answer, Asked, plain};
use crate::stamp::Stamp;

/// Where lists stand.
const FOLDER: &str = "/crl/";

/// A list as it was read last, and the file that it was read from.
#[derive(Clone)]
struct Read {
    path: PathBuf,
    stamp: Stamp,
    list: Result<Arc<List>, Unserved>,
}

/// Why a file is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Unserved {
    /// It could not be read this time.
    #[error("{0}")]
    Unread(String),
    /// It is no list, until it is another file.
    #[error("{0}")]
    NoList(String),
}

struct List {
    der: Bytes,
    etag: String,
    this_update: i64,
    next_update: Option<i64>,
}

/// Lists that have been read: one for each configured file.
#[derive(Default)]
struct Shelf(Mutex<Vec<Read>>);

/// Serves the lists of the gateway's configuration until it is stopped.
pub(crate) async fn run(gateway: Arc<Gateway>, listener: TcpListener, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "revocation lists are served by HTTP, as {FOLDER}NAME");
    }
    let shelf = Arc::new(Shelf::default());
    let answer = move |asked: Asked| {
        let (gateway, shelf) = (Arc::clone(&gateway), Arc::clone(&shelf));
        async move {
            let found = tokio::task::spawn_blocking(move || {
                let files = gateway.list_files();
                let wanted = asked.path.strip_prefix(FOLDER)?;
                let path = files.iter().find(|path| served_as(path) == Some(wanted))?;
                Some((shelf.read(path, &files)?, asked.headers))
            });
            match found.await {
                Ok(Some((Ok(list), headers))) => list.answer(&headers),
                Ok(Some((Err(_), _))) => plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the list cannot be read; the gateway's log says why\n",
                ),
                Ok(None) | Err(_) => plain(StatusCode::NOT_FOUND, "there is no such list\n"),
            }
        }
    };
    http::serve(listener, http::Reserve::default(), answer, stop).await;
}

impl Shelf {
    /// What a file holds; `None` where there is none. Read again when it is another; what is wrong with it is said then.
    fn read(&self, path: &PathBuf, files: &[PathBuf]) -> Option<Result<Arc<List>, Unserved>> {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of files that are served no more nothing is kept.
        shelf.retain(|read| files.contains(&read.path));
        let stamp = Stamp::of(path).filter(|stamp| stamp.is_file)?;
        let known = shelf.iter().find(|read| read.path == *path && read.stamp == stamp);
        // What could not be read may be readable now, and its file is the same.
        if let Some(read) = known.filter(|read| !matches!(read.list, Err(Unserved::Unread(_)))) {
            return Some(read.list.clone());
        }
        let said = known.and_then(|read| read.list.as_ref().err().cloned());
        let list = List::read(path).map(Arc::new);
        if let Err(error) = &list
            && said.as_ref() != Some(error)
        {
            warn!(file = %path.display(), %error, "this is not served as a revocation list");
        }
        shelf.retain(|read| read.path != *path);
        shelf.push(Read { path: path.clone(), stamp, list: list.clone() });
        Some(list)
    }
}

impl List {
    fn read(path: &PathBuf) -> Result<Self, Unserved> {
        let no_list = |error: crl::ReadError| Unserved::NoList(error.to_string());
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| Unserved::Unread(error.to_string()))?;
        let (lists, _) = crl::sections(&bytes).map_err(no_list)?;
        let [list] = lists.as_slice() else {
            return Err(Unserved::NoList("there are several lists in it".to_owned()));
        };
        let (this_update, next_update) = crl::updates(list).map_err(no_list)?;
        Ok(Self {
            der: Bytes::copy_from_slice(list),
            etag: format!("\"{}\"", Fingerprint::of(list)),
            this_update,
            next_update,
        })
    }

    fn answer(&self, asked: &HeaderMap) -> Answer {
        let fresh = self.is_fresh(asked);
        let body = if fresh { Bytes::new() } else { self.der.clone() };
        let mut answer = Response::new(Full::new(body));
        if fresh {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = answer.headers_mut();
        let mut put = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        if !fresh {
            put(CONTENT_TYPE, "application/pkix-crl".to_owned());
            put(X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned());
        }
        put(ETAG, self.etag.clone());
        put(LAST_MODIFIED, http_date(self.this_update));
        let left = self.next_update.map_or(0, |end| end - clock::utc().unix_timestamp());
        match self.next_update {
            Some(end) if left > 0 => {
                put(CACHE_CONTROL, format!("public, max-age={left}, must-revalidate"));
                put(EXPIRES, http_date(end));
            }
            // It has ended: whoever has it asks whether there is a newer one.
            _ => put(CACHE_CONTROL, "no-cache".to_owned()),
        }
        answer
    }

    /// Whether who asks has this very list (RFC 9110 §13.2.2: an ETag counts before a date).
    fn is_fresh(&self, asked: &HeaderMap) -> bool {
        let text = |name: HeaderName| asked.get(name).and_then(|value| value.to_str().ok());
        if let Some(tags) = text(IF_NONE_MATCH) {
            return tags
                .split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"))
                .any(|tag| tag == "*" || tag == self.etag);
        }
        let since = text(IF_MODIFIED_SINCE).and_then(|date| httpdate::parse_http_date(date).ok());
        let made = UNIX_EPOCH + Duration::from_secs(u64::try_from(self.this_update).unwrap_or(0));
        since.is_some_and(|since| since >= made)
    }
}

fn http_date(seconds: i64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}
