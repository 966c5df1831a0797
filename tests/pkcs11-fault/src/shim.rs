//! One loaded copy of the module, and what a fault does to a call.
#![expect(unsafe_code, reason = "another module is loaded and called, and this one asks the loader where it was found")]

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use cryptoki_sys::*;

use crate::control::{self, Control, Effect, Fault};
use crate::counts::{self, Counts, Raised};
use crate::table::{self, Function};

/// How often a call that hangs looks whether it may go on.
const HANG_POLL: Duration = Duration::from_millis(2);

/// Above the handles of soft tokens, which count from 1: the number of times that handles were made stale.
const GENERATION_SHIFT: u32 = 40;

/// PKCS#11 calls functions without a context, so there has to be one in a global. Each copy of the file has its own.
static SHIM: OnceLock<Result<Shim, String>> = OnceLock::new();

pub(crate) struct Shim {
    pub(crate) real: CK_FUNCTION_LIST,
    pub(crate) table: CK_FUNCTION_LIST,
    pub(crate) counts: Counts,
    /// Calls inside the real module hold it for reading. Whoever takes its sessions away waits until nobody works in them.
    running: RwLock<()>,
    control_file: PathBuf,
    plan: RwLock<Arc<Plan>>,
    sessions: Mutex<HashMap<CK_SESSION_HANDLE, CK_SLOT_ID>>,
    generation: AtomicU64,
    busy_cores: Mutex<usize>,
    core_is_free: Condvar,
}

/// The control file as it was read last.
struct Plan {
    stamp: Option<Stamp>,
    faults: Vec<Arc<Active>>,
}

/// A file that was replaced or written to has another one.
type Stamp = (u64, i64, i64, u64);

struct Active {
    fault: Fault,
    hits: AtomicU64,
}

/// What the faults have decided about one call.
pub(crate) struct Verdict {
    code: Option<CK_RV>,
    pub(crate) flip_bit: bool,
}

/// Every function goes through here.
pub(crate) fn call(function: Function, real: impl FnOnce(&Shim, &Verdict) -> Result<CK_RV, CK_RV>) -> CK_RV {
    let Ok(shim) = shim() else { return CKR_GENERAL_ERROR };
    shim.counts.calls(function).fetch_add(1, Ordering::Relaxed);
    let verdict = shim.before(function);
    let run = |verdict| {
        // A call that waits for an event may wait for ever, and has no session.
        let blocks = function == Function::C_WaitForSlotEvent;
        let _running = (!blocks).then(|| shim.running.read().unwrap_or_else(PoisonError::into_inner));
        real(shim, verdict).unwrap_or_else(|code| code)
    };
    let result = match verdict.code {
        Some(code) if function.ends_an_operation() => {
            run(&verdict);
            code
        }
        Some(code) => code,
        None => run(&verdict),
    };
    if result != CKR_OK {
        shim.counts.failures(function).fetch_add(1, Ordering::Relaxed);
    }
    result
}

/// This copy; loads the real module at the first call.
pub(crate) fn shim() -> Result<&'static Shim, &'static str> {
    let loaded = SHIM.get_or_init(|| {
        let loaded = Shim::load();
        if let Err(error) = &loaded {
            eprintln!("PKCS#11 fault module: {error}");
        }
        loaded
    });
    loaded.as_ref().map_err(String::as_str)
}

