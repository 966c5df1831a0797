//! What SoftHSM's own part of a request costs: the calls that the service makes, by a process that does nothing else.
//!
//! As in `ekm_core::hsm`: AES-GCM with a nonce and an AAD of ours, a copy of the key that lives in the session, one session on one thread,
//! which is what the service uses with SoftHSM (its profile says why). A wrap encrypts, and then decrypts what it has made. In a loop
//! everything stays in the processor's caches, so the service pays rather more than this.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::{AuthPin, Ulong};
use ekm_core::blob::{Format, NONCE_BYTES, TAG_BYTES, VersionId, bound_aad};
use ekm_loadtest::{AAD, PLAINTEXT_BYTES, median};
use ekm_tests::{Ekm, SOFTHSM};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Of the plaintext, which the HSM encrypts with it (blob format 3).
const DIGEST_BYTES: usize = 16;

/// So many calls between two looks at the clock.
const AT_ONCE: usize = 100;

/// CPU time of the calls for one request.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Cost {
    pub wrap_us: f64,
    pub unwrap_us: f64,
}

impl Cost {
    /// Of a wrap or an unwrap; of what else there is, nothing is known.
    pub fn of(&self, verb: &str) -> Option<f64> {
        match verb {
            "wrap" => Some(self.wrap_us),
            "unwrap" => Some(self.unwrap_us),
            _ => None,
        }
    }

    /// Of the token that a service uses, which has a key: in a process of its own, since SoftHSM finds its configuration in the environment.
    /// The median of so many measurements, each so long.
    pub fn measure(ekm: &Ekm, seconds: f64, repeat: usize) -> Result<Self> {
        let softhsm = ekm.directory.path().join("softhsm");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--softhsm-calls").arg(softhsm.join("pin")).env("SOFTHSM2_CONF", softhsm.join("softhsm2.conf"));
        command.args(["--seconds", &seconds.to_string(), "--repeat", &repeat.to_string()]);
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "SoftHSM's own cost could not be measured");
        serde_json::from_slice(&output.stdout).context("SoftHSM's own cost could not be read")
    }
}

/// What [`Cost::measure`] starts: makes the calls, and prints what they cost.
#[expect(clippy::print_stdout, reason = "for whoever started this")]
pub fn call(pin_file: &Path, seconds: f64, repeat: usize) -> Result<()> {
    let token = Token::open(pin_file)?;
    let (text, aad) = (vec![7; PLAINTEXT_BYTES + DIGEST_BYTES], aad());
    let (mut wraps, mut unwraps, mut nonce) = (Vec::new(), Vec::new(), 0_u64);
    for _ in 0..repeat {
        wraps.push(cpu_us(seconds, || {
            nonce += 1;
            let sealed = token.encrypt(nonce, &aad, &text)?;
            ensure!(token.decrypt(nonce, &aad, &sealed)? == text, "SoftHSM does not give back what it has encrypted");
            Ok(())
        })?);
        let sealed = token.encrypt(nonce, &aad, &text)?;
        unwraps.push(cpu_us(seconds, || token.decrypt(nonce, &aad, &sealed).map(drop))?);
    }
    println!("{}", serde_json::to_string(&Cost { wrap_us: median(wraps), unwrap_us: median(unwraps) })?);
    Ok(())
}

/// As long as that of a request.
fn aad() -> Vec<u8> {
    bound_aad(Format::Checked, VersionId { key: uuid::Uuid::nil(), number: 1 }, AAD.as_bytes())
}

/// CPU time of this thread for each call.
fn cpu_us(seconds: f64, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let thread_cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    for _ in 0..AT_ONCE {
        call()?;
    }
    let (begun, before, mut calls) = (Instant::now(), thread_cpu(), 0);
    while calls == 0 || begun.elapsed().as_secs_f64() < seconds {
        for _ in 0..AT_ONCE {
            call()?;
        }
        calls += AT_ONCE;
    }
    Ok((thread_cpu() - before).as_secs_f64() * 1e6 / calls as f64)
}

struct Token {
    session: Session,
    key: ObjectHandle,
}

impl Token {
    /// The token with keys that `ekm dev` has made, and one of them.
    fn open(pin_file: &Path) -> Result<Self> {
        let pin = std::fs::read_to_string(pin_file).with_context(|| pin_file.display().to_string())?;
        let library = Pkcs11::new(SOFTHSM).context(SOFTHSM)?;
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let initialized = |slot| library.get_token_info(slot).is_ok_and(|token| token.token_initialized());
        let slot = library.get_slots_with_token()?.into_iter().find(|slot| initialized(*slot)).context("no token")?;
        let session = library.open_ro_session(slot)?;
        session.login(UserType::User, Some(&AuthPin::new(pin.trim_end().into())))?;
        let keys = session.find_objects(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Encrypt(true),
        ])?;
        let copy = [Attribute::Token(false), Attribute::Id(b"session copy".to_vec())];
        let key = session.copy_object(*keys.first().context("the token has no key")?, &copy)?;
        Ok(Self { session, key })
    }

    fn encrypt(&self, nonce: u64, aad: &[u8], text: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = bytes(nonce);
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, aad, Ulong::new(8 * TAG_BYTES as u64))?);
        Ok(self.session.encrypt(&mechanism, self.key, text)?)
    }

    fn decrypt(&self, nonce: u64, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = bytes(nonce);
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut nonce, aad, Ulong::new(8 * TAG_BYTES as u64))?);
        Ok(self.session.decrypt(&mechanism, self.key, sealed)?)
    }
}

fn bytes(nonce: u64) -> [u8; NONCE_BYTES] {
    let mut bytes = [0; NONCE_BYTES];
    bytes[..8].copy_from_slice(&nonce.to_le_bytes());
    bytes
}
