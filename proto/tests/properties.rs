//! Whatever comes, in whatever order: the session's verdict is the one that docs/protocol.md asks for, each accepted message
//! was signed in this session, once and in time, and both ends agree on what became of it. A second implementation of the
//! rules (`properties/model.rs`) judges every frame, too. What the fuzz target `session` plays is the same.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "properties/choices.rs"]
mod choices;
#[path = "properties/json.rs"]
mod json;
#[path = "properties/model.rs"]
mod model;
#[path = "properties/play.rs"]
mod play;
#[expect(dead_code, reason = "the other tests of two ends need the rest")]
#[path = "two_ends/support.rs"]
mod support;

use play::Tally;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Each of these must have happened: stories in which nothing goes wrong would prove nothing.
const EVENTFUL: [&str; 23] = [
    "accepted",
    "bad_envelope",
    "bad_key",
    "bad_signature",
    "bad_message",
    "wrong_party",
    "wrong_session",
    "stale",
    "replayed",
    "over its bytes",
    "over its messages",
    "renews too often",
    "of another form",
    "forbidden",
    "unavailable",
    "settled",
    "updated",
    "update that ends it",
    "clock set",
    "ended",
    "renewed",
    "delivered",
    "too long",
];

#[test]
fn every_verdict_is_the_models_and_both_ends_agree_on_it() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 1000,
        // A story that fails is kept as a case of the fuzz target's corpus, which every build plays.
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let sum = std::cell::RefCell::new(Tally::new());
    runner
        .run(&prop::collection::vec(any::<u8>(), 0..3000), |bytes| {
            let mut sum = sum.borrow_mut();
            for (what, times) in play::play(&bytes) {
                *sum.entry(what).or_default() += times;
            }
            Ok(())
        })
        .unwrap();
    let sum = sum.into_inner();
    for what in EVENTFUL {
        assert!(sum.get(what).is_some_and(|times| *times >= 10), "too few {what}: {sum:?}");
    }
}
