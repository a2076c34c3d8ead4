//! The head of the request that asks for a WebSocket.

use doorward::fuzzing::{Upgrade, upgrade as judge};

use crate::Outcome;

/// A request's head: it comes to the same however the network cuts it, and one that is let in is one by the letter of
/// RFC 6455 and docs/protocol.md.
pub fn upgrade(data: &[u8]) -> Outcome {
    let origins = ["https://console.example".to_owned()];
    let whole = judge(&[data], &origins);
    if data.len() < 4096 {
        let single: Vec<&[u8]> = data.chunks(1).collect();
        assert_eq!(judge(&single, &origins), whole, "byte by byte");
        let (one, two) = data.split_at(data.len() / 3);
        assert_eq!(judge(&[one, two], &origins), whole, "in two parts");
    }
    match &whole {
        Upgrade::Accepted { rest, key, .. } => {
            assert!(data.ends_with(rest));
            let head = &data[..data.len() - rest.len()];
            check(std::str::from_utf8(head).ok(), *key, &origins[0]);
            Outcome::of((rest.is_empty(), key.is_some()))
        }
        Upgrade::Refused { status, problem, detail } => {
            assert!((400..=426).contains(status) && !problem.is_empty());
            assert!(!detail.chars().any(char::is_control), "{detail:?}");
            Outcome::of((status, detail))
        }
        Upgrade::Unfinished => Outcome::of("unfinished"),
    }
}

/// Once more, line by line.
fn check(head: Option<&str>, key: Option<u32>, origin: &str) {
    // Header values that nobody reads need not be text.
    let Some(head) = head else { return };
    let mut lines = head.trim_start().lines();
    let request: Vec<&str> = lines.next().expect("a request line").split(' ').collect();
    let [method, target, version] = request.as_slice() else { panic!("{request:?}") };
    assert_eq!((*method, *version), ("GET", "HTTP/1.1"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    assert_eq!(path, "/v1/device");
    assert_eq!(query, key.map(|key| format!("key={key}")).unwrap_or_default());
    let headers: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])))
        .collect();
    let all =
        |name: &str| headers.iter().filter(|(of, _)| of == name).map(|(_, value)| *value).collect::<Vec<_>>();
    let lists = |name: &str, item: &str| {
        all(name).iter().any(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(item)))
    };
    assert_eq!(all("host").len(), 1);
    assert!(all("origin").iter().all(|said| *said == origin));
    assert!(lists("upgrade", "websocket") && lists("connection", "upgrade"));
    assert!(lists("sec-websocket-protocol", "doorward.v1.jws"));
    assert_eq!(all("sec-websocket-version"), ["13"]);
    assert_eq!(all("sec-websocket-key").len(), 1);
    assert!(all("transfer-encoding").is_empty());
    assert!(all("content-length").iter().all(|length| *length == "0"));
}
