//! Revocation lists by HTTP, asked for with curl and read with openssl.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use doorward::clock;
use doorward::home::{PUBLIC, write_over};
use doorward_pki::crl::{Crl, Scope, to_pem};
use time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::house::{House, log, within};

async fn house() -> (House, SocketAddr) {
    let house = House::with(|config| {
        config.crl.listen = Some("127.0.0.1:0".parse().unwrap());
        config.crl.files =
            vec!["pki/doorward.crl".into(), "pki/gateway.key".into(), "/elsewhere/none.crl".into()];
    })
    .await;
    let address = house.gateway.lists_at().unwrap();
    (house, address)
}

fn write(house: &House, number: u64, holds: Duration) -> Vec<u8> {
    let now = clock::utc();
    let list =
        Crl::new(number, now - Duration::DAY, now + holds, Scope::Unsaid).sign(&house.issuing).unwrap();
    write_over(&house.file("pki/doorward.crl"), to_pem(&list), PUBLIC).unwrap();
    list
}

/// Status and headers, in small letters; the body goes into a file.
async fn curl(address: SocketAddr, path: &str, more: &[&str], into: &Path) -> (String, String) {
    let url = format!("http://{address}{path}");
    let mut command = Command::new("curl");
    command.args(["-sS", "--path-as-is", "-m", "10", "-D", "-", "-o"]).arg(into).args(more).arg(url);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let head = String::from_utf8(output.stdout).unwrap().to_lowercase();
    (head.split(' ').nth(1).unwrap().trim().to_owned(), head)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::trim)
}

#[tokio::test]
async fn a_list_is_served_as_der_with_what_caches_need() {
    let (house, address) = house().await;
    let list = write(&house, 7, Duration::DAY);
    let body = house.file("body");
    let (status, head) = curl(address, "/crl/doorward.crl", &[], &body).await;
    assert_eq!((status.as_str(), header(&head, "content-type")), ("200", Some("application/pkix-crl")));
    assert_eq!(std::fs::read(&body).unwrap(), list);
    let control = header(&head, "cache-control").unwrap();
    let age: u64 =
        control.strip_prefix("public, max-age=").unwrap().split(',').next().unwrap().parse().unwrap();
    assert!((86_000..=86_400).contains(&age), "{control}");
    let openssl = Command::new("openssl")
        .args(["crl", "-inform", "DER", "-noout", "-crlnumber", "-CAfile"])
        .arg(house.file("pki/issuing.crt"))
        .arg("-in")
        .arg(&body)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&openssl.stdout) + String::from_utf8_lossy(&openssl.stderr);
    assert!(said.contains("verify OK") && said.to_lowercase().contains("crlnumber=0x07"), "{said}");

    // Who has it is told so, by either.
    let tag = format!("If-None-Match: {}", header(&head, "etag").unwrap());
    let since = format!("If-Modified-Since: {}", {
        let (_, plain) = (0, head.clone());
        httpdate_of(&plain)
    });
    for condition in [&tag, &since] {
        let (status, again) = curl(address, "/crl/doorward.crl", &["-H", condition], &body).await;
        assert_eq!((status.as_str(), header(&again, "etag")), ("304", header(&head, "etag")), "{condition}");
    }
    // HEAD says the same without it.
    let (status, head_only) = curl(address, "/crl/doorward.crl", &["-I"], &body).await;
    assert_eq!((status.as_str(), header(&head_only, "etag")), ("200", header(&head, "etag")));
    assert_eq!(header(&head_only, "content-length"), Some(list.len().to_string().as_str()));
    // The next one is another one, at once.
    write(&house, 8, Duration::DAY);
    let (status, next) = curl(address, "/crl/doorward.crl", &["-H", &tag], &body).await;
    assert_eq!(status, "200");
    assert_ne!(header(&next, "etag"), header(&head, "etag"));
}

/// The date of a list as its header has it, with the capitals that curl's output has lost here.
fn httpdate_of(head: &str) -> String {
    let date = header(head, "last-modified").unwrap();
    let words: Vec<String> = date
        .split(' ')
        .map(|word| match word {
            "gmt" => "GMT".to_owned(),
            word => word[..1].to_uppercase() + &word[1..],
        })
        .collect();
    words.join(" ")
}

#[tokio::test]
async fn nothing_else_is_served() {
    let (house, address) = house().await;
    write(&house, 1, Duration::seconds(-1).abs());
    let body = house.file("body");
    for (path, status) in [
        ("/", "404"),
        ("/crl", "404"),
        ("/crl/", "404"),
        ("/crl/gateway.crt", "404"),
        ("/crl/none.crl", "404"),
        ("/crl/../pki/master.key", "404"),
        ("/crl/%2e%2e/master.key", "404"),
        ("/pki/doorward.crl", "404"),
        // Named by mistake, and no list.
        ("/crl/gateway.key", "503"),
    ] {
        let (said, head) = curl(address, path, &[], &body).await;
        assert_eq!(said, status, "{path}: {head}");
        let text = std::fs::read_to_string(&body).unwrap();
        assert!(!text.contains("PRIVATE") && text.len() < 100, "{path}: {text}");
    }
    assert!(log().contains("gateway.key") && log().contains("not served as a revocation list"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (said, head) = curl(address, "/crl/doorward.crl", &["-X", method], &body).await;
        assert_eq!((said.as_str(), header(&head, "allow")), ("405", Some("get, head")), "{method}");
    }
    // One that has ended is served, and nobody keeps it.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let (said, head) = curl(address, "/crl/doorward.crl", &[], &body).await;
    assert_eq!((said.as_str(), header(&head, "cache-control")), ("200", Some("no-cache")));
}

#[tokio::test]
async fn many_connections_and_long_heads_are_cut_off() {
    let (house, address) = house().await;
    write(&house, 1, Duration::DAY);
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let ask = async || {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let _ = tcp.write_all(b"GET /crl/doorward.crl HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut said = Vec::new();
        let _ = within("an end", tcp.read_to_end(&mut said)).await;
        said
    };
    assert!(ask().await.is_empty(), "one more than there may be");
    silent.clear();
    crate::support::house::eventually("room", async || !ask().await.is_empty()).await;

    let mut tcp = TcpStream::connect(address).await.unwrap();
    let long = format!("GET /crl/doorward.crl HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(64 << 10));
    let _ = tcp.write_all(long.as_bytes()).await;
    let mut said = Vec::new();
    let _ = within("an end", tcp.read_to_end(&mut said)).await;
    assert!(!String::from_utf8_lossy(&said).contains(" 200 "));
    // A body is not waited for.
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"GET /crl/doorward.crl HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        .await
        .unwrap();
    let mut said = Vec::new();
    let _ = within("an end", tcp.read_to_end(&mut said)).await;
    assert!(String::from_utf8_lossy(&said).starts_with("HTTP/1.1 200 "));
}
