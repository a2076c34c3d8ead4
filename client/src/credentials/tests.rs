use super::*;

/// A bundle of a throwaway certificate, as `doorward device add` writes it.
fn write_bundle(folder: &Path) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let description = serde_json::json!({
        "device": "press-7", "fleet": "hall", "url": "wss://localhost:8443/v1/device",
        "key": {"version": 1, "hmac": URL_SAFE_NO_PAD.encode([7; 32])},
    });
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("device.json"), description.to_string()).unwrap();
    std::fs::write(folder.join("device.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("ca.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("device.key"), key.serialize_pem()).unwrap();
    let mut line = description;
    line["certificate"] = certificate.pem().into();
    line["ca"] = certificate.pem().into();
    line["private_key"] = key.serialize_pem().into();
    line.to_string()
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("doorward-client-{}-{name}", std::process::id()))
}

#[test]
fn a_folder_and_a_line_say_the_same() {
    let folder = folder("same");
    let line = write_bundle(&folder);
    let from_folder = Credentials::load(&folder).unwrap();
    let from_line = Credentials::from_line(&line).unwrap();
    assert_eq!(from_folder.device(), from_line.device());
    assert_eq!(from_folder.url(), from_line.url());
    assert_eq!(from_folder.identity().chain(), from_line.identity().chain());
    assert_eq!(from_folder.key().sign(b"{}"), from_line.key().sign(b"{}"));
    let debug = format!("{from_line:?}");
    assert!(!debug.contains(&URL_SAFE_NO_PAD.encode([7; 32])) && !debug.contains("PRIVATE"), "{debug}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn errors_name_the_file_and_keep_the_secret() {
    let folder = folder("errors");
    write_bundle(&folder);
    let fails = |name: &str, content: Option<&str>, words: &str| {
        write_bundle(&folder);
        match content {
            Some(content) => std::fs::write(folder.join(name), content).unwrap(),
            None => std::fs::remove_file(folder.join(name)).unwrap(),
        }
        let error = Credentials::load(&folder).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(words), "{error}");
        assert!(!error.contains("S3CRET"), "{error}");
    };
    fails("device.json", None, "doorward device bundle");
    fails("device.json", Some("{"), "not one JSON object");
    fails("device.json", Some(r#"{"device":"a"}"#), "missing field `fleet`");
    let short = r#"{"device":"a","fleet":"f","url":"u","key":{"version":1,"hmac":"S3CRET"}}"#;
    fails("device.json", Some(short), "32 bytes");
    fails("device.json", Some(&short.replace(":1", ":\"S3CRET\"")), "another form");
    fails("device.key", None, "CSR");
    fails("device.key", Some("-----BEGIN PRIVATE KEY-----\nS3CRET!\n-----END PRIVATE KEY-----"), "PEM");
    fails("device.crt", Some(""), "no certificate");
    fails("ca.crt", None, "No such file");
    assert!(Credentials::from_line("{}").unwrap_err().to_string().contains("the bulk line"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_new_key_replaces_the_old_one_in_the_bundle() {
    let folder = folder("rekey");
    let line = write_bundle(&folder);
    let credentials = Credentials::load(&folder).unwrap();
    let rekey: Rekey = serde_json::from_value(serde_json::json!({
        "version": 2, "key": URL_SAFE_NO_PAD.encode([9; 32]), "grace": 60,
    }))
    .unwrap();
    let key = credentials.store_key(&rekey).unwrap().unwrap();
    let again = Credentials::load(&folder).unwrap();
    assert_eq!(again.key().version().get(), 2);
    assert_eq!(again.key().sign(b"{}"), key.sign(b"{}"));
    assert!(Credentials::from_line(&line).unwrap().store_key(&rekey).unwrap().is_none());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder.join("device.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    std::fs::remove_dir_all(folder).unwrap();
}
