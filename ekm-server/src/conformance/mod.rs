//! A black-box suite for any EKM: `ekm conformance`. A check is an entry in a table: what it is about, how sure the public record is, what
//! is expected, and a short function that asks. The tables are in a file for each method.

mod asymmetric_sign;
mod authentication;
mod confidential;
mod create_key;
mod crypto_space;
mod destroy_key;
mod get_info;
mod get_public_key;
mod target;
mod unwrap;
mod wrap;

use clap::ValueEnum;
use serde::Serialize;

pub(crate) use target::{Options, Target, Tokens};

/// How sure the public record is of what a check expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Confidence {
    /// Google's own published text or code, or two independent implementations
    Certain,
    /// One implementation, or a short inference
    Likely,
    /// A choice of this project's, where the record is silent
    Choice,
}

/// One thing that is asked of an EKM.
struct Check {
    id: &'static str,
    confidence: Confidence,
    /// The part of the protocol that it is about.
    section: &'static str,
    title: &'static str,
    expected: &'static str,
    run: fn(&Target) -> Outcome,
}

const fn check(
    id: &'static str,
    confidence: Confidence,
    section: &'static str,
    title: &'static str,
    expected: &'static str,
    run: fn(&Target) -> Outcome,
) -> Check {
    Check { id, confidence, section, title, expected, run }
}

/// What was got, if that is what was expected.
type Outcome = Result<String, Stop>;

/// Why a check does not pass.
enum Stop {
    /// Something else was got.
    Failed(String),
    /// It could not be asked.
    Skipped(String),
}

/// The checks of one method.
struct Group {
    method: &'static str,
    checks: &'static [Check],
}

/// In this order: what a later group needs, an earlier one has asked.
const GROUPS: [Group; 10] = [
    Group { method: "authentication", checks: authentication::CHECKS },
    Group { method: "wrap", checks: wrap::CHECKS },
    Group { method: "unwrap", checks: unwrap::CHECKS },
    Group { method: "getPublicKey", checks: get_public_key::CHECKS },
    Group { method: "asymmetricSign", checks: asymmetric_sign::CHECKS },
    Group { method: "checkCryptoSpacePermissions", checks: crypto_space::CHECKS },
    Group { method: "createKey", checks: create_key::CHECKS },
    Group { method: "destroyKey", checks: destroy_key::CHECKS },
    Group { method: "confidential", checks: confidential::CHECKS },
    Group { method: "getInfo", checks: get_info::CHECKS },
];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    /// Not as expected, where the record is silent.
    Differs,
    Skipped,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Differs => "differs",
            Self::Skipped => "skipped",
        }
    }
}

/// What is told of a check.
#[derive(Serialize)]
pub(crate) struct Finding {
    pub(crate) id: &'static str,
    pub(crate) method: &'static str,
    pub(crate) title: &'static str,
    pub(crate) reference: String,
    pub(crate) confidence: Confidence,
    pub(crate) expected: &'static str,
    /// Or why it was skipped.
    pub(crate) got: String,
    pub(crate) verdict: Verdict,
}

/// Runs the checks whose id begins with one of `only`, or all. With `strict`, what differs fails.
pub(crate) fn run(target: &Target, only: &[String], strict: bool) -> Vec<Finding> {
    let chosen = |check: &&Check| only.is_empty() || only.iter().any(|prefix| check.id.starts_with(prefix.as_str()));
    let groups = GROUPS.iter().flat_map(|group| group.checks.iter().filter(chosen).map(|check| (group.method, check)));
    groups
        .map(|(method, check)| {
            let (got, verdict) = match (check.run)(target) {
                Ok(got) => (got, Verdict::Pass),
                Err(Stop::Skipped(why)) => (why, Verdict::Skipped),
                Err(Stop::Failed(got)) if check.confidence == Confidence::Choice && !strict => (got, Verdict::Differs),
                Err(Stop::Failed(got)) => (got, Verdict::Fail),
            };
            Finding {
                id: check.id,
                method,
                title: check.title,
                reference: format!("Cloud EKM protocol, {method}: {}", check.section),
                confidence: check.confidence,
                expected: check.expected,
                got,
                verdict,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_an_id_of_its_own() {
        let ids: Vec<_> = GROUPS.iter().flat_map(|group| group.checks).map(|check| check.id).collect();
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        assert!(ids.len() > 100, "only {} checks", ids.len());
    }
}
