//! What the property tests of the protocol judge by.

#![expect(clippy::unwrap_used, reason = "written for tests")]

#[path = "../../proto/tests/properties/choices.rs"]
pub(crate) mod choices;
#[path = "../../proto/tests/properties/json.rs"]
pub(crate) mod json;
#[path = "../../proto/tests/properties/model.rs"]
pub(crate) mod model;
#[path = "../../proto/tests/properties/play.rs"]
pub(crate) mod play;
#[expect(dead_code, reason = "the tests of two ends need the rest")]
#[path = "../../proto/tests/two_ends/support.rs"]
pub(crate) mod support;
