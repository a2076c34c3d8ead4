use std::net::Ipv4Addr;

use super::*;
use crate::config::Span;

const NOW: Duration = Duration::from_secs(1000);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 8));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

fn config() -> AddressesSection {
    AddressesSection {
        rate: 10,
        burst: 20,
        handshakes: 1000,
        network_rate: 100,
        network_burst: 1000,
        network_handshakes: 1000,
        failures: 10,
        failure_window: Span(Duration::from_secs(100)),
        block: Span(Duration::from_secs(30)),
        block_at_most: Span(Duration::from_secs(100)),
        ..AddressesSection::default()
    }
}

fn after(seconds: u64) -> Duration {
    NOW + Duration::from_secs(seconds)
}

/// How an address is met.
fn met(
    addresses: &Arc<Addresses>,
    config: &AddressesSection,
    address: IpAddr,
    now: Duration,
) -> Result<Duration, Turned> {
    addresses.arrive(config, address, now).map(|arrival| arrival.wait())
}

/// Fails until the address is blocked: how often, and for how long.
fn until_blocked(addresses: &Arc<Addresses>, config: &AddressesSection, now: Duration) -> (usize, Duration) {
    for failures in 1..100 {
        let arrival = addresses.arrive(config, ADDRESS, now).unwrap();
        if let Some(block) = arrival.failed_at(config, nanos(now)) {
            return (failures, block);
        }
    }
    panic!("it is not blocked");
}

#[test]
fn a_burst_goes_through_then_each_waits_its_turn_then_nobody_more() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    for _ in 0..20 {
        assert_eq!(met(&addresses, &config, ADDRESS, NOW), Ok(Duration::ZERO));
    }
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Ok(Duration::from_millis(100)));
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Ok(Duration::from_millis(200)));
    for _ in 0..98 {
        met(&addresses, &config, ADDRESS, NOW).unwrap();
    }
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Err(Turned::AddressRate));
    // Another address notices nothing, and a second later this one has its rate.
    assert_eq!(met(&addresses, &config, NEIGHBOUR, NOW), Ok(Duration::ZERO));
    let later = (0..12).filter(|_| met(&addresses, &config, ADDRESS, after(1)).is_ok()).count();
    assert_eq!(later, 10);
}

#[test]
fn many_addresses_of_a_network_have_its_rate_together() {
    let config = AddressesSection { network_rate: 10, network_burst: 50, ..config() };
    let addresses = Addresses::new(&config);
    let at = |n: u8| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n));
    let met_at_once = (0..=255).filter(|n| met(&addresses, &config, at(*n), NOW) == Ok(Duration::ZERO));
    assert_eq!(met_at_once.count(), 50);
    assert_eq!(met(&addresses, &config, at(9), NOW), Err(Turned::NetworkRate));
    assert_eq!(met(&addresses, &config, ELSEWHERE, NOW), Ok(Duration::ZERO));
    // In an IPv6 site, a /64 for each.
    let v6 = |n: u16| IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 1));
    let met_at_once = (0..256).filter(|n| met(&addresses, &config, v6(*n), NOW) == Ok(Duration::ZERO));
    assert_eq!(met_at_once.count(), 50);
}

#[test]
fn a_known_address_is_not_held_to_what_its_neighbours_do() {
    let config = AddressesSection { network_rate: 1, network_burst: 5, network_handshakes: 5, ..config() };
    let addresses = Addresses::new(&config);
    let mut honest = addresses.arrive(&config, ADDRESS, NOW).unwrap();
    honest.proven();
    let under_way: Vec<_> = (0..20).map(|_| addresses.arrive(&config, NEIGHBOUR, NOW)).collect();
    assert!(matches!(under_way.last(), Some(Err(Turned::NetworkHandshakes))));
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Ok(Duration::ZERO));
    drop(under_way);
    while met(&addresses, &config, NEIGHBOUR, NOW).is_ok() {}
    assert_eq!(met(&addresses, &config, NEIGHBOUR, NOW), Err(Turned::NetworkRate));
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Ok(Duration::ZERO));
}

#[test]
fn handshakes_under_way_have_a_limit_and_their_end_makes_room() {
    let config = AddressesSection { handshakes: 3, network_handshakes: 5, ..config() };
    let addresses = Addresses::new(&config);
    let mut under_way: Vec<Arrival> =
        (0..3).map(|_| addresses.arrive(&config, ADDRESS, NOW).unwrap()).collect();
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Err(Turned::AddressHandshakes));
    under_way.extend((0..2).map(|_| addresses.arrive(&config, NEIGHBOUR, NOW).unwrap()));
    assert_eq!(met(&addresses, &config, NEIGHBOUR, NOW), Err(Turned::NetworkHandshakes));
    // One gets through, and one goes away: neither is counted twice.
    let mut through = under_way.remove(0);
    through.opened();
    through.opened();
    drop(through);
    drop(under_way.remove(0));
    let two: Vec<_> = (0..2).map(|_| addresses.arrive(&config, ADDRESS, NOW).unwrap()).collect();
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Err(Turned::AddressHandshakes));
    drop(two);
}

