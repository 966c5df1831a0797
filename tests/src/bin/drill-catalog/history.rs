//! What must be true of a history of writes, whatever happened in between. Nothing here looks at a clock or a database.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::Serialize;

/// An attempt to change the catalog.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its name, which no other attempt has; the catalog's log keeps it.
    pub id: String,
    /// When it was sent, in milliseconds since the drill began.
    pub sent_ms: u64,
    /// When the answer came, or was no longer waited for.
    pub ended_ms: u64,
    /// The answer.
    pub outcome: Outcome,
}

/// What a writer knows of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, in this revision.
    Acknowledged {
        /// The catalog's revision that has the change.
        revision: u64,
    },
    /// Certainly not done.
    Refused,
    /// No answer, or one that leaves it open.
    Unknown,
}

/// A line of the catalog's own log, as it is at the end.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision that it made.
    pub revision: u64,
    /// The attempt's name.
    pub id: String,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Violation {
    /// A write was acknowledged, and the log does not have it, or has it in another revision.
    Lost { id: String, revision: u64 },
    /// A write was refused for certain, and was made.
    RefusedButMade { id: String },
    /// A write was made more than once.
    MadeTwice { id: String },
    /// The log has a change that nobody asked for.
    Unasked { id: String },
    /// Two writes were acknowledged with the same revision.
    RevisionAcknowledgedTwice { revision: u64 },
    /// The log leaves this revision out.
    Gap { revision: u64 },
    /// The log has this revision more than once.
    RevisionTwice { revision: u64 },
    /// A write was sent after another had been acknowledged, and has a lower revision.
    OutOfOrder { earlier: String, later: String },
    /// A frontend showed a lower revision than it had shown before.
    WentBack { frontend: usize, from: u64, to: u64 },
    /// A frontend is not at the log's end.
    Behind { frontend: usize, revision: Option<u64>, head: u64 },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { id, revision } => {
                write!(f, "write {id} was acknowledged as revision {revision}, and is not there")
            }
            Self::RefusedButMade { id } => write!(f, "write {id} was refused, and was made"),
            Self::MadeTwice { id } => write!(f, "write {id} was made more than once"),
            Self::Unasked { id } => write!(f, "write {id} was made, and nobody asked for it"),
            Self::RevisionAcknowledgedTwice { revision } => {
                write!(f, "two writes were acknowledged as revision {revision}")
            }
            Self::Gap { revision } => write!(f, "the log has no revision {revision}"),
            Self::RevisionTwice { revision } => write!(f, "the log has revision {revision} more than once"),
            Self::OutOfOrder { earlier, later } => {
                write!(f, "write {later} was sent after {earlier} was acknowledged, and has a lower revision")
            }
            Self::WentBack { frontend, from, to } => {
                write!(f, "frontend {frontend} went from revision {from} back to {to}")
            }
            Self::Behind { frontend, revision: Some(revision), head } => {
                write!(f, "frontend {frontend} is at revision {revision}, and the log at {head}")
            }
            Self::Behind { frontend, revision: None, head } => {
                write!(f, "frontend {frontend} has no revision, and the log is at {head}")
            }
        }
    }
}

/// Everything that is wrong. The log begins with the revision after `base`. Each frontend's revisions are in the order of time; they
/// were asked for a last time after the last write.
pub fn check(attempts: &[Attempt], base: u64, log: &[Change], frontends: &[Vec<u64>]) -> Vec<Violation> {
    let mut found = Vec::new();
    check_log(base, log, &mut found);
    check_attempts(attempts, log, &mut found);
    check_order(attempts, &mut found);
    for (frontend, revisions) in frontends.iter().enumerate() {
        let steps = revisions.iter().zip(revisions.iter().skip(1));
        let back = steps.filter(|(from, to)| to < from);
        found.extend(back.map(|(&from, &to)| Violation::WentBack { frontend, from, to }));
        let (revision, head) =
            (revisions.last().copied(), log.iter().map(|change| change.revision).max().unwrap_or(base));
        if revision != Some(head) {
            found.push(Violation::Behind { frontend, revision, head });
        }
    }
    found
}

fn check_log(base: u64, log: &[Change], found: &mut Vec<Violation>) {
    let mut revisions: Vec<_> = log.iter().map(|change| change.revision).collect();
    revisions.sort_unstable();
    let mut last = base;
    for revision in revisions {
        if revision == last {
            found.push(Violation::RevisionTwice { revision });
        }
        found.extend((last + 1..revision).map(|revision| Violation::Gap { revision }));
        last = revision;
    }
    let mut seen = HashSet::new();
    let again = log.iter().filter(|change| !seen.insert(&change.id));
    found.extend(again.map(|change| Violation::MadeTwice { id: change.id.clone() }));
}

