//! A clock that is wrong for sure: nobody is let in by it.

use doorward::clock;
use time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::device::Device;
use crate::support::house::{House, eventually, log, within};

#[tokio::test]
async fn who_comes_while_the_clock_is_behind_is_closed_without_a_word_until_it_is_right() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    // The clock itself is not the test's to set: an hour back is what was an hour later before.
    house.gateway.believe_from(clock::utc() + Duration::HOUR);
    let mut tcp = TcpStream::connect(house.address).await.unwrap();
    let mut said = Vec::new();
    let _ = within("the close", tcp.read_to_end(&mut said)).await;
    assert!(said.is_empty());
    eventually("the count", async || house.gateway.counters().totals().clock_behind == 1).await;
    let lines = |words: &str| log().lines().filter(|line| line.contains(words)).count();
    eventually("the line", async || lines("the clock has stepped back") == 1).await;
    // Who is here goes on.
    device.hello().await;
    house.gateway.believe_from(clock::BUILT);
    Device::prove(&house, &credentials).await;
    eventually("the other line", async || lines("the clock is right again") == 1).await;
    assert_eq!(lines("the clock has stepped back"), 1);
}
