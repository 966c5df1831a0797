//! Patterns over the resource that Cloud KMS names in a request.

use serde::{Deserialize, Serialize};

use crate::glob;

/// Names of Cloud KMS resources, with `*` for any run of characters, slashes included:
/// `projects/p/locations/*/keyRings/r/cryptoKeys/k/cryptoKeyVersions/*`. Compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourcePattern(String);

impl ResourcePattern {
    /// Whether `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        glob::matches(&self.0, name)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn covers(&self, other: &Self) -> bool {
        glob::covers(&self.0, &other.0)
    }
}

impl TryFrom<String> for ResourcePattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() {
            return Err("a resource is not empty; leave 'resources' out of the rule to allow any");
        }
        if text.starts_with('/') || text.ends_with('/') || text.contains("//") {
            return Err(
                "a resource is a name relative to the service, such as projects/p/locations/*/keyRings/r/cryptoKeys/k\
                        /cryptoKeyVersions/*: without a slash at either end, a host, or an empty part",
            );
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:~%/*".contains(&byte)) {
            return Err(
                "a resource consists of ASCII letters and digits, '-_.:~%/', and '*' for any run of characters; \
                        nothing else is in a resource's name, and no other sign is special",
            );
        }
        Ok(Self(text))
    }
}

impl From<ResourcePattern> for String {
    fn from(pattern: ResourcePattern) -> Self {
        pattern.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_as_a_whole() {
        let text = "projects/p/locations/*/keyRings/r/cryptoKeys/k/cryptoKeyVersions/*";
        let pattern = ResourcePattern::try_from(text.to_owned()).unwrap();
        assert!(pattern.matches("projects/p/locations/us-east1/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"));
        for other in [
            "projects/p/locations/us-east1/keyRings/r/cryptoKeys/k",
            "projects/q/locations/us-east1/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "/projects/p/locations/us-east1/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "Projects/p/locations/us-east1/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "",
        ] {
            assert!(!pattern.matches(other), "{other}");
        }
    }

    #[test]
    fn a_pattern_that_can_match_no_name_is_refused() {
        for text in [
            "",
            " ",
            "/projects/p",
            "projects/p/",
            "projects//locations/*",
            "//cloudkms.googleapis.com/projects/p/*",
            "https://cloudkms.googleapis.com/v1/projects/p/*",
            "projects/p ",
            "projects/my project/*",
            "projects/\n/*",
            "projects/\u{0}",
            "projects/р/*", // Cyrillic
            "projects/[a-z]+/.*",
            "projects/p/locations/{a,b}/*",
            "projects/?/*",
        ] {
            assert!(ResourcePattern::try_from(text.to_owned()).is_err(), "{text:?} was accepted");
        }
    }
}
