//! Explores a model from the command line.

use std::time::Instant;

use tidemill_model::exactly_once::state::Budget;
use tidemill_model::exactly_once::{Bounds, ExactlyOnce, Rules};
use tidemill_model::explore::{Limits, explore};

fn main() {
    let numbers: Vec<u8> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let [r0, r1, tables, crashes, kicks, lost, late, aborts, forgets] = numbers[..] else { return };
    let faults = Budget { crashes, kicks, lost, late, aborts, forgets, ticks: 0 };
    let bounds = Bounds { records: [r0, r1], tables, window: 2, faults, prepared_timeout: 0, margin: 0, tidy: false, done: false };
    let start = Instant::now();
    let report = explore(&ExactlyOnce { bounds, rules: Rules::all() }, Limits::ALL);
    println!("{} states, {} edges, depth {}, {:?}: {:#?}", report.states, report.edges, report.depth, start.elapsed(), report.verdict);
}
