//! What happens to a session beside frames: time, the store, deliveries, renewals, changes of its grant, its end.

use super::*;

impl Play {
    pub(super) fn pass(&mut self, choices: &mut Choices<'_>) -> &'static str {
        let by = Duration::from_millis(choices.one_of(&[0, 1, 100, 1_000, 5_000, 30_000, 61_000]));
        let (mut monotonic, mut wall) = (self.now.monotonic, self.now.wall.as_duration());
        monotonic += by;
        wall += by;
        let hour = Duration::from_secs(3600);
        let what = match choices.below(16) {
            // Somebody sets the clock.
            0 => {
                wall += hour;
                "clock set"
            }
            1 => {
                wall = wall.saturating_sub(hour);
                "clock set"
            }
            _ => "time passes",
        };
        self.now = moment(monotonic, wall);
        what
    }

    /// The store decides on the oldest publish or the newest.
    pub(super) fn decide(&mut self, choices: &mut Choices<'_>) -> &'static str {
        let choice = choices.byte();
        let next = if choice & 1 == 0 { self.receipts.pop_front() } else { self.receipts.pop_back() };
        let Some((receipt, seq)) = next else { return "nothing to decide" };
        if choice & 6 == 6 {
            self.fates.insert(seq, Fate::Refused);
            let open = self.session.closing().is_none();
            self.session.refuse(receipt, Refusal::Unavailable, "the store stalls", Some(1), self.now);
            self.look();
            let rejects = std::mem::take(&mut self.rejects);
            let wanted = vec![("unavailable".to_owned(), Some(seq))];
            assert_eq!(rejects, if open { wanted } else { Vec::new() });
            return "unavailable";
        }
        self.fates.insert(seq, Fate::Settled);
        self.session.settle(Stored(receipt));
        self.look();
        "settled"
    }

    pub(super) fn deliver(&mut self, choices: &mut Choices<'_>) -> &'static str {
        let data = format!("\"{}\"", "x".repeat(usize::from(choices.byte()) * 16));
        let message = Message {
            ch: "devices/press-7/x".to_owned(),
            data: serde_json::from_str(&data).expect("JSON"),
            id: MessageId::new("m").expect("an id"),
            from: device(),
        };
        let before = self.downlink;
        self.session.deliver(&message, self.now);
        // One that is left out has used a number.
        let skipped = self.proven && self.session.closing().is_none() && data.len() > 1200;
        self.look_past(skipped, before);
        "delivered"
    }

    /// A message that is too long for the device may use up a number of the gateway's, or not.
    pub(super) fn look_past(&mut self, skipped: bool, before: u64) {
        let mut outputs = Vec::new();
        while let Some(output) = self.session.poll() {
            outputs.push(output);
        }
        for output in outputs {
            let Output::Send(frame) = output else { panic!("{output:?} for a message") };
            assert!(frame.len() <= self.model.max_bytes, "longer than the device takes");
            self.hear(&frame);
        }
        if skipped && self.downlink == before {
            self.downlink += 1;
        }
    }

    pub(super) fn answer_renewal(&mut self, choices: &mut Choices<'_>) -> &'static str {
        let Some(seq) = self.renewing else { return "nothing to renew" };
        let expires = self.grant.certificate_expires;
        let open = self.session.closing().is_none();
        let what = match choices.below(4) {
            0 => {
                self.session.certify(seq + 1, "not asked for", expires, self.now);
                self.look();
                return "not asked for";
            }
            1 => {
                self.session.certify(seq, "PEM", expires, self.now);
                self.renews_from = self.now.monotonic + Duration::from_secs(5);
                "renewed"
            }
            2 => {
                self.session.refuse_renewal(seq, Refusal::Unavailable, "no issuer", Some(7), self.now);
                self.renews_from = self.now.monotonic + Duration::from_secs(7);
                "not renewed"
            }
            _ => {
                self.session.refuse_renewal(seq, Refusal::BadMessage, "no request", None, self.now);
                "no request"
            }
        };
        self.look();
        self.renewing = None;
        let rejects = std::mem::take(&mut self.rejects);
        assert_eq!(rejects.len(), usize::from(open && what != "renewed"));
        if what == "no request" && open {
            self.strike();
        }
        what
    }

    /// The registry has changed: keys, policy, dates.
    pub(super) fn update(&mut self, choices: &mut Choices<'_>) -> &'static str {
        let mut grant = self.grant.clone();
        let soon = NumericDate::since_epoch(self.now.wall.as_duration() + Duration::from_secs(30));
        let keys: Vec<(u32, Option<NumericDate>)> = match choices.below(8) {
            0 => vec![(2, None)],
            1 => vec![(1, Some(soon)), (2, None)],
            2 | 3 => vec![(1, None), (2, None)],
            _ => vec![(1, None)],
        };
        let mut keyring = Keyring::default();
        keys.iter().for_each(|(version, end)| keyring.add(key(*version), *end));
        let both = keys.len() == 2 && keys[0].1.is_none();
        grant.keyring = keyring;
        grant.pending = (both && choices.below(2) == 1).then(|| {
            let version = KeyVersion::from_number(2).expect("a version");
            Box::new(PendingKey { version, key: Zeroizing::new(bytes(2)), grace: Duration::from_secs(60) })
        });
        let denied = choices.below(4) == 1;
        grant.policy = policy(if denied { "{}" } else { POLICY });
        if choices.below(8) == 1 {
            grant.certificate_expires = soon;
        }
        match choices.below(8) {
            0 => grant.schemas = None,
            1 => grant.schemas = Some(form()),
            _ => {}
        }
        self.session.update(grant.clone(), self.now);
        if self.session.closing().is_some() {
            self.look();
            return "update that ends it";
        }
        self.model.keys = keys.iter().map(|(version, end)| (*version, bytes(*version), *end)).collect();
        self.model.formed = grant.schemas.is_some();
        self.model.publish_below = if denied { &[] } else { ITS_OWN };
        self.grant = grant;
        self.look();
        let lost: BTreeSet<u64> = if denied {
            std::mem::take(&mut self.subscriptions).into_values().collect()
        } else {
            BTreeSet::new()
        };
        let rejects = std::mem::take(&mut self.rejects);
        assert!(rejects.iter().all(|(error, _)| error == "forbidden"), "{rejects:?}");
        let said: BTreeSet<u64> = rejects.iter().filter_map(|(_, seq)| *seq).collect();
        assert_eq!(
            (said, rejects.len()),
            (lost.clone(), lost.len()),
            "each lost subscription is told (R-37)"
        );
        "updated"
    }

    pub(super) fn close(&mut self, choices: &mut Choices<'_>) -> &'static str {
        if choices.below(4) != 3 {
            self.session.heard(self.now);
            return "heard";
        }
        let close = choices.one_of(&[Close::Revoked, Close::GoingAway, Close::Superseded, Close::Normal]);
        self.session.end(close, None, self.now);
        assert_eq!(self.session.closing(), Some(close));
        self.look();
        assert!(self.closed);
        "ended"
    }
}
