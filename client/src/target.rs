//! Where the gateway is, from its URL.

use std::net::SocketAddr;

use doorward_proto::PATH;
use rustls_pki_types::ServerName;

/// Why a text is not the URL of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{url}' is not a gateway's URL: {reason}; it looks like wss://HOST:8443{PATH}")]
pub struct UrlError {
    url: String,
    reason: &'static str,
}

/// A gateway's URL, taken apart.
#[derive(Debug, Clone)]
pub struct Target {
    /// As in the URL, in brackets where it is an IPv6 address.
    authority: String,
    /// For name lookup: without brackets.
    host: String,
    port: u16,
    path: String,
    name: ServerName<'static>,
}

impl Target {
    /// Reads `wss://HOST[:PORT][/PATH]`; the port is 8443 and the path `/v1/device` where there is none.
    ///
    /// # Errors
    /// [`UrlError`] in words.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let bad = |reason| UrlError { url: url.escape_debug().to_string(), reason };
        let rest = url.strip_prefix("wss://").ok_or_else(|| bad("it does not begin with wss://"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'?') {
            return Err(bad("its path has a query, a fragment or characters that no path has"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, rest) = inner.split_once(']').ok_or_else(|| bad("a ']' is missing"))?;
                match (rest, rest.strip_prefix(':')) {
                    ("", _) => (host, None),
                    (_, Some(port)) => (host, Some(port)),
                    _ => return Err(bad("something other than a port follows the address")),
                }
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| bad("its port is not a number up to 65535"))?,
            None => 8443,
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| bad("its host is neither a name nor an address"))?;
        let path = if matches!(path, "" | "/") { PATH } else { path };
        Ok(Self { authority: authority.to_owned(), host: host.to_owned(), port, path: path.to_owned(), name })
    }

    /// The name or address that the gateway's certificate must be for.
    #[must_use]
    pub fn name(&self) -> &ServerName<'static> {
        &self.name
    }

    /// The value of the `Host` header.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path of the upgrade request.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Looks the host up: IPv4 addresses first, because a fleet's sources are spread over 127.0.0.0/8.
    ///
    /// # Errors
    /// What the system's resolver says, or that it knows no address.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let mut addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((&*self.host, self.port)).await?.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        if addresses.is_empty() {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let of = |url: &str| Target::parse(url).map(|t| (t.host, t.port, t.path));
        let parts = |host: &str, port, path: &str| Ok((host.to_owned(), port, path.to_owned()));
        assert_eq!(of("wss://localhost"), parts("localhost", 8443, "/v1/device"));
        assert_eq!(of("wss://10.0.0.1:9/v1/device"), parts("10.0.0.1", 9, "/v1/device"));
        assert_eq!(of("wss://[::1]:9/"), parts("::1", 9, "/v1/device"));
        assert_eq!(Target::parse("wss://[::1]:9").unwrap().authority(), "[::1]:9");
        for bad in [
            "ws://a",
            "https://a",
            "wss://",
            "wss://a:x",
            "wss://a:70000",
            "wss://[::1",
            "wss://[::1]x",
            "wss://a b",
            "wss://a/x y",
            "wss://a/x?key=2",
            "wss://a/x\r\nEvil: 1",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad:?}");
        }
    }
}
