//! `audit …`: who did what when, and whether the record of it is whole.

use clap::Subcommand;
use doorward_proto::ids::DeviceId;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::failure::{Failure, Outcome};
use super::{Shared, output};
use crate::registry::{AuditFilter, AuditHead, AuditRow, Chain, Misfit, Registry};

/// Rows of one query.
const PAGE: u32 = 1000;

#[derive(Subcommand, Debug)]
pub(super) enum Audit {
    /// Who did what when, oldest first
    #[command(
        after_help = "Example:\n  doorward audit list --device press-7\n  doorward audit list --since 7d --json"
    )]
    List {
        /// What was done to this device alone
        #[arg(long, value_name = "ID")]
        device: Option<DeviceId>,
        /// Done since: RFC 3339, or how long ago (90s, 2h, 7d)
        #[arg(long, value_name = "T", value_parser = output::parse_since)]
        since: Option<OffsetDateTime>,
    },
    /// Check the chain of hashes; the first row that was changed, removed or reordered is named
    #[command(after_help = "Example:\n  doorward audit verify\n  \
        doorward audit verify --head 1207:3f1c…\n\n\
        It prints the head, COUNT:HASH. Keep it where the owner of the database cannot reach it: given back with --head\n\
        it shows that nothing up to there was cut off or made anew.")]
    Verify {
        /// A head that an earlier run printed
        #[arg(long, value_name = "COUNT:HASH")]
        head: Option<AuditHead>,
    },
    /// Write the chain as JSON lines, for another program to verify
    #[command(after_help = "Example:\n  doorward audit export > audit.jsonl\n  \
        python3 examples/python/audit_verify.py audit.jsonl")]
    Export,
}

impl Audit {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let registry = shared.registry().await?;
        match self {
            Self::List { device, since } => list(&*registry, shared, device.as_ref(), *since).await,
            Self::Verify { head } => verify(&*registry, shared, head.as_ref()).await,
            Self::Export => export(&*registry, shared).await,
        }
    }
}

/// Rows one by one, page by page.
struct Pages<'a> {
    registry: &'a dyn Registry,
    filter: AuditFilter,
}

impl<'a> Pages<'a> {
    fn new(registry: &'a dyn Registry, naming: Option<&DeviceId>, since: Option<OffsetDateTime>) -> Self {
        Self { registry, filter: AuditFilter { naming: naming.cloned(), since, after: 0, limit: PAGE } }
    }

    /// The next ones; none at the end.
    async fn next(&mut self) -> Result<Vec<AuditRow>, Failure> {
        let page = self.registry.audit(&self.filter).await?;
        if let Some(last) = page.last() {
            self.filter.after = last.id;
        }
        Ok(page)
    }
}

/// Writes values one by one: an array with `--json`, else a line each.
struct Writer {
    array: bool,
    first: bool,
}

impl Writer {
    fn new(array: bool) -> Self {
        Self { array, first: true }
    }

    fn write(&mut self, text: &str) -> Outcome {
        let separator = match (self.array, std::mem::take(&mut self.first)) {
            (false, _) => "",
            (true, true) => "[",
            (true, false) => ",",
        };
        output::print(&format!("{separator}{text}"))
    }

    fn end(self) -> Outcome {
        match (self.array, self.first) {
            (false, _) => Ok(()),
            (true, true) => output::print("[]"),
            (true, false) => output::print("]"),
        }
    }
}

async fn list(
    registry: &dyn Registry,
    shared: &Shared,
    device: Option<&DeviceId>,
    since: Option<OffsetDateTime>,
) -> Outcome {
    let mut pages = Pages::new(registry, device, since);
    let mut writer = Writer::new(shared.json);
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        for row in &page {
            // A body that is no JSON is shown as the text that it is.
            let body: Value = serde_json::from_slice(&row.body)
                .unwrap_or_else(|_| json!({ "unreadable": String::from_utf8_lossy(&row.body) }));
            if device
                .is_some_and(|device| body.get("device").and_then(Value::as_str) != Some(device.as_str()))
            {
                continue;
            }
            writer.write(&if shared.json { as_json(row, body)? } else { as_line(row, &body) })?;
        }
    }
    if writer.first && !shared.json {
        output::say("there is no such act");
    }
    writer.end()
}

