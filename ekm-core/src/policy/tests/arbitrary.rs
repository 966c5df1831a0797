//! Random policies and requests from a small world, so that they often fit each other.

use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use time::{Duration, OffsetDateTime, UtcOffset};

use super::super::{Justifications, Policy, Preset, ResourcePattern, Rule, Timestamp, Verb, Weekday, Window};
use super::{at, caller};
use crate::caller::{Caller, CallerPattern};
use crate::justification::{Justification, Reason};

/// What a request consists of, owned.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    caller: Caller,
    verb: Verb,
    justification: Justification,
    resource: Option<String>,
    pub(super) now: OffsetDateTime,
}

impl Asked {
    pub(super) fn request(&self) -> super::Request<'_> {
        let Self { caller, verb, justification, resource, now } = self;
        super::Request { caller, verb: *verb, justification, resource: resource.as_deref(), now: *now }
    }
}

/// Within some weeks, mostly on full hours, in any offset.
pub(super) fn moment() -> impl Strategy<Value = OffsetDateTime> {
    (0..21 * 24i64, prop_oneof![Just(0), 0..3600i64], -12..=12i8).prop_map(|(hours, seconds, offset)| {
        let utc = at("2026-11-16T00:00:00Z") + Duration::hours(hours) + Duration::seconds(seconds);
        utc.to_offset(UtcOffset::from_hms(offset, 0, 0).unwrap())
    })
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    moment().prop_map(|moment| moment.format(&super::Rfc3339).unwrap().try_into().unwrap())
}

pub(super) fn window() -> impl Strategy<Value = Window> {
    let hour = || (0..24u8, select(vec![0, 30])).prop_map(|(hour, minute)| format!("{hour:02}:{minute:02}"));
    let span = (option::of(timestamp()), option::of(timestamp()));
    (span, option::of(subsequence(Weekday::ALL.to_vec(), 1..=7)), option::of((hour(), hour())))
        .prop_map(|((not_before, not_after), weekdays, hours)| {
            let (from, to) = hours.map(|(from, to)| (from.try_into().unwrap(), to.try_into().unwrap())).unzip();
            Window { not_before, not_after, weekdays, from, to }
        })
        .prop_filter("makes sense", |window| window.defect().is_none())
}

fn callers() -> impl Strategy<Value = Vec<CallerPattern>> {
    let texts =
        ["*", "*@*", "a@x.example", "*@x.example", "a*", "project:1", "service-*@gcp-sa-ekms.iam.gserviceaccount.com"];
    subsequence(texts.to_vec(), 1..=3)
        .prop_map(|texts| texts.into_iter().map(|text| text.to_owned().try_into().unwrap()).collect())
}

fn resources() -> impl Strategy<Value = Vec<ResourcePattern>> {
    let texts = ["*", "projects/p/*", "projects/p/k/1", "projects/*/k/*", "*/2"];
    subsequence(texts.to_vec(), 1..=2)
        .prop_map(|texts| texts.into_iter().map(|text| text.to_owned().try_into().unwrap()).collect())
}

fn justifications() -> impl Strategy<Value = Justifications> {
    let listed = (option::of(subsequence(Reason::ALL.to_vec(), 1..=12)), any::<bool>(), any::<bool>());
    let listed = listed.prop_map(|(allowed, missing, unknown)| {
        let preset = None;
        Justifications { preset, allowed, missing, unknown, grace_until: None }
    });
    let preset = select(Preset::ALL.to_vec()).prop_map(Justifications::from);
    (prop_oneof![3 => listed, 1 => preset], option::weighted(0.3, timestamp()))
        .prop_map(|(rest, grace_until)| Justifications { grace_until, ..rest })
}

pub(super) fn rule() -> impl Strategy<Value = Rule> {
    let times = proptest::collection::vec(window(), 1..3);
    let verbs = subsequence(Verb::ALL.to_vec(), 1..=4);
    (callers(), verbs, option::of(resources()), justifications(), option::of(times)).prop_map(
        |(callers, verbs, resources, justifications, times)| Rule { callers, verbs, resources, justifications, times },
    )
}

pub(super) fn policy() -> impl Strategy<Value = Policy> {
    proptest::collection::vec(rule(), 1..5).prop_filter_map("no rule twice", |rules| Policy::new(rules).ok())
}

pub(super) fn asked() -> impl Strategy<Value = Asked> {
    let emails = ["a@x.example", "b@x.example", "a@y.example", "service-1@gcp-sa-ekms.iam.gserviceaccount.com", ""];
    let names = ["projects/p/k/1", "projects/p/k/2", "projects/q/k/1", ""];
    let mut all: Vec<_> = Reason::ALL.iter().map(|&reason| Justification::Known(reason)).collect();
    all.extend([Justification::Missing, Justification::Unknown]);
    let parts = (select(emails.to_vec()), select(Verb::ALL.to_vec()), select(all));
    (parts, option::of(select(names.to_vec())), moment()).prop_map(|((email, verb, justification), resource, now)| {
        Asked { caller: caller(email), verb, justification, resource: resource.map(str::to_owned), now }
    })
}
