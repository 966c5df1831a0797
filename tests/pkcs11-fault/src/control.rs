//! The control file, `fault.json`: which module is the real one, and what goes wrong now.
//!
//! ```json
//! {"module": "real.so", "faults": [
//!     {"id": 1, "functions": ["C_Encrypt"], "effect": {"code": "CKR_DEVICE_ERROR"}, "probability": 0.1},
//!     {"id": 2, "effect": {"device": {"ms": 1, "at_once": 8}}}
//! ]}
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::table::Function;

/// The file's name, beside the module.
pub const FILE: &str = "fault.json";

/// What the file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// The real module; relative to this directory. Read once, when the module is loaded.
    pub module: PathBuf,
    /// In this order they apply to a call.
    #[serde(default)]
    pub faults: Vec<Fault>,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Tells faults apart when the file is read again: what has happened once does not happen anew.
    #[serde(default)]
    pub id: u64,
    /// What goes wrong.
    pub effect: Effect,
    /// Which calls it touches; none named are all those that [`Effect`] says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<Function>,
    /// How many of these calls it hits, as a share.
    #[serde(default = "always")]
    pub probability: f64,
    /// After so many hits it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
}

/// What goes wrong. `functions`, `probability` and `calls` mean something for the first six.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Effect {
    /// The call fails with this return code. The real module is not asked; only an encryption, decryption or signature is ended there, as
    /// it is on a device that fails one. All functions.
    Code(Code),
    /// The call comes late: by `ms` if `sigma` is 0, else log-normally with this median. All functions.
    Delay {
        /// Milliseconds; the median.
        ms: f64,
        /// Standard deviation of the natural logarithm.
        #[serde(default)]
        sigma: f64,
    },
    /// The call waits until this fault is gone from the file, and then goes on. All functions.
    Hang,
    /// The process dies of a segmentation fault. All functions.
    Crash,
    /// The device has `at_once` cores, and a call takes `ms` on one of them; others wait. Cryptographic functions.
    Device {
        /// Milliseconds.
        ms: f64,
        /// Cores. Of one process: others that use this copy have their own.
        at_once: usize,
    },
    /// A bit of the result is wrong, with CKR_OK. C_Encrypt, C_Decrypt and C_Sign.
    FlipBit,
    /// C_OpenSession fails with CKR_SESSION_COUNT when so many are open, and C_GetTokenInfo says so.
    SessionLimit(usize),
    /// C_Login fails with CKR_PIN_LOCKED once so many logins have failed with CKR_PIN_INCORRECT, over all processes.
    PinLimit(u64),
    /// Once: all sessions are closed, and the login with them.
    LoseSessions,
    /// Once: the token logs the user out.
    LogOut,
    /// Once: the handles of objects that were given out are no longer valid.
    StaleHandles,
    /// The token is pulled: what needs it fails with CKR_DEVICE_REMOVED or CKR_TOKEN_NOT_PRESENT. It is back, without sessions, when
    /// this fault is gone from the file.
    Remove,
}

fn always() -> f64 {
    1.0
}

impl Fault {
    /// This effect, always.
    pub fn new(effect: Effect) -> Self {
        Self { id: 0, effect, functions: Vec::new(), probability: 1.0, calls: None }
    }

    /// A return code by its name. An unknown name is a mistake in the test, and panics.
    pub fn code(name: &str) -> Self {
        Self::new(Effect::Code(Code::try_from(name.to_owned()).unwrap_or_else(|error| panic!("{error}"))))
    }

    /// In calls of this function; may be said again for another one. An unknown name panics.
    #[must_use]
    pub fn of(mut self, function: &str) -> Self {
        self.functions.push(Function::named(function));
        self
    }

    /// In this share of the calls.
    #[must_use]
    pub fn with_probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    /// In the next calls, so many.
    #[must_use]
    pub fn times(mut self, calls: u64) -> Self {
        self.calls = Some(calls);
        self
    }
}
