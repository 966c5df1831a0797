//! Every command in the documentation is run: each `sh` block of the README and of docs/, in order, in a shell of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ekm_tests::{Ekm, ekm_binary, run_ekm};

/// The blocks of one language, with the line that each begins on.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() == format!("```{language}") {
            let block: Vec<&'a str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
            blocks.push((number + 2, block.join("\n")));
        }
    }
    blocks
}

#[test]
fn every_command_in_the_documentation_works() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let ekm = Ekm::dev(&[]);
    let data = ekm.directory.path();
    // The reader's home, where `make run` keeps its data, and the repository that he stands in.
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join(".local/share")).unwrap();
    std::os::unix::fs::symlink(data, home.path().join(".local/share/ekm-dev")).unwrap();
    std::os::unix::fs::symlink(repository.join("deploy"), data.join("deploy")).unwrap();
    let policies = fs::read_to_string(repository.join("docs/policies.md")).unwrap();
    fs::write(data.join("policy.json"), &blocks(&policies, "json")[0].1).unwrap();

    let binary = ekm_binary();
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let (port, ops_port) = (ekm.address().port().to_string(), ekm.ready.ops_url.rsplit(':').next().unwrap().to_owned());
    let mut count = 0;
    for file in [
        "README.md",
        "docs/operations.md",
        "docs/policies.md",
        "docs/catalog.md",
        "docs/keys-as-code.md",
        "docs/signing.md",
        "docs/simulator.md",
        "docs/conformance.md",
        "docs/topology.md",
    ] {
        for (line, block) in blocks(&fs::read_to_string(repository.join(file)).unwrap(), "sh") {
            let script = block.replace("8443", &port).replace("9443", &ops_port);
            let script = script.replace("target/debug/ekm", &binary.display().to_string());
            let mut shell = Command::new("bash");
            shell
                .args(["-euo", "pipefail", "-c", &script])
                .current_dir(data)
                .env("HOME", home.path())
                .env("EKM_DEADLINE_MS", "20000")
                .env("PATH", &path);
            let output = shell.env_remove("XDG_DATA_HOME").env_remove("EKM_ADMIN").output().unwrap();
            let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{file}:{line}\n{script}\n{stdout}\n{stderr}");
            if script.contains(":wrap") {
                assert!(stdout.starts_with("{\"wrappedBlob\":\""), "{file}:{line}: {stdout}");
            }
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} blocks were found");
}

