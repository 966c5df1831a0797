//! Bad fields (classes 57 to 62), and bad blobs as far as wrap_unwrap.rs does not have them (63 to 72).

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use ekm_tests::{CALLER, Ekm, base64, unbase64};
use serde_json::{Value, json};

use crate::table::Expect::{Good, Refused};
use crate::table::{Expect, PLAINTEXT, Table, WRAP, post_json};

const UNWRAP: &str = "/v0/keys/demo:unwrap";
const NO_BASE64: Expect = Refused(400, "plaintext: is not base64");
const FOREIGN: Expect = Refused(
    400,
    "the blob was not wrapped under this key, or with other additional authenticated data, or was changed",
);

/// Rows that differ in the body only.
struct Bodies {
    table: Table,
    token: String,
}

impl Bodies {
    fn new() -> Self {
        let ekm = Ekm::dev(&[]);
        Self { token: ekm.ready.token.clone(), table: Table::over(ekm) }
    }

    fn wrap(&mut self, class: u8, name: &str, body: Value, expect: Expect) {
        self.table.row(class, name, post_json(WRAP, &self.token, body.to_string()), expect);
    }

    fn unwrap(&mut self, class: u8, name: &str, body: Value, expect: Expect) {
        self.table.row(class, name, post_json(UNWRAP, &self.token, body.to_string()), expect);
    }
}

#[test]
fn bytes_are_base64_in_one_of_its_alphabets_and_nothing_else() {
    let mut bodies = Bodies::new();
    for text in [
        "A",
        "AA===",
        "AAA==",
        "A===",
        "=",
        "====",
        "AA=A",
        "AA==AA==",
        "AAAA=",
        "AB==",
        "AAB=",
        "AB",
        "AAB",
        "AA==\n",
        " AA==",
        "AA ==",
        "AAAA\r\nAAAA",
        "AA\u{0}A",
        "AA*A",
        "äAAA",
        "AAAA,AAAA",
        "+-+-",
        "+/_A",
        "-_+A",
        "%41AA=",
        "AA=\u{3d}=",
        "data:;base64,AA==",
        "\u{feff}AA==",
        "АААА", // Cyrillic
    ] {
        bodies.wrap(57, &format!("{text:?}"), json!({"plaintext": text}), NO_BASE64);
    }
    // Half the padding is as good as none: it cannot mean other bytes.
    bodies.wrap(57, "half the padding", json!({"plaintext": "AA="}), Good);
    let aad = Refused(400, "additionalAuthenticatedData: is not base64");
    bodies.wrap(57, "bad AAD", json!({"plaintext": "AA==", "additionalAuthenticatedData": "!"}), aad);
    bodies.unwrap(57, "a bad blob", json!({"wrappedBlob": "!"}), Refused(400, "wrappedBlob: is not base64"));

    // All the spellings of one plaintext come back as it in the standard one.
    let plaintext = b"\xfb\xff\xbf\xfb\xff\xbf\x00";
    for text in [
        base64(plaintext),
        STANDARD_NO_PAD.encode(plaintext),
        URL_SAFE.encode(plaintext),
        URL_SAFE_NO_PAD.encode(plaintext),
    ] {
        bodies.wrap(57, &text, json!({"plaintext": text, "additionalAuthenticatedData": text}), Good);
        let ekm = &bodies.table.ekm;
        let blob = ekm.post(WRAP, &json!({"plaintext": text, "additionalAuthenticatedData": text}).to_string()).json();
        let blob = unbase64(blob["wrappedBlob"].as_str().unwrap());
        for blob in
            [base64(&blob), URL_SAFE.encode(&blob), STANDARD_NO_PAD.encode(&blob), URL_SAFE_NO_PAD.encode(&blob)]
        {
            assert_eq!(ekm.unwrap(&blob, plaintext).json(), json!({"plaintext": base64(plaintext)}), "{text}");
        }
    }
    bodies.table.finish(&[]);
}

