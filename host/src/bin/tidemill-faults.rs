//! `tidemill` with failpoints and planted bugs, for the fault harness: see `src/failpoint.rs` and `src/planted.rs`.
//! `tidemill-faults failpoints` lists the names of the points.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|command| command == "failpoints") {
        tidemill::failpoint::POINTS.iter().for_each(|point| println!("{}\t{}", point.name, point.meaning));
        return ExitCode::SUCCESS;
    }
    let _armed = tidemill::failpoint::arm();
    tidemill::cli::main()
}
