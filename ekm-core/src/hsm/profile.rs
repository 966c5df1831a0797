//! How the vendors' tokens differ, as data: one profile for each, from its vendor's public documentation or from our own tests.
//!
//! What is not here is the same for all, or is found out from the token itself (mechanisms, session limit, presence).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names a profile, in configuration, messages and the table of return codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum ProfileName {
    /// SoftHSM 2.
    SoftHsm,
    /// Kryoptic.
    Kryoptic,
    /// Luna HSMs, by Thales, formerly SafeNet; also Luna Cloud HSM (DPoD).
    Luna,
    /// nShield HSMs, by Entrust, formerly nCipher.
    NShield,
    /// AWS CloudHSM with Client SDK 5.
    CloudHsm,
    /// u.trust, SecurityServer and CryptoServer, by Utimaco.
    Utimaco,
    /// Every other token: what the specification says, and no more.
    Generic,
}

/// What we do differently for one kind of token.
#[derive(Debug)]
pub struct Profile {
    /// Which one it is.
    pub name: ProfileName,
    /// The libraries that it fits: how their manufacturer's name and their description (`C_GetInfo`) begin.
    pub libraries: &'static [(&'static str, &'static str)],
    /// Sessions, and so threads, if the configuration does not say.
    pub sessions: usize,
    /// Whether it refuses read-only sessions, so that all of ours are read-write.
    pub read_write_only: bool,
    /// Whether to work with a copy of the key that lives in the session.
    pub session_copy: bool,
    /// Who draws the nonces of AES-GCM.
    pub iv: IvSource,
    /// The longest plaintext that one call takes, if its vendor says so.
    pub max_plaintext_bytes: Option<usize>,
    /// Whether it imports keys in every mode of operation, so that it must pass the known-answer test. Others may refuse (FIPS),
    /// and are then tested by a round trip only.
    pub imports_keys: bool,
    /// Whether its library needs a network. If not, its worker process has none.
    pub network: bool,
    /// Whether this project's tests run on it. All else is from documentation.
    pub tested: bool,
}

/// Who draws the nonces of AES-GCM. Whoever does, what counts is read back after the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvSource {
    /// We do, 96 random bits each.
    Ours,
    /// The HSM does, and writes it into our buffer, which must hold zeros before.
    Hsm,
}

/// Every profile, [`GENERIC`] last.
pub static PROFILES: &[&Profile] = &[&SOFTHSM, &KRYOPTIC, &LUNA, &NSHIELD, &CLOUDHSM, &UTIMACO, &GENERIC];

/// For every token that no other profile fits.
pub static GENERIC: Profile = COMMON;

/// Measured: one lock around everything, so that a second thread halves the throughput; and it reads and locks a token object's
/// file at every operation (25 of 40 µs), which a copy in the session spares it.
static SOFTHSM: Profile = Profile {
    name: ProfileName::SoftHsm,
    libraries: &[("SoftHSM", "")],
    sessions: 1,
    session_copy: true,
    imports_keys: true,
    network: false,
    tested: true,
    ..COMMON
};

static KRYOPTIC: Profile = Profile {
    name: ProfileName::Kryoptic,
    libraries: &[("Kryoptic", "")],
    imports_keys: true,
    network: false,
    tested: true,
    ..COMMON
};

/// Thales, "Luna Network HSM 7 Product Documentation", SDK Reference, "CKM_AES_GCM": without FIPS mode the IV is the caller's; in
/// FIPS mode the HSM draws one of 16 bytes and appends it to the ciphertext, for which our blobs have no room: the self-test refuses
/// that. The same maker's tokens and ProtectToolkit have other libraries with other return codes.
static LUNA: Profile = Profile { name: ProfileName::Luna, libraries: &[("SafeNet", "Chrystoki")], ..COMMON };

/// Entrust, "nShield Security World PKCS#11 Developer Guide", "Mechanisms".
static NSHIELD: Profile = Profile { name: ProfileName::NShield, libraries: &[("nCipher", "")], ..COMMON };

/// AWS, "CloudHSM User Guide": "Supported mechanisms for Client SDK 5", note 1 (the HSM draws the IV; the buffer must be zeros);
/// "Known issues for the PKCS #11 library" (read-only sessions are refused; at most 16 KB in `C_Encrypt` and `C_Decrypt`). What the
/// library calls itself is not documented, so this profile has to be named.
static CLOUDHSM: Profile = Profile {
    name: ProfileName::CloudHsm,
    read_write_only: true,
    iv: IvSource::Hsm,
    max_plaintext_bytes: Some(16 * 1024),
    ..COMMON
};

/// Nothing in Utimaco's public documentation asks for more than the specification does.
static UTIMACO: Profile = Profile { name: ProfileName::Utimaco, libraries: &[("Utimaco", "")], ..COMMON };

