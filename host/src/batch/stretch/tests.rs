use proptest::prelude::*;

use super::*;
use crate::fault::Fault;
use crate::sink::Rejection;

const BOUNDS: StretchBounds = StretchBounds {
    max_rows: 70,
    max_bytes: 300,
    linger: Duration::from_secs(8),
    versions: 500,
    calm: Duration::from_secs(60),
};
const LIMITS: BatchLimits =
    BatchLimits { max_rows: 10, max_bytes: 100, linger: Duration::from_secs(1), stretch: Some(BOUNDS) };
const SECOND: Duration = Duration::from_secs(1);

fn pressed(factor: u32, at: Instant) -> Stretch {
    let mut stretch = Stretch::new(LIMITS);
    for step in 0..factor.ilog2() {
        let _ = stretch.see(Sign::PublishTimeout, at - STEP_EVERY * (factor.ilog2() - 1 - step));
    }
    assert_eq!(stretch.factor(), factor);
    stretch
}

/// Instants before now are asked for, which a machine that was just started may not have.
fn now() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[test]
fn a_sign_doubles_and_each_limit_stops_at_its_bound() {
    let mut stretch = Stretch::new(LIMITS);
    let at = now();
    assert_eq!(stretch.limits(), LIMITS);
    let mut check = |second: u32, factor: u32, (rows, bytes, linger_s): (u64, u64, u64)| {
        let (cause, _) = stretch.see(Sign::Refused, at + SECOND * second);
        assert_eq!((cause, stretch.factor()), (Some(Cause::TooManyVersions), factor));
        let limits = stretch.limits();
        assert_eq!((limits.max_rows, limits.max_bytes, limits.linger.as_secs()), (rows, bytes, linger_s));
    };
    check(0, 2, (20, 200, 2));
    // Several loads are refused at once: one sign.
    check(0, 2, (20, 200, 2));
    check(1, 4, (40, 300, 4));
    check(2, 8, (70, 300, 8));
    // All are at their bounds.
    check(9, 8, (70, 300, 8));
}

#[test]
fn a_bound_below_its_limit_leaves_it_alone() {
    let bounds = StretchBounds { max_rows: 1, max_bytes: 1, linger: 2 * SECOND, ..BOUNDS };
    let mut stretch = Stretch::new(BatchLimits { stretch: Some(bounds), ..LIMITS });
    let (_, step) = stretch.see(Sign::Refused, now());
    assert_eq!(step, Some(Step { from: 1, to: 2 }));
    let limits = stretch.limits();
    assert_eq!((limits.max_rows, limits.max_bytes, limits.linger), (10, 100, 2 * SECOND));
}

#[test]
fn what_is_turned_off_never_stretches() {
    let low = StretchBounds { max_rows: 1, max_bytes: 1, linger: SECOND, ..BOUNDS };
    for off in [None, Some(low)] {
        let mut stretch = Stretch::new(BatchLimits { stretch: off, ..LIMITS });
        let (cause, step) = stretch.see(Sign::Refused, now());
        assert_eq!((step, stretch.factor(), stretch.rests_at()), (None, 1, None));
        assert_eq!(cause, off.map(|_| Cause::TooManyVersions), "the metric counts all the same");
    }
}

#[test]
fn calm_brings_it_back_step_by_step() {
    let at = now();
    let mut stretch = pressed(8, at);
    assert_eq!(stretch.rest(at + BOUNDS.calm - SECOND), None);
    assert_eq!(stretch.rests_at(), Some(at + BOUNDS.calm));
    let step = stretch.rest(at + BOUNDS.calm).expect("a step back");
    assert_eq!((step, step.ends()), (Step { from: 8, to: 4 }, false));
    assert_eq!(stretch.rest(at + BOUNDS.calm), None);
    // A sign on the way back: up again, and the calm begins anew.
    let (_, step) = stretch.see(Sign::PublishTimeout, at + BOUNDS.calm + SECOND);
    assert_eq!(step, Some(Step { from: 4, to: 8 }));
    let step = stretch.rest(at + 5 * BOUNDS.calm).expect("steps back");
    assert_eq!((step, step.ends()), (Step { from: 8, to: 1 }, true));
    assert_eq!((stretch.limits(), stretch.rests_at()), (LIMITS, None));
}