#[test]
fn fields_may_be_as_long_as_their_bounds_and_no_longer() {
    let mut bodies = Bodies::new();
    let bytes = |length: usize| base64(vec![0x5a; length]);
    let (largest, largest_aad) = (65 * 1024, 64 * 1024);
    for length in [0, 1, 32, 64 * 1024, 64 * 1024 + 100, largest] {
        bodies.wrap(58, &format!("{length} bytes"), json!({"plaintext": bytes(length)}), Good);
    }
    let too_long = Refused(400, "plaintext: is longer than 66560 bytes");
    for length in [largest + 1, largest + 2, largest + 3, largest + 4, largest + 1000, 150_000] {
        bodies.wrap(58, &format!("{length} bytes"), json!({"plaintext": bytes(length)}), too_long);
    }
    // Which trouble is told must not depend on the length: rubbish of that length is too long first.
    bodies.wrap(58, "much that is no base64", json!({"plaintext": "!".repeat(100_000)}), too_long);
    let blob_too_long = Refused(400, "wrappedBlob: is longer than 66625 bytes");
    bodies.unwrap(58, "a blob that is too long", json!({"wrappedBlob": bytes(largest + 66)}), blob_too_long);

    let with_aad = |aad: Value| json!({"plaintext": base64(PLAINTEXT), "additionalAuthenticatedData": aad});
    bodies.wrap(59, "the longest AAD", with_aad(bytes(largest_aad).into()), Good);
    let too_long = Refused(400, "additionalAuthenticatedData: is longer than 65536 bytes");
    bodies.wrap(59, "a byte more", with_aad(bytes(largest_aad + 1).into()), too_long);
    bodies.wrap(59, "twice as much", with_aad(bytes(largest_aad * 2).into()), too_long);
    let both = json!({"plaintext": bytes(largest), "additionalAuthenticatedData": bytes(largest_aad)});
    bodies.wrap(59, "both as long as they may be", both, Good);

    // Absent, null, and empty AAD are one and the same, in both directions.
    let none = [json!({}), with_aad(json!(null)), with_aad(json!(""))];
    for wrapped_with in &none {
        let mut body = wrapped_with.clone();
        body["plaintext"] = json!(base64(PLAINTEXT));
        let blob = bodies.table.ekm.post(WRAP, &body.to_string()).json()["wrappedBlob"].clone();
        for unwrapped_with in &none {
            let mut body = unwrapped_with.clone();
            body.as_object_mut().unwrap().remove("plaintext");
            body["wrappedBlob"] = blob.clone();
            bodies.unwrap(59, &format!("{wrapped_with} and {unwrapped_with}"), body, Good);
        }
        let aad = json!({"wrappedBlob": blob, "additionalAuthenticatedData": "AA=="});
        bodies.unwrap(59, "one NUL instead of nothing", aad, FOREIGN);
    }
    bodies.table.finish(&[]);
}

#[test]
fn a_verb_takes_its_own_field_and_not_the_others() {
    let mut bodies = Bodies::new();
    let blob = bodies.table.ekm.wrap(PLAINTEXT.as_bytes(), b"");
    let plaintext = base64(PLAINTEXT);
    let both = json!({"plaintext": plaintext, "wrappedBlob": blob});
    let exclusive = Refused(400, "body: plaintext and wrappedBlob exclude each other");
    bodies.wrap(60, "both fields", both.clone(), exclusive);
    bodies.unwrap(60, "both fields", both, exclusive);
    bodies.wrap(60, "only the other field", json!({"wrappedBlob": blob}), exclusive);
    bodies.unwrap(60, "only the other field", json!({"plaintext": plaintext}), exclusive);
    bodies.wrap(60, "an empty other field", json!({"plaintext": plaintext, "wrappedBlob": ""}), exclusive);
    bodies.wrap(60, "neither", json!({}), Refused(400, "plaintext: is missing"));
    bodies.unwrap(60, "neither", json!({}), Refused(400, "wrappedBlob: is missing"));
    bodies.wrap(60, "the other field null", json!({"plaintext": plaintext, "wrappedBlob": null}), Good);

    let disagree = Refused(400, "keyPath: does not agree with the path in the URL");
    for path in
        ["v0/keys/other", "", "v0/keys/demo:wrap", "v0/keys/demo/", "V0/keys/demo", "v0/keys/d%65mo", "../v0/keys/demo"]
    {
        bodies.wrap(60, &format!("key path {path:?}"), json!({"plaintext": plaintext, "keyPath": path}), disagree);
    }
    for path in ["v0/keys/demo", "/v0/keys/demo"] {
        bodies.wrap(60, &format!("key path {path:?}"), json!({"plaintext": plaintext, "keyPath": path}), Good);
    }
    bodies.table.finish(&[&blob]);
}

