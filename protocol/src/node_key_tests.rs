use super::*;

/// The key that both forms below hold: made with OpenSSL, for these tests alone.
const SEC1: &str = "MHcCAQEEIODt6a39WZofn94LJssDrohAuqWnr/6nSfB1XbticbuooAoGCCqGSM49AwEHoUQDQgAENr0ixukLnfXTlPc6s75jtCnjCCv6ltLATWhu/7JkjiRdMveEge2yofcycCUgSzqrK/g3ZqOnhwTsWw/ifyQLEA==";
const PKCS8: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg4O3prf1Zmh+f3gsmywOuiEC6paev/qdJ8HVdu2Jxu6ihRANCAAQ2vSLG6Qud9dOU9zqzvmO0KeMIK/qW0sBNaG7/smSOJF0y94SB7bKh9zJwJSBLOqsr+Ddmo6eHBOxbD+J/JAsQ";

/// What it is encrypted with: bytes that are no text among them.
const UNLOCK: &str = "SWMKEY-1-QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVr//v38+/o";
const OTHER: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// `openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA1 -iter 2048`, and swarmkit's headers.
const SEALED: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
kek-version: 17
raft-dek: EgRAAAAAkJ2
  folded=

MIHeMEkGCSqGSIb3DQEFDTA8MBsGCSqGSIb3DQEFDDAOBAhV0VbIPyYm/wICCAAw
HQYJYIZIAWUDBAEqBBAaCVwssZALgOnbrJ3s146DBIGQSB18GVUV+5MhGK/2fgde
hDuEMuB6OoMAguZ1VgMOzHFjSjgVvilfoRgJDCLUOYPh3cu+qWDlJcuCDi37FfKR
C7BFXZewmIY/K4Xhxg6/G47PN2BfHB7141EmWwdL/IwYc5OWKXauDWyMk8XhCEHH
jRdDB4MBul2jYko8ZDGcZxoIkbsGZlN1W/CTk/3Et6PT
-----END ENCRYPTED PRIVATE KEY-----
";

/// `openssl ec -aes256`, and swarmkit's headers.
const OLDER: &str = "\
-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-256-CBC,8E8EF28E95D4522C8021DC2E779079FF
kek-version: 17
raft-dek: EgRAAAAAkJ2=

/EJln+4OWHtAUicX4PXuAPg/mTeEqsm1ffpfceHRVDRl0t0lYn/ipKFna5V1K1Si
oNCnSmVwXW5v9rFHKHlRxpb4rnAciCAFvYrA3VCJQpVksfmcTAOIv5fmN6JyRBmq
0CxEN+fGFJLphno/pJQDBTaUuvBmqskpZI+XiNeYsis=
-----END EC PRIVATE KEY-----
";

fn key(text: &str) -> UnlockKey {
    UnlockKey::parse(text).unwrap()
}

fn base64(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

#[test]
fn both_forms_are_opened_with_the_right_key_alone() {
    for pem in [SEALED, OLDER, &SEALED.replace('\n', "\r\n"), &OLDER.replace('\n', "\r\n")] {
        assert!(is_encrypted(pem));
        match open(pem, &key(UNLOCK)) {
            Ok(NodeKey::Pkcs8(der)) => assert_eq!(*der, base64(PKCS8)),
            Ok(NodeKey::Sec1(der)) => assert_eq!(*der, base64(SEC1)),
            Err(error) => panic!("{error}:\n{pem}"),
        }
        assert_eq!(open(pem, &key(OTHER)).err(), Some(NodeKeyError::WrongKey));
    }
}

#[test]
fn no_wrong_key_opens_anything() {
    // Of 256 wrong keys one gives a padding that looks right.
    for n in 0..=u16::MAX / 64 {
        let [high, low] = n.to_be_bytes();
        let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode([high, low, 7]);
        let wrong = key(&format!("SWMKEY-1-{encoded}"));
        assert_eq!(open(OLDER, &wrong).err(), Some(NodeKeyError::WrongKey), "{encoded}");
    }
}

#[test]
fn the_key_that_fits_is_found_among_several() {
    let mut ring = crate::KeyRing::default();
    assert_eq!(ring.open(SEALED).err(), Some(NodeKeyError::WrongKey), "no key is known");
    ring.learn(key(UNLOCK));
    ring.learn(key(OTHER));
    assert!(matches!(ring.open(SEALED), Ok(NodeKey::Pkcs8(_))));
    assert!(matches!(ring.open(OLDER), Ok(NodeKey::Sec1(_))));
}

#[test]
fn other_forms_are_named() {
    let plain = "-----BEGIN PRIVATE KEY-----\nkek-version: 0\n\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(!is_encrypted(plain));
    let table = [
        (String::new(), "no PEM"),
        (plain.to_owned(), "its label"),
        (SEALED.replace("MIHeMEkG", "MIHeMEk*"), "no base64"),
        (SEALED.replace("MIHeMEkG", "AAAAAAAA"), "no encrypted PKCS#8"),
        (OLDER.replace("AES-256", "AES-128"), "not AES-256-CBC"),
        (OLDER.replace("8E8EF28E", "8E8EF28"), "its initialization vector"),
        (OLDER.replace("DEK-Info", "DEK-info-s"), "not AES-256-CBC"),
    ];
    for (pem, what) in table {
        assert_eq!(open(&pem, &key(UNLOCK)).err(), Some(NodeKeyError::Form(what)), "{pem}");
    }
}

#[test]
fn what_is_torn_is_never_a_key() {
    for pem in [SEALED, OLDER] {
        for end in 0..pem.len() {
            if let Ok(NodeKey::Pkcs8(der) | NodeKey::Sec1(der)) = open(&pem[..end], &key(UNLOCK)) {
                // Only what closes the block may be missing.
                assert!(pem[end..].len() < "-----END EC PRIVATE KEY-----\n".len() + 10, "{end}");
                assert!(*der == base64(PKCS8) || *der == base64(SEC1));
            }
        }
    }
}
