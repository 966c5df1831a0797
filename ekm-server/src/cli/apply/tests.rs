//! The plan against a model of the catalog: what is planned, carried out, leaves nothing to plan.

use std::collections::BTreeMap;

use ekm_core::KeyPath;
use ekm_core::catalog::{Custody, KeyState, SpaceState};
use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::file::{KeysFile, WantedChoice, WantedKey, WantedPolicy, WantedSpace, WantedState};
use super::*;
use crate::admin::api::{Command, PolicyChoice};
use crate::cli::client::tests::Server;
use clap::Parser;

fn path(text: &str) -> KeyPath {
    KeyPath::parse(text).unwrap()
}

fn rules(caller: &str) -> Value {
    json!({"rules": [{"callers": [caller], "verbs": ["wrap", "unwrap"]}]})
}

/// Does to the model what the server does to the catalog.
fn carry_out_on(there: &mut There, command: &Command, revision: u64) {
    let key = |there: &mut There, path: &KeyPath| there.keys.iter().position(|key| key.paths.contains(path)).unwrap();
    // Every policy of a key's own is a new one; the old one stays.
    let set_policy = |there: &mut There, path: &KeyPath, choice: &PolicyChoice| match choice {
        PolicyChoice::Named(name) => {
            assert!(there.policy(name).is_some(), "policies come before keys");
            name.clone()
        }
        PolicyChoice::Own(policy) => {
            let mut names = std::iter::once(path.to_string()).chain((2..).map(|number| format!("{path}.{number}")));
            let name = names.find(|name| there.policy(name).is_none()).unwrap();
            there.policies.push(PolicyView {
                name: name.clone(),
                id: Uuid::new_v4(),
                policy: policy.clone(),
                description: String::new(),
                justifications: Vec::new(),
                not_final: Vec::new(),
                warnings: Vec::new(),
                revision,
            });
            name
        }
    };
    match command {
        Command::SpaceCreate { path, shard, labels, description } => there.spaces.push(SpaceView {
            path: path.clone(),
            id: Uuid::new_v4(),
            state: SpaceState::Enabled,
            shard: shard.clone().unwrap_or_default(),
            creation: None,
            labels: labels.clone(),
            description: description.clone(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            revision,
        }),
        Command::SpaceUpdate { path, .. } | Command::SpaceBlock { path } | Command::SpaceUnblock { path } => {
            let space = there.spaces.iter_mut().find(|space| space.path == *path).unwrap();
            space.revision = revision;
            match command {
                Command::SpaceUpdate { labels, description, .. } => {
                    (space.labels, space.description) = (labels.clone(), description.clone());
                }
                Command::SpaceBlock { .. } => space.state = SpaceState::Blocked,
                _ => space.state = SpaceState::Enabled,
            }
        }
        Command::PolicyCreate { name, policy, description } | Command::PolicySet { name, policy, description, .. } => {
            let is_new = there.policy(name).is_none();
            assert_eq!(is_new, matches!(command, Command::PolicyCreate { .. }));
            there.policies.retain(|there| there.name != *name);
            there.policies.push(PolicyView {
                name: name.clone(),
                id: Uuid::new_v4(),
                policy: policy.clone(),
                description: description.clone(),
                justifications: Vec::new(),
                not_final: Vec::new(),
                warnings: Vec::new(),
                revision,
            });
        }
        Command::KeyCreate { path, space, policy, algorithm, custody, rotation_days, labels, description } => {
            assert!(there.spaces.iter().any(|there| there.path == *space), "spaces come before keys");
            let policy = set_policy(there, path, policy);
            there.keys.push(KeyView {
                created_for: None,
                destroyed_by_caller: false,
                paths: vec![path.clone()],
                id: Uuid::new_v4(),
                space: space.to_string(),
                policy,
                policy_not_final: Vec::new(),
                algorithm: algorithm.unwrap_or_default(),
                state: KeyState::Enabled,
                destroy_at: None,
                custody: custody.unwrap_or(Custody::Software),
                primary_version: 1,
                versions: Vec::new(),
                rotation_days: *rotation_days,
                next_rotation_at: None,
                labels: labels.clone(),
                description: description.clone(),
                created_at: OffsetDateTime::UNIX_EPOCH,
                revision,
            });
        }
        Command::KeyUpdate { path, .. }
        | Command::KeyAddPath { path, .. }
        | Command::KeySetPolicy { path, .. }
        | Command::KeyEnable { path, .. }
        | Command::KeyDisable { path, .. }
        | Command::KeySetRotation { path, .. } => {
            let index = key(there, path);
            let first = there.keys[index].paths[0].clone();
            let policy = match command {
                Command::KeySetPolicy { policy, .. } => set_policy(there, &first, policy),
                _ => there.keys[index].policy.clone(),
            };
            let key = &mut there.keys[index];
            (key.revision, key.policy) = (revision, policy);
            match command {
                Command::KeyUpdate { labels, description, .. } => {
                    (key.labels, key.description) = (labels.clone(), description.clone());
                }
                Command::KeyAddPath { new, .. } => key.paths.push(new.clone()),
                Command::KeyEnable { .. } => key.state = KeyState::Enabled,
                Command::KeyDisable { .. } => key.state = KeyState::Disabled,
                Command::KeySetRotation { every_days, .. } => key.rotation_days = *every_days,
                _ => {}
            }
        }
        other => panic!("'ekm apply' never does this: {other:?}"),
    }
}

fn applied(file: &KeysFile, there: &There) -> Result<There, Vec<String>> {
    let mut after = there.clone();
    for (index, step) in plan(file, there)?.steps.iter().enumerate() {
        carry_out_on(&mut after, &step.command, 100 + index as u64);
    }
    Ok(after)
}

fn titles(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(title).collect()
}

fn sample() -> KeysFile {
    KeysFile::parse(include_str!("../../../../deploy/config/keys.yaml")).unwrap()
}

#[test]
fn an_empty_catalog_gets_spaces_then_policies_then_keys_and_then_there_is_nothing_to_do() {
    let first = plan(&sample(), &There::default()).unwrap();
    assert_eq!(
        titles(&first),
        [
            "space v0/cryptospaces/payments: space-create",
            "policy payments: policy-create",
            "key v0/keys/orders: key-create",
            "key v0/keys/archive: key-create",
            "key v0/keys/archive: key-add-path",
        ]
    );
    assert!(first.steps.iter().all(|step| step.seen.is_none()));
    let there = applied(&sample(), &There::default()).unwrap();
    let second = plan(&sample(), &there).unwrap();
    assert_eq!((second.steps.len(), second.warnings.len()), (0, 0), "{second:?}");
    assert_eq!(describe(&second), "nothing to do");
}

#[test]
fn a_change_is_a_diff_and_names_the_revision_that_was_seen() {
    let there = applied(&sample(), &There::default()).unwrap();
    let mut file = sample();
    file.policies[0].policy = rules("project:210987654321");
    file.keys[0].rotation_days = Some(0);
    file.keys[0].state = Some(WantedState::Disabled);
    file.keys[0].labels = Some(BTreeMap::new());
    let plan = plan(&file, &there).unwrap();
    assert_eq!(
        describe(&plan),
        "policy payments: policy-set\n  policy.rules.1.callers.1: project:123456789012 → project:210987654321\n\
         key v0/keys/orders: key-disable\n  state: enabled → disabled\n\
         key v0/keys/orders: key-update\n  labels.data: orders → none\n\
         key v0/keys/orders: key-set-rotation\n  rotation_days: 90 → none\n\
         4 changes"
    );
    let order = there.keys.iter().find(|key| key.paths[0] == path("v0/keys/orders")).unwrap();
    assert!(plan.steps[1..].iter().all(|step| step.seen == Some(order.revision)));
}

#[test]
fn another_way_to_write_the_same_policy_is_no_change() {
    let there = applied(&sample(), &There::default()).unwrap();
    let mut file = sample();
    file.policies[0].policy["rules"][0]["justifications"] = json!({"missing": true, "unknown": true});
    assert_eq!(titles(&plan(&file, &there).unwrap()), <[String; 0]>::default());
}

#[test]
fn what_the_file_leaves_out_stays_and_is_told() {
    let there = applied(&sample(), &There::default()).unwrap();
    let nothing = plan(&KeysFile::default(), &there).unwrap();
    assert!(nothing.steps.is_empty());
    let left_out = "is in the catalog and not in the file; it stays as it is";
    let expected = ["space v0/cryptospaces/payments", "policy payments", "key v0/keys/orders", "key v0/keys/archive"];
    assert_eq!(nothing.warnings, expected.map(|object| format!("{object} {left_out}")));

    let mut file = sample();
    file.keys[1].paths.pop();
    (file.keys[0].labels, file.keys[0].rotation_days, file.spaces[0].description) = (None, None, None);
    let plan = plan(&file, &there).unwrap();
    assert!(plan.steps.is_empty(), "{plan:?}");
    assert!(plan.warnings[0].contains("also has the path v0/vpc/archive"), "{plan:?}");
}

#[test]
fn to_let_something_go_on_is_a_warning() {
    let mut there = applied(&sample(), &There::default()).unwrap();
    (there.keys[0].state, there.spaces[0].state) = (KeyState::Disabled, SpaceState::Blocked);
    let mut file = sample();
    file.spaces[0].state = Some(SpaceState::Enabled);
    let plan = plan(&file, &there).unwrap();
    assert_eq!(titles(&plan), ["space v0/cryptospaces/payments: space-unblock", "key v0/keys/orders: key-enable"]);
    assert_eq!(plan.warnings.len(), 2, "{plan:?}");
}

#[test]
fn what_no_command_can_do_is_refused_before_anything_is_done() {
    let there = applied(&sample(), &There::default()).unwrap();
    let refused = |edit: &dyn Fn(&mut KeysFile, &mut There), expected: &str| {
        let (mut file, mut there) = (sample(), there.clone());
        edit(&mut file, &mut there);
        let problems = plan(&file, &there).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
    };
    refused(&|file, _| file.keys[0].custody = Some(Custody::Hsm), "cannot be changed to hsm");
    refused(&|file, _| file.keys[0].space = path("v0/cryptospaces/none"), "neither in the file nor in the catalog");
    refused(&|file, _| file.keys[0].policy = WantedChoice::Named("none".into()), "the policy none is neither");
    refused(&|_, there| there.keys[0].state = KeyState::DestroyScheduled, "is destroy-scheduled in the catalog");
    refused(&|_, there| there.keys[0].state = KeyState::Destroyed, "is destroyed in the catalog");
    let both = |file: &mut KeysFile, _: &mut There| {
        let other = file.keys.pop().unwrap();
        file.keys[0].paths.extend(other.paths);
    };
    refused(&both, "belong to several keys in the catalog, v0/keys/orders and v0/keys/archive");
    let moved = |file: &mut KeysFile, _: &mut There| {
        file.spaces.push(WantedSpace {
            path: path("v0/other"),
            state: None,
            shard: None,
            labels: None,
            description: None,
        });
        file.keys[0].space = path("v0/other");
    };
    refused(&moved, "a key cannot be moved to another");
}

#[test]
fn what_was_exported_has_nothing_to_do_and_makes_the_same_again() {
    let there = applied(&sample(), &There::default()).unwrap();
    let exported = KeysFile::parse(&KeysFile::of(&there).to_yaml().unwrap()).unwrap();
    let again = plan(&exported, &there).unwrap();
    assert!(again.steps.is_empty() && again.warnings.is_empty(), "{again:?}");
    let copy = applied(&exported, &There::default()).unwrap();
    assert_eq!(KeysFile::of(&copy), KeysFile::of(&there));
}

#[test]
fn a_plan_as_json_has_the_commands_of_the_api() {
    let plan = plan(&sample(), &There::default()).unwrap();
    let report = Report { outcome: "would-change", done: &[], not_done: &plan.steps, warnings: &plan.warnings };
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["not_done"][0]["command"]["type"], "space-create");
    assert_eq!(json["outcome"], "would-change");
}

