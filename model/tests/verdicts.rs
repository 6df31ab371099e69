//! Every mix of faults is explored to its end; every rule is switched off once.

use std::time::Instant;

use tidemill_model::exactly_once::trials as exactly_once;
use tidemill_model::explore::{Limits, Model, Report, Verdict, explore};
use tidemill_model::primary_key::trials as primary_key;

/// Explores all of `model` and prints how much that was.
fn report<M: Model>(name: &str, model: &M) -> Report {
    let start = Instant::now();
    let report = explore(model, Limits::ALL);
    let Report { states, edges, depth, .. } = &report;
    println!("{name}: {states} states, {edges} steps, depth {depth}, {:.1?}", start.elapsed());
    report
}

fn assert_holds<M: Model>(name: &str, model: &M) {
    assert_eq!(report(name, model).verdict, Verdict::Holds, "{name}");
}

fn assert_caught<M: Model>(name: &str, model: &M) {
    match report(name, model).verdict {
        Verdict::Violated { trace, .. } | Verdict::Stuck { trace } => {
            assert!(!trace.is_empty(), "{name}: no trace")
        }
        verdict @ (Verdict::Holds | Verdict::HoldsWithinLimits) => panic!("{name}: not caught, {verdict:?}"),
    }
}

#[test]
fn exactly_once_with_crashes_and_freezes() {
    for mix in [exactly_once::Mix::CrashAndFreeze, exactly_once::Mix::TwoFreezes] {
        assert_holds(&format!("§3 {mix:?}"), &mix.protocol());
    }
}

#[test]
fn exactly_once_with_lost_answers_and_late_requests() {
    use exactly_once::Mix;
    for mix in [Mix::FreezeAndLate, Mix::CrashAndLoss, Mix::TwoLate] {
        assert_holds(&format!("§3 {mix:?}"), &mix.protocol());
    }
}

#[test]
fn exactly_once_with_forgotten_labels_time_outs_and_repeated_crashes() {
    use exactly_once::Mix;
    for mix in [Mix::TwoCrashes, Mix::Forgetting, Mix::Time, Mix::Tidy] {
        assert_holds(&format!("§3 {mix:?}"), &mix.protocol());
    }
}

#[test]
fn exactly_once_breaks_without_its_rules() {
    for mutation in exactly_once::CAUGHT {
        assert_caught(&format!("§3 without {}", mutation.name), &mutation.protocol());
    }
}

#[test]
fn exactly_once_holds_without_its_second_lines() {
    for mutation in exactly_once::HARMLESS {
        assert_holds(&format!("§3 without {}", mutation.name), &mutation.protocol());
    }
}

#[test]
fn primary_key_tables_do_not_go_back() {
    for mix in primary_key::Mix::ALL {
        assert_holds(&format!("§2 {mix:?}"), &mix.protocol(&[]));
    }
}

#[test]
fn primary_key_tables_go_back_without_the_rules() {
    for mutation in primary_key::CAUGHT {
        assert_caught(&format!("§2 without {}", mutation.name), &mutation.mix.protocol(mutation.off));
    }
}

#[test]
fn primary_key_tables_hold_without_the_second_lines() {
    for mutation in primary_key::HARMLESS {
        assert_holds(&format!("§2 without {}", mutation.name), &mutation.mix.protocol(mutation.off));
    }
}
