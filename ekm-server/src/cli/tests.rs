use clap::CommandFactory;

use super::*;

fn all(command: &clap::Command) -> Vec<clap::Command> {
    let below = command.get_subcommands().flat_map(all);
    std::iter::once(command.clone()).chain(below).collect()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_and_every_option_has_help() {
    let mut command = Cli::command();
    command.build();
    let commands = all(&command);
    assert!(commands.len() > 40, "{}", commands.len());
    for command in commands.iter().filter(|command| command.get_name() != "help") {
        assert!(command.get_about().is_some(), "{} has no help", command.get_name());
        for argument in command.get_arguments() {
            let helped = argument.get_help().is_some();
            assert!(helped, "{} has an option without help: {}", command.get_name(), argument.get_id());
        }
    }
}

/// The examples are what people paste.
#[test]
fn every_example_in_the_help_is_a_good_command_line() {
    let mut count = 0;
    for command in all(&Cli::command()) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| line.starts_with("ekm ")) {
            let line = line
                .split("  #")
                .next()
                .unwrap()
                .split('>')
                .next()
                .unwrap()
                .replace("ID", &uuid::Uuid::nil().to_string());
            let parsed = Cli::try_parse_from(words(&line));
            assert!(parsed.is_ok(), "{line}\n{}", parsed.err().unwrap());
            count += 1;
        }
    }
    assert!(count >= 25, "{count}");
}

/// Splits at blanks outside quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for c in line.trim().chars() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ', None) => words.push(String::new()),
            (c, _) => words.last_mut().unwrap().push(c),
        }
    }
    words
}

#[test]
fn what_does_not_go_together_is_a_wrong_command_line() {
    for line in [
        "ekm key create v0/keys/a --space s",
        "ekm key create v0/keys/a --space s --policy p --caller a@example.com",
        "ekm key create v0/keys/a --policy p",
        "ekm key create v0/keys/a --space s --policy p --justifications any",
        "ekm key create v0/keys/a --space s --caller a@example.com --justifications none",
        "ekm key create v0//a --space s --policy p",
        "ekm key set-rotation v0/keys/a",
        "ekm key set-rotation v0/keys/a --off --every-days 9",
        "ekm key set-rotation v0/keys/a --every-days 0",
        "ekm key update v0/keys/a",
        "ekm key update v0/keys/a --label x",
        "ekm key list --state gone",
        "ekm key list --client-key key.pem",
        "ekm policy explain --caller a@example.com --verb wrap",
        "ekm policy explain --file f --policy p --caller a@example.com --verb wrap",
        "ekm policy explain --file f --caller a@example.com --verb sign",
        "ekm catalog settings --destroy-grace-days 6",
        "ekm catalog settings --denial-delay-minutes 1441",
        "ekm catalog export --output-file f",
        "ekm apply",
        "ekm apply --export -f keys.yaml",
        "ekm approval approve nonsense",
    ] {
        let parsed = Cli::try_parse_from(words(line));
        assert_eq!(parsed.err().map(|error| error.exit_code()), Some(2), "{line}");
    }
}

#[test]
fn a_token_is_never_an_argument() {
    let mut command = Cli::command();
    command.build();
    for command in all(&command) {
        for argument in command.get_arguments().filter_map(clap::Arg::get_long).filter(|long| long.contains("token")) {
            assert!(argument.ends_with("token-file") || argument == "token-label", "--{argument}");
        }
    }
}

#[test]
fn the_connection_can_be_named_before_and_after_the_verb() {
    for line in ["ekm key --server unix:/a list", "ekm key list --server unix:/a", "ekm key list --output json"] {
        assert!(Cli::try_parse_from(words(line)).is_ok(), "{line}");
    }
}

#[test]
fn completion_and_man_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let shell: clap_complete::Shell = shell.parse().unwrap();
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "ekm", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("undelete") && script.contains("destroy-grace-days"), "{shell}");
    }
    let directory = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(Cli::command(), directory.path()).unwrap();
    let page = std::fs::read_to_string(directory.path().join("ekm-key-create.1")).unwrap();
    assert!(page.contains("rotation"), "{page}");
}
