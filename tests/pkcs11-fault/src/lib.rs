//! A PKCS#11 module that stands before a real one and misbehaves on request: a soft token has no session limit, is never slow, and does
//! not go away by itself.
//!
//! It finds its control file, `fault.json`, in its own directory, so that several copies can be loaded into one process with different
//! faults. A copy is a device of its own only if its real module is one as well: a loader gives the same file to everybody once, so the
//! harness copies the real module, too. The file is looked at in every call: a fault holds for all calls that begin after it was written.
//! What was called is counted in `fault.counts`, beside it, over all processes that use this copy.
//!
//! - [`control`]: the control file. `code`: return codes by name. [`counts`]: the counters.
//! - `shim`: one loaded copy, and what a fault does. `table`: the functions of PKCS#11 v2.40, each of which goes through it.
//!
//! The calls that only ask for the length of an output are the real module's alone: neither disturbed nor counted, so that one encryption is
//! one `C_Encrypt`.

mod code;
pub mod control;
pub mod counts;
mod shim;
mod table;

pub use code::Code;
pub use table::Function;
