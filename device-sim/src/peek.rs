//! A gateway's message as an attacker sees it: read, not verified. The simulator's honest devices verify theirs with
//! the link first; then they look here for the refusals that the link answers by itself.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::downlink::Reject;
use doorward_proto::time::NumericDate;
use serde::Deserialize;

/// What any message of the gateway may say.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Said {
    pub(crate) op: String,
    pub(crate) iat: NumericDate,
    pub(crate) sid: String,
    /// Of a `welcome`.
    #[serde(default)]
    pub(crate) max_skew: f64,
    /// Of an `ack`.
    #[serde(default)]
    pub(crate) acks: Vec<(u64, u64)>,
    /// Of a `reject`.
    #[serde(rename = "ref", default)]
    pub(crate) reference: Option<u64>,
    /// Of a `reject`.
    #[serde(default)]
    pub(crate) error: String,
}

fn payload(frame: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(frame.split('.').nth(1)?).ok()
}

/// The whole of it.
pub(crate) fn said(frame: &str) -> Option<Said> {
    serde_json::from_slice(&payload(frame)?).ok()
}

/// The refusal, if it is one.
pub(crate) fn reject(frame: &str) -> Option<Reject> {
    const MARK: &[u8] = br#""error""#;
    let payload = payload(frame)?;
    // Acks are nearly all that comes: they are not parsed a second time.
    if !payload.windows(MARK.len()).any(|window| window == MARK) {
        return None;
    }
    #[derive(Deserialize)]
    struct Tagged {
        op: String,
        #[serde(flatten)]
        reject: Reject,
    }
    let tagged: Tagged = serde_json::from_slice(&payload).ok()?;
    (tagged.op == "reject").then_some(tagged.reject)
}

/// The `seq` of a device's frame, if it is a request for a certificate.
pub(crate) fn renew(frame: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Asked {
        op: String,
        seq: u64,
    }
    let asked: Asked = serde_json::from_slice(&payload(frame)?).ok()?;
    (asked.op == "renew").then_some(asked.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use doorward_proto::ids::KeyVersion;
    use doorward_proto::key::Key;

    #[test]
    fn a_refusal_is_found_and_nothing_else() {
        let key = Key::new(KeyVersion::FIRST, &[1; 32]);
        let reject_frame = key.sign(
            br#"{"iss":"gateway","aud":"a","sid":"s","seq":2,"iat":1.5,"op":"reject","ref":null,"error":"stale","detail":""}"#,
        );
        assert_eq!(reject(&reject_frame).unwrap().error, "stale");
        assert_eq!(said(&reject_frame).unwrap().reference, None);
        let ack =
            key.sign(br#"{"iss":"gateway","aud":"a","sid":"s","seq":2,"iat":1,"op":"ack","acks":[[1,3]]}"#);
        assert!(reject(&ack).is_none());
        assert_eq!(said(&ack).unwrap().acks, [(1, 3)]);
    }
}
