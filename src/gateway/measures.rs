//! What a gateway measures: the answer to `/metrics`, put together from where things are counted.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Gateway;
use crate::clock;
use crate::metrics::page::Page;
use crate::traces::Traces;

impl Gateway {
    /// Everything, in the order in which it is shown.
    pub(crate) fn collect(&self, page: &mut Page) {
        page.gauges(
            "doorward_build_info",
            "Always 1; which version this is, and the gateway's name.",
            [(vec![("version", env!("CARGO_PKG_VERSION")), ("gateway", &*self.name)], 1.0)],
        );
        self.collect_checks(page);
        self.collect_door(page);
        self.counters.collect(page, clock::now().monotonic);
        self.quarantines.counters.collect(page);
        Traces::collect(self.traces.as_ref(), page);
        self.collect_store(page);
        self.collect_registry(page);
        self.collect_ends(page);
    }

    fn collect_door(&self, page: &mut Page) {
        let most = self.live().config.limits.connections;
        page.gauge(
            "doorward_connections",
            "Connections that are open: sessions, and handshakes under way.",
            most.saturating_sub(self.connections.available_permits()) as f64,
        );
        page.gauge("doorward_connections_limit", "limits.connections.", most as f64);
        let tally = self.sessions.tally();
        page.gauges(
            "doorward_sessions",
            "Sessions that are open, by whether they have been proven.",
            [
                (vec![("state", "proven")], tally.proven as f64),
                (vec![("state", "unproven")], tally.unproven as f64),
            ],
        );
    }

    fn collect_store(&self, page: &mut Page) {
        let look = self.sink.look();
        page.gauge(
            "doorward_store_queue_messages",
            "Publishes that wait for the store.",
            look.messages as f64,
        );
        page.gauge("doorward_store_queue_limit", "limits.store_queue.", look.most as f64);
        page.gauge("doorward_store_queue_bytes", "What they take in memory.", look.bytes as f64);
        page.gauge(
            "doorward_store_queue_oldest_seconds",
            "How long the oldest of them has been waiting.",
            look.oldest.as_secs_f64(),
        );
        page.flag(
            "doorward_store_stalled",
            "Whether publishes are refused because the store does not write.",
            look.stalled,
        );
        self.sink.meters.collect(page);
    }

    fn collect_registry(&self, page: &mut Page) {
        page.flag("doorward_registry_up", "Whether the registry answers.", !self.sight.is_away());
        page.flag(
            "doorward_registry_stale",
            "Whether it has been away for too long to serve anybody by what is known of it.",
            self.sight.is_stale(),
        );
        // Before the first report nothing is known at all.
        let age = self.sight.age();
        page.gauges(
            "doorward_registry_known_age_seconds",
            "How old is what is known of the registry, by the last report to it.",
            (age < Duration::MAX).then(|| (Vec::new(), age.as_secs_f64())),
        );
        page.gauge(
            "doorward_registry_max_staleness_seconds",
            "registry.max_staleness: how old that may become while the registry is away.",
            self.max_staleness().as_secs_f64(),
        );
        page.gauge(
            "doorward_registry_last_look_seconds",
            "How long ago the last complete look at the feed of changes began.",
            self.sight.looked_ago().as_secs_f64(),
        );
    }

    /// Of two of one name the one that ends sooner: an operator mends that first.
    fn collect_ends(&self, page: &mut Page) {
        let expiries = self.expiries();
        let mut soonest: BTreeMap<(&'static str, &str), i64> = BTreeMap::new();
        let own = [("server", "", expiries.server_certificate)];
        let cas = expiries.device_cas.iter().map(|(subject, left)| ("device_ca", subject.as_str(), *left));
        let lists = expiries
            .revocation_lists
            .iter()
            .map(|(issuer, left)| ("revocation_list", issuer.as_str(), *left));
        let session = expiries.session_certificates.map(|left| ("session", "", left));
        for (kind, subject, left) in own.into_iter().chain(cas).chain(lists).chain(session) {
            let entry = soonest.entry((kind, subject)).or_insert(left);
            *entry = left.min(*entry);
        }
        page.gauges(
            "doorward_certificate_expires_seconds",
            "How long what ends has still to go: the gateway's own certificate, device CAs and revocation lists by subject, \
             and the soonest of the certificates behind proven sessions.",
            soonest.iter().map(|((kind, subject), left)| {
                (vec![("kind", *kind), ("subject", *subject)], *left as f64)
            }),
        );
    }
}
