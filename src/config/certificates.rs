//! `[certificates]`: how devices renew.

use serde::{Deserialize, Serialize};

use super::Span;

/// What a renewed certificate is like, and who may still renew.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CertificatesSection {
    /// How long a renewed certificate is valid.
    pub lifetime: Span,
    /// How long the older one holds once a session by the new one has been proven.
    pub grace: Span,
    /// How long after its end a certificate may still renew itself; a fleet may say otherwise.
    pub renew_after_expiry: Span,
}

impl Default for CertificatesSection {
    fn default() -> Self {
        Self {
            lifetime: Span::seconds(365 * 86_400),
            grace: Span::seconds(7 * 86_400),
            renew_after_expiry: Span::seconds(0),
        }
    }
}
