//! Where devices and sites have been proven, kept in `state/` from one run to the next.
//!
//! Without it a gateway that starts knows nobody: a fleet that comes back all at once would be held to what strangers are, a
//! site could be blocked by whoever shares its address, and a thief of a certificate could use up the connections that the
//! device itself needs. What is new is written soon, and all of it now and then, so that a kill costs what a minute has
//! brought; a file that is lost costs what an empty one does. It says who is shown more patience, and lets nobody in. How
//! full buckets are is not kept: a device begins with full ones, once a restart.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doorward_proto::ids::DeviceId;
use doorward_proto::time::Moment;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use super::sessions::{MAX_REMEMBERED, Sessions};
use crate::accept::Addresses;
use crate::clock;
use crate::home::{self, FileError, Home, SECRET};

/// The first line, with the format's version.
const HEADER: &str = "doorward places 1";
/// From the first news to writing: what comes with it is written with it.
const SETTLE: Duration = Duration::from_secs(1);
/// From one time to the next.
const PAUSE: Duration = Duration::from_secs(60);
/// Without news it is written as often, so that the times in it stay near the truth.
const REFRESH: Duration = Duration::from_secs(3600);
/// Addresses that are kept, and devices.
const MOST: usize = MAX_REMEMBERED;
/// A line: a word, an id, an address, a time.
const LONGEST_LINE: usize = 128;
/// No file of ours is longer.
const MAX_BYTES: usize = 2 * MOST * LONGEST_LINE;

/// Where it is kept.
fn path(home: &Home) -> PathBuf {
    home.state().join("places")
}

/// Takes over what an earlier run has left. What cannot be read is made anew.
pub(super) fn recall(home: &Home, addresses: &Addresses, sessions: &Sessions, now: Moment) {
    let path = path(home);
    let places = match read(&path) {
        Ok(Some(places)) => places,
        Ok(None) => return,
        Err(why) => {
            warn!(
                file = %path.display(), why,
                "known addresses and the places of devices cannot be read, and are kept anew: until a session is proven there, each counts as a stranger's"
            );
            return;
        }
    };
    for Place { device, address, until } in places {
        let left = Duration::from_secs(until).saturating_sub(now.wall.as_duration());
        match device {
            _ if left.is_zero() => {}
            Some(device) => sessions.recall(device, address, left, now.monotonic),
            None => addresses.recall(address, left, now.monotonic),
        }
    }
}

/// Writes until it is stopped, and then once more.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut complained = false;
    loop {
        tokio::select! {
            () = gateway.moved.notified() => tokio::select! {
                () = tokio::time::sleep(SETTLE) => {}
                () = stop.cancelled() => {}
            },
            () = tokio::time::sleep(REFRESH) => {}
            () = stop.cancelled() => {}
        }
        let last = stop.is_cancelled();
        let writing = Arc::clone(&gateway);
        let written = match tokio::task::spawn_blocking(move || write(&writing)).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match written {
            Ok(()) if std::mem::take(&mut complained) => info!("known addresses and places are kept again"),
            Ok(()) => {}
            Err(error) if !std::mem::replace(&mut complained, true) => {
                warn!(error, "known addresses and places are not kept: a restart would not know them");
            }
            Err(_) => {}
        }
        if last {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }
}

fn write(gateway: &Gateway) -> Result<(), FileError> {
    if !gateway.clock_is_right() {
        // The times would mean nothing to the next run. What was written before still does.
        return Ok(());
    }
    home::write_over(&path(&gateway.home), text(&gateway.addresses, &gateway.sessions, clock::now()), SECRET)
}

fn text(addresses: &Addresses, sessions: &Sessions, now: Moment) -> String {
    let until = |left: Duration| now.wall.as_duration().saturating_add(left).as_secs();
    let mut text = format!("{HEADER}\n");
    let mut room = MOST;
    // Writing to a string does not fail.
    addresses.each_known(now.monotonic, |address, left| {
        if let Some(less) = room.checked_sub(1) {
            room = less;
            let _ = writeln!(text, "address {} {}", address.first(), until(left));
        }
    });
    let mut room = MOST;
    sessions.each_home(now.monotonic, |device, home, left| {
        if let Some(less) = room.checked_sub(1) {
            room = less;
            let _ = writeln!(text, "device {device} {home} {}", until(left));
        }
    });
    text
}

/// A line of the file.
struct Place {
    /// Whose; nobody's: an address that many may share.
    device: Option<DeviceId>,
    address: IpAddr,
    /// Until when it is known, in Unix seconds.
    until: u64,
}

/// All of it or nothing, as it was written.
fn read(path: &Path) -> Result<Option<Vec<Place>>, String> {
    match home::must_be_file(path) {
        Err(FileError::Missing(_)) => return Ok(None),
        other => other.map_err(|error| error.to_string())?,
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let bytes =
        file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if bytes > MAX_BYTES {
        return Err("it is longer than any that a gateway writes".to_owned());
    }
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return Err(format!("its first line is not '{HEADER}'"));
    }
    let place = |(number, line)| parse(line).ok_or_else(|| format!("line {} is no place", number + 2));
    lines.enumerate().map(place).collect::<Result<_, _>>().map(Some)
}

