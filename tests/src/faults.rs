//! An HSM that misbehaves on request: the fault module in a directory of its own, before a copy of a real PKCS#11 module.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ekm_pkcs11_fault::control::{self, Control};
use ekm_pkcs11_fault::counts::{self, Reading};

pub use ekm_pkcs11_fault::control::{Effect, Fault};

use crate::process::ekm_binary;

/// SoftHSM, where Debian has it.
pub const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// One device. Faults can be changed at any time and by whoever has it, also while other processes use the module: they hold for every
/// call that begins afterwards.
pub struct FaultyModule {
    directory: PathBuf,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    now: Vec<Fault>,
    last_id: u64,
}

impl FaultyModule {
    /// Makes the directory. Both modules are copied, because a file is loaded once into a process, whatever its links are called.
    pub fn new(directory: &Path, real: &Path) -> Self {
        let own = ekm_binary().with_file_name("libekm_pkcs11_fault.so");
        fs::create_dir_all(directory).expect("writable");
        fs::copy(own, directory.join("module.so"))
            .expect("the fault module is built with the workspace: 'cargo build'");
        fs::copy(real, directory.join("real.so")).expect("a PKCS#11 module");
        let module = Self { directory: directory.to_owned(), faults: Mutex::default() };
        module.write(&[]);
        module
    }

    /// The module to load instead of the real one.
    pub fn path(&self) -> PathBuf {
        self.directory.join("module.so")
    }

    /// Lets something go wrong from now on, besides what does already. Gives its number.
    pub fn inject(&self, fault: Fault) -> u64 {
        let mut faults = self.faults.lock().expect("no test panics in here");
        faults.last_id += 1;
        let id = faults.last_id;
        faults.now.push(Fault { id, ..fault });
        self.write(&faults.now);
        id
    }

    /// Ends one fault.
    pub fn lift(&self, id: u64) {
        let mut faults = self.faults.lock().expect("no test panics in here");
        faults.now.retain(|fault| fault.id != id);
        self.write(&faults.now);
    }

    /// Ends all faults.
    pub fn clear(&self) {
        let mut faults = self.faults.lock().expect("no test panics in here");
        faults.now.clear();
        self.write(&[]);
    }

    /// How often a function was called, by all processes.
    pub fn calls(&self, function: &str) -> u64 {
        self.counts().calls(function)
    }

    /// How many of these calls failed.
    pub fn failures(&self, function: &str) -> u64 {
        self.counts().failures(function)
    }

    /// How many calls hang now; those of processes that were killed meanwhile included.
    pub fn hanging(&self) -> u64 {
        self.counts().hanging()
    }

    fn counts(&self) -> Reading {
        Reading::of(&self.directory.join(counts::FILE))
    }

    /// Replaces the file, so that nobody reads half of one.
    fn write(&self, faults: &[Fault]) {
        let control = Control { module: "real.so".into(), faults: faults.to_vec() };
        let (new, file) = (self.directory.join("fault.new"), self.directory.join(control::FILE));
        fs::write(&new, serde_json::to_vec(&control).expect("JSON")).expect("writable");
        fs::rename(new, file).expect("writable");
    }
}