impl Shim {
    fn load() -> Result<Self, String> {
        let directory = own_directory().ok_or("the loader does not know where it is")?;
        let control_file = directory.join(control::FILE);
        let module = directory.join(read(&control_file)?.module);
        let failed = |what: &str| format!("{}: {what}", module.display());
        let mut list = std::ptr::null_mut();
        // SAFETY: loading a library runs its initialisers: it is the module that the harness chose. The function is called as PKCS#11
        // says, and its list stays where it is because the library is never unloaded.
        let real = unsafe {
            let library = Pkcs11::new(&module).map_err(|error| failed(&error.to_string()))?;
            if library.C_GetFunctionList.is_err()
                || library.C_GetFunctionList(&raw mut list) != CKR_OK
                || list.is_null()
            {
                return Err(failed("it is no PKCS#11 module"));
            }
            std::mem::forget(library);
            *list
        };
        let counts_file = directory.join(counts::FILE);
        let counts = Counts::open(&counts_file).map_err(|error| format!("{}: {error}", counts_file.display()))?;
        Ok(Self {
            real,
            table: table::list(real.version),
            counts,
            running: RwLock::default(),
            control_file,
            plan: RwLock::new(Arc::new(Plan { stamp: None, faults: Vec::new() })),
            sessions: Mutex::default(),
            generation: AtomicU64::new(0),
            busy_cores: Mutex::default(),
            core_is_free: Condvar::new(),
        })
    }

    /// The faults of now. What is new and happens once has happened when this returns.
    fn plan(&self) -> Arc<Plan> {
        let stamp = fs::metadata(&self.control_file).ok().as_ref().map(stamp);
        let known = Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner));
        if stamp.is_none() || known.stamp == stamp {
            return known;
        }
        let mut plan = self.plan.write().unwrap_or_else(PoisonError::into_inner);
        if plan.stamp == stamp {
            return Arc::clone(&plan);
        }
        let faults = match read(&self.control_file) {
            Ok(control) => control.faults.into_iter().map(|fault| self.activate(&plan, fault)).collect(),
            Err(error) => {
                eprintln!("PKCS#11 fault module: {error}; the faults stay as they were");
                plan.faults.clone()
            }
        };
        *plan = Arc::new(Plan { stamp, faults });
        Arc::clone(&plan)
    }

    fn activate(&self, before: &Plan, fault: Fault) -> Arc<Active> {
        if let Some(known) = before.faults.iter().find(|known| known.fault == fault) {
            return Arc::clone(known);
        }
        match fault.effect {
            Effect::LoseSessions | Effect::Remove => self.lose_sessions(),
            Effect::LogOut => self.log_out(),
            Effect::StaleHandles => _ = self.generation.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
        Arc::new(Active { fault, hits: AtomicU64::new(0) })
    }

    fn before(&self, function: Function) -> Verdict {
        let mut verdict = Verdict { code: None, flip_bit: false };
        for active in &self.plan().faults {
            match &active.fault.effect {
                Effect::Remove => verdict.code = function.without_token(),
                _ if !active.hits(function) => {}
                Effect::Code(code) => verdict.code = Some(code.value),
                Effect::Delay { ms, sigma } => thread::sleep(delay(*ms, *sigma)),
                Effect::Hang => self.hang(active),
                Effect::Crash => segmentation_fault(),
                Effect::Device { ms, at_once } => self.occupy_a_core(*ms, *at_once),
                Effect::FlipBit => verdict.flip_bit = true,
                Effect::SessionLimit(_)
                | Effect::PinLimit(_)
                | Effect::LoseSessions
                | Effect::LogOut
                | Effect::StaleHandles => {}
            }
            if verdict.code.is_some() {
                break;
            }
        }
        verdict
    }

    fn hang(&self, active: &Arc<Active>) {
        let _counted = Raised::new(self.counts.hanging());
        while self.plan().faults.iter().any(|now| Arc::ptr_eq(now, active)) {
            thread::sleep(HANG_POLL);
        }
    }

    fn occupy_a_core(&self, ms: f64, at_once: usize) {
        let busy = self.busy_cores.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.core_is_free.wait_while(busy, |busy| *busy >= at_once);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        thread::sleep(delay(ms, 0.0));
        *self.busy_cores.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.core_is_free.notify_one();
    }

    /// The first fault for which this gives something.
    pub(crate) fn setting<T>(&self, wanted: impl Fn(&Effect) -> Option<T>) -> Option<T> {
        self.plan().faults.iter().find_map(|active| wanted(&active.fault.effect))
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.setting(|effect| (*effect == Effect::Remove).then_some(())).is_some()
    }

    pub(crate) fn session_limit(&self) -> Option<usize> {
        self.setting(|effect| match effect {
            Effect::SessionLimit(limit) => Some(*limit),
            _ => None,
        })
    }

    pub(crate) fn pin_limit(&self) -> Option<u64> {
        self.setting(|effect| match effect {
            Effect::PinLimit(limit) => Some(*limit),
            _ => None,
        })
    }

    /// Which sessions are open, with their slots.
    pub(crate) fn sessions(&self) -> MutexGuard<'_, HashMap<CK_SESSION_HANDLE, CK_SLOT_ID>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose_sessions(&self) {
        let _nobody_runs = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let slots: HashSet<_> = self.sessions().drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            if let Some(close_all) = self.real.C_CloseAllSessions {
                // SAFETY: no other call is in the module, and any number is allowed for a slot.
                unsafe { close_all(slot) };
            }
        }
    }

    fn log_out(&self) {
        let _nobody_runs = self.running.write().unwrap_or_else(PoisonError::into_inner);
        let session = self.sessions().keys().next().copied();
        if let (Some(session), Some(log_out)) = (session, self.real.C_Logout) {
            // SAFETY: no other call is in the module, and any number is allowed for a session.
            unsafe { log_out(session) };
        }
    }

    /// The real module's handle for one that was given out.
    pub(crate) fn handle_in(&self, function: Function, handle: CK_OBJECT_HANDLE) -> Result<CK_OBJECT_HANDLE, CK_RV> {
        let generation = self.generation.load(Ordering::Relaxed);
        if generation == 0 || handle == CK_INVALID_HANDLE {
            return Ok(handle);
        }
        match handle >> GENERATION_SHIFT == generation {
            true => Ok(handle & ((1 << GENERATION_SHIFT) - 1)),
            false if function.takes_an_object() => Err(CKR_OBJECT_HANDLE_INVALID),
            false => Err(CKR_KEY_HANDLE_INVALID),
        }
    }

    /// The reverse.
    pub(crate) fn handle_out(&self, handle: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
        handle | (self.generation.load(Ordering::Relaxed) << GENERATION_SHIFT)
    }
}

