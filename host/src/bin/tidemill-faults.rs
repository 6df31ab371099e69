//! `tidemill` with failpoints and planted bugs, for the fault harness: see `src/failpoint.rs` and `src/planted.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidemill::cli::main()
}
