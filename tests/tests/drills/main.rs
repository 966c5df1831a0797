//! The drills' short forms. The full ones are `make drill-catalog`, `make drill-hsm`, `make drill-topology` and `make drill-load`.
//!
//! One after the other, and in a binary of their own, which cargo runs when no other test does: they judge a service under load, so that
//! the machine should have nothing else to do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod load;

use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ekm_tests::ekm_binary;

/// Whose turn it is.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn short(drill: &str) {
    short_of(drill, &[]);
}

fn short_of(drill: &str, arguments: &[&str]) {
    let _turn = turn();
    let drill = ekm_binary().with_file_name(drill);
    let mut command = Command::new(drill);
    let output = command.args(["--short", "--output", "json"]).args(arguments).stdin(Stdio::null()).output().unwrap();
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

/// Behind one of the topologies, with these faults.
fn topology(arguments: &[&str]) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    short_of("drill-topology", arguments);
}

#[test]
fn requests_go_on_when_a_replica_falls_silent_or_a_whole_site_is_gone_behind_a_direct_connection() {
    topology(&["--topology", "direct", "--only", "silent", "--only", "site-gone"]);
}

#[test]
fn requests_go_on_when_a_replica_hangs_or_is_killed_behind_a_proxy_from_the_internet() {
    topology(&["--topology", "internet", "--only", "hung", "--only", "killed"]);
}

#[test]
fn no_request_fails_when_a_replica_is_drained_and_they_go_on_when_a_site_is_gone_behind_nginx_in_a_vpc() {
    topology(&["--topology", "vpc", "--only", "drained", "--only", "site-gone"]);
}

#[test]
fn no_request_fails_when_three_are_restarted_one_after_the_other_behind_nginx_and_behind_haproxy_that_ends_tls() {
    topology(&["--topology", "one-nginx", "--topology", "one-haproxy-https"]);
}
