//! The drills' short forms. The full ones are `make drill-catalog` and `make drill-hsm`.

use std::process::{Command, Stdio};

use ekm_tests::ekm_binary;

fn short(drill: &str) {
    let drill = ekm_binary().with_file_name(drill);
    let output = Command::new(drill).args(["--short", "--output", "json"]).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn no_wrap_fails_and_no_acknowledged_write_is_lost_while_databases_crash_and_change_and_vanish() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    short("drill-catalog");
}

#[test]
fn no_result_is_wrong_and_no_good_request_is_denied_while_an_hsm_hangs_and_fails_and_lies_and_it_comes_back() {
    short("drill-hsm");
}
