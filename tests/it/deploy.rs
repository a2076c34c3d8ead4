//! `deploy/`: what it says of metrics is what a gateway shows, and each alert leads to what to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::device::Device;
use crate::support::house::House;
use crate::support::http::get;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every name of a metric in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.match_indices("doorward_")
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            &rest[..end]
        })
        .collect()
}

const RULES: &str = "deploy/prometheus/doorward.rules.yml";
const DASHBOARD: &str = "deploy/grafana/doorward.json";

#[tokio::test]
async fn every_metric_that_is_named_is_one_that_a_gateway_shows() {
    let house = House::start().await;
    let admin = house.admin().await;
    house.gateway.ready().await;
    // With a session, its certificate's end is shown, too.
    let _device = Device::prove(&house, &house.add_device("press-7").await).await;
    let body = get(admin, "/metrics").await.body;
    let samples: String = body.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let mut shown = names(&samples);
    for file in [RULES, DASHBOARD, "docs/operations.md"] {
        let text = read(file);
        if file.ends_with(".md") {
            // Words may name a histogram as a whole.
            shown.extend(
                body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram")),
            );
        }
        // Roles of the database have such names, too.
        let roles =
            ["doorward_gateway", "doorward_issuer", "doorward_operator", "doorward_auditor", "doorward_"];
        let unknown: Vec<&str> =
            names(&text).into_iter().filter(|name| !shown.contains(name) && !roles.contains(name)).collect();
        assert!(unknown.is_empty(), "{file}: no gateway shows {unknown:?}");
    }
    // The labels that they ask for, too.
    for file in [RULES, DASHBOARD] {
        let text = read(file).replace("\\\"", "\"");
        for label in ["reason", "problem", "error", "kind", "check", "fate", "state"] {
            let begins = [format!("{label}=\""), format!("{label}=~\"")];
            for values in begins.iter().flat_map(|begin| text.split(begin.as_str()).skip(1)) {
                for value in values.split('"').next().unwrap().split('|') {
                    // This house has no list whose end could be shown.
                    let shown =
                        value == "revocation_list" || samples.contains(&format!("{label}=\"{value}\""));
                    assert!(shown, "{file}: {label}=\"{value}\"");
                }
            }
        }
    }
}

#[test]
fn whoever_is_blocked_is_somebodys_alert() {
    assert!(names(&read(RULES)).contains("doorward_address_blocks_total"));
}

#[test]
fn every_alert_says_what_it_is_and_leads_to_a_section() {
    let (rules, operations) = (read(RULES), read("docs/operations.md"));
    let anchors: BTreeSet<String> = operations
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .replace(' ', "-")
                .replace([',', '\'', '`', '?'], "")
        })
        .collect();
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 10, "{}", alerts.len());
    let mut seen = BTreeSet::new();
    for alert in alerts {
        let (name, rest) = alert.split_once('\n').unwrap();
        assert!(seen.insert(name), "{name} twice");
        for key in ["expr: ", "severity: ", "summary: ", "runbook: "] {
            assert_eq!(rest.matches(key).count(), 1, "{name}: {key}");
        }
        let runbook = rest.split("runbook: ").nth(1).unwrap().lines().next().unwrap().trim();
        let anchor =
            runbook.strip_prefix("docs/operations.md#").unwrap_or_else(|| panic!("{name}: {runbook}"));
        assert!(anchors.contains(anchor), "{name}: there is no section {anchor}");
        let expression = rest.split("expr: ").nth(1).unwrap().split("\n        labels:").next().unwrap();
        for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
            assert_eq!(
                expression.matches(open).count(),
                expression.matches(close).count(),
                "{name}: {expression}"
            );
        }
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut rows = Vec::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(panel["gridPos"]["w"].as_u64().unwrap() <= 24, "{panel}");
        if panel["type"] == "row" {
            rows.push(panel["title"].as_str().unwrap());
            continue;
        }
        assert!(!panel["title"].as_str().unwrap().is_empty());
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert!(expression.contains("doorward_") || expression.starts_with("up"), "{expression}");
            assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{expression}");
        }
    }
    assert_eq!(
        rows,
        [
            "At a glance",
            "The door",
            "Sessions",
            "Messages",
            "The store",
            "The registry",
            "What ends",
            "The process"
        ]
    );
}