fn check_attempts(attempts: &[Attempt], log: &[Change], found: &mut Vec<Violation>) {
    let made: HashMap<_, _> = log.iter().map(|change| (&change.id, change.revision)).collect();
    let mut acknowledged = HashSet::new();
    for Attempt { id, outcome, .. } in attempts {
        match *outcome {
            Outcome::Acknowledged { revision } => {
                if made.get(id) != Some(&revision) {
                    found.push(Violation::Lost { id: id.clone(), revision });
                }
                if !acknowledged.insert(revision) {
                    found.push(Violation::RevisionAcknowledgedTwice { revision });
                }
            }
            Outcome::Refused if made.contains_key(id) => found.push(Violation::RefusedButMade { id: id.clone() }),
            Outcome::Refused | Outcome::Unknown => {}
        }
    }
    let asked: HashSet<_> = attempts.iter().map(|attempt| &attempt.id).collect();
    let unasked = log.iter().filter(|change| !asked.contains(&change.id));
    found.extend(unasked.map(|change| Violation::Unasked { id: change.id.clone() }));
}

/// By the time at which each was sent, the highest revision that had been acknowledged before must be lower.
fn check_order(attempts: &[Attempt], found: &mut Vec<Violation>) {
    let mut acknowledged: Vec<_> = attempts.iter().filter_map(|attempt| Some((attempt, revision(attempt)?))).collect();
    acknowledged.sort_by_key(|(attempt, _)| attempt.ended_ms);
    // When an acknowledgement came: the highest revision so far, and whose it was.
    let mut highest: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    let mut so_far = (0, "");
    for (attempt, revision) in &acknowledged {
        so_far = so_far.max((*revision, &*attempt.id));
        highest.insert(attempt.ended_ms, so_far);
    }
    for (attempt, revision) in &acknowledged {
        if let Some((_, (before, earlier))) = highest.range(..attempt.sent_ms).next_back()
            && before > revision
        {
            found.push(Violation::OutOfOrder { earlier: (*earlier).to_owned(), later: attempt.id.clone() });
        }
    }
}

fn revision(attempt: &Attempt) -> Option<u64> {
    match attempt.outcome {
        Outcome::Acknowledged { revision } => Some(revision),
        Outcome::Refused | Outcome::Unknown => None,
    }
}

