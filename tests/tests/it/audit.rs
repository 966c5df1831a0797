//! The audit log: complete, and without secrets.

use std::fs;

use ekm_tests::{Ekm, base64, set_up};
use serde_json::json;

#[test]
fn every_request_leaves_one_complete_line() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let body = json!({
        "plaintext": base64("x"),
        "additionalContext": {
            "relativeResourceName": "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"},
            "isKeyHealthCheck": true,
        },
    });
    let answer = ekm.post("/v0/keys/demo:wrap", &body.to_string());
    ekm.eventually("audited", || ekm.audit().len() == 1);
    let line = &ekm.audit()[0];
    assert_eq!(line["request_id"].as_str(), answer.header("x-request-id"));
    for (field, expected) in [
        ("verb", json!("wrap")),
        ("path", json!("/v0/keys/demo:wrap")),
        ("caller", json!(ekm_tests::CALLER)),
        ("issuer", json!("https://issuer.localhost")),
        ("justification", json!("CUSTOMER_INITIATED_ACCESS")),
        ("relative_resource_name", body["additionalContext"]["relativeResourceName"].clone()),
        ("is_key_health_check", json!(true)),
        ("key_version", json!(1)),
        ("custody", json!("hsm")),
        ("catalog_revision", json!(5)),
        ("status", json!(200)),
        ("code", json!("ok")),
        ("error", json!(null)),
    ] {
        assert_eq!(line[field], expected, "{field}");
    }
    let (queue, device, total) = (&line["hsm_queue_us"], &line["hsm_device_us"], &line["total_us"]);
    assert!(device.as_u64().unwrap() > 0);
    assert!(total.as_u64().unwrap() >= device.as_u64().unwrap() + queue.as_u64().unwrap());
    assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn refused_requests_are_audited_too_and_a_newline_cannot_forge_a_line() {
    let ekm = Ekm::dev(&[]);
    let forged = "}\n{\"forged\":true";
    let body = json!({"plaintext": "AA==", "additionalContext": {"relativeResourceName": forged}});
    assert_eq!(ekm.post("/v0/keys/demo:wrap", &body.to_string()).status, 200);
    assert_eq!(ekm.connect().post("/v0/keys/none:wrap", "no token", "{}").status, 401);
    assert_eq!(ekm.post("/v0/keys/none:wrap", r#"{"plaintext":"AA=="}"#).status, 404);
    assert_eq!(ekm.post("/nonsense", "{}").status, 404);
    ekm.eventually("audited", || ekm.audit().len() == 4);
    let lines = ekm.audit();
    let codes: Vec<_> = lines.iter().map(|line| line["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["ok", "unauthenticated", "key_not_found", "no_such_method"]);
    assert_eq!(lines[0]["relative_resource_name"], forged);
    assert_eq!(lines[1]["caller"], json!(null));
    assert_eq!(lines[3]["verb"], json!(null));
}

#[test]
fn no_secret_is_in_log_audit_log_or_metrics() {
    let ekm = Ekm::dev(&["--softhsm"]);
    let marker = "a-very-secret-data-key-marker";
    let blob = ekm.wrap(marker.as_bytes(), b"an-aad-marker");
    ekm.unwrap(&blob, b"an-aad-marker");
    ekm.unwrap(&blob, b"wrong");
    ekm.post("/v0/keys/demo:wrap", &format!("{{\"plaintext\":\"{}\" rubbish", base64(marker)));
    let pin = fs::read_to_string(ekm.directory.path().join("softhsm/pin")).unwrap();
    ekm.eventually("audited", || ekm.audit().len() == 4);
    let signature = ekm.ready.token.rsplit('.').next().unwrap();
    ekm.assert_not_leaked(&[
        marker,
        &base64(marker),
        "an-aad-marker",
        &base64("an-aad-marker"),
        &blob,
        signature,
        &pin,
    ]);
}

#[test]
fn logrotate_moves_the_file_and_sighup_opens_a_new_one() {
    let ekm = Ekm::dev(&[]);
    ekm.wrap(b"x", b"");
    ekm.eventually("audited", || ekm.audit().len() == 1);
    let file = ekm.directory.path().join("audit.jsonl");
    fs::rename(&file, file.with_extension("1")).unwrap();
    ekm.signal(rustix::process::Signal::HUP);
    ekm.eventually("reopened", || {
        ekm.wrap(b"x", b"");
        file.exists() && !ekm.audit().is_empty()
    });
}

#[test]
fn when_the_disk_is_full_requests_are_refused_and_none_is_answered_without_a_record() {
    let directory = set_up(&[]);
    let ekm = Ekm::serve(&directory, |config| {
        let full = config.replace("file = \"audit.jsonl\"", "file = \"/dev/full\"\nqueue_length = 3");
        full.replace("request_deadline_ms = 20000", "request_deadline_ms = 300")
    });
    let mut answered = 0;
    ekm.eventually("refusing", || {
        let answer = ekm.post("/v0/keys/demo:wrap", r#"{"plaintext":"AA=="}"#);
        answered += usize::from(answer.status == 200);
        answer.status == 503 && answer.message().ends_with("[audit_unavailable]")
    });
    assert!(answered <= 5, "{answered} answers for a queue of 3 and the line being written");
    assert!(ekm.metric("ekm_audit_write_errors_total") > 0.0);
    assert!(ekm.metric("ekm_requests_total{code=\"audit_unavailable\",verb=\"wrap\"}") > 0.0);
    assert_eq!(ekm.ops("/livez").status, 200);
}