impl Active {
    fn hits(&self, function: Function) -> bool {
        let fault = &self.fault;
        let touched = match &fault.functions[..] {
            [] => match fault.effect {
                Effect::Device { .. } => function.is_cryptographic(),
                Effect::FlipBit => function.ends_an_operation(),
                _ => true,
            },
            named => named.contains(&function),
        };
        let one_more = |hits| (hits < fault.calls.unwrap_or(u64::MAX)).then_some(hits + 1);
        touched
            && (fault.probability >= 1.0 || fastrand::f64() < fault.probability)
            && self.hits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }
}

fn read(file: &Path) -> Result<Control, String> {
    let text = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", file.display()))
}

fn stamp(file: &Metadata) -> Stamp {
    (file.ino(), file.mtime(), file.mtime_nsec(), file.len())
}

/// Box and Muller's normal deviate, as the exponent.
fn delay(ms: f64, sigma: f64) -> Duration {
    let normal = (-2.0 * (1.0 - fastrand::f64()).ln()).sqrt() * (std::f64::consts::TAU * fastrand::f64()).cos();
    Duration::try_from_secs_f64(ms * (sigma * normal).exp() / 1000.0).unwrap_or(Duration::MAX)
}

fn own_directory() -> Option<PathBuf> {
    // SAFETY: all zeros are valid for four pointers; they are filled in or left.
    let mut found: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked for; this one is in this library.
    let known = unsafe { libc::dladdr((&raw const SHIM).cast(), &raw mut found) } != 0;
    if !known || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name for a library that is loaded, which ends with a zero.
    let file = unsafe { CStr::from_ptr(found.dli_fname) };
    let file = fs::canonicalize(OsStr::from_bytes(file.to_bytes())).ok()?;
    file.parent().map(Path::to_owned)
}

fn segmentation_fault() {
    // SAFETY: not safe, and meant: nothing is mapped at this address, so the process ends here.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
}
