//! Kryoptic: the soft token that is unlike SoftHSM. Several sessions, errors that say what is wrong, PKCS#11 3.2.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use crate::process::{Directory, ekm_binary};

const PIN: &str = "87654321";

/// Its module, which `make test` builds.
pub fn kryoptic() -> PathBuf {
    let module = ekm_binary().with_file_name("libekm_kryoptic_module.so");
    assert!(module.exists(), "{} is missing: run 'make test'", module.display());
    module
}

/// A directory that `ekm dev` has set up with a new kryoptic token, as [`crate::set_up`] does with other custodies.
pub fn set_up_kryoptic() -> Directory {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| directory.path().join(name);
    let (settings, pin_file) = (file("kryoptic.conf"), file("pin"));
    let slot = format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", file("token.sql").display());
    fs::write(&settings, slot).expect("writable");
    fs::write(&pin_file, PIN).expect("writable");
    fs::set_permissions(&pin_file, fs::Permissions::from_mode(0o600)).expect("ours");

    let run = |command: &mut Command| {
        let output = command.env("KRYOPTIC_CONF", &settings).output().expect("softhsm2-util and ekm start");
        assert!(output.status.success(), "{output:?}");
    };
    let util = ["--init-token", "--free", "--label", "kryoptic", "--so-pin", PIN, "--pin", PIN, "--module"];
    run(Command::new("softhsm2-util").args(util).arg(kryoptic()));
    let dev = ["dev", "--check", "--deadline-ms", "20000", "--token-label", "kryoptic"];
    let mut dev_on_it = Command::new(ekm_binary());
    dev_on_it.args(dev).arg("--data").arg(directory.path()).arg("--pkcs11").arg(kryoptic());
    run(dev_on_it.arg("--pin-file").arg(&pin_file));

    let config = file("ekm.toml");
    let text = fs::read_to_string(&config).expect("ekm dev has made it");
    let environment = format!("\n[shard.replica.environment]\nKRYOPTIC_CONF = \"{}\"\n", settings.display());
    fs::write(config, text + &environment).expect("writable");
    Arc::new(directory)
}
