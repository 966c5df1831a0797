//! The binary `ekm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ekm_server::cli::main()
}
