//! Instructions that a request takes, counted by valgrind: unlike CPU time, they are the same on a busy machine.
//!
//! `ekm serve` runs under callgrind, on one worker thread. It counts while requests are sent and not before: connections are open and caches warm then. What
//! the process does besides is counted, too, and little. The kernel's share is not, and the processor that valgrind emulates has neither AVX-512
//! nor SHA-256, so ciphers and digests take more instructions than they would: compare these figures with each other and with the floor.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ekm_loadtest::{Client, PLAINTEXT_BYTES, Protocol, Subject, median, request, wrap_body};
use ekm_tests::{Directory, Ekm, base64, ekm_binary, set_up};
use serde_json::{Value, json};

use crate::floor::Floor;

/// What is counted, and how often.
pub struct Instructions {
    pub requests: usize,
    pub connections: usize,
    /// The median counts.
    pub repeat: usize,
    /// Where callgrind's files stay.
    pub keep: Option<PathBuf>,
    /// Only this custody.
    pub custody: Option<&'static str>,
}

/// In the service's own process, each.
const CUSTODIES: [&str; 3] = ["software", "hsm-wrapped", "hsm"];

/// Callgrind does not always hear what it is told.
const ATTEMPTS: usize = 5;

/// Before instructions count, for each connection.
const WARM_UP: usize = 20;

impl Instructions {
    /// A row for each custody, verb and protocol.
    pub fn measure(&self) -> Result<Vec<Value>> {
        let valgrind = Command::new("valgrind").arg("--version").output();
        ensure!(
            valgrind.is_ok_and(|output| output.status.success()),
            "valgrind counts instructions, and is not installed: apt-get install valgrind"
        );
        if let Some(directory) = &self.keep {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        let directory = set_up(&[]);
        let floors = self.floors(&directory)?;
        let mut rows = Vec::new();
        for custody in CUSTODIES.into_iter().filter(|custody| self.custody.is_none_or(|only| only == *custody)) {
            self.of_custody(custody, &floors, &mut rows)?;
        }
        Ok(rows)
    }

    /// Of each protocol.
    fn floors(&self, directory: &Directory) -> Result<Vec<f64>> {
        eprintln!("the floor");
        let counter = self.counter(directory, "floor");
        let floor = Floor::start_by(counter.command(&std::env::current_exe()?), directory.path())?;
        let ca_file = directory.path().join("tls/certificate.pem");
        let subject = Subject { address: floor.address, ca_file, pid: floor.pid() };
        let request = request("v0/keys/bench", "wrap", "token", "plaintext", &base64([7; PLAINTEXT_BYTES]));
        let counts = Protocol::ALL.map(|protocol| self.count(&counter, &subject, protocol, "wrap", &request));
        counts.into_iter().map(|counted| Ok(counted?.instructions)).collect()
    }

    fn of_custody(&self, custody: &str, floors: &[f64], rows: &mut Vec<Value>) -> Result<()> {
        eprintln!("{custody}");
        let directory = set_up(if custody == "software" { &[] } else { &["--softhsm"] });
        let counter = self.counter(&directory, custody);
        // Fifty times as slow as else: nothing is to be given up.
        let ekm = Ekm::serve_by(counter.command(&ekm_binary()), &directory, &[], |config| {
            config.replace("\ndeadline_ms = 60", "\ndeadline_ms = 10000") + "watchdog_ms = 600000\n"
        });
        ekm.eventually("ready", || ekm.ops("/readyz").status == 200);
        let key = "v0/keys/bench";
        let mut create = ekm_tests::key_create(key);
        if custody == "hsm-wrapped" {
            create["custody"] = custody.into();
        }
        ekm.change_here(&create);
        let plaintext = base64([7; PLAINTEXT_BYTES]);
        let wrapped = ekm.post(&format!("/{key}:wrap"), &wrap_body()).json();
        let blob = wrapped["wrappedBlob"].as_str().context("the key does not wrap")?;
        for (verb, field, input) in [("wrap", "plaintext", &*plaintext), ("unwrap", "wrappedBlob", blob)] {
            let request = request(key, verb, &ekm.ready.token, field, input);
            for (protocol, floor) in Protocol::ALL.into_iter().zip(floors) {
                let counted = self.count(&counter, &(&ekm).into(), protocol, verb, &request)?;
                rows.push(json!({
                    "custody": custody, "verb": verb, "protocol": protocol.name(),
                    "instructions": counted.instructions, "spread_percent": counted.spread_percent,
                    "floor_instructions": floor, "times_the_floor": counted.instructions / floor,
                    "above_the_floor": counted.instructions - floor,
                }));
            }
        }
        Ok(())
    }

    fn counter(&self, directory: &Directory, subject: &str) -> Counter {
        let (directory, keep) = (directory.path().to_owned(), self.keep.clone());
        Counter { directory, subject: subject.into(), keep }
    }

    /// Of one kind of request, each time over new connections.
    fn count(
        &self,
        counter: &Counter,
        subject: &Subject,
        protocol: Protocol,
        verb: &str,
        request: &str,
    ) -> Result<Counted> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (requests, count) = (Arc::new(vec![request.to_owned()]), self.requests);
        let mut all = Vec::new();
        for _ in 0..self.repeat {
            let mut client = runtime.block_on(Client::connect(protocol, subject, self.connections))?;
            let warm_up = WARM_UP * self.connections;
            runtime.block_on(client.send(&requests, move |before| before < warm_up))?;
            counter.begin(subject.pid)?;
            let sent = runtime.block_on(client.send(&requests, move |before| before < count))?;
            let instructions = counter.end(subject.pid, &format!("{verb}.{}", protocol.name().replace('/', "")))?;
            ensure!(sent.errors == 0, "{} of {count} requests were not answered with 200", sent.errors);
            all.push(instructions as f64 / count as f64);
        }
        let (least, most) = all.iter().fold((f64::MAX, 0.0), |(least, most), &one| (one.min(least), one.max(most)));
        let instructions = median(all);
        Ok(Counted { instructions, spread_percent: 100.0 * (most - least) / instructions })
    }
}