/// With two replicas, which have the names in the text.
#[test]
fn every_command_of_the_hsm_guide_works() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let ekm = crate::hsm_drain::serve(&crate::hsm_drain::two_replicas(), |config| config);
    let binary = ekm_binary();
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let blocks = blocks(&fs::read_to_string(repository.join("docs/hsm.md")).unwrap(), "sh");
    assert!(blocks.len() >= 3, "only {} blocks were found", blocks.len());
    for (line, script) in blocks {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &script]).env("PATH", &path);
        shell.env("EKM_ADMIN", format!("unix:{}", ekm.directory.path().join("admin.sock").display()));
        let output = shell.env_remove("EKM_ADMIN_TOKEN").output().unwrap();
        assert!(output.status.success(), "docs/hsm.md:{line}\n{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_documented_postgresql_configuration_fits_into_the_sample() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let sample = fs::read_to_string(repository.join("deploy/config/small.toml")).unwrap();
    let (before, rest) = sample.split_once("[catalog]\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    let document = fs::read_to_string(repository.join("docs/catalog.md")).unwrap();
    let catalog = blocks(&document, "toml").remove(0).1;
    assert!(catalog.starts_with("[catalog]\n"), "{catalog}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ekm.toml");
    fs::write(&file, format!("{before}{catalog}\n\n{after}")).unwrap();
    let output = run_ekm(&["check-config", "--print-effective", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("db3.example.com:5432"));
}

#[test]
fn the_commands_that_ekm_dev_prints_can_be_pasted() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Command::new(ekm_binary())
        .args(["dev", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--deadline-ms", "20000", "--data"])
        .arg(directory.path().join("a directory with spaces"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut banner = String::new();
    let mut lines = std::io::BufReader::new(dev.stdout.take().unwrap());
    while !banner.contains("Ctrl-C") {
        assert!(std::io::BufRead::read_line(&mut lines, &mut banner).unwrap() > 0, "it ended after:\n{banner}");
    }
    assert!(banner.contains("Custody  software: keys live in this process"), "{banner}");
    let commands: Vec<_> = banner.lines().filter(|line| line.contains("curl ")).collect();
    assert_eq!(commands.len(), 2, "{banner}");
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", &commands.join("\n")]).output().unwrap();
    dev.kill().unwrap();
    dev.wait().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.trim_end().ends_with("{\"plaintext\":\"bXkgZGF0YSBrZXk=\"}"), "{answer}");
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for file in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/operations.md",
        "docs/hsm.md",
        "docs/errors.md",
        "docs/bad-input.md",
        "docs/policies.md",
        "docs/catalog.md",
        "docs/keys-as-code.md",
        "docs/signing.md",
        "docs/simulator.md",
        "docs/conformance.md",
        "docs/topology.md",
        "deploy/nginx/README.md",
        "loadtest/README.md",
        "loadtest/RESULTS.md",
    ] {
        let path = repository.join(file);
        let text = fs::read_to_string(&path).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if target.is_empty() { path.clone() } else { path.parent().unwrap().join(target) };
            assert!(target.exists(), "{file} links to {link}");
            let heading =
                |line: &str| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-").replace('`', "");
            let text = if anchor.is_empty() { String::new() } else { fs::read_to_string(&target).unwrap() };
            let found = text.lines().any(|line| line.starts_with('#') && heading(line) == anchor);
            assert!(anchor.is_empty() || found, "{file} links to {link}, and there is no such heading");
        }
    }
}

/// Every Rust file below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|entry| if entry.is_dir() { sources(&entry) } else { vec![entry] });
    files.filter(|file| file.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn the_error_reference_explains_every_code_and_no_others() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut codes = std::collections::BTreeSet::new();
    for file in [
        "ekm-core/src/error.rs",
        "ekm-core/src/hsm/token_error.rs",
        "storage/src/lib.rs",
        "ekm-server/src/start_error.rs",
        "ekm-server/src/catalog/open.rs",
        "ekm-server/src/admin/error.rs",
        "ekm-server/src/cli/error.rs",
    ] {
        let source = fs::read_to_string(repository.join(file)).unwrap();
        let functions: Vec<_> = source.split("fn code(").skip(1).collect();
        assert!(!functions.is_empty(), "{file} has no errors with codes");
        for function in functions {
            let (body, _) = function.split_once("\n    }").unwrap();
            codes.extend(body.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    // What is only ever logged: `tracing::error!(code = "clock", …)`.
    for directory in ["ekm-core/src", "ekm-server/src", "storage/src"] {
        for source in sources(&repository.join(directory)) {
            let source = fs::read_to_string(source).unwrap();
            let logged = source.split("code = \"").skip(1).filter_map(|rest| rest.split('"').next());
            let word = |code: &&str| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            codes.extend(logged.filter(word).map(str::to_owned));
            // What is told of a worker process, which has no error of its own to tell.
            let told = source.split("code: \"").skip(1).filter_map(|rest| rest.split('"').next());
            codes.extend(told.filter(|code| code.starts_with("hsm_") && word(code)).map(str::to_owned));
        }
    }
    assert!(codes.contains("clock"), "{codes:?}");
    let reference = fs::read_to_string(repository.join("docs/errors.md")).unwrap();
    let headings = reference.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    assert!(codes.len() > 40, "{codes:?}");
    assert_eq!(headings.map(str::to_owned).collect::<std::collections::BTreeSet<_>>(), codes);
}