/// Carries a plan out against a server that gives these answers; what was sent, and how it ended.
async fn sent(plan: &Plan, answers: Vec<(u16, Value)>) -> (Vec<Value>, Result<Exit, String>) {
    let server = Server::start(answers);
    let args = Probe::parse_from(["apply", "-f", "keys.yaml", "--yes", "--no-wait"]).args;
    let session = Session { client: server.client(), output: Output::Json };
    let ended = carry_out(&session, plan, &args).await.map_err(|error| error.heading());
    (server.asked().iter().map(|(_, body)| serde_json::from_str(body).unwrap()).collect(), ended)
}

#[derive(clap::Parser)]
struct Probe {
    #[command(flatten)]
    args: ApplyArgs,
}

fn done(outcome: &str, revision: u64) -> (u16, Value) {
    (200, json!({"outcome": outcome, "revision": revision, "target": "", "changes": [], "warnings": []}))
}

#[tokio::test]
async fn every_change_names_the_revision_that_the_one_before_it_has_left() {
    let there = applied(&sample(), &There::default()).unwrap();
    let mut file = sample();
    file.keys[0].rotation_days = Some(0);
    file.keys[0].state = Some(WantedState::Disabled);
    file.keys[0].labels = Some(BTreeMap::new());
    file.keys[1].description = Some("other".into());
    let plan = plan(&file, &there).unwrap();
    let seen = |name: &str| there.keys.iter().find(|key| key.paths[0] == path(name)).unwrap().revision;
    let answers = vec![done("done", 201), done("unchanged", 207), done("done", 208), done("done", 209)];
    let (sent, ended) = sent(&plan, answers).await;
    assert_eq!(ended, Ok(Exit::Done));
    let revisions: Vec<_> = sent.iter().map(|request| request["if_revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, [seen("v0/keys/orders"), 201, 201, seen("v0/keys/archive")]);
}

#[tokio::test]
async fn nothing_is_sent_after_a_failure_or_after_what_waits_for_a_second_person() {
    let plan = plan(&sample(), &There::default()).unwrap();
    let refused = (409, json!({"code": "admin_taken", "message": "taken"}));
    let (requests, ended) = sent(&plan, vec![done("done", 1), refused]).await;
    assert_eq!((requests.len(), ended), (2, Err("admin_taken".into())));
    let (requests, ended) = sent(&plan, vec![done("done", 1), done("needs-approval", 2)]).await;
    assert_eq!((requests.len(), ended), (2, Ok(Exit::NeedsApproval)));
}

fn labels() -> impl Strategy<Value = Option<BTreeMap<String, String>>> {
    proptest::option::of(proptest::collection::btree_map("[ab]", "[xy]", 0..3))
}

fn files() -> impl Strategy<Value = KeysFile> {
    let description = || proptest::option::of("[ab]?");
    let space = (
        proptest::option::of(prop_oneof![Just(SpaceState::Enabled), Just(SpaceState::Blocked)]),
        labels(),
        description(),
    )
        .prop_map(|(state, labels, description)| WantedSpace {
            path: path("v0/cryptospaces/s"),
            state,
            shard: None,
            labels,
            description,
        });
    let caller = prop_oneof![Just("a@example.com"), Just("b@example.com")];
    let policy = (caller.clone(), description()).prop_map(|(caller, description)| WantedPolicy {
        name: "p".into(),
        description,
        policy: rules(caller),
    });
    let choice =
        prop_oneof![Just(WantedChoice::Named("p".into())), caller.prop_map(|caller| WantedChoice::Own(rules(caller))),];
    let state = proptest::option::of(prop_oneof![Just(WantedState::Enabled), Just(WantedState::Disabled)]);
    let more = proptest::collection::btree_set("[xyz]", 0..3);
    let key = (choice, proptest::option::of(0..3u32), labels(), description(), state, more);
    let keys = proptest::collection::vec(key, 0..3).prop_map(|keys| {
        let key = |(index, (policy, rotation_days, labels, description, state, more)): (
            usize,
            (_, _, _, _, _, std::collections::BTreeSet<String>),
        )| {
            let paths = more.iter().map(|more| path(&format!("v0/more/{index}{more}")));
            let paths = std::iter::once(path(&format!("v0/keys/{index}"))).chain(paths).collect();
            let (space, custody) = (path("v0/cryptospaces/s"), Some(Custody::Software));
            let algorithm = None;
            WantedKey { paths, space, policy, algorithm, custody, rotation_days, labels, description, state }
        };
        keys.into_iter().enumerate().map(key).collect::<Vec<_>>()
    });
    (space, policy, keys).prop_map(|(space, policy, keys)| KeysFile {
        spaces: vec![space],
        policies: vec![policy],
        keys,
    })
}

proptest! {
    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_plan(first in files(), second in files()) {
        let there = applied(&first, &There::default()).unwrap();
        prop_assert!(plan(&first, &there).unwrap().steps.is_empty());
        let there = applied(&second, &there).unwrap();
        let left = plan(&second, &there).unwrap().steps;
        prop_assert!(left.is_empty(), "{:?}", left);
    }
}
