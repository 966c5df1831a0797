//! Two HSMs with the same keys, one of them with faults. What it costs under load is measured by `make drill-hsm`.

use std::fs;
use std::path::Path;

use ekm_tests::{Effect, Fault, FaultyModule, SOFTHSM};

use crate::hsm_drain::{serve, two_replicas, wait_until};

#[test]
fn an_hsm_that_lies_fails_its_self_test_and_is_in_use_again_when_it_does_not_lie_any_more() {
    let directory = two_replicas();
    let module = FaultyModule::new(&directory.path().join("faulty"), Path::new(SOFTHSM));
    let file = directory.path().join("ekm.toml");
    let config = fs::read_to_string(&file).unwrap();
    let (before, second) = config.split_once("name = \"hsm-b\"").unwrap();
    let second = second.replacen(SOFTHSM, module.path().to_str().unwrap(), 1);
    fs::write(&file, format!("{before}name = \"hsm-b\"{second}")).unwrap();
    let ekm = serve(&directory, |config| config);

    let lies = module.inject(Fault::new(Effect::FlipBit));
    ekm.eventually("opened anew", || ekm.state().contains("[hsm_self_test]"));
    assert!(ekm.state().contains("[!] HSM replica hsm-b: joining for "), "{}", ekm.state());
    let blob = ekm.wrap(b"x", b"");
    module.lift(lies);
    wait_until(&ekm, "hsm-b", "serving");
    assert_eq!(ekm.unwrap(&blob, b"").status, 200);
}
