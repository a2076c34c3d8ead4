//! The PROXY protocol, version 2 (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>): a proxy says for whom it
//! connects, in a binary header before the first byte of TLS.
//!
//! Read from the networks of `gateway.proxy_networks` alone, and demanded there: a header that is optional lets whoever
//! reaches the gateway by another way say that he is somebody else. Version 1, a line of text without a length, is refused.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// §2.2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;
/// Addresses and what else a proxy says of the connection (TLVs); those in use are some hundred bytes.
const MAX_REST: usize = 2048;

/// For whom a proxy connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// For a peer of its own.
    Peer(SocketAddr),
    /// For itself: it asks whether we are there.
    Proxy,
}

/// Why a proxy's connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("it went away before it had said for whom it connects: {0}")]
    Io(#[from] io::Error),
    #[error(
        "it does not begin with a header of the PROXY protocol; take it out of gateway.proxy_networks, or let it send version 2"
    )]
    NoHeader,
    #[error("it speaks version 1 of the PROXY protocol; let it send version 2 (HAProxy: send-proxy-v2)")]
    Version1,
    #[error("version or command 0x{0:02x} of the PROXY protocol is not known")]
    Command(u8),
    #[error("family 0x{0:02x} of the PROXY protocol is not TCP over IPv4 or IPv6")]
    Family(u8),
    #[error(
        "the header of the PROXY protocol announces {0} bytes of addresses, which is too few or more than 2048"
    )]
    Length(usize),
}

/// Reads the header, and not a byte of what follows it.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Sender, ProxyError> {
    let mut fixed = [0; FIXED];
    stream.read_exact(&mut fixed).await?;
    let [signature @ .., command, family, high, low] = fixed;
    if signature != SIGNATURE {
        let version_1 = signature.starts_with(b"PROXY ");
        return Err(if version_1 { ProxyError::Version1 } else { ProxyError::NoHeader });
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_REST {
        return Err(ProxyError::Length(length));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match (command, family) {
        // What a proxy says of itself is not looked at (§2.2).
        (0x20, _) => Ok(Sender::Proxy),
        (0x21, 0x11) => peer::<4>(&rest).ok_or(ProxyError::Length(length)),
        (0x21, 0x21) => peer::<16>(&rest).ok_or(ProxyError::Length(length)),
        (0x21, family) => Err(ProxyError::Family(family)),
        (command, _) => Err(ProxyError::Command(command)),
    }
}

/// Source address, destination address, source port, destination port (§2.2); TLVs behind them are left alone.
fn peer<const N: usize>(rest: &[u8]) -> Option<Sender>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = rest.split_first_chunk::<N>()?;
    let (_, rest) = rest.split_first_chunk::<N>()?;
    let (ports, _) = rest.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([ports[0], ports[1]]);
    Some(Sender::Peer(SocketAddr::new(IpAddr::from(*source).to_canonical(), port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 0x20, 0xfb];

    /// What is read, and what is left behind it.
    fn reading(bytes: &[u8]) -> (Result<Sender, String>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut left = bytes;
        let read = runtime.block_on(read(&mut left)).map_err(|error| error.to_string());
        (read, left.len())
    }

    #[test]
    fn the_peer_is_read_and_no_byte_of_what_follows() {
        let bytes = [header(0x21, 0x11, &V4), b"hello".to_vec()].concat();
        assert_eq!(reading(&bytes), (Ok(Sender::Peer("192.0.2.7:12345".parse().unwrap())), 5));
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[33]) = (0x20, 0x01, 7, 99);
        let bytes = header(0x21, 0x21, &v6);
        assert_eq!(reading(&bytes), (Ok(Sender::Peer("[2001::7]:99".parse().unwrap())), 0));
        // An IPv4 peer of a proxy that speaks IPv6 is an IPv4 peer.
        let mut mapped = [0; 36];
        mapped[10..16].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 7]);
        assert_eq!(reading(&header(0x21, 0x21, &mapped)).0, Ok(Sender::Peer("192.0.2.7:0".parse().unwrap())));
    }

    #[test]
    fn what_else_it_says_is_left_alone_and_bounded() {
        let with_more = |bytes: usize| header(0x21, 0x11, &[&V4[..], &vec![0xee; bytes]].concat());
        let tlvs = [with_more(MAX_REST - V4.len()), b"hello".to_vec()].concat();
        assert_eq!(reading(&tlvs), (Ok(Sender::Peer("192.0.2.7:12345".parse().unwrap())), 5));
        let error = reading(&with_more(MAX_REST - V4.len() + 1)).0.unwrap_err();
        assert!(error.contains("2049 bytes"), "{error}");
    }

    #[test]
    fn a_proxy_may_connect_for_itself() {
        for (family, rest) in [(0, &[][..]), (0x11, &V4), (0xff, &[1, 2, 3])] {
            assert_eq!(reading(&header(0x20, family, rest)), (Ok(Sender::Proxy), 0));
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (bytes, words) in [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 12345 8443\r\n".to_vec(), "version 1"),
            ([22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0].to_vec(), "does not begin"),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "does not begin"),
            (header(0x11, 0x11, &V4), "0x11"),
            (header(0x22, 0x11, &V4), "command 0x22"),
            (header(0x21, 0x00, &[]), "family 0x00"),
            (header(0x21, 0x12, &V4), "family 0x12"),
            (header(0x21, 0x31, &[0; 216]), "family 0x31"),
            (header(0x21, 0x11, &V4[..11]), "11 bytes"),
            (header(0x21, 0x21, &V4), "12 bytes"),
            (header(0x21, 0x11, &V4)[..20].to_vec(), "went away"),
            (Vec::new(), "went away"),
        ] {
            let error = reading(&bytes).0.unwrap_err();
            assert!(error.contains(words), "{bytes:?}: {error}");
        }
    }
}
