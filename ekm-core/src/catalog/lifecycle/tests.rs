use proptest::prelude::*;
use time::macros::datetime;
use uuid::Uuid;

use super::*;
use crate::algorithm::Algorithm;
use crate::blob::VersionId;
use crate::catalog::Custody;
use std::sync::Arc;

use crate::path::KeyPath;
use crate::public_key::PublicKey;
use crate::shard_name::ShardName;

const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

fn made(key: &KeyRecord) -> VersionRecord {
    VersionRecord {
        id: VersionId { key: key.id, number: key.next_version() },
        custody: Custody::HsmWrapped,
        shard: ShardName::default(),
        wrapped_material: Some(vec![1]),
        check_blob: vec![2],
        public_key: None,
    }
}

fn key() -> KeyRecord {
    let mut key = KeyRecord {
        id: Uuid::new_v4(),
        space: Uuid::new_v4(),
        policy: Uuid::new_v4(),
        replaced_policies: Vec::new(),
        purpose: Purpose::Wrap,
        algorithm: Algorithm::Symmetric,
        state: KeyState::Enabled,
        destroy_at: None,
        created_for: None,
        destroyed_by_caller: false,
        paths: vec![KeyPath::parse("v0/keys/a").unwrap()],
        custody: Custody::HsmWrapped,
        primary: 0,
        versions: Vec::new(),
        rotation: None,
        labels: Default::default(),
        description: String::new(),
        created_at: NOW,
    };
    key.add_version(made(&key), NOW).unwrap();
    key
}

#[test]
fn a_new_version_wraps_only_after_it_was_promoted() {
    let mut key = key();
    key.add_version(made(&key), NOW).unwrap();
    assert_eq!((key.primary, key.versions[1].state), (1, VersionState::Pending));
    assert!(key.add_version(made(&key), NOW).is_err(), "one at a time");
    assert_eq!(key.promote(2), Ok(Outcome::Changed));
    assert_eq!((key.primary, key.versions[0].state), (2, VersionState::Enabled));
    assert_eq!(key.promote(2), Ok(Outcome::Unchanged));
}

#[test]
fn destruction_waits_for_the_grace_period_and_can_be_taken_back_until_then() {
    let mut key = key();
    let settings = Settings { destroy_grace_days: 1, ..Settings::default() }; // less than the least: a forged or old setting
    key.schedule_destruction(NOW, &settings).unwrap();
    let due = key.next_due().unwrap();
    assert_eq!(due, NOW + Duration::days(7));
    assert!(key.destroy_what_is_due(due - Duration::seconds(1)).is_empty());
    assert_eq!(key.undelete(), Ok(Outcome::Changed));
    assert_eq!(key.undelete(), Ok(Outcome::Unchanged));
    assert_eq!(key.state, KeyState::Disabled);
    assert!(key.destroy_what_is_due(due).is_empty());

    key.schedule_destruction(NOW, &settings).unwrap();
    assert_eq!(key.destroy_what_is_due(due).len(), 1);
    assert_eq!((key.state, key.versions[0].wrapped_material.as_ref()), (KeyState::Destroyed, None));
    assert!(key.undelete().is_err() && key.enable().is_err() && key.add_version(made(&key), NOW).is_err());
    assert_eq!(key.paths.len(), 1, "the path stays taken");
}

#[test]
fn a_signing_key_has_one_version_with_a_public_key_and_is_never_rotated() {
    let algorithm: Algorithm = "EC_SIGN_P256_SHA256".parse().unwrap();
    let mut key = KeyRecord { purpose: Purpose::Sign, algorithm, versions: Vec::new(), ..key() };
    assert!(key.add_version(made(&key), NOW).is_err(), "material for wrapping");
    let public_key = Some(Arc::new(PublicKey::new(algorithm.signing().unwrap(), vec![3])));
    let signing = VersionRecord { check_blob: Vec::new(), public_key, ..made(&key) };
    assert_eq!(key.add_version(signing.clone(), NOW), Ok(Outcome::Changed));
    assert_eq!((key.check(), key.version_record(&key.versions[0])), (Ok(()), signing.clone()));
    let second = VersionRecord { id: VersionId { number: 2, ..signing.id }, ..signing };
    let refused = key.add_version(second, NOW).unwrap_err().to_string();
    assert!(refused.contains("a signing key has one version for ever"), "{refused}");
    assert!(key.set_rotation(Some(90), NOW).is_err());
    assert_eq!(key.set_rotation(None, NOW), Ok(Outcome::Unchanged));
    for change in [
        |key: &mut KeyRecord| key.versions[0].public_key = None,
        |key: &mut KeyRecord| key.algorithm = Algorithm::Symmetric,
        |key: &mut KeyRecord| key.purpose = Purpose::Wrap,
    ] {
        let mut changed = key.clone();
        change(&mut changed);
        assert!(changed.check().is_err(), "{changed:?}");
    }
}