fn as_json(row: &AuditRow, body: Value) -> Result<String, serde_json::Error> {
    let mut value = json!({ "id": row.id, "hash": row.hash.map(|hash| hash.to_string()) });
    if let (Value::Object(value), Value::Object(body)) = (&mut value, body) {
        value.extend(body);
    }
    serde_json::to_string(&value)
}

fn as_line(row: &AuditRow, body: &Value) -> String {
    let word = |name: &str| body.get(name).and_then(Value::as_str).filter(|word| !word.is_empty());
    let mut line = format!(
        "{}  {}  {}",
        output::time(row.at),
        word("actor").unwrap_or("?"),
        word("action").unwrap_or("?")
    );
    if let Some(role) = word("role") {
        line = line.replacen(
            word("actor").unwrap_or("?"),
            &format!("{} ({role})", word("actor").unwrap_or("?")),
            1,
        );
    }
    // A certificate's or key's own name, then whose it is.
    for name in [word("subject"), word("device").filter(|device| word("subject") != Some(device))] {
        line.extend(name.map(|name| format!("  {name}")));
    }
    for (name, before, after) in changed(body) {
        line.push_str(&format!("  {name}: {before} -> {after}"));
    }
    line.extend(word("reason").map(|reason| format!("  ({reason})")));
    if row.hash.is_none() {
        line.push_str("  [unsealed]");
    }
    output::plain(&line)
}

/// What is short and differs: a policy is looked up with `--json`.
fn changed(body: &Value) -> Vec<(&str, &str, &str)> {
    let (Some(before), Some(after)) = (body["before"].as_object(), body["after"].as_object()) else {
        return Vec::new();
    };
    ["status", "state", "fleet"]
        .into_iter()
        .filter_map(|name| {
            let (before, after) = (before.get(name)?.as_str()?, after.get(name)?.as_str()?);
            (before != after).then_some((name, before, after))
        })
        .collect()
}

async fn verify(registry: &dyn Registry, shared: &Shared, noted: Option<&AuditHead>) -> Outcome {
    let misfit = |misfit: Misfit| {
        Failure::new(misfit.to_string()).next(
            "the rows before it fit; compare with an export or a backup, and find out who owns this database",
        )
    };
    let mut chain = Chain::default();
    let mut pages = Pages::new(registry, None, None);
    loop {
        // The head first: rows that it counts are there for whoever reads after it.
        let head = registry.audit_head().await?;
        let page = pages.next().await?;
        for row in &page {
            chain.take(row).map_err(misfit)?;
            if let Some(noted) = noted
                && chain.head().count == noted.count
                && chain.head().hash != noted.hash
            {
                return Err(misfit(Misfit::Rewritten(noted.count)));
            }
        }
        if page.is_empty() {
            chain.end(&head).map_err(misfit)?;
            break;
        }
    }
    if let Some(noted) = noted.filter(|noted| noted.count > chain.head().count) {
        return Err(misfit(Misfit::Cut(chain.head().count + 1, noted.count)));
    }
    let (rows, unsealed, head) = (chain.rows(), chain.unsealed(), chain.head());
    if shared.json {
        return output::json(
            &json!({ "fits": true, "rows": rows, "unsealed": unsealed, "head": head.to_string() }),
        );
    }
    output::say(format!("{rows} rows, and each fits the one before it"));
    if unsealed > 0 {
        output::say(format!(
            "{unsealed} of them have no hash yet: they were written by plain SQL, and the next command that changes \
             something seals them"
        ));
    }
    output::print(&format!("head {head}"))
}

/// A line of an export.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Row { id: i64, body: &'a str, hash: Option<String> },
    Head { count: i64, hash: String },
}

async fn export(registry: &dyn Registry, shared: &Shared) -> Outcome {
    let mut writer = Writer::new(shared.json);
    let mut pages = Pages::new(registry, None, None);
    let head = loop {
        let head = registry.audit_head().await?;
        let page = pages.next().await?;
        for row in &page {
            let body = String::from_utf8_lossy(&row.body);
            let line = Line::Row { id: row.id, body: &body, hash: row.hash.map(|hash| hash.to_string()) };
            writer.write(&serde_json::to_string(&line)?)?;
        }
        if page.is_empty() {
            break head;
        }
    };
    writer.write(&serde_json::to_string(&Line::Head { count: head.count, hash: head.hash.to_string() })?)?;
    writer.end()
}
