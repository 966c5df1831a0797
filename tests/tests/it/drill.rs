//! The drill's short form. The full one is `make drill-catalog`.

use std::process::{Command, Stdio};

use ekm_tests::ekm_binary;

#[test]
fn no_wrap_fails_and_no_acknowledged_write_is_lost_while_databases_crash_and_change_and_vanish() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let drill = ekm_binary().with_file_name("drill-catalog");
    let output = Command::new(drill).args(["--short", "--output", "json"]).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}
