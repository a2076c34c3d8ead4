//! The log under a storm: the first lines, then one a minute with their number.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::device::{Device, refused};
use crate::support::house::{House, eventually, log, within};

const STORM: usize = 300;

/// A peer that speaks no TLS, until it is cut.
async fn knock(house: &House) {
    let mut tcp = TcpStream::connect(house.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = within("the end", tcp.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn a_storm_is_a_few_lines_and_their_number() {
    // Else its address would be blocked by then.
    let mut house = House::with(|config| config.addresses.failures = 10 * STORM).await;
    let credentials = house.certify("stranger", |_| {});
    for _ in 0..STORM {
        knock(&house).await;
    }
    for _ in 0..STORM {
        assert_eq!(refused(&house, &credentials).await.status, 401);
    }
    // An honest device's session is a line all the same.
    drop(Device::prove(&house, &house.add_device("press-7").await).await);
    eventually("its end", async || log().contains("session closed")).await;
    let totals = house.gateway.counters().totals();
    assert_eq!((totals.tls_refused, totals.refused), (STORM as u64, STORM as u64));
    house.shut_down();
    house.ended().await;

    let log = log();
    let lines = |words: &str| log.lines().filter(|line| line.contains(words)).collect::<Vec<_>>();
    let (tls, upgrades) = (lines("refused in TLS connection="), lines(" refused connection="));
    // A slow machine takes minutes for a storm, and each has some lines more.
    assert!((20..60).contains(&tls.len()), "{}", tls.len());
    assert!((20..60).contains(&upgrades.len()), "{}", upgrades.len());
    assert_eq!((lines("session proven").len(), lines("session closed").len()), (1, 1));
    // The rest is said once: how many, why, and who was the first of them.
    let folded = |words: &str| {
        let said = lines(words);
        let count = |line: &&str| {
            line.split("count=").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap()
        };
        (said.iter().map(count).sum::<usize>(), said.first().copied().unwrap_or_default().to_owned())
    };
    let (count, line) = folded("folded, more of: refused in TLS");
    assert_eq!(count, STORM - tls.len());
    assert!(line.contains("reason=\"protocol\"") && line.contains("first_peer=\"127.0.0.1:"), "{line}");
    let (count, line) = folded("folded, more of: refused count");
    assert_eq!(count, STORM - upgrades.len());
    assert!(line.contains("certificate-unknown") && line.contains("stranger"), "{line}");
}
