use super::*;
use crate::key_to_pem;
use crate::testing::{Folder, key, openssl};

const PASSPHRASE: &[u8] = "réveil à six heures".as_bytes();

fn encrypted(key: &str) -> Zeroizing<String> {
    encrypt(key, PASSPHRASE, [1; 16], [2; 16]).unwrap()
}

#[test]
fn opens_with_its_passphrase_and_no_other() {
    let key = key_to_pem(&key());
    let file = encrypted(&key);
    assert!(is_encrypted(&file) && !is_encrypted(&key));
    assert_eq!(decrypt(&file, PASSPHRASE), Ok(key.clone()));
    assert_eq!(open(&file, Some(PASSPHRASE)), Ok(key.clone()));
    assert_eq!(open(&file, None), Err(KeyFileError::NeedsPassphrase));
    assert!(KeyFileError::NeedsPassphrase.to_string().contains("--passphrase-file"));
    assert_eq!(decrypt(&file, &PASSPHRASE[1..]), Err(KeyFileError::WrongPassphrase));
    assert_eq!(open(&key, None), Ok(key.clone()));
    assert_eq!(open(&key, Some(PASSPHRASE)), Ok(key));
}

#[test]
fn a_file_may_have_been_edited_by_hand() {
    let key = key_to_pem(&key());
    for edited in [key.trim_end().to_owned(), format!("{}\n\n", *key), key.replace('\n', "\r\n")] {
        assert_eq!(open(&edited, None), Ok(key.clone()), "{edited:?}");
    }
    let amid = format!("Key of the plant's root\n{}\n{}hello\n", pem::encode(pem::CERTIFICATE, b"0"), *key);
    assert_eq!(open(&amid, None), Ok(key));
}

#[test]
fn what_is_no_key_is_refused() {
    let key = key_to_pem(&key());
    assert_eq!(decrypt(&key, PASSPHRASE), Err(KeyFileError::Unreadable));
    assert_eq!(encrypt(&key, b"", [1; 16], [2; 16]), Err(KeyFileError::EmptyPassphrase));
    for bad in
        ["", "hello", &pem::encode(pem::PRIVATE_KEY, b"no key"), &pem::encode(pem::CERTIFICATE, b"\x30\x00")]
    {
        assert_eq!(open(bad, None), Err(KeyFileError::Unreadable));
        assert_eq!(encrypt(bad, PASSPHRASE, [1; 16], [2; 16]), Err(KeyFileError::Unreadable));
    }
    let nonsense = pem::encode(pem::ENCRYPTED_PRIVATE_KEY, b"\x30\x00");
    assert_eq!(decrypt(&nonsense, PASSPHRASE), Err(KeyFileError::Unsupported));
}

#[test]
fn a_file_that_would_stop_the_machine_is_refused() {
    let cost = |n, r, p| {
        let kdf = ScryptParams {
            salt: Salt::new([1; 16]).unwrap(),
            cost_parameter: n,
            block_size: r,
            parallelization: p,
            key_length: None,
        };
        let encryption = EncryptionScheme::Aes256Cbc { iv: [0; 16] };
        check_cost(&Parameters { kdf: Kdf::Scrypt(kdf), encryption }.into())
    };
    assert_eq!(cost(SCRYPT_N, SCRYPT_R, SCRYPT_P), Ok(()));
    for (n, r, p) in [(1 << 40, 8, 1), (u64::MAX, u16::MAX, 1), (1 << 14, 8, u16::MAX), (0, 8, 1), (1, 8, 1)]
    {
        assert_eq!(cost(n, r, p), Err(KeyFileError::TooCostly), "{n} {r} {p}");
    }
}

#[test]
fn a_passphrase_is_the_first_line() {
    assert_eq!(passphrase("open sesame\nnot this\n"), Ok("open sesame"));
    assert_eq!(passphrase("open sesame\r\n"), Ok("open sesame"));
    assert_eq!(passphrase(" spaces stay "), Ok(" spaces stay "));
    for empty in ["", "\n", "\nsecond"] {
        assert_eq!(passphrase(empty), Err(KeyFileError::EmptyPassphrase));
    }
}

#[test]
fn openssl_reads_ours() {
    let key = key_to_pem(&key());
    let folder = Folder::new();
    let path = folder.file("key", &encrypted(&key));
    let pass = format!("file:{}", folder.file("pass", str::from_utf8(PASSPHRASE).unwrap()));
    let Some((opened, said)) = openssl(&["pkcs8", "-in", &path, "-passin", &pass]) else { return };
    assert!(opened, "{said}");
    assert_eq!(decrypt_normal_form(&said), decrypt_normal_form(&key));
    let (_, shown) = openssl(&["asn1parse", "-in", &path]).unwrap();
    for part in ["PBES2", "scrypt", "aes-256-cbc"] {
        assert!(shown.to_lowercase().contains(&part.to_lowercase()), "{part} in {shown}");
    }
}

#[test]
fn ours_reads_openssls() {
    let key = key_to_pem(&key());
    let folder = Folder::new();
    let path = folder.file("key", &key);
    let pass = format!("file:{}", folder.file("pass", str::from_utf8(PASSPHRASE).unwrap()));
    let convert =
        |more: &[&str]| openssl(&[&["pkcs8", "-topk8", "-in", &path, "-passout", &pass], more].concat());
    for way in [&["-scrypt"][..], &["-v2", "aes-256-cbc", "-iter", "2048"]] {
        let Some((done, file)) = convert(way) else { return };
        assert!(done, "{file}");
        let opened = decrypt(&file, PASSPHRASE).unwrap();
        assert_eq!(decrypt_normal_form(&opened), decrypt_normal_form(&key), "{way:?}");
        assert_eq!(decrypt(&file, b"wrong"), Err(KeyFileError::WrongPassphrase));
    }
    let (_, weak) = convert(&["-v1", "PBE-SHA1-3DES"]).unwrap();
    assert_eq!(decrypt(&weak, PASSPHRASE), Err(KeyFileError::Unsupported));
}

/// The private scalar of a P-256 key, whatever optional fields stand around it.
fn decrypt_normal_form(pem: &str) -> Vec<u8> {
    let key = plain(pem).unwrap();
    let key = PrivateKeyInfoRef::from_der(key.as_bytes()).unwrap().private_key.as_bytes().to_vec();
    assert_eq!(&key[2..7], [0x02, 0x01, 0x01, 0x04, 0x20], "ECPrivateKey of 32 bytes, RFC 5915");
    key[7..39].to_vec()
}
