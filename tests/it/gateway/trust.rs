//! Device CAs that come and go under a running gateway.

use std::sync::Arc;

use doorward_pki::Authority;
use rustls::HandshakeKind;

use crate::support::device::{Device, TLS13, UPGRADE, ask, dial, tls};
use crate::support::house::{Credentials, House, authorities, certify, eventually};

/// Has a house trust another CA besides its own; a device of that.
async fn trust_another(house: &House, other: &Authority) -> Credentials {
    std::fs::write(house.file("pki/other.crt"), other.certificate_pem()).unwrap();
    house.write_config(|config| config.tls.device_cas.push("pki/other.crt".into()));
    house.gateway.reload().await.unwrap();
    let credentials = certify(other, "visitor", |_| {});
    house.record("visitor", "default", &credentials).await;
    credentials
}

#[tokio::test]
async fn without_its_ca_a_session_ends_and_others_go_on() {
    let house = House::start().await;
    let (_, other) = authorities("Other issuing CA");
    let visitor = trust_another(&house, &other).await;
    let ours = house.add_device("press-7").await;
    let mut stays = Device::prove(&house, &ours).await;
    // What the device reads brings a ticket along.
    let resuming = Arc::new(tls(&house, Some(&visitor), TLS13));
    let connect = async || {
        let stream = dial(&house, Arc::clone(&resuming)).await.unwrap();
        Device::upgrade_on(stream, &visitor, UPGRADE).await
    };
    let mut goes = connect().await.unwrap();
    goes.expect("welcome").await;
    goes.hello().await;

    house.write_config(|_| {});
    // By the change of the file alone.
    assert_eq!(goes.closed_with_bye(4004).await, 3600);
    assert_eq!(house.gateway.counters().totals().closed, 1);
    let refused = match dial(&house, Arc::clone(&resuming)).await {
        Ok(mut stream) => {
            assert_ne!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
            ask(&mut stream, UPGRADE).await.is_err()
        }
        Err(_) => true,
    };
    assert!(refused, "neither by a ticket nor by a full handshake");
    stays.hello().await;
    Device::prove(&house, &ours).await;

    // And back again.
    trust_again(&house).await;
    connect().await.unwrap();
}

async fn trust_again(house: &House) {
    house.write_config(|config| config.tls.device_cas.push("pki/other.crt".into()));
    house.gateway.reload().await.unwrap();
}

#[tokio::test]
async fn a_session_stays_where_its_ca_is_trusted_in_another_way() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    // From the CA to the root above it: the device has sent what is between.
    house.write_config(|config| config.tls.device_cas = vec!["pki/root.crt".into()]);
    assert_eq!(house.gateway.reload().await.unwrap().ended, 0);
    device.hello().await;
    // And back: what signed the leaf is trusted itself.
    house.write_config(|_| {});
    assert_eq!(house.gateway.reload().await.unwrap().ended, 0);
    device.hello().await;
    // A CA of the same name with another key is another one.
    let (_, twin) = authorities("Test issuing CA");
    std::fs::write(house.file("pki/twin.crt"), twin.certificate_pem()).unwrap();
    house.write_config(|config| config.tls.device_cas = vec!["pki/twin.crt".into()]);
    assert_eq!(house.gateway.reload().await.unwrap().ended, 1);
    device.closed_with_bye(4004).await;
}

#[tokio::test]
async fn a_device_that_sent_no_chain_needs_its_own_ca() {
    let house = House::start().await;
    let mut alone = house.certify("alone", |_| {});
    alone.chain.truncate(1);
    house.record("alone", "default", &alone).await;
    let mut device = Device::prove(&house, &alone).await;
    house.write_config(|config| config.tls.device_cas = vec!["pki/root.crt".into()]);
    assert_eq!(house.gateway.reload().await.unwrap().ended, 1);
    device.closed_with_bye(4004).await;
}

#[tokio::test]
async fn who_is_between_handshake_and_upgrade_is_judged_by_what_is_trusted_now() {
    let house = House::start().await;
    let (_, other) = authorities("Other issuing CA");
    let visitor = trust_another(&house, &other).await;
    let mut stream = dial(&house, Arc::new(tls(&house, Some(&visitor), TLS13))).await.unwrap();
    // In TLS 1.3 the client is through before the server is: wait for the server.
    let accepted = async || {
        use tokio::io::AsyncReadExt as _;
        // The ticket is the first that the server says once it has verified.
        let mut nothing = [0; 1];
        let read = stream.read(&mut nothing);
        tokio::time::timeout(std::time::Duration::from_millis(300), read).await.is_err()
    };
    let mut accepted = accepted;
    assert!(accepted().await);
    house.write_config(|_| {});
    house.gateway.reload().await.unwrap();
    let answer = ask(&mut stream, UPGRADE).await.unwrap();
    assert_eq!(
        (answer.status, crate::support::device::problem_of(&answer).as_str()),
        (401, "certificate-unknown")
    );
    eventually("nobody", async || house.gateway.devices() == 0).await;
}
