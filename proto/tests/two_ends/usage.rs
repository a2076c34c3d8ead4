//! What a device has used of its limits goes with it from session to session.

use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::limits::{Limits, Rate, Usage};
use doorward_proto::session::Grant;
use doorward_proto::verdict::{Refusal, Verdict};

use super::support::{Scene, at, grant};

fn narrow() -> Grant {
    let limits = Limits {
        rate: Rate { per_second: 5, burst: 20 },
        bytes: Rate { per_second: 2000, burst: 6000 },
        ..grant().limits
    };
    Grant { limits, ..grant() }
}

#[test]
fn however_often_a_device_reconnects_it_gets_its_rate_and_one_burst() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = narrow().limits;
        let mut usage = Usage::new(&limits);
        let (mut now, mut accepted, mut bytes, mut refused) = (0.0, 0_u64, 0_u64, 0_u64);
        while now < 30.0 {
            let mut scene = Scene::open(narrow());
            scene.session.take_in(&usage, at(now));
            for seq in 1..random.u64(2..40) {
                now += f64::from(random.u32(0..50)) / 1000.0;
                let frame = scene.frame(seq, now, r#""op":"hello""#);
                match scene.session.receive(&frame, at(now)) {
                    Verdict::Accepted => (accepted, bytes) = (accepted + 1, bytes + frame.len() as u64),
                    Verdict::Refused(Refusal::RateLimited) => refused += 1,
                    other => panic!("{other:?}"),
                }
            }
            // Whichever of several ends last: each says what it knows, and none takes anything back.
            let mut joined = scene.session.usage();
            joined.join(&usage, at(now).monotonic);
            usage = joined;
        }
        let seconds = at(now).monotonic.as_secs() + 1;
        assert!(accepted <= 5 * seconds + 20, "seed {seed}: {accepted} messages in {now} s");
        assert!(bytes <= 2000 * seconds + 6000, "seed {seed}: {bytes} bytes in {now} s");
        assert!(
            accepted >= 5 * 29 && refused > 0,
            "seed {seed}: a limit that nobody meets proves nothing: {accepted}"
        );
        assert!(usage.is_over(at(now).monotonic + Duration::from_secs(30)), "and it ends");
    }
}

#[test]
fn who_was_closed_for_its_strikes_is_closed_at_the_next_one() {
    let strike_out = |usage: &Usage, seconds: f64, strikes: usize| {
        let mut scene = Scene::open(grant());
        scene.session.take_in(usage, at(seconds));
        let hello = scene.frame(1, seconds, r#""op":"hello""#);
        assert_eq!(
            scene.session.receive(&hello, at(seconds)),
            Verdict::Accepted,
            "not for what it has not done"
        );
        for _ in 0..strikes {
            scene.session.receive("rubbish", at(seconds));
        }
        (scene.session.closing(), scene.session.usage())
    };
    let mut usage = Usage::new(&grant().limits);
    // A few in each session are no reason, however many sessions there are.
    for _ in 0..5 {
        let (closing, next) = strike_out(&usage, 1.0, 4);
        assert_eq!(closing, None);
        usage = next;
    }
    let (closing, usage) = strike_out(&usage, 1.0, 5);
    assert_eq!(closing, Some(Close::Strikes));
    let (closing, usage) = strike_out(&usage, 2.0, 1);
    assert_eq!(closing, Some(Close::Strikes), "at once");
    // They count for a minute, each from when it was earned.
    assert_eq!(strike_out(&usage, 61.5, 3).0, None);
}