#[test]
fn while_a_refused_load_waits_it_is_not_calm() {
    let at = now();
    let mut stretch = Stretch::new(LIMITS);
    let _ = stretch.see(Sign::Refused, at);
    assert_eq!(stretch.rests_at(), Some(at + TRIED_AGAIN_WITHIN + BOUNDS.calm));
    // Versions may fall meanwhile: only a load that is taken shows that it is over.
    let _ = stretch.see(Sign::Versions(300), at + SECOND);
    assert_eq!(stretch.rests_at(), Some(at + TRIED_AGAIN_WITHIN + BOUNDS.calm));
    let _ = stretch.see(Sign::Loaded { took: SECOND, bytes: 1 }, at + 2 * SECOND);
    assert_eq!(stretch.rests_at(), Some(at + 2 * SECOND + BOUNDS.calm));
}

/// Whatever else asks for the stretch meanwhile: that load may still be refused.
#[test]
fn many_versions_do_not_bring_the_return_nearer_while_a_refused_load_waits() {
    let at = now();
    let mut stretch = Stretch::new(LIMITS);
    let _ = stretch.see(Sign::Refused, at);
    let (cause, _) = stretch.see(Sign::Versions(1_000), at + 2 * SECOND);
    assert_eq!(cause, Some(Cause::Versions));
    assert_eq!(stretch.rests_at(), Some(at + TRIED_AGAIN_WITHIN + BOUNDS.calm));
    // Later ones than the refusal's count by themselves.
    let later = at + TRIED_AGAIN_WITHIN + SECOND;
    let _ = stretch.see(Sign::Versions(1_000), later);
    assert_eq!(stretch.rests_at(), Some(later + BOUNDS.calm));
}

#[test]
fn versions_hold_until_they_are_read_again_however_short_the_calm_is() {
    let bounds = StretchBounds { calm: SECOND, ..BOUNDS };
    let at = now();
    for versions in [500, 250] {
        let mut stretch = Stretch::new(BatchLimits { stretch: Some(bounds), ..LIMITS });
        let _ = stretch.see(Sign::PublishTimeout, at);
        let _ = stretch.see(Sign::Versions(versions), at);
        // Loads that come through do not say that there are fewer versions.
        let _ = stretch.see(Sign::Loaded { took: SECOND, bytes: 1 }, at + SECOND);
        assert_eq!(stretch.rest(at + VERSIONS_EVERY), None, "{versions} versions");
        assert!(stretch.rest(at + 2 * VERSIONS_EVERY).is_some_and(Step::ends), "nobody reads them any more");
    }
}

/// With the default bounds and small batches the factor can become 65,536.
#[test]
fn the_way_back_is_short_however_far_the_bounds_are() {
    let bounds = StretchBounds { max_rows: 5_000_000, max_bytes: 1 << 30, linger: 10 * SECOND, ..BOUNDS };
    let limits = BatchLimits { max_rows: 100, max_bytes: 100 << 20, linger: SECOND, stretch: Some(bounds) };
    let at = now();
    let mut stretch = Stretch::new(limits);
    for second in 0..16 {
        let _ = stretch.see(Sign::PublishTimeout, at + SECOND * second);
    }
    assert_eq!((stretch.factor(), stretch.limits().max_rows), (1 << 16, bounds.max_rows));
    let last = at + 15 * SECOND;
    for factor in [1 << 12, 1 << 8, 1 << 4, 1] {
        let due = stretch.rests_at().expect("it is stretched");
        let _ = stretch.rest(due);
        assert_eq!(stretch.factor(), factor, "{:?} after the last sign", due - last);
    }
    assert_eq!(stretch.rest(last + STEPS_BACK_MAX * BOUNDS.calm), None);
}

#[test]
fn versions_raise_hold_and_let_go() {
    let at = now();
    let mut stretch = Stretch::new(LIMITS);
    assert_eq!(stretch.see(Sign::Versions(499), at), (None, None));
    let (cause, step) = stretch.see(Sign::Versions(500), at);
    assert_eq!((cause, step), (Some(Cause::Versions), Some(Step { from: 1, to: 2 })));
    // Between the thresholds: held, for however long.
    for calm in 1..10 {
        let held = stretch.see(Sign::Versions(250), at + BOUNDS.calm / 2 * calm);
        assert_eq!((held, stretch.factor()), ((None, None), 2));
    }
    let last = at + BOUNDS.calm / 2 * 9;
    assert_eq!(stretch.see(Sign::Versions(249), last + BOUNDS.calm - SECOND), (None, None));
    let (_, step) = stretch.see(Sign::Versions(249), last + BOUNDS.calm);
    assert_eq!(step, Some(Step { from: 2, to: 1 }));
}

