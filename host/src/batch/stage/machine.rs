//! Ledger, batches, release and restart against short references, with a crash after any step.
//!
//! What is under test is the host's own code: [`Ledger`](crate::ledger::Ledger), the stage without its thread, `Piece`,
//! letters that wait for a decision, the plan of a take-over and `recover`. What stands around it is a world of maps that
//! outlives a crash: released offsets, loaded rows, kept letters. `PROPTEST_CASES` says how many sequences there are
//! instead of 500.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

mod at_least_once;
mod exactly_once;
mod lasting;
mod pipeline;
mod reckoning;
mod records;
mod recovery;

const PARTITIONS: usize = 2;
const TABLES: usize = 2;
/// So long that only the steps cut.
const LINGER: Duration = Duration::from_secs(3600);
const SEQUENCES: u32 = 500;
/// Steps of the longest.
const STEPS_MAX: usize = 96;

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = cases.unwrap_or(SEQUENCES);
    // A step that the state does not allow is drawn again, and counts as a reject: a few hundred in long sequences.
    let max_local_rejects = cases.saturating_mul(1_000).max(65_536);
    Config { cases, max_local_rejects, failure_persistence: None, ..Config::default() }
}

/// Fewer sequences than this that meet a situation would show little of it.
const REACHED_MIN: u32 = 25;

/// A situation by its name, and whether a step is about to meet it.
type Situation<S, T> = (&'static str, fn(&S, &T) -> bool);

/// Expects that sequences as they are generated meet what they are for.
fn must_reach<R: ReferenceStateMachine>(situations: &[Situation<R::State, R::Transition>]) {
    let (mut runner, strategy) = (TestRunner::deterministic(), R::sequential_strategy(1..=STEPS_MAX));
    let mut reached: BTreeMap<&str, u32> = situations.iter().map(|(name, _)| (*name, 0)).collect();
    for _ in 0..SEQUENCES {
        let (mut state, steps, _) = strategy.new_tree(&mut runner).expect("a sequence").current();
        for step in steps {
            for (name, _) in situations.iter().filter(|(_, met)| met(&state, &step)) {
                *reached.entry(name).or_default() += 1;
            }
            state = R::apply(state, &step);
        }
    }
    assert!(reached.values().all(|times| *times >= REACHED_MIN), "{reached:?}");
}
