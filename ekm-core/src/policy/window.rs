//! When a rule applies: spans of time, and hours that come back every week. All in UTC, so that no change of clocks
//! moves them.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::strict;

const DAY_S: i64 = 24 * 60 * 60;

/// Open if every bound that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Closed before.
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Closed afterwards; at this moment itself still open.
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// The days on which it opens; absent means every day.
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    pub weekdays: Option<Vec<Weekday>>,
    /// When it opens; there exactly if `to` is. Absent means that it is open for whole days.
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    pub from: Option<TimeOfDay>,
    /// When it closes; if that is before it opens, on the following day.
    #[serde(default, deserialize_with = "strict::present", skip_serializing_if = "Option::is_none")]
    pub to: Option<TimeOfDay>,
}

impl Window {
    pub(super) fn is_open(&self, now: OffsetDateTime) -> bool {
        // Both reach every moment that can be expressed, in whatever offset; conversions into UTC do not.
        let (now_ns, now_s) = (now.unix_timestamp_nanos(), now.unix_timestamp());
        if self.not_before.is_some_and(|start| now_ns < start.nanos())
            || self.not_after.is_some_and(|end| end.nanos() < now_ns)
        {
            return false;
        }
        self.is_open_weekly(Weekday::of(now_s.div_euclid(DAY_S)), (now_s.rem_euclid(DAY_S) / 60) as u16)
    }

    /// Whether days and hours fit, at a minute of a day.
    fn is_open_weekly(&self, day: Weekday, minute: u16) -> bool {
        let on = |day| self.weekdays.as_ref().is_none_or(|days| days.contains(&day));
        match self.hours() {
            None => on(day),
            Some((from, to)) if from < to => on(day) && from <= minute && minute < to,
            Some((from, to)) => on(day) && from <= minute || on(day.before()) && minute < to,
        }
    }

    fn hours(&self) -> Option<(u16, u16)> {
        Some((self.from?.minutes, self.to?.minutes))
    }

    /// Whether it is open whenever `other` is. Between two of their bounds nothing changes, so looking at the bounds of
    /// each day is enough.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let spans = self.not_before.is_none_or(|mine| other.not_before.is_some_and(|theirs| mine <= theirs))
            && self.not_after.is_none_or(|mine| other.not_after.is_some_and(|theirs| theirs <= mine));
        let bounds = [self.from, self.to, other.from, other.to].map(|bound| bound.map_or(0, |time| time.minutes));
        spans
            && Weekday::ALL.iter().all(|&day| {
                let mut minutes = bounds.iter().chain(&[0]);
                minutes.all(|&minute| self.is_open_weekly(day, minute) || !other.is_open_weekly(day, minute))
            })
    }

    /// Why it makes no sense, and what to do; `None` if it does.
    pub(super) fn defect(&self) -> Option<&'static str> {
        if *self == Self::default() {
            return Some("has no bound, so it is always open; leave 'times' out of the rule instead");
        }
        if self.weekdays.as_ref().is_some_and(Vec::is_empty) {
            return Some("opens on no weekday; list at least one, or leave 'weekdays' out for every day");
        }
        if self.from.is_some() != self.to.is_some() {
            return Some("has one of 'from' and 'to'; give both, or neither for whole days");
        }
        if self.from.is_some() && self.from == self.to {
            return Some("opens and closes at the same time; give two different times, or neither for whole days");
        }
        let (Some(start), Some(end)) = (self.not_before, self.not_after) else { return None };
        if start.nanos() >= end.nanos() {
            return Some("has a 'not_before' that is not earlier than its 'not_after'; it would never open");
        }
        if !self.opens_between(start, end) {
            return Some("never opens: its days and hours do not come between 'not_before' and 'not_after'");
        }
        None
    }

    fn opens_between(&self, start: Timestamp, end: Timestamp) -> bool {
        let (first_s, last_s) = (start.0.unix_timestamp(), end.0.unix_timestamp());
        if last_s - first_s > 8 * DAY_S {
            return true; // every day of the week, as a whole
        }
        let (from, to) = self.hours().map_or((0, 0), |(from, to)| (i64::from(from) * 60, i64::from(to) * 60));
        let length_s = if from < to { to - from } else { to + DAY_S - from };
        // What opened on the day before may still be open.
        (first_s.div_euclid(DAY_S) - 1..=last_s.div_euclid(DAY_S)).any(|day| {
            let opens_ns = i128::from(day * DAY_S + from) * 1_000_000_000;
            let closes_ns = opens_ns + i128::from(length_s) * 1_000_000_000;
            self.weekdays.as_ref().is_none_or(|days| days.contains(&Weekday::of(day)))
                && opens_ns <= end.nanos()
                && start.nanos() < closes_ns
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut part = |text: String| {
            let written = write!(f, "{separator}{text}");
            separator = ", ";
            written
        };
        if let Some(start) = &self.not_before {
            part(format!("not before {start}"))?;
        }
        if let Some(end) = &self.not_after {
            part(format!("not after {end}"))?;
        }
        if let Some(days) = &self.weekdays {
            part(days.iter().map(|day| day.name()).collect::<Vec<_>>().join(" "))?;
        }
        if let (Some(from), Some(to)) = (self.from, self.to) {
            part(format!("{from} to {to} UTC"))?;
        }
        Ok(())
    }
}

/// A moment, as RFC 3339 writes it: `2026-12-31T18:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    pub(super) fn nanos(self) -> i128 {
        self.0.unix_timestamp_nanos()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        OffsetDateTime::parse(&text, &Rfc3339)
            .map(Self)
            .map_err(|_| "this is no date and time as RFC 3339 writes it; write 2026-12-31T18:00:00Z")
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> Self {
        timestamp.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).expect("it was read from this form"))
    }
}

/// A time of day in UTC, to the minute: `08:30`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay {
    minutes: u16,
}

impl TryFrom<String> for TimeOfDay {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = |text: &str, below: u16| {
            let two_digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|&number| two_digits && number < below)
        };
        let minutes =
            text.split_once(':').and_then(|(hour, minute)| Some(digits(hour, 24)? * 60 + digits(minute, 60)?));
        let minutes = minutes.ok_or("this is no time of day; write HH:MM in UTC, from 00:00 to 23:59")?;
        Ok(Self { minutes })
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> Self {
        time.to_string()
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

/// A day of the week, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "their names say it")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Weekday {
    pub(super) const ALL: [Self; 7] =
        [Self::Monday, Self::Tuesday, Self::Wednesday, Self::Thursday, Self::Friday, Self::Saturday, Self::Sunday];

    /// Of a day counted from 1970-01-01, a Thursday.
    pub(super) fn of(day: i64) -> Self {
        Self::ALL[(day.rem_euclid(7) + 3) as usize % 7]
    }

    fn before(self) -> Self {
        Self::ALL[(self as usize + 6) % 7]
    }

    /// As policies write it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Monday => "monday",
            Self::Tuesday => "tuesday",
            Self::Wednesday => "wednesday",
            Self::Thursday => "thursday",
            Self::Friday => "friday",
            Self::Saturday => "saturday",
            Self::Sunday => "sunday",
        }
    }
}