struct Counted {
    /// Of one request.
    instructions: f64,
    /// Between the least and the most of several times.
    spread_percent: f64,
}

/// Callgrind, around one process.
struct Counter {
    directory: PathBuf,
    subject: String,
    keep: Option<PathBuf>,
}

impl Counter {
    /// Starts a program.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--instr-atstart=no", "--fair-sched=try"]);
        command.arg(format!("--callgrind-out-file={}", self.file().display()));
        command.arg(format!("--log-file={}", self.directory.join("valgrind.log").display()));
        command.arg(self.prefix()).arg(program);
        // With more, which thread finds what to do is chance.
        command.env("TOKIO_WORKER_THREADS", "1");
        // The service would start itself anew to have this, and escape.
        command.env("SOFTHSM2_CONF", self.directory.join("softhsm/softhsm2.conf"));
        command
    }

    fn file(&self) -> PathBuf {
        self.directory.join("callgrind.out")
    }

    /// Of the pipes that it is told by, which go with the directory.
    fn prefix(&self) -> String {
        format!("--vgdb-prefix={}", self.directory.join("vgdb").display())
    }

    /// From now on instructions count.
    fn begin(&self, pid: u32) -> Result<()> {
        self.tell(pid, &["zero"])?;
        self.tell(pid, &["instrumentation", "on"])
    }

    /// How many they were. What they were goes into a file of that name, if it is to be kept.
    fn end(&self, pid: u32, name: &str) -> Result<u64> {
        self.tell(pid, &["instrumentation", "off"])?;
        self.tell(pid, &["dump"])?;
        let entries = fs::read_dir(&self.directory)?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_dump = |file: &PathBuf| file.to_string_lossy().starts_with(&format!("{}.", self.file().display()));
        let mut dumps = Vec::new();
        for dump in entries.filter(is_dump) {
            let text = fs::read_to_string(&dump)?;
            dumps.push((total(&text).context("callgrind's file has no total")?, dump));
        }
        // If it had to be told twice, one of them has nothing.
        dumps.sort();
        if let (Some(keep), Some((_, dump))) = (&self.keep, dumps.last()) {
            fs::copy(dump, keep.join(format!("callgrind.out.{}.{name}", self.subject)))?;
        }
        dumps.iter().try_for_each(|(_, dump)| fs::remove_file(dump))?;
        dumps.last().map(|(total, _)| *total).context("callgrind has written no file")
    }

    /// Says something to callgrind.
    fn tell(&self, pid: u32, command: &[&str]) -> Result<()> {
        // Nobody may look into `ekm` (ptrace): it is left to hear the command by itself, which it does with its next 10 ms' beat.
        // The floor has no beat, and may be looked into.
        let wait = if self.subject == "floor" { "--max-invoke-ms=10" } else { "--max-invoke-ms=0" };
        let mut problem = String::new();
        for _ in 0..ATTEMPTS {
            let mut vgdb = Command::new("vgdb");
            let output = vgdb.args([&format!("--pid={pid}"), &self.prefix(), wait]).args(command).output()?;
            if output.status.success() {
                return Ok(());
            }
            problem = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            std::thread::sleep(Duration::from_millis(500));
        }
        let log = fs::read_to_string(self.directory.join("valgrind.log")).unwrap_or_default();
        bail!("callgrind was not told '{}': {problem}\nits log:\n{log}", command.join(" "))
    }
}

/// Of one of callgrind's files.
fn total(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_a_file_of_callgrind_is_its_own_and_no_functions() {
        let text = "# callgrind format\nevents: Ir\nsummary: 5\n\nfl=(1) a.rs\nfn=(1) totals\n1 7\n\ntotals: 12345\n";
        assert_eq!(total(text), Some(12345));
        assert_eq!(total("events: Ir\n"), None);
    }
}
