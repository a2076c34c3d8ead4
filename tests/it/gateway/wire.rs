//! A registry in Postgres behind a network that misbehaves: what was acked is there once, honest sessions live on, and a
//! revocation that nobody could hear of takes effect when it can.

use std::time::Duration;

use serde_json::json;

use crate::support::device::{Device, Heard, problem_of, ranges, refused};
use crate::support::house::{Credentials, House, eventually, eventually_late, log, seconds};
use crate::support::wire::{self, Loss, Wire};

/// Enough for every connection of the gateway's pool to have been made.
const POOLED: usize = 8;

/// A gateway with an honest device, one to be revoked and one that has never been here.
struct Scene {
    house: House,
    wire: Wire,
    honest: Device,
    thief: Device,
    stranger: Credentials,
}

impl Scene {
    /// Publishes wait for the store as long as a tenth of `max_skew`.
    async fn set(max_skew: u64) -> Self {
        let (house, wire) = wire::house(|config| config.session.max_skew = seconds(max_skew)).await;
        let honest = Device::prove(&house, &house.add_device("honest").await).await;
        let thief = Device::prove(&house, &house.add_device("thief").await).await;
        let stranger = house.add_device("stranger").await;
        let mut scene = Self { house, wire, honest, thief, stranger };
        scene.publishes("before").await;
        scene.fill_the_pool().await;
        scene
    }

    /// All of the gateway's connections have been made, and wait for the next use.
    async fn fill_the_pool(&self) {
        let fingerprint = doorward_pki::Fingerprint::of(b"nobody's");
        let look_ups = || (0..POOLED * 4).map(|_| self.house.registry().look_up(&fingerprint));
        eventually("a full pool", async || {
            for found in futures_util::future::join_all(look_ups()).await {
                assert!(found.unwrap().is_none());
            }
            let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 't_gateway' AND datname = current_database()";
            // And the listener.
            self.house.db.number(count).await > POOLED as i64
        })
        .await;
    }

    async fn revoke(&self) {
        self.house.db.execute("UPDATE devices SET status = 'revoked' WHERE id = 'thief'").await.unwrap();
    }

    /// What the thief says from now on is worth nothing, and its session ends.
    async fn thief_is_cut(&mut self) {
        self.thief.publish("too-late", json!(1)).await;
        let (code, messages) = self.thief.until_closed().await;
        assert_eq!(code, Some(4003));
        assert!(messages.iter().all(|message| message["op"] != "ack"), "{messages:?}");
        assert_eq!(self.house.stored_as("too-late").await, 0);
    }

    /// The honest device publishes, in the session that it has, until that is acked; it is there once.
    async fn publishes(&mut self, id: &str) {
        let honest = &mut self.honest;
        eventually("an ack", async || {
            let seq = honest.publish(id, json!(1)).await;
            loop {
                match honest.next().await {
                    Heard::Message(m) if m["op"] == "ack" => {
                        if ranges(&m).iter().any(|(first, last)| (*first..=*last).contains(&seq)) {
                            return true;
                        }
                    }
                    Heard::Message(m) if m["ref"] == seq => {
                        assert_eq!(m["error"], "unavailable", "{m}");
                        return false;
                    }
                    Heard::Message(m) => assert_eq!(m["error"], "unavailable", "{m}"),
                    Heard::Closed(code) => panic!("closed with {code:?}"),
                }
            }
        })
        .await;
        assert_eq!(self.house.stored_as(id).await, 1);
    }

    /// The gateway works as if nothing had been.
    async fn all_is_well(&mut self) {
        self.publishes("after").await;
        let stranger = Device::prove(&self.house, &self.stranger).await;
        drop(stranger);
        assert_eq!(self.house.stored_as("before").await, 1);
    }
}

#[tokio::test]
async fn a_silent_network_is_an_outage_and_ends_as_one() {
    let mut scene = Scene::set(20).await;
    scene.wire.silence();
    scene.revoke().await;
    eventually("the gateway's notice", async || {
        log().contains("the registry does not answer; sessions go on")
    })
    .await;
    let answer = refused(&scene.house, &scene.stranger).await;
    assert_eq!((answer.status, problem_of(&answer).as_str()), (503, "unavailable"));
    scene.honest.publish("meanwhile", json!(1)).await;
    scene.honest.rejected().await;
    scene.honest.hello().await;
    scene.wire.mend();
    scene.thief_is_cut().await;
    scene.publishes("meanwhile").await;
    scene.all_is_well().await;
    assert!(log().contains("the registry answers again"));
}

#[tokio::test]
async fn connections_that_a_firewall_has_forgotten_are_not_used_again() {
    let mut scene = Scene::set(20).await;
    scene.wire.lose_all();
    // All of them hang, and nobody says so. One look that waits for each would take the better part of a minute.
    scene.revoke().await;
    scene.thief_is_cut().await;
    scene.all_is_well().await;
    // The listener has noticed too, and what comes next wakes the gateway.
    eventually_late("a new listener", async || log().contains("the registry's notifications come again"))
        .await;
}