#[test]
fn who_fails_is_slowed_down_then_blocked_and_the_block_ends_by_itself() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    let fail = || {
        let arrival = addresses.arrive(&config, ADDRESS, NOW).unwrap();
        let wait = arrival.wait();
        (wait, arrival.failed_at(&config, nanos(NOW)))
    };
    for _ in 0..6 {
        assert_eq!(fail(), (Duration::ZERO, None));
    }
    for over in 1..4 {
        assert_eq!(fail(), (Duration::from_secs(over), None));
    }
    assert_eq!(fail(), (Duration::from_secs(4), Some(Duration::from_secs(30))));
    assert_eq!(met(&addresses, &config, ADDRESS, after(29)), Err(Turned::Blocked));
    assert!(met(&addresses, &config, NEIGHBOUR, NOW).is_ok());
    // It is let in, and is slow still.
    assert!(met(&addresses, &config, ADDRESS, after(31)).unwrap() > Duration::ZERO);
    assert_eq!(met(&addresses, &config, ADDRESS, after(100)), Ok(Duration::ZERO));
}

#[test]
fn each_block_is_twice_as_long_up_to_the_longest_and_quiet_begins_anew() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    let mut now = 0;
    for length in [30, 60, 100, 100] {
        let (_, block) = until_blocked(&addresses, &config, after(now));
        assert_eq!(block, Duration::from_secs(length));
        now += length + 1;
    }
    now += 101;
    assert_eq!(until_blocked(&addresses, &config, after(now)).1, Duration::from_secs(30));
}

#[test]
fn failures_that_were_under_way_do_not_make_a_block_longer() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    let under_way: Vec<_> = (0..20).map(|_| addresses.arrive(&config, ADDRESS, NOW).unwrap()).collect();
    let blocks: Vec<_> = under_way.iter().filter_map(|a| a.failed_at(&config, nanos(NOW))).collect();
    assert_eq!(blocks, [Duration::from_secs(30)]);
    assert!(met(&addresses, &config, ADDRESS, after(31)).is_ok());
}

#[test]
fn an_address_with_proven_sessions_is_slowed_down_and_never_blocked() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    let mut honest = addresses.arrive(&config, ADDRESS, NOW).unwrap();
    assert!(!honest.is_known());
    until_blocked(&addresses, &config, NOW);
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Err(Turned::Blocked));
    // One that was under way is proven: the others are blocked no more.
    honest.proven();
    let arrival = addresses.arrive(&config, ADDRESS, after(1)).unwrap();
    assert!(arrival.is_known());
    assert!(arrival.wait() > Duration::ZERO);
    for _ in 0..50 {
        assert_eq!(arrival.failed_at(&config, nanos(after(1))), None);
    }
    assert_eq!(met(&addresses, &config, ADDRESS, after(1)), Ok(SLOWEST));
    // Nor when that session has ended.
    drop(honest);
    assert_eq!(arrival.failed_at(&config, nanos(after(11))), None);
    assert!(met(&addresses, &config, ADDRESS, after(11)).is_ok());
}

#[test]
fn what_is_taken_anew_forgives_everybody() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    until_blocked(&addresses, &config, NOW);
    addresses.forgive();
    assert_eq!(met(&addresses, &config, ADDRESS, NOW), Ok(Duration::ZERO));
    assert_eq!(until_blocked(&addresses, &config, NOW), (10, Duration::from_secs(30)));
}

#[test]
fn another_rate_counts_at_once_for_what_was_used_before_it() {
    let slow = AddressesSection { rate: 1, burst: 20, network_rate: 1, network_burst: 20, ..config() };
    let addresses = Addresses::new(&slow);
    while met(&addresses, &slow, ADDRESS, NOW).is_ok() {}
    assert_eq!(met(&addresses, &slow, NEIGHBOUR, NOW), Err(Turned::NetworkRate));
    let fast = config();
    addresses.rebase(&slow, &fast, NOW);
    // Twenty of twenty are out; the next one waits a tenth of a second and not ten.
    assert_eq!(met(&addresses, &fast, ADDRESS, NOW), Ok(Duration::from_millis(100)));
    assert_eq!(met(&addresses, &fast, NEIGHBOUR, NOW), Ok(Duration::ZERO));
    // The other way round as well: what ten a second let through counts as no more than a whole bucket.
    while met(&addresses, &fast, ADDRESS, NOW).is_ok() {}
    addresses.rebase(&fast, &slow, NOW);
    assert_eq!(met(&addresses, &slow, ADDRESS, NOW), Ok(Duration::from_secs(1)));
}

