//! What sequences of steps are for, and whether they come to it.

use super::super::must_reach;
use super::super::records::{Hold, Part};
use super::{Loss, Phase, Reference, Step, TAKE_OVER_STEPS};

impl Reference {
    fn has_decided_loads_to_commit(&self) -> bool {
        matches!(self.phase(), Some((Phase::Decided(done), loads)) if done < loads)
    }

    /// Whether `step` is a decision that takes letters along, and `met` is so of one that waits: it is given the letter and
    /// whether the decision reaches it.
    fn decides_a_letter(&self, step: &Step, written: bool, met: impl Fn(&Hold, bool) -> bool) -> bool {
        let is_decision = matches!(step, Step::Decide { written: found, .. } if *found == written);
        let Some(safe) = self.decides().filter(|_| is_decision && self.decides_letters) else { return false };
        self.letters.iter().any(|letter| met(letter, letter.record.offset <= safe[letter.record.partition]))
    }
}

#[test]
fn the_process_dies_on_either_side_of_a_decision() {
    must_reach::<Reference>(&[
        ("dies while it prepares", |state, step| {
            matches!((step, state.phase()), (Step::Crash { .. }, Some((Phase::Prepares(_), _))))
        }),
        ("dies with decided loads that are not committed", |state, step| {
            matches!(step, Step::Crash { .. }) && state.has_decided_loads_to_commit()
        }),
        (
            "dies with all committed and nothing settled",
            |state, step| matches!((step, state.phase()), (Step::Crash { .. }, Some((Phase::Decided(done), loads))) if done == loads),
        ),
        ("the next process dies while it takes over what was decided", |state, step| {
            let died = matches!(step, Step::Crash { steps, .. } if *steps < TAKE_OVER_STEPS);
            died && matches!(state.phase(), Some((Phase::Decided(_), _)))
        }),
        ("an epoch begins again", |state, step| matches!(step, Step::Begin) && state.begun > state.decided),
        ("a decision is not written", |_, step| matches!(step, Step::Decide { written: false, .. })),
        ("the answer to a decision is lost", |_, step| matches!(step, Step::Decide { answered: false, .. })),
        (
            "a label is forgotten while its decision stands",
            |state, step| matches!((step, state.phase()), (Step::Forget, Some((Phase::Decided(done), _))) if done > 0),
        ),
        ("a waiting lane has what gathers cut", |state, step| {
            matches!(step, Step::Press) && state.could_go()
        }),
        ("a waiting lane waits for the epoch on its way", |state, step| {
            let gathers = state.open.iter().any(|rows| !rows.is_empty());
            matches!(step, Step::Press) && state.epoch.is_some() && gathers
        }),
    ]);
}

#[test]
fn letters_hold_decisions_up_or_go_with_them() {
    must_reach::<Reference>(&[
        ("a dead letter holds the decision up", |state, step| {
            matches!(step, Step::Decide { .. }) && state.decides().is_none() && !state.is_poisoned()
        }),
        ("a letter of the epoch's own rows is decided with it", |state, step| {
            state.decides_a_letter(step, true, |letter, reached| reached && letter.of != Part::Letter(None))
        }),
        ("a letter of a record with rows is decided with them", |state, step| {
            state.decides_a_letter(step, true, |letter, reached| {
                reached && letter.of == Part::Letter(None) && !letter.record.tables().is_empty()
            })
        }),
        ("letters wait for a later decision", |state, step| {
            state.decides_a_letter(step, true, |_, reached| !reached)
        }),
        ("letters are given back with a decision that is not written", |state, step| {
            state.decides_a_letter(step, false, |_, reached| reached)
        }),
        ("rows are refused until none is left", |state, step| {
            matches!(step, Step::Refuse { .. }) && state.of_the_epoch().count() == 1
        }),
    ]);
}

#[test]
fn tickets_are_lost_wherever_they_are_held() {
    must_reach::<Reference>(&[
        ("rows are lost before they are batched", |state, step| {
            matches!(step, Step::Lose(Loss::Rows { .. })) && !state.is_poisoned()
        }),
        ("an epoch is lost", |state, step| matches!(step, Step::Lose(Loss::Epoch)) && !state.is_poisoned()),
        ("letters are lost", |state, step| matches!(step, Step::Lose(Loss::Letters)) && !state.is_poisoned()),
        ("an epoch is not decided because of what was lost", |state, step| {
            matches!(step, Step::Decide { .. }) && state.decides().is_none() && state.is_poisoned()
        }),
        ("an epoch before what was lost is decided", |state, step| {
            let is_written = matches!(step, Step::Decide { written: true, .. });
            is_written && state.decides().is_some() && state.is_poisoned()
        }),
        ("it halts with decided loads that are not committed", |state, step| {
            matches!(step, Step::Halt { .. }) && state.has_decided_loads_to_commit()
        }),
    ]);
}
