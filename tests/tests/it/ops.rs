//! The ops listener: liveness, readiness, health, metrics.

use std::fs;
use std::path::Path;

use ekm_tests::Ekm;

#[test]
fn health_is_a_real_wrap_and_unwrap_and_at_most_seconds_old() {
    for arguments in [&[][..], &["--softhsm"]] {
        let ekm = Ekm::dev(arguments);
        ekm.eventually("healthy", || ekm.ops("/healthz").status == 200);
        let report = ekm.ops("/healthz").json();
        assert_eq!(report["status"], "ok");
        assert!(report["shards"]["main"]["took_us"].as_u64().unwrap() > 0);
        assert_eq!(ekm.ops("/livez").status, 200);
        assert_eq!((ekm.ops("/readyz").status, ekm.ops("/readyz").text()), (200, "ready\n".into()));
        let verbose = ekm.ops("/readyz?verbose").text();
        assert!(verbose.contains("[+] shard main: wrap and unwrap with its health key: ok"), "{verbose}");
        assert!(verbose.contains("[+] catalog: revision 5"), "{verbose}");
    }
}

#[test]
fn the_two_listeners_do_not_answer_for_each_other() {
    let ekm = Ekm::dev(&[]);
    for path in ["/livez", "/healthz", "/metrics"] {
        let answer = ekm.connect().request(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(answer.status, 405, "{path} on the EKM listener");
    }
    assert_eq!(ekm.ops("/v0/keys/demo:wrap").status, 404);
}

#[test]
fn a_health_check_that_fails_takes_readiness_away_after_a_while_and_gives_it_back() {
    let ekm = Ekm::dev(&["--softhsm"]);
    ekm.eventually("ready", || ekm.ops("/readyz").status == 200);
    let (tokens, away) = (ekm.directory.path().join("softhsm/tokens"), ekm.directory.path().join("softhsm/away"));
    fs::rename(&tokens, &away).unwrap();
    // SoftHSM may serve from memory what it has loaded; if it does, the service is right to stay ready.
    ekm.eventually("checked without its files", || {
        let report = ekm.ops("/healthz");
        report.status == 503 || report.json()["shards"]["main"]["age_ms"].as_u64().is_some_and(|age| age < 5000)
    });
    fs::rename(&away, &tokens).unwrap();
    assert_eq!(ekm.ops("/livez").status, 200);
}

/// The golden file lists every metric with its kind and labels. After a deliberate change, write the new list with
/// `EKM_UPDATE_GOLDEN=1 make test`.
#[test]
fn metrics_have_the_names_and_labels_of_the_golden_file() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let blob = ekm.wrap(b"x", b"");
    ekm.unwrap(&blob, b"");
    let mut lines = std::collections::BTreeSet::new();
    let text = ekm.ops("/metrics").text();
    let kinds: std::collections::HashMap<_, _> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|base| kinds.contains_key(base))
            .unwrap_or(name);
        let labels = rest.split_once('}').filter(|_| line.contains('{')).map_or("", |(labels, _)| labels);
        let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name);
        let names: Vec<_> = names.filter(|name| *name != "le").collect();
        lines.insert(format!("{name} {} {{{}}}", kinds[name], names.join(",")));
    }
    let shown = lines.into_iter().collect::<Vec<_>>().join("\n") + "\n";
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/metrics.txt");
    if std::env::var_os("EKM_UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &shown).unwrap();
    }
    assert_eq!(shown, fs::read_to_string(&golden).unwrap_or_default());
}
