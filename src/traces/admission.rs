//! A connection's way in, from `accept` to the message that proves its session, or to where it ended before that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::ids::DeviceId;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};

use super::span::{Epoch, Times};
use super::{Context, Span, Traces};
use crate::clock;
use crate::identity::Problem;

/// Phases that are kept. There are fewer but where a record changes again and again while it is asked for.
const MOST_PHASES: usize = 16;

/// A part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Until the whole TLS hello has come.
    Hello,
    /// Until it has its turn to be computed.
    Turn,
    /// The rest of TLS.
    Handshake,
    /// Until the whole request has come.
    Request,
    /// The registry, or the copy of it, is asked for the record.
    Registry,
    /// 101 is sent.
    Upgrade,
    /// From there over `welcome` to the first message that is signed.
    Proof,
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Self::Hello => "tls.hello",
            Self::Turn => "tls.turn",
            Self::Handshake => "tls.handshake",
            Self::Request => "request",
            Self::Registry => "registry",
            Self::Upgrade => "upgrade",
            Self::Proof => "proof",
        }
    }
}

/// How it ends.
pub(super) enum End {
    Proven(DeviceId),
    Refused(Problem, String),
    Failed(&'static str, &'static str),
    Closed(Close),
}

/// A connection on its way in.
#[derive(Debug)]
pub(super) struct Admission {
    traces: Arc<Traces>,
    context: Context,
    connection: Arc<str>,
    peer: SocketAddr,
    epoch: Epoch,
    began: Duration,
    phases: Vec<(Phase, Duration, Duration)>,
    now: Option<(Phase, Duration)>,
    /// The version, and whether it was resumed.
    tls: Option<(&'static str, bool)>,
    named: Option<DeviceId>,
}

impl Admission {
    pub(super) fn new(
        traces: &Arc<Traces>,
        context: Context,
        connection: &Arc<str>,
        peer: SocketAddr,
    ) -> Self {
        let now = clock::now();
        Self {
            traces: Arc::clone(traces),
            context,
            connection: Arc::clone(connection),
            peer,
            epoch: Epoch::of(now),
            began: now.monotonic,
            phases: Vec::new(),
            now: Some((Phase::Hello, now.monotonic)),
            tls: None,
            named: None,
        }
    }

    pub(super) fn phase(&mut self, next: Option<Phase>) {
        let now = clock::now().monotonic;
        if let Some((phase, began)) = self.now.take()
            && self.phases.len() < MOST_PHASES
        {
            self.phases.push((phase, began, now));
        }
        self.now = next.map(|phase| (phase, now));
    }

    pub(super) fn secured(&mut self, tls: &ServerConnection) {
        let version = match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "-",
        };
        self.tls = Some((version, tls.handshake_kind() == Some(HandshakeKind::Resumed)));
    }

    pub(super) fn named(&mut self, device: &DeviceId) {
        self.named = Some(device.clone());
    }

    pub(super) fn end(self: Box<Self>, end: End) {
        let (context, epoch, ended) = (self.context, self.epoch, clock::now().monotonic);
        let mut root = Span::root(context, "admission", Times { epoch, began: self.began, ended })
            .with("doorward.connection", &self.connection)
            .with("client.address", &self.peer.ip().to_string())
            .with_number("client.port", self.peer.port());
        if let Some((version, resumed)) = self.tls {
            root = root.with("tls.protocol.version", version).with_flag("tls.resumed", resumed);
        }
        if let Some(named) = &self.named {
            root = root.with("doorward.certificate.device", named.as_str());
        }
        let (label, detail) = match &end {
            End::Proven(_) => (None, ""),
            End::Refused(problem, detail) => (Some(problem.label()), detail.as_str()),
            End::Failed(label, detail) => (Some(*label), *detail),
            End::Closed(close) => (Some(close.label()), "the session ended before it was proven"),
        };
        root = match &end {
            End::Proven(device) => root.with("doorward.device", device.as_str()),
            End::Refused(problem, _) => root.with_number("http.response.status_code", problem.status()),
            End::Closed(close) => root.with_number("doorward.close_code", close.code()),
            End::Failed(..) => root,
        };
        if let Some(label) = label {
            root = root.failed(label, detail);
        }
        let mut spans = Vec::with_capacity(self.phases.len() + 2);
        spans.push(root);
        spans.extend(
            self.phases.iter().map(|&(phase, began, ended)| {
                Span::part(context, phase.name(), Times { epoch, began, ended })
            }),
        );
        // Where it ended is where it failed.
        if let Some((phase, began)) = self.now {
            let span = Span::part(context, phase.name(), Times { epoch, began, ended });
            spans.push(match label {
                Some(label) => span.failed(label, detail),
                None => span,
            });
        }
        self.traces.put(spans);
    }
}
