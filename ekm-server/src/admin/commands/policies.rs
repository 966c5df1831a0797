//! Policies: made, replaced, and what is said about them.

use ekm_core::catalog::ledger::Class;
use ekm_core::catalog::{self, Kind, Outcome, PolicyRecord, ReplacedPolicy, Settings};
use ekm_core::policy::{self, Policy, Verb};
use ekm_core::{Algorithm, KeyPath};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{Effect, Seen, free, named, to_json};
use crate::admin::api::PolicyChoice;
use crate::admin::change::class_of_policy;
use crate::admin::error::AdminError;
use crate::admin::views;
use crate::catalog::Draft;

pub(super) async fn create(
    draft: &mut Draft<'_>,
    name: &str,
    policy: &Value,
    description: &str,
) -> Result<Effect, AdminError> {
    check_policy_name(name)?;
    let (record, effect) = new_policy(draft, name, policy, description).await?;
    Ok(Effect { after: view_policy(&record), ..effect })
}

/// Replaces it.
pub(super) async fn set(
    draft: &mut Draft<'_>,
    name: &str,
    policy: &Value,
    description: &str,
    is_final: bool,
    seen: &Seen,
) -> Result<Effect, AdminError> {
    let (mut record, revision) = named::<PolicyRecord>(draft, Kind::Policy, name).await?;
    seen.must_be(revision)?;
    let (before, old) = (view_policy(&record), parse_policy(&record.document)?);
    let new = parse_policy(&policy.to_string())?;
    let kept = std::mem::take(&mut record.replaced);
    record.replaced = replaced(draft, kept, &record.document, &new, is_final).await?;
    (record.document, record.description) = (new.to_json(), description.to_owned());
    let mut effect = Effect::on(name);
    (effect.class, effect.danger) = (class_of_policy(&old, &new), widening(name, Some(&old), &new));
    (effect.warnings, effect.before, effect.after) = (views::warnings(&record.document), before, view_policy(&record));
    effect.warnings.extend(not_final_yet(&record.replaced, &format!("ekm policy confirm {name}")));
    effect.outcome = if effect.before == effect.after { Outcome::Unchanged } else { Outcome::Changed };
    draft.put(Kind::Policy, record.id, &record)?;
    Ok(effect)
}

/// What it does not allow any more is denied from now on.
pub(super) async fn confirm_all(draft: &mut Draft<'_>, name: &str, seen: &Seen) -> Result<Effect, AdminError> {
    let (mut record, revision) = named::<PolicyRecord>(draft, Kind::Policy, name).await?;
    seen.may_be(revision)?;
    let effect = confirm(&mut record.replaced, name);
    draft.put(Kind::Policy, record.id, &record)?;
    Ok(effect)
}

/// A policy that is there, or a new one of the key's own, named after it; a second one gets a number.
pub(super) async fn choose_policy(
    draft: &mut Draft<'_>,
    path: &KeyPath,
    choice: &PolicyChoice,
) -> Result<(PolicyRecord, Effect), AdminError> {
    match choice {
        PolicyChoice::Named(name) => {
            let (record, _) = named::<PolicyRecord>(draft, Kind::Policy, name).await?;
            let warnings = views::warnings(&record.document);
            Ok((record, Effect { warnings, ..Effect::on(name) }))
        }
        PolicyChoice::Own(policy) => {
            let mut name = path.to_string();
            for number in 2.. {
                if draft.id_of(Kind::Policy, &name).await?.is_none() {
                    break;
                }
                name = format!("{path}.{number}");
            }
            new_policy(draft, &name, policy, "").await
        }
    }
}

async fn new_policy(
    draft: &mut Draft<'_>,
    name: &str,
    policy: &Value,
    description: &str,
) -> Result<(PolicyRecord, Effect), AdminError> {
    free(draft, Kind::Policy, name).await?;
    let policy = parse_policy(&policy.to_string())?;
    let (id, document) = (Uuid::now_v7(), policy.to_json());
    let (name_owned, description) = (name.to_owned(), description.to_owned());
    let record = PolicyRecord { id, name: name_owned, document, replaced: Vec::new(), description };
    draft.name(Kind::Policy, name, id);
    draft.put(Kind::Policy, id, &record)?;
    let (danger, warnings) = (widening(name, None, &policy), views::warnings(&record.document));
    Ok((record, Effect { danger, warnings, ..Effect::on(name) }))
}

/// What a row keeps of the policies before, if the catalog lets denials wait and the operator does not want them at once.
pub(super) async fn replaced(
    draft: &mut Draft<'_>,
    before: Vec<ReplacedPolicy>,
    old: &str,
    new: &Policy,
    is_final: bool,
) -> Result<Vec<ReplacedPolicy>, AdminError> {
    if is_final {
        return Ok(Vec::new());
    }
    let minutes = draft.settings().await?.0.denial_delay_minutes.min(Settings::MAX_DENIAL_DELAY_MINUTES);
    Ok(catalog::replaced(before, old, new, draft.now(), time::Duration::minutes(minutes.into())))
}

pub(super) fn not_final_yet(replaced: &[ReplacedPolicy], confirm: &str) -> Option<String> {
    let last = replaced.iter().map(|former| former.final_at).max()?.format(&Rfc3339).ok()?;
    Some(format!(
        "what was allowed until now, and is not any more, is answered with 503 [denial_pending] until {last}, and with 403 after that; \
         '{confirm}' makes it final"
    ))
}

pub(super) fn confirm(replaced: &mut Vec<ReplacedPolicy>, target: &str) -> Effect {
    let before = std::mem::take(replaced).len();
    let outcome = if before == 0 { Outcome::Unchanged } else { Outcome::Changed };
    let (before, after) =
        (json!({"former policies that still count": before}), json!({"former policies that still count": 0}));
    Effect { class: Class::Fast, before, after, outcome, ..Effect::on(target) }
}

pub(super) fn parse_policy(document: &str) -> Result<Policy, AdminError> {
    Policy::parse(document).map_err(|invalid| AdminError::invalid("policy", invalid.to_string()))
}

/// Whether everybody is let in who was not before.
pub(super) fn widening(name: &str, old: Option<&Policy>, new: &Policy) -> Option<String> {
    let widens = policy::admits_everybody(new) && !old.is_some_and(policy::admits_everybody);
    widens.then(|| format!("let every caller use {name}"))
}

/// A policy that allows nothing of what the key does.
pub(super) fn useless(policy: &PolicyRecord, algorithm: Algorithm) -> Option<String> {
    let parsed = Policy::parse(&policy.document).ok()?;
    let fits = |verb: &Verb| verb.uses(algorithm);
    let verbs: Vec<_> = Verb::ALL.into_iter().filter(fits).map(Verb::name).collect();
    (!parsed.rules().iter().flat_map(|rule| &rule.verbs).any(fits)).then(|| {
        format!(
            "the policy '{}' allows nobody what a key with algorithm {} does: {}",
            policy.name,
            algorithm.name(),
            verbs.join(" and ")
        )
    })
}

fn check_policy_name(name: &str) -> Result<(), AdminError> {
    let problem = "a policy's name is 1 to 63 of a-z 0-9 - _ .";
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if (1..=63).contains(&name.len()) && name.bytes().all(valid) {
        Ok(())
    } else {
        Err(AdminError::invalid("name", problem))
    }
}

fn view_policy(record: &PolicyRecord) -> Value {
    to_json(&views::policy(record.clone(), 0))
}