#[test]
fn a_moved_version_stays_on_the_hsms_that_it_left_until_it_is_destroyed() {
    let mut key = key();
    let second = VersionRecord { custody: Custody::Hsm, ..made(&key) };
    key.add_version(second.clone(), NOW).unwrap();
    let payments: ShardName = "payments".parse().unwrap();
    let moved = VersionRecord { shard: payments.clone(), ..second.clone() };
    assert_eq!(key.move_version(&second, moved.clone()), Ok(Outcome::Changed));
    assert_eq!(key.version_record(&key.versions[1]), moved);
    assert!(key.move_version(&second, moved.clone()).is_err(), "it is not what was carried any more");
    assert_eq!(key.move_version(&moved, moved.clone()), Ok(Outcome::Unchanged));

    let settings = Settings { destroy_grace_days: 30, ..Settings::default() };
    key.schedule_destruction(NOW, &settings).unwrap();
    let gone = key.destroy_what_is_due(NOW + Duration::days(30));
    let gone: Vec<_> = gone.into_iter().map(|version| (version.id.number, version.shard)).collect();
    assert_eq!(gone, [(1, ShardName::default()), (2, ShardName::default()), (2, payments)]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Enable,
    Disable,
    Destroy,
    Undelete,
    Add,
    Promote(u32),
    SetVersion(u32, bool),
    DestroyVersion(u32),
    UndeleteVersion(u32),
    Rotate(Option<u32>),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Enable),
        Just(Step::Disable),
        Just(Step::Destroy),
        Just(Step::Undelete),
        Just(Step::Add),
        (0..5u32).prop_map(Step::Promote),
        (0..5u32, any::<bool>()).prop_map(|(number, enabled)| Step::SetVersion(number, enabled)),
        (0..5u32).prop_map(Step::DestroyVersion),
        (0..5u32).prop_map(Step::UndeleteVersion),
        prop::option::of(0..400u32).prop_map(Step::Rotate),
        (0..20i64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_is_wished_the_row_stays_sound_and_nothing_destroyed_comes_back(steps in prop::collection::vec(step(), 0..60)) {
        let (mut key, mut now, settings) = (key(), NOW, Settings::default());
        for step in steps {
            let before = key.clone();
            let outcome = match step {
                Step::Enable => key.enable(),
                Step::Disable => key.disable(),
                Step::Destroy => key.schedule_destruction(now, &settings),
                Step::Undelete => key.undelete(),
                Step::Add => { let made = made(&key); key.add_version(made, now) }
                Step::Promote(number) => key.promote(number),
                Step::SetVersion(number, enabled) => key.set_version_enabled(number, enabled),
                Step::DestroyVersion(number) => key.schedule_version_destruction(number, now, &settings),
                Step::UndeleteVersion(number) => key.undelete_version(number),
                Step::Rotate(days) => key.set_rotation(days, now),
                Step::Wait(days) => {
                    now += Duration::days(days);
                    let gone = key.destroy_what_is_due(now);
                    for version in gone {
                        let was = before.version(version.id.number).unwrap();
                        let due = before.destroy_at.into_iter().chain(was.destroy_at).min().unwrap();
                        prop_assert!(due <= now, "destroyed before its time");
                    }
                    Ok(Outcome::Changed)
                }
            };
            prop_assert_eq!(key.check(), Ok(()), "{:?} on {:?}", step, before);
            if outcome != Ok(Outcome::Changed) {
                prop_assert_eq!(&key, &before, "a refusal or a repetition changes nothing");
            }
            for (old, new) in before.versions.iter().zip(&key.versions) {
                if old.state == VersionState::Destroyed {
                    prop_assert_eq!(old, new);
                } else if new.state != VersionState::Destroyed {
                    prop_assert_eq!(&old.wrapped_material, &new.wrapped_material, "material lost");
                }
            }
            prop_assert!(before.state != KeyState::Destroyed || key.state == KeyState::Destroyed);
            prop_assert_eq!(&key.paths, &before.paths);
            let json = serde_json::to_string(&key).unwrap();
            prop_assert_eq!(&serde_json::from_str::<KeyRecord>(&json).unwrap(), &key);
        }
    }
}
