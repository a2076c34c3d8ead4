//! `gateway add`: a home for another host lets devices in, and holds nothing that signs.

use doorward_client::{Credentials, Device, Options};
use std::fs;

use crate::support::command::{Desk, Ran, openssl};
use crate::support::database::Database;
use crate::support::house::within;
use crate::support::running::Running;

fn add(desk: &Desk, words: &str) -> Ran {
    desk.run(&format!("gateway add {words}"))
}

#[tokio::test]
async fn its_home_lets_devices_in_and_cannot_sign() {
    let database = Database::bare_postgres().await;
    let desk = Desk::on(&database);
    let made = add(&desk, "plant-2 --host localhost --host 127.0.0.1 --out other/plant-2 --json").json();
    assert_eq!((&made["gateway"], &made["home"]), (&"plant-2".into(), &"other/plant-2".into()));
    assert_eq!(
        desk.modes("other"),
        [
            "700 other/plant-2",
            "644 other/plant-2/config.toml",
            "700 other/plant-2/pki",
            "644 other/plant-2/pki/gateway.crt",
            "600 other/plant-2/pki/gateway.key",
            "644 other/plant-2/pki/issuing.crt",
            "600 other/plant-2/pki/master.key",
            "644 other/plant-2/pki/root.crt",
        ]
    );
    let (valid, words) = openssl(
        &desk,
        "verify -x509_strict -purpose sslserver -verify_hostname localhost -CAfile home/pki/root.crt \
         -untrusted home/pki/issuing.crt other/plant-2/pki/gateway.crt",
    );
    assert!(valid, "{words}");

    let mut command = desk.gateway_command("gateway run --listen 127.0.0.1:0 --home other/plant-2");
    command.env_remove("DATABASE_URL");
    let config = fs::read_to_string(desk.path("other/plant-2/config.toml")).unwrap();
    assert!(config.contains(&format!("url = \"{}\"", database.url)), "{config}");
    let as_gateway = config.replace("//postgres@", "//t_gateway@");
    fs::write(desk.path("other/plant-2/config.toml"), as_gateway).unwrap();
    let gateway = Running::spawn(&mut command);
    desk.run("device add press-7").done();
    let credentials = Credentials::load(desk.home("devices/press-7")).unwrap().with_url(&gateway.url());
    let device = Device::connect(credentials, Options::default()).unwrap();
    within("an ack", device.publish("devices/press-7/t", &1)).await.unwrap();
    let listed = desk.run("gateway list --json").json();
    assert_eq!((&listed[0]["gateway"], &listed[0]["state"]), (&"plant-2".into(), &"serving".into()));
    // Its name is taken from now on.
    add(&desk, "plant-2 --host localhost --out other/again")
        .fails(4, &["there is a gateway 'plant-2' already"]);
    assert!(!desk.path("other/again").exists());
    // Whoever has that host cannot make devices with it.
    for words in ["device add press-8", "issuer run", "device rotate-cert press-7 --out x"] {
        let ran = desk.run(&format!("{words} --home other/plant-2"));
        ran.fails(1, &["issuing.key"]);
    }
    gateway.ended_by("TERM");
}

#[tokio::test]
async fn what_cannot_become_a_gateway_is_refused_and_nothing_is_left() {
    let file = Desk::new();
    add(&file, "plant-2 --host gate.example --out other").fails(4, &["a file of this host", "--database"]);
    let database = Database::bare_postgres().await;
    let desk = Desk::on(&database);
    fs::create_dir(desk.path("taken")).unwrap();
    add(&desk, "plant-2 --host gate.example --out taken").fails(4, &["taken"]);
    let long = "x".repeat(65);
    add(&desk, &format!("{long} --host gate.example --out other")).fails(2, &["1 to 64"]);
    add(&desk, "plant-2 --host no_host! --out other").fails(2, &["not a host"]);
    add(&desk, "plant-2 --out other").fails(2, &["--host"]);
    add(&desk, "gateway-1 --host gate.example --out other").fails(4, &["this home's own gateway"]);
    // A name is text, whatever stands in it.
    let odd = desk.run(["gateway", "add", "a\"\nurl = \"x", "--host", "gate.example", "--out", "other"]);
    odd.fails(2, &["gateway.name"]);
    fs::rename(desk.home("pki/issuing.key"), desk.path("issuing.key")).unwrap();
    add(&desk, "plant-2 --host gate.example --out other").fails(1, &["issuing.key"]);
    assert!(!desk.path("other").exists());
    let left: Vec<_> =
        fs::read_dir(desk.path(".")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}
