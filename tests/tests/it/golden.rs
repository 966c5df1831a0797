//! Blobs of the past. What is here must open for ever: add new files, never change or remove one.

use std::fs;
use std::path::Path;

use ekm_tests::{Ekm, base64, set_up};
use serde_json::{Value, json};

#[test]
fn blobs_catalog_and_key_file_of_the_first_version_still_work() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/software-v1");
    let directory = set_up(&[]);
    for leftover in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(directory.path().join(leftover));
    }
    for file in ["catalog.db", "software.key"] {
        fs::copy(golden.join(file), directory.path().join(file)).unwrap();
    }
    fs::set_permissions(directory.path().join("software.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let ekm = Ekm::dev_in(&directory, &[]);
    let blobs: Value = serde_json::from_str(&fs::read_to_string(golden.join("blobs.json")).unwrap()).unwrap();
    let blobs = blobs.as_array().unwrap();
    assert!(blobs.len() >= 4);
    for blob in blobs {
        let text = |field: &str| blob[field].as_str().unwrap();
        let answer = ekm.unwrap(text("blob"), text("aad").as_bytes());
        assert_eq!((answer.status, answer.json()), (200, json!({"plaintext": base64(text("plaintext"))})), "{blob}");
        assert_eq!(ekm.unwrap(text("blob"), b"another AAD").status, 400);
    }
}
