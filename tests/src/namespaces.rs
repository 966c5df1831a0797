//! A program that runs again in Linux namespaces of its own: its networks, mounts and processes are nobody else's, and the kernel
//! takes them away with it.

use std::io::Read;
use std::process::{Command, Stdio};

const INSIDE: &str = "EKM_TESTS_INSIDE";

/// Runs this program again, with the same arguments, in network, mount, process and IPC namespaces of its own, and ends with its
/// status; returns in that second run alone. There, temporary files are in memory, and gone at the end. When the first one ends,
/// however it does, the second one ends with all its children.
///
/// # Errors
/// Namespaces need root, or the capability `CAP_SYS_ADMIN`; the error says what is missing.
pub fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]); // returns when the other end is gone
            std::process::exit(130);
        });
        return run(Command::new("ip").args(["link", "set", "lo", "up"]));
    }
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root: run it as root, or with sudo".into());
    }
    let unshare = ["--net", "--mount", "--pid", "--ipc", "--fork", "--mount-proc", "--kill-child=KILL"];
    if let Err(error) = run(Command::new("unshare").args(unshare).args(["mount", "-t", "tmpfs", "tmpfs", "/run"])) {
        return Err(format!(
            "this machine gives no namespaces; a container needs --privileged, or a virtual machine: {error}"
        ));
    }
    // The shell is process 1 of the namespace: it collects the children of processes that were killed, as Patroni expects.
    let script = "mount -t tmpfs tmpfs /run && mkdir -m 1777 /run/tmp && TMPDIR=/run/tmp \"$@\"; exit $?";
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-c", script, "sh"]);
    command.arg(std::env::current_exe().expect("it runs from a file")).args(std::env::args_os().skip(1));
    let mut child =
        command.env(INSIDE, "1").stdin(Stdio::piped()).spawn().map_err(|error| format!("unshare: {error}"))?;
    let _until_the_end = child.stdin.take(); // `wait` would close it
    let status = child.wait().map_err(|error| error.to_string())?;
    std::process::exit(status.code().unwrap_or(1));
}

/// Runs a command that prints nothing of interest unless it fails.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
