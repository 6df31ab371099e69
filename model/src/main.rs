//! Explores the models and prints what was found: `tidemill-model [--depth N] [words of a name]`.
//! The word `deep` adds what takes minutes; `TRACE=1` prints the ways to what was found.

use std::process::ExitCode;
use std::time::Instant;

use tidemill_model::exactly_once::trials::{CAUGHT, HARMLESS, Mix, Mutation};
use tidemill_model::explore::{Limits, Model, Report, Verdict, explore};
use tidemill_model::primary_key::trials as primary_key;

fn main() -> ExitCode {
    let mut limits = Limits::ALL;
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--depth" {
            let Some(depth) = arguments.next().and_then(|depth| depth.parse().ok()) else {
                eprintln!("--depth needs a number of steps");
                return ExitCode::from(2);
            };
            limits.depth = depth;
        } else {
            words.push(argument.to_lowercase());
        }
    }
    let wanted = |name: &str| words.iter().all(|word| name.to_lowercase().contains(word));
    let mut as_expected = true;
    let deep = words.iter().any(|word| word.starts_with("deep"));
    for mix in Mix::ALL.into_iter().chain(Mix::DEEP.into_iter().filter(|_| deep)) {
        let name = format!("§3 {mix:?}");
        if wanted(&name) {
            as_expected &= run(&name, &mix.protocol(), limits, true);
        }
    }
    for (mutations, holds) in [(CAUGHT, false), (HARMLESS, true)] {
        for mutation in mutations {
            let name = named(mutation);
            if wanted(&name) {
                as_expected &= run(&name, &mutation.protocol(), limits, holds);
            }
        }
    }
    for mix in primary_key::Mix::ALL {
        let name = format!("§2 {mix:?}");
        if wanted(&name) {
            as_expected &= run(&name, &mix.protocol(&[]), limits, true);
        }
    }
    for (mutations, holds) in [(primary_key::CAUGHT, false), (primary_key::HARMLESS, true)] {
        for mutation in mutations {
            let name = format!("§2 without {} [{:?}]", mutation.name, mutation.mix);
            if wanted(&name) {
                as_expected &= run(&name, &mutation.mix.protocol(mutation.off), limits, holds);
            }
        }
    }
    if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn named(mutation: &Mutation) -> String {
    format!("§3 without {} [{:?}]", mutation.name, mutation.mix)
}

/// Explores and prints; whether it came out as expected.
fn run<M: Model>(name: &str, model: &M, limits: Limits, holds: bool) -> bool {
    let start = Instant::now();
    let Report { states, edges, depth, verdict } = explore(model, limits);
    let (found, trace) = match &verdict {
        Verdict::Holds => ("holds", &[][..]),
        Verdict::HoldsWithinLimits => ("holds within the limits", &[][..]),
        Verdict::Violated { what, trace } => (*what, &trace[..]),
        Verdict::Stuck { trace } => ("the end cannot be reached", &trace[..]),
    };
    let expected = matches!(verdict, Verdict::Holds | Verdict::HoldsWithinLimits) == holds;
    let mark = if expected { "" } else { "  <== NOT AS EXPECTED" };
    println!("{name}: {found}; {states} states, {edges} steps, depth {depth}, {:.1?}{mark}", start.elapsed());
    if !expected || std::env::var_os("TRACE").is_some() {
        for step in trace {
            println!("    {step}");
        }
    }
    expected
}