/// Beside the demo key: one whose policy wants a good reason, one for wrapping only, one of somebody else, one paused.
fn serve_more_keys() -> Ekm {
    let ekm = Ekm::dev(&[]);
    let reasons = json!({"allowed": ["CUSTOMER_INITIATED_ACCESS"], "missing": false, "unknown": false});
    for (path, rule) in [
        ("v0/keys/strict", json!({"callers": [CALLER], "verbs": ["wrap", "unwrap"], "justifications": reasons})),
        ("v0/keys/wrap-only", json!({"callers": [CALLER], "verbs": ["wrap"]})),
        ("v0/keys/foreign", json!({"callers": ["somebody@else.example"], "verbs": ["wrap", "unwrap"]})),
        ("v0/keys/paused", json!({"callers": [CALLER], "verbs": ["wrap", "unwrap"]})),
    ] {
        ekm.create_key(path, &rule);
    }
    ekm.change_here(&json!({"type": "key-disable", "path": "v0/keys/paused"}));
    ekm
}

#[test]
fn only_an_evaluated_policy_denies_and_no_flag_gets_around_it() {
    let mut table = Table::over(serve_more_keys());
    let token = table.ekm.ready.token.clone();
    let plaintext = base64(PLAINTEXT);
    let mut row = |class: u8, name: &str, target: &str, context: Value, expect: Expect| {
        let body = json!({"plaintext": plaintext, "additionalContext": context}).to_string();
        table.row(class, name, post_json(target, &token, body), expect);
    };
    let strict = "/v0/keys/strict:wrap";
    let reason = |reason: Value| json!({"accessReasonContext": {"reason": reason}});
    let missing = Refused(403, "the key's policy does not accept the justification MISSING");
    let unspecified = Refused(403, "the key's policy does not accept the justification REASON_UNSPECIFIED");
    let unknown = Refused(403, "the key's policy does not accept the justification UNKNOWN");
    let review = Refused(403, "the key's policy does not accept the justification GOOGLE_INITIATED_REVIEW");
    row(61, "no context", strict, json!(null), missing);
    row(61, "an empty context", strict, json!({}), missing);
    row(61, "no reason context", strict, json!({"relativeResourceName": "x"}), missing);
    row(61, "a reason context of null", strict, json!({"accessReasonContext": null}), missing);
    row(61, "an empty reason context", strict, json!({"accessReasonContext": {}}), unspecified);
    row(61, "a reason of null", strict, reason(json!(null)), unspecified);
    row(61, "reason 0", strict, reason(json!(0)), unspecified);
    row(61, "unspecified", strict, reason(json!("REASON_UNSPECIFIED")), unspecified);
    row(61, "an unknown name", strict, reason(json!("FOO")), unknown);
    row(61, "an unknown number", strict, reason(json!(9999)), unknown);
    row(61, "another reason", strict, reason(json!("GOOGLE_INITIATED_REVIEW")), review);
    row(61, "the right reason, without a resource name", strict, reason(json!("CUSTOMER_INITIATED_ACCESS")), Good);
    let mut long = reason(json!(5));
    long["relativeResourceName"] = json!("x".repeat(10 << 10));
    row(61, "the right reason, with a resource name of 10 KiB", strict, long, Good);
    row(61, "the demo key, which wants no reason", WRAP, json!(null), Good);
    row(61, "the demo key with an unknown reason", WRAP, reason(json!(9999)), Good);

    let probe = |reason: Value| json!({"isKeyHealthCheck": true, "accessReasonContext": {"reason": reason}});
    row(62, "a probe without a reason", strict, json!({"isKeyHealthCheck": true}), missing);
    row(62, "a probe with another reason", strict, probe(json!("GOOGLE_INITIATED_REVIEW")), review);
    row(62, "a probe with an unknown reason", strict, probe(json!("KEY_HEALTH_CHECK")), unknown);
    row(62, "a probe with the right reason", strict, probe(json!("CUSTOMER_INITIATED_ACCESS")), Good);

    let foreign = Refused(403, "the key's policy does not name this caller");
    row(61, "somebody else's key", "/v0/keys/foreign:wrap", json!({}), foreign);
    // An operator's pause is no denial: 403 would make Google disable the key version.
    row(43, "a paused key", "/v0/keys/paused:wrap", json!({}), Refused(400, "the key is disabled [key_disabled]"));
    let blob = table.ekm.post("/v0/keys/wrap-only:wrap", &json!({"plaintext": plaintext}).to_string()).json();
    let verb = Refused(403, "the key's policy does not allow this caller to unwrap");
    table.row(61, "a verb too many", post_json("/v0/keys/wrap-only:unwrap", &token, blob.to_string()), verb);
    // What cannot be understood is told before what is not allowed, so that a caller's bug is not taken for a denial.
    for target in [strict, "/v0/keys/foreign:wrap", "/v0/keys/wrap-only:unwrap", "/v0/keys/paused:wrap"] {
        table.row(61, target, post_json(target, &token, "{"), Refused(400, "body: ends too early"));
    }
    table.ekm.eventually("audited with its reason", || {
        table.ekm.audit().iter().any(|line| line["code"] == "denied" && line["justification"] == "UNKNOWN")
    });
    table.finish(&[]);
}