/// What the specification promises; the other profiles say where they depart from it.
const COMMON: Profile = Profile {
    name: ProfileName::Generic,
    libraries: &[],
    sessions: 8,
    read_write_only: false,
    session_copy: false,
    iv: IvSource::Ours,
    max_plaintext_bytes: None,
    imports_keys: false,
    network: true,
    tested: false,
};

impl Profile {
    /// The profile for a library that calls itself so in `C_GetInfo`.
    pub fn of_library(manufacturer: &str, description: &str) -> &'static Self {
        let fits = |profile: &&&Self| {
            let begins =
                |(maker, text): &(&str, &str)| manufacturer.starts_with(maker) && description.starts_with(text);
            profile.libraries.iter().any(begins)
        };
        PROFILES.iter().find(fits).copied().unwrap_or(&GENERIC)
    }

    /// The profile of that name.
    pub fn named(name: ProfileName) -> &'static Self {
        PROFILES.iter().find(|profile| profile.name == name).copied().unwrap_or(&GENERIC)
    }
}

/// The name in a configuration is none of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no HSM profile '{unknown}'; there are {}", known())]
pub struct UnknownProfile {
    unknown: String,
}

fn known() -> String {
    PROFILES.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>().join(", ")
}

impl ProfileName {
    /// As in configuration and documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SoftHsm => "softhsm",
            Self::Kryoptic => "kryoptic",
            Self::Luna => "luna",
            Self::NShield => "nshield",
            Self::CloudHsm => "cloudhsm",
            Self::Utimaco => "utimaco",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProfileName {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        let named = PROFILES.iter().find(|profile| profile.name.as_str() == text);
        named.map(|profile| profile.name).ok_or_else(|| UnknownProfile { unknown: text.to_owned() })
    }
}

impl TryFrom<String> for ProfileName {
    type Error = UnknownProfile;

    fn try_from(text: String) -> Result<Self, UnknownProfile> {
        text.parse()
    }
}

impl From<ProfileName> for String {
    fn from(name: ProfileName) -> Self {
        name.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_guide_shows_these_profiles() {
        let guide = include_str!("../../../docs/hsm.md");
        for profile in PROFILES {
            let quoted = |(maker, text): &(&str, &str)| match text {
                &"" => format!("`{maker}…`"),
                text => format!("`{maker}…` and `{text}…`"),
            };
            let recognised = profile.libraries.first().map_or("by no name".into(), quoted);
            let nonces = if profile.iv == IvSource::Ours { "ekm" } else { "the HSM" };
            let most = profile.max_plaintext_bytes.map_or("-".into(), |bytes| bytes.to_string());
            let tested = if profile.tested { "yes" } else { "**no**" };
            let row = format!(
                "| [`{name}`](#{name}) | {recognised} | {sessions} | {nonces} | {most} | {tested} |",
                name = profile.name,
                sessions = profile.sessions,
            );
            assert!(guide.contains(&row), "docs/hsm.md must show: {row}");
        }
    }

    #[test]
    fn a_library_is_recognised_by_what_it_calls_itself() {
        let name = |manufacturer, description| Profile::of_library(manufacturer, description).name;
        assert_eq!(name("SoftHSM", "Implementation of PKCS11"), ProfileName::SoftHsm);
        assert_eq!(name("Kryoptic", "Kryoptic PKCS11 Module"), ProfileName::Kryoptic);
        assert_eq!(name("SafeNet", "Chrystoki"), ProfileName::Luna);
        assert_eq!(name("nCipher Corp. Ltd", ""), ProfileName::NShield);
        assert_eq!(name("Utimaco IS GmbH", ""), ProfileName::Utimaco);
        assert_eq!(name("SafeNet, Inc.", "SafeNet eToken PKCS#11"), ProfileName::Generic);
        assert_eq!(name("", ""), ProfileName::Generic);
    }

    #[test]
    fn every_profile_is_found_by_its_name_and_an_unknown_name_is_answered_with_those_that_there_are() {
        for profile in PROFILES {
            assert_eq!(profile.name.as_str().parse(), Ok(profile.name));
            assert!(std::ptr::eq(Profile::named(profile.name), *profile), "{} is in the list once", profile.name);
        }
        let error = "Luna7".parse::<ProfileName>().unwrap_err().to_string();
        let known = "softhsm, kryoptic, luna, nshield, cloudhsm, utimaco, generic";
        assert_eq!(error, format!("there is no HSM profile 'Luna7'; there are {known}"));
    }

    #[test]
    fn only_what_our_tests_run_on_is_called_tested() {
        let tested = PROFILES.iter().filter(|profile| profile.tested).map(|profile| profile.name);
        assert_eq!(tested.collect::<Vec<_>>(), [ProfileName::SoftHsm, ProfileName::Kryoptic]);
    }
}
