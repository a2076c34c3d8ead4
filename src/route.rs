//! Where a stored message goes besides the store: the sessions of this gateway that subscribed to its channel.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use doorward_proto::channel::Filter;
use doorward_proto::downlink::Message;

use crate::gateway::sessions::Handle;

/// The subscriptions of all sessions, as a tree over channel levels: a message costs its own levels, not the number of
/// subscriptions. Bounded by sessions times subscriptions a session.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    tree: RwLock<Node>,
    /// Spares the common fleet, which subscribes to nothing, the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Node {
    next: BTreeMap<Box<str>, Node>,
    here: HashMap<Arc<str>, Arc<Handle>>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.next.is_empty() && self.here.is_empty()
    }

    /// Visits what matches: exact level, `+`, and `#` for the rest and for the parent itself.
    fn visit(&self, mut levels: std::str::Split<'_, char>, found: &mut HashMap<Arc<str>, Arc<Handle>>) {
        let mut take = |node: &Self| {
            found.extend(node.here.iter().map(|(id, handle)| (Arc::clone(id), Arc::clone(handle))));
        };
        if let Some(rest) = self.next.get("#") {
            take(rest);
        }
        match levels.next() {
            None => take(self),
            Some(level) => {
                for node in [self.next.get(level), self.next.get("+")].into_iter().flatten() {
                    node.visit(levels.clone(), found);
                }
            }
        }
    }

    /// Removes a subscription and the branch that it leaves bare. Whether it was there.
    fn remove(&mut self, mut levels: std::str::Split<'_, char>, session: &str) -> bool {
        let Some(level) = levels.next() else {
            return self.here.remove(session).is_some();
        };
        let Some(node) = self.next.get_mut(level) else { return false };
        let removed = node.remove(levels, session);
        if node.is_empty() {
            self.next.remove(level);
        }
        removed
    }
}

impl Routes {
    /// A session subscribes.
    pub(crate) fn add(&self, filter: &Filter, session: &Arc<Handle>) {
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        let mut node = &mut *tree;
        for level in filter.as_str().split('/') {
            node = node.next.entry(level.into()).or_default();
        }
        if node.here.insert(Arc::clone(&session.id), Arc::clone(session)).is_none() {
            self.count.fetch_add(1, Ordering::Release);
        }
    }

    /// A subscription ends.
    pub(crate) fn remove(&self, filter: &Filter, session: &Handle) {
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        if tree.remove(filter.as_str().split('/'), &session.id) {
            self.count.fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether anybody subscribed to anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Hands a message to every session that subscribed to its channel, once each.
    pub(crate) fn deliver(&self, message: &Arc<Message>) {
        let mut found = HashMap::new();
        let tree = self.tree.read().unwrap_or_else(PoisonError::into_inner);
        tree.visit(message.ch.split('/'), &mut found);
        drop(tree);
        for handle in found.values() {
            handle.mailbox.put_delivery(Arc::clone(message));
        }
    }
}
