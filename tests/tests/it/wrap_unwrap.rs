//! The main job, end to end: keys in this process, and on two kinds of tokens.

use std::sync::Arc;

use ekm_tests::{Directory, Ekm, base64, set_up, set_up_kryoptic, unbase64};
use serde_json::json;

/// Where keys are kept.
const CUSTODIES: [(SetUp, &str); 3] =
    [(|| set_up(&[]), "software"), (|| set_up(&["--softhsm"]), "hsm"), (set_up_kryoptic, "hsm")];

type SetUp = fn() -> Directory;

#[test]
fn what_is_wrapped_is_unwrapped() {
    for (set_up, custody) in CUSTODIES {
        let ekm = Ekm::dev_in(&set_up(), &[]);
        assert_eq!(ekm.ready.custody, custody);
        for length in [0, 1, 32, 1000, 65 * 1024] {
            let plaintext: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let blob = ekm.wrap(&plaintext, b"aad");
            let answer = ekm.unwrap(&blob, b"aad");
            assert_eq!(
                (answer.status, answer.json()),
                (200, json!({"plaintext": base64(&plaintext)})),
                "{length} bytes"
            );
        }
    }
}

#[test]
fn the_same_plaintext_never_gives_the_same_blob() {
    for (set_up, _) in CUSTODIES {
        let ekm = Ekm::dev_in(&set_up(), &[]);
        let blobs: std::collections::HashSet<_> = (0..20).map(|_| ekm.wrap(b"data key", b"")).collect();
        assert_eq!(blobs.len(), 20);
    }
}

#[test]
fn every_changed_bit_of_a_blob_gives_one_and_the_same_400() {
    for (set_up, custody) in CUSTODIES {
        let ekm = Ekm::dev_in(&set_up(), &[]);
        let blob = unbase64(&ekm.wrap(&[7; 83], b"aad"));
        assert_eq!((blob[0], blob.len()), if custody == "software" { (1, 132) } else { (3, 148) });
        let mut connection = ekm.connect();
        let mut refuse = |blob: &[u8], aad: &str| {
            let body = json!({"wrappedBlob": base64(blob), "additionalAuthenticatedData": base64(aad)});
            let answer = connection.post("/v0/keys/demo:unwrap", &ekm.ready.token, &body.to_string());
            (answer.status, answer.text())
        };
        let first = refuse(&[], "aad");
        assert_eq!(first.0, 400);
        for bit in 0..blob.len() * 8 {
            let mut changed = blob.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(refuse(&changed, "aad"), first, "bit {bit}");
        }
        for length in 0..blob.len() {
            assert_eq!(refuse(&blob[..length], "aad"), first, "cut at {length}");
        }
        assert_eq!(refuse(&[&blob[..], &[0]].concat(), "aad"), first);
        assert_eq!(refuse(&[&blob[..], &blob[..]].concat(), "aad"), first);
        for aad in ["", "aa", "aadx", "aad\0", "AAD"] {
            assert_eq!(refuse(&blob, aad), first, "AAD {aad:?}");
        }
        // All that rubbish broke nothing.
        assert_eq!(ekm.unwrap(&base64(&blob), b"aad").status, 200);
        assert_eq!(ekm.ops("/healthz").status, 200);
        assert_eq!(ekm.metric("ekm_requests_total{code=\"hsm_fault\",verb=\"unwrap\"}"), 0.0);
    }
}

#[test]
fn a_second_start_goes_on_with_the_same_keys() {
    for (set_up, _) in CUSTODIES {
        let first = Ekm::dev_in(&set_up(), &[]);
        let blob = first.wrap(b"from before", b"");
        let directory = Arc::clone(&first.directory);
        drop(first); // kill -9
        let second = Ekm::dev_in(&directory, &[]);
        assert_eq!(second.unwrap(&blob, b"").json(), json!({"plaintext": base64("from before")}));
    }
}