#[tokio::test]
async fn a_listener_that_hears_nothing_costs_a_look() {
    let mut scene = Scene::set(20).await;
    scene.wire.silence_listeners();
    scene.revoke().await;
    // It says nothing: what the store refuses wakes the gateway too.
    scene.thief.closed_with_bye(4003).await;
    // Not because the listener had been found out by then.
    assert!(!log().contains("the registry's notifications do not come"));
    scene.all_is_well().await;
    eventually_late("its notice", async || log().contains("the registry's notifications do not come")).await;
    scene.wire.mend();
    eventually("a new listener", async || log().contains("the registry's notifications come again")).await;
}

#[tokio::test]
async fn a_slow_network_is_slow_and_no_more() {
    let mut scene = Scene::set(20).await;
    scene.wire.slow_down(100, Duration::from_millis(5));
    scene.publishes("slowly").await;
    scene.revoke().await;
    scene.thief_is_cut().await;
    scene.all_is_well().await;
    assert!(!log().contains("does not answer"), "{}", log());
}

/// Too slow for every deadline.
#[tokio::test]
async fn a_network_that_crawls_is_an_outage() {
    let mut scene = Scene::set(20).await;
    scene.wire.slow_down(100, Duration::from_secs(7));
    scene.revoke().await;
    eventually("the gateway's notice", async || {
        log().contains("the registry does not answer; sessions go on")
    })
    .await;
    let answer = refused(&scene.house, &scene.stranger).await;
    assert_eq!((answer.status, problem_of(&answer).as_str()), (503, "unavailable"));
    scene.wire.mend();
    scene.thief_is_cut().await;
    scene.all_is_well().await;
}

/// The server has the transaction and waits for its end; whoever wants the same rows waits for the server.
#[tokio::test]
async fn a_commit_that_never_arrives_holds_up_nobody() {
    let mut scene = Scene::set(120).await;
    scene.wire.lose_at(Loss::Question("COMMIT"));
    let seq = scene.honest.publish("m1", json!(1)).await;
    eventually("the loss", async || scene.wire.has_lost()).await;
    scene.honest.acked(seq).await;
    assert_eq!(scene.house.stored_as("m1").await, 1);
    scene.revoke().await;
    scene.thief_is_cut().await;
    scene.all_is_well().await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_acked_once_and_stored_once() {
    let mut scene = Scene::set(120).await;
    scene.wire.lose_at(Loss::Answer("COMMIT"));
    let seq = scene.honest.publish("m1", json!(1)).await;
    eventually("the first try has committed", async || scene.house.stored_as("m1").await == 1).await;
    assert!(scene.wire.has_lost());
    scene.honest.acked(seq).await;
    assert_eq!(scene.house.stored_as("m1").await, 1);
    scene.all_is_well().await;
}

/// As a standby is until it is promoted. What it says counts, though nobody can confirm it.
#[tokio::test]
async fn a_server_that_takes_no_writes_still_revokes() {
    let mut scene = Scene::set(20).await;
    let read_only = async |scene: &Scene, on: bool| {
        let sql = format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {on}', current_database()); END $$"
        );
        scene.house.db.execute(&sql).await.unwrap();
        // For connections that are made from now on; the test's own is older.
        scene.wire.cut();
        scene.wire.mend();
    };
    read_only(&scene, true).await;
    scene.honest.publish("meanwhile", json!(1)).await;
    scene.honest.rejected().await;
    scene.revoke().await;
    scene.thief.closed_with_bye(4003).await;
    read_only(&scene, false).await;
    scene.publishes("meanwhile").await;
    scene.all_is_well().await;
}

/// Each connection is tried once more before it goes back to its pool. One that hangs there must not keep its place.
#[tokio::test]
async fn connections_that_are_lost_on_their_way_back_are_replaced() {
    let mut scene = Scene::set(20).await;
    let fingerprint = doorward_pki::Fingerprint::of(b"nobody's");
    for _ in 0..POOLED {
        scene.wire.lose_at(Loss::AfterUse);
        eventually("the loss", async || {
            let _ = scene.house.registry().look_up(&fingerprint).await;
            scene.wire.has_lost()
        })
        .await;
    }
    scene.revoke().await;
    scene.thief_is_cut().await;
    scene.all_is_well().await;
}

/// Whenever it happens: in the midst of a statement, of a commit, of a look at the feed.
#[tokio::test]
async fn a_server_that_restarts_again_and_again_loses_and_doubles_nothing() {
    let mut scene = Scene::set(20).await;
    for round in 0..20u64 {
        let seq = scene.honest.publish(&format!("r{round}"), json!(round)).await;
        tokio::time::sleep(Duration::from_millis(round % 7)).await;
        scene.wire.cut();
        tokio::time::sleep(Duration::from_millis(round)).await;
        scene.wire.mend();
        scene.honest.acked(seq).await;
    }
    for round in 0..20 {
        assert_eq!(scene.house.stored_as(&format!("r{round}")).await, 1);
    }
    scene.wire.cut();
    scene.revoke().await;
    scene.wire.mend();
    scene.thief_is_cut().await;
    scene.all_is_well().await;
}