#[test]
fn slow_loads_count_in_a_row_and_by_their_bytes() {
    let at = now();
    let mut stretch = Stretch::new(LIMITS);
    let mut see = |took_s: u64, mib: u64| {
        stretch.see(Sign::Loaded { took: SECOND * took_s as u32, bytes: mib << 20 }, at).0
    };
    assert_eq!([see(6, 0), see(6, 0), see(5, 0)], [None; 3], "one was fast enough");
    assert_eq!([see(6, 0), see(30, 80), see(21, 80)], [None, None, Some(Cause::SlowLoads)]);
    assert_eq!([see(6, 0), see(6, 0)], [None; 2], "counted anew");
    assert_eq!(see(19, 80), None, "80 MiB may take 20 s");
}

#[test]
fn answers_are_signs_or_say_nothing_of_versions() {
    let check = |answer: Outcome, expected: Option<Sign>| {
        assert_eq!(Sign::of(&answer, SECOND, 7), expected, "{answer:?}")
    };
    let receipt = |visible, txn| Outcome::Durable(Receipt { txn, loaded_rows: Some(1), visible });
    let why = || Fault::retry("test");
    check(receipt(true, Some(1)), Some(Sign::Loaded { took: SECOND, bytes: 7 }));
    check(receipt(false, Some(1)), Some(Sign::PublishTimeout));
    check(receipt(false, None), None);
    check(Outcome::Overloaded(why(), Scarce::Versions), Some(Sign::Refused));
    check(Outcome::Overloaded(why(), Scarce::Other), None);
    check(Outcome::Unsure(why()), None);
    check(Outcome::Refused(why()), None);
    let rejection =
        Rejection { message: String::new(), filtered_rows: Some(1), syntax: false, error_log: None };
    check(Outcome::BadRows(rejection), None);
}

/// Signs with the milliseconds since the one before.
fn story() -> impl Strategy<Value = Vec<(u32, Sign)>> {
    let sign = prop_oneof![
        Just(Sign::Refused),
        Just(Sign::PublishTimeout),
        (0_u64..12, 0_u64..100)
            .prop_map(|(took_s, mib)| Sign::Loaded { took: Duration::from_secs(took_s), bytes: mib << 20 }),
        (0_u64..1200).prop_map(Sign::Versions),
    ];
    prop::collection::vec((0_u32..90_000, sign), 0..60)
}

proptest! {
    #[test]
    fn it_stays_within_its_bounds_and_always_returns(story in story()) {
        let mut at = now();
        let mut stretch = Stretch::new(LIMITS);
        let mut raised: Option<Instant> = None;
        for (later_ms, sign) in story {
            at += Duration::from_millis(u64::from(later_ms));
            let before = stretch.factor();
            let (_, step) = stretch.see(sign, at);
            let factor = stretch.factor();
            prop_assert_eq!(step, (before != factor).then_some(Step { from: before, to: factor }));
            prop_assert!(factor.is_power_of_two() && factor <= 8);
            if factor > before {
                prop_assert!(factor == 2 * before, "doubled at most");
                prop_assert!(raised.is_none_or(|raised| at - raised >= STEP_EVERY), "and not at once again");
                raised = Some(at);
            }
            let limits = stretch.limits();
            prop_assert!((LIMITS.max_rows..=BOUNDS.max_rows).contains(&limits.max_rows));
            prop_assert!((LIMITS.max_bytes..=BOUNDS.max_bytes).contains(&limits.max_bytes));
            prop_assert!((LIMITS.linger..=BOUNDS.linger).contains(&limits.linger));
            // Who is stretched will be asked to return, and no later than after a pause and a calm.
            prop_assert_eq!(stretch.rests_at().is_some(), factor > 1);
            prop_assert!(stretch.rests_at().is_none_or(|due| due <= at + TRIED_AGAIN_WITHIN + BOUNDS.calm));
        }
        let _ = stretch.rest(at + TRIED_AGAIN_WITHIN + 3 * BOUNDS.calm);
        prop_assert_eq!(stretch.limits(), LIMITS);
    }

    #[test]
    fn it_does_not_matter_how_often_it_is_looked_at(story in story(), looks in prop::collection::vec(1_u32..200_000, 0..40)) {
        let began = now();
        let mut looks: Vec<Instant> = looks.into_iter().scan(began, |at, later_ms| {
            *at += Duration::from_millis(u64::from(later_ms));
            Some(*at)
        }).collect();
        let (mut at, mut watched, mut alone) = (began, Stretch::new(LIMITS), Stretch::new(LIMITS));
        for (later_ms, sign) in story {
            at += Duration::from_millis(u64::from(later_ms));
            while looks.first().is_some_and(|look| *look <= at) {
                let _ = watched.rest(looks.remove(0));
            }
            let _ = (watched.see(sign, at), alone.see(sign, at));
            prop_assert_eq!(watched.factor(), alone.factor());
            prop_assert_eq!(watched.rests_at(), alone.rests_at());
        }
    }
}