#[test]
fn a_blob_opens_under_its_own_key_and_version_only() {
    let mut table = Table::over(serve_more_keys());
    let token = table.ekm.ready.token.clone();
    let blob = unbase64(&table.ekm.wrap(PLAINTEXT.as_bytes(), b""));
    let mut row = |class: u8, name: &str, target: &str, blob: &[u8], expect: Expect| {
        let reason = json!({"accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"}});
        let body = json!({"wrappedBlob": base64(blob), "additionalContext": reason}).to_string();
        table.row(class, name, post_json(target, &token, body), expect);
    };
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = blob.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    row(63, "the blob as it is, the yardstick", UNWRAP, &blob, Good);
    row(63, "empty", UNWRAP, &[], FOREIGN);
    row(63, "its format only", UNWRAP, &blob[..1], FOREIGN);
    row(63, "its header only", UNWRAP, &blob[..21], FOREIGN);
    row(63, "header, nonce, tag, but no text", UNWRAP, &[&blob[..33], &blob[blob.len() - 16..]].concat(), FOREIGN);
    row(63, "one byte of the text left out", UNWRAP, &[&blob[..40], &blob[41..]].concat(), FOREIGN);
    row(63, "64 KiB of zeros", UNWRAP, &[0; 64 << 10], FOREIGN);
    row(65, "a blob of the demo key", "/v0/keys/strict:unwrap", &blob, FOREIGN);
    row(65, "a key that there is not", UNWRAP, &changed(1, &[0; 16]), FOREIGN);
    for version in [0u32, 2, 256, 1 << 24, u32::MAX] {
        row(66, &format!("version {version}"), UNWRAP, &changed(17, &version.to_be_bytes()), FOREIGN);
    }
    for format in [0, 2, 127, 128, 255] {
        row(67, &format!("format {format}"), UNWRAP, &changed(0, &[format]), FOREIGN);
    }
    row(68, "the blob in the blob", UNWRAP, &[&blob[..33], &blob].concat(), FOREIGN);
    row(71, "a nonce of zeros", UNWRAP, &changed(21, &[0; 12]), FOREIGN);
    row(71, "a nonce of ones", UNWRAP, &changed(21, &[0xff; 12]), FOREIGN);
    let other = json!({"plaintext": base64(PLAINTEXT), "additionalContext": {"accessReasonContext": {"reason": 5}}});
    let other = table.ekm.post("/v0/keys/strict:wrap", &other.to_string()).json();
    let other = unbase64(other["wrappedBlob"].as_str().unwrap());
    let mut row = |name: &str, blob: &[u8]| {
        let body = json!({"wrappedBlob": base64(blob)}).to_string();
        table.row(65, name, post_json(UNWRAP, &token, body), FOREIGN);
    };
    row("a blob of another key", &other);
    row("another key's text under this one's header", &[&blob[..21], &other[21..]].concat());
    row("this one's text under another key's header", &[&other[..21], &blob[21..]].concat());
    let unknown = post_json("/v0/keys/unknown:unwrap", &token, json!({"wrappedBlob": base64(&blob)}).to_string());
    table.row(39, "an unknown key", unknown, Refused(404, "no key"));
    table.finish(&[&base64(&blob), &base64(&other)]);
}

#[test]
fn many_tampered_blobs_in_a_row_change_nothing_for_others() {
    let ekm = Ekm::dev(&[]);
    let blob = unbase64(&ekm.wrap(PLAINTEXT.as_bytes(), b""));
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (ekm, blob) = (&ekm, &blob);
            scope.spawn(move || {
                let mut connection = ekm.connect();
                for number in 0..500u16 {
                    let mut changed = blob.clone();
                    let at = changed.len() - 1 - usize::from(number % 16);
                    changed[at] ^= thread + 1;
                    let body = json!({"wrappedBlob": base64(&changed)}).to_string();
                    let answer = connection.post(UNWRAP, &ekm.ready.token, &body);
                    assert_eq!(answer.status, 400, "class 72: {answer:?}");
                }
            });
        }
    });
    assert_eq!(ekm.unwrap(&base64(&blob), b"").json(), json!({"plaintext": base64(PLAINTEXT)}));
    assert_eq!(ekm.ops("/readyz").status, 200);
    assert_eq!(ekm.metric("ekm_requests_total{code=\"unwrap_failed\",verb=\"unwrap\"}"), 2000.0);
}
