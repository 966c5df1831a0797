//! What lists can be asked for.

use ekm_core::KeyPath;
use ekm_core::catalog::{ApprovalState, KeyState};
use serde::{Deserialize, Deserializer, de};
use utoipa::IntoParams;

/// Which keys, and which page of them.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KeyQuery {
    /// Only keys of this crypto space.
    #[param(value_type = Option<String>)]
    pub space: Option<KeyPath>,
    /// Only keys in this state.
    #[param(value_type = Option<String>)]
    pub state: Option<KeyState>,
    /// Only keys with this label, as `name=value`.
    #[serde(default, deserialize_with = "label")]
    #[param(value_type = Option<String>)]
    pub label: Option<(String, String)>,
    /// Only keys with a path that begins so.
    pub prefix: Option<String>,
    /// How many at most, 1 to 1000.
    #[serde(default = "default_page_size", deserialize_with = "page_size")]
    #[param(minimum = 1, maximum = 1000, default = 100, required = false)]
    pub page_size: u64,
    /// From the page before.
    pub page_token: Option<String>,
}

/// Which page.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// How many at most, 1 to 1000.
    #[serde(default = "default_page_size", deserialize_with = "page_size")]
    #[param(minimum = 1, maximum = 1000, default = 100, required = false)]
    pub page_size: u64,
    /// From the page before.
    pub page_token: Option<String>,
}

/// Which approvals, and which page of them.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ApprovalQuery {
    /// Only approvals in this state.
    #[param(value_type = Option<String>)]
    pub state: Option<ApprovalState>,
    /// How many at most, 1 to 1000.
    #[serde(default = "default_page_size", deserialize_with = "page_size")]
    #[param(minimum = 1, maximum = 1000, default = 100, required = false)]
    pub page_size: u64,
    /// From the page before.
    pub page_token: Option<String>,
}

/// Which entries of the log of changes.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ChangesQuery {
    /// Only entries before this revision.
    pub before: Option<u64>,
    /// How many at most, 1 to 1000.
    #[serde(default = "default_page_size", deserialize_with = "page_size")]
    #[param(minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: u64,
}

fn default_page_size() -> u64 {
    100
}

fn page_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    if (1..=1000).contains(&size) { Ok(size) } else { Err(de::Error::custom("write 1 to 1000")) }
}

fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(String, String)>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (name, value) = text.split_once('=').ok_or_else(|| de::Error::custom("write name=value"))?;
    Ok(Some((name.to_owned(), value.to_owned())))
}
