//! What is drilled: `ekm serve` with three HSMs that hold the same keys, and one that never has a fault, to check what they made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ekm_tests::{Directory, Effect, Ekm, Fault, FaultyModule, SOFTHSM, set_up};
use rustix::process::{Pid, Signal, kill_process};

/// The replicas' names.
pub const REPLICAS: [&str; 3] = ["hsm-a", "hsm-b", "hsm-c"];

/// How long one call takes in an HSM that is well.
pub const DEVICE_MS: f64 = 1.0;

/// Sessions of each HSM, and how many calls it works on at once.
pub const SESSIONS: usize = 4;

/// Where `ekm dev` says where its token is.
const HSM_SECTION: std::ops::Range<&str> = "[[shard]]\n".."\n[audit]";

/// An HSM: SoftHSM with its own copy of the keys, behind a module that has faults on request and takes its time.
pub struct Hsm {
    name: &'static str,
    directory: PathBuf,
    sessions: usize,
    /// Its faults.
    pub module: FaultyModule,
}

/// Keys and configuration as `ekm dev` makes them once; everything else is a copy of it.
pub struct Origin(Directory);

impl Origin {
    /// With the keys that the service needs.
    pub fn new() -> Self {
        Self(set_up(&["--softhsm"]))
    }

    /// A directory for one more service.
    fn copy(&self) -> Directory {
        let copy = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        copy_all(self.0.path(), copy.path());
        fs::remove_file(copy.path().join("stderr.log")).expect("ekm dev has logged there");
        copy
    }

    /// An HSM with a copy of the keys, as vendors clone them, in this directory. Its device takes so long for each call.
    pub fn hsm(&self, name: &'static str, within: &Directory, sessions: usize, device_ms: f64) -> Hsm {
        let directory = within.path().join(name);
        let module = FaultyModule::new(&directory, Path::new(SOFTHSM));
        module.inject(Fault::new(Effect::Device { ms: device_ms, at_once: sessions }));
        let tokens = directory.join("tokens");
        copy_all(&self.0.path().join("softhsm/tokens"), &tokens);
        let config = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        fs::write(directory.join("softhsm2.conf"), config).expect("writable");
        Hsm { name, directory, sessions, module }
    }

    /// Three HSMs, and a service that uses them with the deadlines of production.
    pub fn three(&self) -> (Ekm, [Hsm; 3]) {
        let directory = self.copy();
        let hsms = REPLICAS.map(|name| self.hsm(name, &directory, SESSIONS, DEVICE_MS));
        let ekm = serve(&directory, &hsms, 100, 60);
        ekm.eventually("in use, all of them", || ekm.state().matches(": serving for ").count() == hsms.len());
        (ekm, hsms)
    }

    /// One HSM, and a service that has patience.
    pub fn one(&self, sessions: usize, device_ms: f64) -> Ekm {
        let directory = self.copy();
        let hsm = self.hsm("hsm", &directory, sessions, device_ms);
        serve(&directory, &[hsm], 20_000, 10_000)
    }

    /// A service with a replica of its own that never had a fault.
    pub fn checker(&self) -> Ekm {
        self.one(2, 0.0)
    }
}

fn serve(directory: &Directory, hsms: &[Hsm], request_ms: u32, hsm_ms: u32) -> Ekm {
    Ekm::serve(directory, |config| {
        let (head, rest) = config.split_once(HSM_SECTION.start).expect("ekm dev has written it");
        let (_, rest) = rest.split_once(HSM_SECTION.end).expect("another section");
        let mut section = format!("[[shard]]\ndeadline_ms = {hsm_ms}\n");
        for hsm in hsms {
            section += &hsm.table();
        }
        let rest = rest.replace("request_deadline_ms = 20000", &format!("request_deadline_ms = {request_ms}"));
        format!("{head}{section}{}{rest}", HSM_SECTION.end)
    })
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "cp");
}

impl Hsm {
    fn table(&self) -> String {
        let Self { name, sessions, .. } = self;
        format!(
            "\n[[shard.replica]]\nname = {name:?}\nmodule = {:?}\ntoken_label = \"ekm-dev\"\npin_file = \"softhsm/pin\"\n\
             sessions = {sessions}\n[shard.replica.environment]\nSOFTHSM2_CONF = {:?}\n",
            self.module.path(),
            self.directory.join("softhsm2.conf"),
        )
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Kills its worker process; whether there was one.
    pub fn kill_worker(&self, ekm: &Ekm) -> bool {
        let own = format!("SOFTHSM2_CONF={}", self.directory.join("softhsm2.conf").display());
        let children = format!("/proc/{0}/task", ekm.pid());
        let tasks = fs::read_dir(children).expect("it runs");
        // Each thread has children of its own.
        let lists = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
        let pids: Vec<i32> = lists
            .flat_map(|list| list.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|pid| pid.parse().ok())
            .collect();
        let mut killed = false;
        for pid in pids {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == own.as_bytes())
                && let Some(pid) = Pid::from_raw(pid)
            {
                killed |= kill_process(pid, Signal::KILL).is_ok();
            }
        }
        killed
    }
}