fn parse(line: &str) -> Option<Place> {
    let mut words = line.split(' ');
    let device = match words.next()? {
        "address" => None,
        "device" => Some(DeviceId::new(words.next()?).ok()?),
        _ => return None,
    };
    let (address, until) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(Place { device, address, until })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use doorward_proto::limits::Connects;
    use doorward_proto::time::NumericDate;

    use super::*;
    use crate::config::AddressesSection;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: Duration = Duration::from_secs(1_800_000_000);

    fn at(monotonic: Duration, wall: Duration) -> Moment {
        Moment { monotonic, wall: NumericDate::since_epoch(wall) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn id(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    struct Run {
        addresses: Arc<Addresses>,
        sessions: Sessions,
        config: AddressesSection,
    }

    impl Run {
        fn new() -> Self {
            let config = AddressesSection::default();
            Self { addresses: Addresses::new(&config), sessions: Sessions::new(10), config }
        }

        fn knows(&self, address: &str, now: Duration) -> bool {
            self.addresses.arrive(&self.config, ip(address), now).unwrap().is_known()
        }
    }

    #[test]
    fn the_next_run_knows_what_this_one_knew_for_as_long_as_this_one_would_have() {
        let (before, now) = (Run::new(), at(100 * HOUR, START));
        before.addresses.recall(ip("192.0.2.1"), 5 * HOUR, now.monotonic);
        before.addresses.recall(ip("2001:db8:1:2::7"), 50 * HOUR, now.monotonic);
        before.sessions.watch(&id("press-7")).spent().proven(ip("2001:db8:1:2::7"), now.monotonic);
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path());
        home::make_folder(&home.state()).unwrap();
        home::write_over(&path(&home), text(&before.addresses, &before.sessions, now), SECRET).unwrap();

        // Its monotonic clock begins anew.
        let (after, now) = (Run::new(), at(Duration::from_secs(1), START + HOUR));
        recall(&home, &after.addresses, &after.sessions, now);
        let then = |hours: u32| now.monotonic + hours * HOUR - Duration::from_secs(2);
        assert!(!after.knows("192.0.2.2", then(1)));
        assert!(after.knows("192.0.2.1", then(4)) && !after.knows("192.0.2.1", then(5)));
        // Another host of its /64, and no longer than anything is known.
        assert!(after.knows("2001:db8:1:2::8", then(23)) && !after.knows("2001:db8:1:2::8", then(24)));
        let watch = after.sessions.watch(&id("press-7"));
        assert_eq!(watch.spent().home(then(47)).map(|(place, _)| place), Some(ip("2001:db8:1:2::")));
        assert_eq!(watch.spent().home(then(48)), None);
        let connects = Connects { per_minute: 1, burst: 1 };
        assert_eq!(watch.spent().connect(ip("192.0.2.9"), connects, now.monotonic), Ok(()));
        assert!(watch.spent().connect(ip("192.0.2.9"), connects, now.monotonic).is_err());
        assert_eq!(watch.spent().connect(ip("2001:db8:1:2::7"), connects, now.monotonic), Ok(()));
        // A clock that was set back makes nobody known for longer.
        let (earlier, now) = (Run::new(), at(Duration::from_secs(1), START - 1000 * HOUR));
        recall(&home, &earlier.addresses, &earlier.sessions, now);
        assert!(earlier.knows("192.0.2.1", 23 * HOUR) && !earlier.knows("192.0.2.1", 25 * HOUR));
    }

    #[test]
    fn what_is_no_such_file_is_read_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("places");
        assert!(matches!(read(&path), Ok(None)));
        std::fs::write(&path, format!("{HEADER}\naddress 192.0.2.1 5\ndevice a ::1 7\n")).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().len(), 2);
        for text in [
            "",
            "rubbish",
            "doorward places 2\n",
            "doorward places 1\naddress 192.0.2.1\n",
            "doorward places 1\naddress 192.0.2.1 5 6\n",
            "doorward places 1\naddress 192.0.2.256 5\n",
            "doorward places 1\naddress 192.0.2.1 -5\n",
            "doorward places 1\ndevice a/b 192.0.2.1 5\n",
            "doorward places 1\ndevice 192.0.2.1 5\n",
            "doorward places 1\nhost 192.0.2.1 5\n",
            "doorward places 1\n\n",
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(read(&path).is_err(), "{text:?}");
        }
        std::fs::write(&path, b"doorward places 1\n\xff\n").unwrap();
        assert!(read(&path).is_err());
        std::fs::write(&path, "x".repeat(MAX_BYTES + 1)).unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn no_line_is_longer_than_the_bound_and_no_file_has_more_of_them() {
        let run = Run::new();
        let longest = format!("{}{}", "a".repeat(58), 100_000);
        run.sessions.recall(id(&longest), IpAddr::from([0xfff1_u16; 8]), HOUR, HOUR);
        let now = at(HOUR, Duration::from_secs(99_999_999_999));
        assert!(text(&run.addresses, &run.sessions, now).lines().all(|line| line.len() < LONGEST_LINE));
        let many = Sessions::new(MOST);
        for n in 0..=u32::try_from(MOST).unwrap() {
            many.recall(id(&n.to_string()), Ipv4Addr::from_bits(n).into(), HOUR, HOUR);
        }
        assert_eq!(text(&run.addresses, &many, now).lines().count(), 1 + MOST);
    }
}
