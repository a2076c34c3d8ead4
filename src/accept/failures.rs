//! Which ends of a handshake count against the peer's address.
//!
//! An honest fleet comes back all at once after a power cut, over bad networks, with clients that lose patience, and now and
//! then to a gateway that is itself at fault: its certificate has ended, its CA is missing, its clock is wrong, it is
//! overloaded, its database is away. None of that may block a site. What counts is what only strangers and broken programs do
//! again and again, and what an operator mends by a new file, which forgives it.

use std::io;

use rustls::CertificateError as Bad;

use crate::identity::Problem;

/// Whether a handshake that TLS has ended counts. A peer that went away does not, nor one that has refused *us* (an alert of
/// its), nor a date: whose clock is wrong is not known.
pub(super) fn counts_in_tls(error: &io::Error) -> bool {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return false;
    };
    !matches!(
        error,
        rustls::Error::AlertReceived(_)
            | rustls::Error::FailedToGetCurrentTime
            | rustls::Error::FailedToGetRandomBytes
            | rustls::Error::InvalidCertificate(
                Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. }
            )
    )
}

/// Whether a refused request counts. Who has a certificate that the registry knows is a device of ours: what is wrong with it
/// is told to it in words, and its site is not slowed for it; the rate of its address bounds what that costs.
pub(super) fn counts_as(problem: Problem) -> bool {
    match problem {
        Problem::CertificateUnknown | Problem::CertificateUnfit | Problem::CertificateMismatch => true,
        // Who gets to ask has a certificate of a device CA: it is more likely one of ours with a broken client.
        Problem::Malformed
        | Problem::DeviceRevoked
        | Problem::DeviceSuspended
        | Problem::CertificateRevoked
        | Problem::CertificateSuperseded
        | Problem::CertificateExpired
        | Problem::KeyUnknown
        | Problem::Origin
        | Problem::NotFound
        | Problem::UpgradeRequired
        | Problem::TooMany
        | Problem::Draining
        | Problem::Unavailable => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(error: rustls::Error) -> bool {
        counts_in_tls(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn strangers_count_and_nothing_that_may_be_our_own_fault() {
        assert!(counts(rustls::Error::NoCertificatesPresented));
        assert!(counts(Bad::UnknownIssuer.into()) && counts(Bad::BadSignature.into()));
        assert!(counts(rustls::InvalidMessage::InvalidContentType.into()));
        assert!(!counts(Bad::Expired.into()) && !counts(Bad::NotValidYet.into()));
        assert!(!counts(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA)));
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
            assert!(!counts_in_tls(&kind.into()));
        }
        let counting = Problem::ALL.into_iter().filter(|problem| counts_as(*problem));
        assert_eq!(counting.map(Problem::status).collect::<Vec<_>>(), [401, 401, 401]);
    }
}
