//! Two HSMs with the same keys, one of them with faults. What it costs under load is measured by `make drill-hsm`.

use std::fs;
use std::path::Path;

use ekm_tests::{Directory, Effect, Ekm, Fault, FaultyModule, SOFTHSM};

use crate::hsm_drain::{serve, two_replicas, wait_until};

/// Puts a module that has faults on request before hsm-b.
pub(crate) fn before_hsm_b(directory: &Directory) -> FaultyModule {
    let module = FaultyModule::new(&directory.path().join("faulty"), Path::new(SOFTHSM));
    let file = directory.path().join("ekm.toml");
    let config = fs::read_to_string(&file).unwrap();
    let (before, second) = config.split_once("name = \"hsm-b\"").unwrap();
    let second = second.replacen(SOFTHSM, module.path().to_str().unwrap(), 1);
    fs::write(&file, format!("{before}name = \"hsm-b\"{second}")).unwrap();
    module
}

/// The faults are those of hsm-b.
fn one_with_faults() -> (Ekm, FaultyModule) {
    let directory = two_replicas();
    let module = before_hsm_b(&directory);
    (serve(&directory, |config| config), module)
}

#[test]
fn an_hsm_that_lies_fails_its_self_test_and_is_in_use_again_when_it_does_not_lie_any_more() {
    let (ekm, module) = one_with_faults();
    let lies = module.inject(Fault::new(Effect::FlipBit));
    ekm.eventually("opened anew", || ekm.state().contains("[hsm_self_test]"));
    assert!(ekm.state().contains("[!] HSM replica hsm-b: joining for "), "{}", ekm.state());
    let blob = ekm.wrap(b"x", b"");
    module.lift(lies);
    wait_until(&ekm, "hsm-b", "serving");
    assert_eq!(ekm.unwrap(&blob, b"").status, 200);
}

#[test]
fn a_probe_whose_session_was_lost_gets_itself_another_and_does_not_blame_the_hsm() {
    let (ekm, module) = one_with_faults();
    let probe_keys = module.calls("C_GenerateKey");
    module.inject(Fault::new(Effect::LoseSessions));
    ekm.eventually("probed on another session", || module.calls("C_GenerateKey") > probe_keys);
    assert!(module.failures("C_GetSessionInfo") > 0, "it was lost");
    for count in ["ejections", "losses"] {
        assert_eq!(
            ekm.metric(&format!("ekm_hsm_{count}_total{{replica=\"hsm-b\",shard=\"main\"}}")),
            0.0,
            "{}",
            ekm.log()
        );
    }
}
