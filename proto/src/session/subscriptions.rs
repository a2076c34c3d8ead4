//! What a session wants to hear of others.

use super::{No, Output, Session};
use crate::channel::Filter;
use crate::policy::Who;
use crate::time::Moment;
use crate::verdict::Refusal;

impl Session {
    /// What its subscriptions are.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Filter> {
        self.subscriptions.keys()
    }

    /// Whether the last message was refused for being one subscription too many: `forbidden` as well, though no policy
    /// denies it.
    #[must_use]
    pub fn had_no_room(&self) -> bool {
        self.no_room
    }

    /// The refusal is in words.
    pub(super) fn subscribe(&mut self, filter: Filter, seq: u64) -> Result<(), &'static str> {
        let who = Who { device: &self.grant.device, fleet: &self.grant.fleet };
        if !self.grant.policy.may_subscribe(who, &filter) {
            return Err("the policy denies subscribing with this filter");
        }
        let full = self.subscriptions.len() >= self.settings.max_subscriptions;
        if full && !self.subscriptions.contains_key(&filter) {
            self.no_room = true;
            return Err("this session has as many subscriptions as one may have");
        }
        self.subscriptions.insert(filter.clone(), seq);
        self.outputs.push_back(Output::Subscribe(filter));
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, filter: Filter) {
        if self.subscriptions.remove(&filter).is_some() {
            self.outputs.push_back(Output::Unsubscribe(filter));
        }
    }

    pub(super) fn drop_denied_subscriptions(&mut self, now: Moment) {
        let who = Who { device: &self.grant.device, fleet: &self.grant.fleet };
        let denied: Vec<(Filter, u64)> = self
            .subscriptions
            .iter()
            .filter(|(filter, _)| !self.grant.policy.may_subscribe(who, filter))
            .map(|(filter, seq)| (filter.clone(), *seq))
            .collect();
        for (filter, seq) in denied {
            self.subscriptions.remove(&filter);
            self.outputs.push_back(Output::Unsubscribe(filter));
            self.reject(No::new(Some(seq), Refusal::Forbidden, "a new policy denies this subscription"), now);
        }
    }
}