#[test]
fn an_address_has_its_share_of_the_chairs_and_its_network_too() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    let arrive = |address| addresses.arrive(&config, address, NOW).unwrap();
    let sitting = |address: IpAddr, many: usize| -> Vec<Arrival> {
        (0..many).map(|_| arrive(address)).filter_map(|mut it| it.sit(80).then_some(it)).collect()
    };
    let mut first = sitting(ADDRESS, 20);
    assert_eq!((first.len(), sitting(NEIGHBOUR, 20).len()), (10, 10));
    let neighbours = sitting(NEIGHBOUR, 20);
    let third = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    assert_eq!((sitting(third, 3).len(), sitting(ELSEWHERE, 20).len()), (0, 10));
    // Who stands up, or goes away, makes room: once.
    first[0].stand();
    first[0].stand();
    first.pop();
    assert_eq!(sitting(ADDRESS, 20).len(), 2);
    assert_eq!(sitting(third, 20).len(), 2);
    drop(neighbours);
    // A known address has half of them, whatever its neighbours hold.
    let honest = &mut arrive(ELSEWHERE);
    assert!(honest.proven() && !arrive(ELSEWHERE).proven());
    assert_eq!(sitting(ELSEWHERE, 60).len(), 40);
    // Where there are but few everybody has one.
    assert!(arrive(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1))).sit(1));
}

#[test]
fn a_known_address_holds_half_of_what_is_kept_for_known_ones_but_for_what_it_proves() {
    let (config, addresses) = (config(), Addresses::new(&config()));
    let arrive = || addresses.arrive(&config, ADDRESS, NOW).unwrap();
    arrive().proven();
    let take = |many: usize| -> Vec<Arrival> {
        (0..many).map(|_| arrive()).filter_map(|mut it| it.take_reserved(8).then_some(it)).collect()
    };
    let mut held = take(8);
    assert_eq!((held.len(), take(8).len()), (4, 0));
    held[0].opened();
    assert_eq!(take(8).len(), 0, "through the handshake, and nobody yet");
    held[0].proven();
    assert_eq!(take(8).len(), 1);
    held.truncate(2);
    assert_eq!(take(8).len(), 3);
}

#[test]
fn a_site_of_a_thousand_devices_never_meets_the_defaults() {
    let config = AddressesSection::default();
    let addresses = Addresses::new(&config);
    // After a power cut all of them come at once, and are still in their handshakes when they try a second time, and a
    // third: as a device does that doubles its wait from a second on.
    let mut under_way = Vec::new();
    for (seconds, tries) in [(0, 1000), (1, 1000), (3, 1000), (7, 1000)] {
        if seconds > 1 {
            // Who tries again has given up what it had tried before.
            under_way.clear();
        }
        for _ in 0..tries {
            let arrival = addresses.arrive(&config, ADDRESS, after(seconds)).unwrap();
            assert_eq!(arrival.wait(), Duration::ZERO, "after {seconds} s");
            under_way.push(arrival);
        }
    }
    // Some of them fail, as long as any of the others gets through.
    for arrival in under_way.iter().take(config.failures - 1) {
        assert_eq!(arrival.failed_at(&config, nanos(after(7))), None);
    }
    under_way[500].proven();
    for arrival in under_way.iter().take(100) {
        assert_eq!(arrival.failed_at(&config, nanos(after(7))), None);
    }
}

#[test]
fn a_million_addresses_push_no_known_site_out() {
    let config = AddressesSection { remembered: 1024, ..AddressesSection::default() };
    let addresses = Addresses::new(&config);
    let mut honest = addresses.arrive(&config, ADDRESS, NOW).unwrap();
    honest.proven();
    let bytes = Addresses::bytes(&config);
    for n in 0..1_000_000_u32 {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n));
        let arrival = addresses.arrive(&config, address, after(u64::from(n / 1000))).unwrap();
        arrival.failed_at(&config, nanos(after(u64::from(n / 1000))));
    }
    assert!(addresses.arrive(&config, ADDRESS, after(1001)).unwrap().is_known());
    assert_eq!(bytes, Addresses::bytes(&config));
    assert!(bytes < 1024 * 200, "{bytes}");
}
