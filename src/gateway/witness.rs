//! Notes the head of the audit where the database's owner cannot reach it, and says so when the audit has become shorter
//! or another one.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::Gateway;
use crate::clock;
use crate::home::{self, FileError, PUBLIC};
use crate::registry::AuditHead;

/// How often the head is looked at.
const EVERY: Duration = Duration::from_secs(60);
/// Heads that are kept: the newest.
const MOST: usize = 500;

/// What was noted: `TIME COUNT:HASH` a line, oldest first.
struct Notes {
    path: PathBuf,
    lines: VecDeque<String>,
    last: Option<AuditHead>,
}

/// Runs until it is stopped.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut notes = match Notes::read(gateway.home.state().join("audit-heads")) {
        Ok(notes) => notes,
        Err(error) => {
            // Never written over: what was noted may be all that shows what has been done.
            error!(%error, "the audit's heads cannot be read, and none is noted");
            stop.cancelled().await;
            return;
        }
    };
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        match gateway.registry.audit_head().await {
            Ok(head) => {
                if let Err(error) = notes.witness(head) {
                    warn!(%error, "the audit's head could not be noted");
                }
            }
            // Where it is away, the feed says so.
            Err(error) => debug!(%error, "the audit's head could not be read"),
        }
    }
}

impl Notes {
    fn read(path: PathBuf) -> Result<Self, FileError> {
        let text = match home::read(&path) {
            Err(FileError::Missing(_)) => String::new(),
            other => other?,
        };
        let lines: VecDeque<String> = text.lines().map(str::to_owned).collect();
        let last = lines.back().and_then(|line| line.split_once(' ')?.1.parse().ok());
        Ok(Self { path, lines, last })
    }

    fn witness(&mut self, head: AuditHead) -> Result<(), FileError> {
        if self.last == Some(head) {
            return Ok(());
        }
        if let Some(last) = self.last
            && head.count <= last.count
        {
            error!(
                noted = %last, found = %head, notes = %self.path.display(),
                "the audit is not the one that was noted: it was cut, rewritten, or comes from an older backup; 'doorward audit verify --head' tells which rows"
            );
        }
        self.last = Some(head);
        let time = clock::utc().format(&Rfc3339).unwrap_or_default();
        self.lines.push_back(format!("{time} {head}"));
        while self.lines.len() > MOST {
            self.lines.pop_front();
        }
        let mut text = String::with_capacity(self.lines.len() * 100);
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        home::write_over(&self.path, &text, PUBLIC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_noted_once_and_the_oldest_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit-heads");
        let head = |count| AuditHead { count, ..AuditHead::default() };
        let mut notes = Notes::read(path.clone()).unwrap();
        for count in [1, 1, 2] {
            notes.witness(head(count)).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        let mut notes = Notes::read(path.clone()).unwrap();
        assert_eq!(notes.last, Some(head(2)));
        for count in 3..600 {
            notes.witness(head(count)).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), MOST);
        // What was noted last stands in the file, also where it is a shorter audit: both lines are there to be compared.
        notes.witness(head(5)).unwrap();
        assert_eq!(Notes::read(path).unwrap().last, Some(head(5)));
    }
}
