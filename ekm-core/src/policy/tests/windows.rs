//! Time windows, against the calendar of the `time` crate.

use proptest::prelude::*;
use time::{Duration, UtcOffset};

use super::super::{TimeOfDay, Timestamp, Window};
use super::arbitrary::{moment, window};
use super::at;

fn window_of(json: &str) -> Window {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_window_that_crosses_midnight_belongs_to_the_day_on_which_it_opens() {
    let window = window_of(r#"{"weekdays":["friday"],"from":"22:00","to":"06:00"}"#);
    // 2026-11-20 is a Friday.
    for (now, open) in [
        ("2026-11-20T05:59:59Z", false),
        ("2026-11-20T21:59:59Z", false),
        ("2026-11-20T22:00:00Z", true),
        ("2026-11-21T00:00:00Z", true),
        ("2026-11-21T05:59:59.999Z", true),
        ("2026-11-21T06:00:00Z", false),
        ("2026-11-21T22:00:00Z", false),
        ("2026-11-20T23:30:00+02:00", false),
        ("1969-12-26T23:00:00Z", true),
    ] {
        assert_eq!(window.is_open(at(now)), open, "{now}");
    }
}

#[test]
fn a_window_until_midnight_ends_with_the_day() {
    let window = window_of(r#"{"weekdays":["sunday"],"from":"18:00","to":"00:00"}"#);
    assert!(window.is_open(at("2026-11-22T23:59:59Z")));
    assert!(!window.is_open(at("2026-11-23T00:00:00Z")));
}

#[test]
fn days_without_hours_are_whole_days_and_hours_without_days_are_every_day() {
    let (days, hours) =
        (window_of(r#"{"weekdays":["monday","sunday"]}"#), window_of(r#"{"from":"08:30","to":"08:31"}"#));
    assert!(days.is_open(at("2026-11-22T00:00:00Z")) && days.is_open(at("2026-11-23T23:59:59Z")));
    assert!(!days.is_open(at("2026-11-24T00:00:00Z")));
    for day in 20..27 {
        assert!(hours.is_open(at(&format!("2026-11-{day}T08:30:59Z"))));
        assert!(!hours.is_open(at(&format!("2026-11-{day}T08:31:00Z"))));
    }
}

#[test]
fn only_times_that_mean_one_thing_are_taken() {
    for text in ["00:00", "23:59", "08:05"] {
        assert_eq!(TimeOfDay::try_from(text.to_owned()).unwrap().to_string(), text);
    }
    for text in ["", "24:00", "8:00", "08:60", "08:5", "0800", "08:00:00", "+8:00", "08:+1", "08.00", " 08:00", "٠٨:٠٠"]
    {
        assert!(TimeOfDay::try_from(text.to_owned()).is_err(), "{text:?} was accepted");
    }
    for text in
        ["", "2026-11-22", "2026-11-22T12:00", "2026-11-22T12:00:00", "2026-02-30T00:00:00Z", "tomorrow", "1795000000"]
    {
        assert!(Timestamp::try_from(text.to_owned()).is_err(), "{text:?} was accepted");
    }
}

proptest! {
    #[test]
    fn a_window_is_open_as_a_calendar_says(window in window(), now in moment()) {
        let utc = now.to_offset(UtcOffset::UTC);
        let text = |moment: time::OffsetDateTime| moment.weekday().to_string().to_lowercase();
        let days = window.weekdays.as_ref();
        let on = |day: String| days.is_none_or(|days| days.iter().any(|listed| listed.name() == day));
        let clock = format!("{:02}:{:02}", utc.hour(), utc.minute());
        let hours = match (window.from.map(String::from), window.to.map(String::from)) {
            (Some(from), Some(to)) if from < to => on(text(utc)) && from <= clock && clock < to,
            (Some(from), Some(to)) => on(text(utc)) && from <= clock || on(text(utc - Duration::DAY)) && clock < to,
            _ => on(text(utc)),
        };
        let parsed = |timestamp: Timestamp| at(&timestamp.to_string());
        let span = window.not_before.is_none_or(|start| parsed(start) <= now)
            && window.not_after.is_none_or(|end| now <= parsed(end));
        prop_assert_eq!(window.is_open(now), span && hours);
    }

    #[test]
    fn a_window_covers_another_only_if_it_is_open_whenever_that_is(wide in window(), narrow in window()) {
        let uncovered = (0..21 * 48).map(|half_hour| at("2026-11-16T00:00:00Z") + Duration::minutes(30 * half_hour))
            .find(|&now| narrow.is_open(now) && !wide.is_open(now));
        if wide.covers(&narrow) {
            prop_assert_eq!(uncovered, None);
        } else if [wide.not_before, wide.not_after, narrow.not_before, narrow.not_after] == [None; 4] {
            prop_assert!(uncovered.is_some(), "the days and hours do cover");
        }
    }

    #[test]
    fn a_window_is_refused_if_it_never_opens_and_only_then(
        window in window(), start in 0..72i64, minutes in 1..600i64,
    ) {
        let start = at("2026-11-20T00:00:00Z") + Duration::hours(start);
        let end = start + Duration::minutes(minutes);
        let timestamp = |moment: time::OffsetDateTime| {
            Timestamp::try_from(moment.format(&super::Rfc3339).unwrap()).unwrap()
        };
        let window = Window { not_before: Some(timestamp(start)), not_after: Some(timestamp(end)), ..window };
        let opens = (0..=minutes).any(|minute| window.is_open(start + Duration::minutes(minute)));
        prop_assert_eq!(window.defect().is_none(), opens);
    }
}
