//! What sequences of steps are for, and whether they come to it.

use super::super::records::{Hold, Record};
use super::super::{PARTITIONS, TABLES, must_reach};
use super::{Loss, Reference, Step};

impl Reference {
    fn is_on_its_way(&self, partition: usize) -> bool {
        let mut rows = self.flying.iter().flat_map(|flying| &flying.rows);
        rows.any(|row| row.record.partition == partition && !row.has_ended)
    }

    /// Whether of a record that has rows and a letter only that is on its way of which `is_pending` says so.
    fn has_one_without_the_other(&self, is_pending: impl Fn(&Hold) -> bool) -> bool {
        let holds: Vec<Hold> = self.holds().into_iter().filter(|hold| !hold.has_ended).collect();
        let all_pending = |record: Record| holds.iter().filter(|hold| hold.record == record).all(&is_pending);
        let has_both = |record: &Record| record.has_letter() && !record.tables().is_empty();
        holds.iter().map(|hold| hold.record).filter(has_both).any(all_pending)
    }
}

#[test]
fn loads_are_on_their_way_when_the_process_dies_and_partitions_go() {
    must_reach::<Reference>(&[
        ("dies with a load on its way", |state, step| {
            matches!(step, Step::Crash { .. }) && state.flying.iter().any(|flying| !flying.landed)
        }),
        ("dies with an answer lost", |state, step| {
            matches!(step, Step::Crash { .. }) && state.flying.iter().any(|flying| flying.landed)
        }),
        (
            "loses a partition with rows on their way",
            |state, step| matches!(step, Step::Revoke { partition, lost: true } if state.is_on_its_way(*partition)),
        ),
        (
            "gives a partition up with rows on their way",
            |state, step| matches!(step, Step::Revoke { partition, lost: false } if state.is_on_its_way(*partition)),
        ),
        ("rows are sent for the sake of rows that were", |state, step| {
            let is_finished = |partition: usize| {
                state.unsent().any(|row| row.record.partition == partition && state.is_begun(row))
            };
            matches!(step, Step::GiveUp { partition } if is_finished(*partition))
        }),
        ("a partition goes when all that was begun of it has landed", |state, step| {
            let is_quiet = |partition: usize| {
                let is_open = |hold: &Hold| hold.record.partition == partition && !hold.has_ended;
                state.leaves[partition] && !state.holds().iter().any(is_open)
            };
            matches!(step, Step::Revoke { partition, lost: false } if is_quiet(*partition))
        }),
        ("a row is refused", |_, step| matches!(step, Step::Refuse { .. })),
        ("a later load lands first", |_, step| matches!(step, Step::Land { flight } if *flight > 0)),
        ("part of what was read is released", |state, step| {
            let part =
                |at: usize| (state.released[at] + 1..state.reckoning.read(at)).contains(&state.watermark(at));
            matches!(step, Step::Release) && (0..PARTITIONS).any(part)
        }),
    ]);
}

#[test]
fn lanes_wait_for_room_and_rows_and_letters_for_one_another() {
    must_reach::<Reference>(&[
        ("a waiting lane has one table cut and not the other", |state, step| {
            matches!(step, Step::Press) && (0..TABLES).all(|table| state.could_relieve(table))
        }),
        ("a waiting lane finds nothing to be cut", |state, step| {
            matches!(step, Step::Press) && !(0..TABLES).any(|table| state.could_relieve(table))
        }),
        ("rows are safe and their record's letter is not", |state, step| {
            matches!(step, Step::Release) && state.has_one_without_the_other(|hold| !hold.is_row())
        }),
        ("a letter is safe and its record's rows are not", |state, step| {
            matches!(step, Step::Release) && state.has_one_without_the_other(Hold::is_row)
        }),
    ]);
}

#[test]
fn tickets_are_lost_wherever_they_are_held() {
    must_reach::<Reference>(&[
        ("rows are lost before they are batched", |state, step| {
            matches!(step, Step::Lose(Loss::Rows { .. })) && !state.is_poisoned()
        }),
        ("a load is lost", |state, step| {
            matches!(step, Step::Lose(Loss::Load { .. })) && !state.is_poisoned()
        }),
        ("letters are lost", |state, step| matches!(step, Step::Lose(Loss::Letters)) && !state.is_poisoned()),
        ("only what was lost keeps a partition back", |state, step| {
            let holds = state.holds();
            let is_kept_back = |at: usize| {
                let is_idle = holds.iter().all(|hold| hold.record.partition != at);
                is_idle && !state.leaves[at] && state.watermark(at) < state.reckoning.read(at)
            };
            matches!(step, Step::Release) && (0..PARTITIONS).any(is_kept_back)
        }),
        ("it halts with loads on their way", |state, step| {
            matches!(step, Step::Halt { .. }) && !state.flying.is_empty()
        }),
    ]);
}
