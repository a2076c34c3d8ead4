//! A socket that counts what it brings: the parts of an unfinished message are a sign of life, too.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

/// A TCP stream, and how many bytes have been read from it.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Nothing only where it could not be moved.
    tcp: Option<TcpStream>,
    received: u64,
}

impl Counted {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp: Some(tcp), received: 0 }
    }

    /// From here on another runtime's threads are woken for it: those of the door are not to be between a session and its
    /// device.
    pub(super) fn move_to(&mut self, threads: &Handle) -> io::Result<()> {
        if let Some(tcp) = self.tcp.take() {
            let tcp = tcp.into_std()?;
            let _there = threads.enter();
            self.tcp = Some(TcpStream::from_std(tcp)?);
        }
        Ok(())
    }

    fn tcp(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.tcp.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Bytes read so far, those of TLS among them.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.tcp()?.poll_read(cx, buffer);
        self.received += (buffer.filled().len() - before) as u64;
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.tcp()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.tcp()?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.as_ref().is_some_and(TcpStream::is_write_vectored)
    }
}