/// The longest time without an acknowledgement that touches this span, in milliseconds. It begins with the last acknowledgement
/// before the span, so that what was broken before it is counted too.
pub fn longest_gap_ms(attempts: &[Attempt], from_ms: u64, to_ms: u64) -> u64 {
    let acknowledged = attempts.iter().filter(|attempt| revision(attempt).is_some());
    let mut times: Vec<_> = acknowledged.map(|attempt| attempt.ended_ms).filter(|&time| time <= to_ms).collect();
    times.sort_unstable();
    let begin = times.iter().rposition(|&time| time <= from_ms);
    let inside = &times[begin.unwrap_or(0)..];
    let first = if begin.is_some() { None } else { Some(from_ms) };
    let all: Vec<_> = first.into_iter().chain(inside.iter().copied()).chain([to_ms]).collect();
    all.iter().zip(all.iter().skip(1)).map(|(earlier, later)| later - earlier).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, sent, ended, revision acknowledged)
    fn acknowledged(id: &str, sent_ms: u64, ended_ms: u64, revision: u64) -> Attempt {
        Attempt { id: id.into(), sent_ms, ended_ms, outcome: Outcome::Acknowledged { revision } }
    }

    fn log(changes: &[(u64, &str)]) -> Vec<Change> {
        changes.iter().map(|&(revision, id)| Change { revision, id: id.into() }).collect()
    }

    #[test]
    fn a_good_history_has_nothing_wrong() {
        let mut attempts = vec![acknowledged("a", 0, 10, 6), acknowledged("b", 5, 20, 7)];
        attempts.push(Attempt { outcome: Outcome::Unknown, ..acknowledged("c", 20, 30, 0) });
        attempts.push(Attempt { outcome: Outcome::Unknown, ..acknowledged("d", 20, 30, 0) });
        attempts.push(Attempt { outcome: Outcome::Refused, ..acknowledged("e", 20, 30, 0) });
        let changes = log(&[(6, "a"), (7, "b"), (8, "d")]);
        assert_eq!(check(&attempts, 5, &changes, &[vec![5, 5, 8], vec![8]]), []);
    }

    #[test]
    fn an_acknowledged_write_that_is_not_in_the_log_or_elsewhere_is_lost() {
        let attempts = [acknowledged("a", 0, 1, 1), acknowledged("b", 2, 3, 2)];
        let lost = |id: &str, revision| Violation::Lost { id: id.into(), revision };
        assert_eq!(check(&attempts, 0, &log(&[(1, "a")]), &[]), [lost("b", 2)]);
        assert_eq!(check(&attempts, 0, &log(&[(1, "b"), (2, "a")]), &[]), [lost("a", 1), lost("b", 2)]);
    }

    #[test]
    fn a_revision_is_there_once_and_none_is_left_out() {
        let attempts = ["a", "b", "c"].map(|id| Attempt { outcome: Outcome::Unknown, ..acknowledged(id, 0, 1, 0) });
        let found = check(&attempts, 0, &log(&[(1, "a"), (1, "b"), (4, "c")]), &[]);
        let gap = |revision| Violation::Gap { revision };
        assert_eq!(found, [Violation::RevisionTwice { revision: 1 }, gap(2), gap(3)]);
        assert_eq!(check(&attempts[..1], 0, &log(&[(2, "a")]), &[]), [gap(1)], "also not the first");
        assert_eq!(check(&attempts[..1], 1, &log(&[(1, "a")]), &[]), [Violation::RevisionTwice { revision: 1 }]);
    }

    #[test]
    fn a_write_is_made_once_and_only_if_it_was_asked_for_and_not_refused() {
        let refused = Attempt { outcome: Outcome::Refused, ..acknowledged("a", 0, 1, 0) };
        assert_eq!(
            check(&[refused], 0, &log(&[(1, "a"), (2, "a"), (3, "x")]), &[]),
            [
                Violation::MadeTwice { id: "a".into() },
                Violation::RefusedButMade { id: "a".into() },
                Violation::Unasked { id: "x".into() }
            ]
        );
    }

    #[test]
    fn two_writes_are_not_acknowledged_with_one_revision() {
        let attempts = [acknowledged("a", 0, 5, 1), acknowledged("b", 0, 5, 1)];
        let found = check(&attempts, 0, &log(&[(1, "a")]), &[]);
        assert!(found.contains(&Violation::RevisionAcknowledgedTwice { revision: 1 }), "{found:?}");
    }

    #[test]
    fn a_write_after_an_acknowledgement_has_a_higher_revision() {
        let changes = log(&[(1, "b"), (2, "a")]);
        let attempts = [acknowledged("a", 0, 10, 2), acknowledged("b", 11, 20, 1)];
        let wrong = Violation::OutOfOrder { earlier: "a".into(), later: "b".into() };
        assert_eq!(check(&attempts, 0, &changes, &[]), [wrong]);
        let at_once = [acknowledged("a", 0, 10, 2), acknowledged("b", 10, 20, 1)];
        assert_eq!(
            check(&at_once, 0, &changes, &[]),
            [],
            "sent at the moment of the other's answer, either may be first"
        );
    }

    #[test]
    fn a_frontend_never_goes_back() {
        let back = Violation::WentBack { frontend: 1, from: 7, to: 6 };
        assert_eq!(check(&[], 8, &[], &[vec![5, 8], vec![7, 6, 6, 8]]), [back]);
    }

    #[test]
    fn a_frontend_ends_where_the_log_does() {
        let behind = |frontend, revision| Violation::Behind { frontend, revision, head: 2 };
        let attempts = [acknowledged("a", 0, 1, 2)];
        let found = check(&attempts, 1, &log(&[(2, "a")]), &[vec![1], vec![2], vec![], vec![3]]);
        assert_eq!(found, [behind(0, Some(1)), behind(2, None), behind(3, Some(3))]);
    }

    #[test]
    fn a_gap_reaches_from_the_last_acknowledgement_before_to_the_end() {
        let mut attempts = [10, 20, 50, 60].map(|time| acknowledged("a", time, time, 1)).to_vec();
        attempts.push(Attempt { outcome: Outcome::Unknown, ..acknowledged("b", 30, 30, 0) });
        assert_eq!(longest_gap_ms(&attempts, 25, 60), 30, "20 to 50");
        assert_eq!(longest_gap_ms(&attempts, 50, 60), 10);
        assert_eq!(longest_gap_ms(&attempts, 50, 100), 40, "60 to the end");
        assert_eq!(longest_gap_ms(&attempts, 0, 5), 5, "none before, none inside");
        assert_eq!(longest_gap_ms(&[], 100, 130), 30);
    }
}
