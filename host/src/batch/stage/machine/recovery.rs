//! The host's recovery against the model's (`tidemill_model::exactly_once::recovery`), which was explored exhaustively with
//! all that members, Kafka and StarRocks can do: from the same texts and states both must come to the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tidemill_model::exactly_once::recovery::{
    self as model, Committed, Epoch, Fate, Label, LabelState as Modelled, Note, Plan, Read,
};

use crate::delivery::decision::{
    Decision, Recovery, SEQUENCES_UNDECIDED_MAX, Step, Terms, label, plan, recover,
};
use crate::sink::starrocks::state::LabelState;

const TABLES: u8 = 2;
/// What the host's margin is in the model's unit of time.
const HOUR: Duration = Duration::from_secs(3600);
const PREPARED_TIMEOUT_H: u8 = 24;

fn terms() -> Terms {
    let prepared_timeout = HOUR * u32::from(PREPARED_TIMEOUT_H);
    Terms { tables_max: TABLES.into(), prepared_timeout, database: "shop".into() }
}

fn modelled_terms() -> model::Terms {
    model::Terms {
        tables: TABLES,
        window: SEQUENCES_UNDECIDED_MAX as u8,
        prepared_timeout: PREPARED_TIMEOUT_H,
        margin: 1,
        from_prepare: true,
        unknown_is_committed: true,
        old_halts: true,
        commit_decided: true,
        roll_back_next: true,
        claim_first: true,
    }
}

fn of_model(state: Modelled) -> LabelState {
    match state {
        Modelled::Unknown => LabelState::Unknown,
        Modelled::Prepare => LabelState::Prepare,
        Modelled::Prepared => LabelState::Prepared,
        Modelled::Committed => LabelState::Committed,
        Modelled::Aborted => LabelState::Aborted,
    }
}

fn any_state() -> impl Strategy<Value = Modelled> {
    prop::sample::select(vec![
        Modelled::Unknown,
        Modelled::Prepare,
        Modelled::Prepared,
        Modelled::Committed,
        Modelled::Aborted,
    ])
}

proptest! {
    #![proptest_config(super::config())]

    /// What a label that was decided needs.
    #[test]
    fn host_and_model_agree_on_each_decided_load(
        state in any_state(),
        prepared_at in 0_u8..100,
        decided_after in 0_u8..12,
        age in 0_u8..60,
    ) {
        let now = prepared_at + age;
        let expected = match model::fate(state, prepared_at, prepared_at + decided_after, now, &modelled_terms()) {
            Fate::Done => Recovery::Done,
            Fate::Ready => Recovery::Commit,
            Fate::Lost => Recovery::Lost,
            Fate::Again => return Err(TestCaseError::fail("only mutations load again")),
        };
        let found = recover(of_model(state), HOUR * u32::from(age), terms().prepared_timeout);
        prop_assert_eq!(found, expected, "{:?} after {} h", state, age);
    }

    /// A whole take-over: what stands in Kafka, and whatever states the labels are in.
    #[test]
    fn host_and_model_leave_the_same_behind(
        notes in prop::collection::vec((0_u8..2, 0_u8..4, any::<bool>()), 1..4),
        states in prop::collection::vec(any_state(), 2 * 16 * usize::from(TABLES)),
        age in 0_u8..30,
    ) {
        // Of a stem the newest decision stands on all its partitions.
        let mut newest: BTreeMap<u8, (u8, bool)> = BTreeMap::new();
        for (stem, seq, decided) in &notes {
            newest.entry(*stem).or_insert((*seq, *decided));
        }
        let all = || (0..2_u8).flat_map(|stem| {
            (0..16_u8).flat_map(move |seq| (0..TABLES).map(move |table| Label { epoch: Epoch { stem: stem + 1, seq }, table }))
        });
        let states: BTreeMap<Label, Modelled> = all().zip(states).collect();
        let stands: Vec<(u8, u8, bool)> =
            notes.iter().map(|(stem, ..)| (stem + 1, newest[stem].0, newest[stem].1)).collect();
        let expected = model_takes_over(&stands, states.clone(), age);
        let found = host_takes_over(&stands, states, age);
        prop_assert_eq!(found, expected);
    }
}

/// What is left of the labels, and which of them came to it only after the claim; nothing is said of a label that is lost.
type Left = Result<BTreeMap<Label, (Modelled, bool)>, ()>;

fn untouched(states: BTreeMap<Label, Modelled>) -> BTreeMap<Label, (Modelled, bool)> {
    states.into_iter().map(|(label, state)| (label, (state, false))).collect()
}

fn model_takes_over(stands: &[(u8, u8, bool)], states: BTreeMap<Label, Modelled>, age: u8) -> Left {
    let note = |(stem, seq, decided): &(u8, u8, bool)| {
        let epoch = Epoch { stem: *stem, seq: *seq };
        let note = if *decided {
            Note::Decision { epoch, prepared_at: 0, decided_at: 0 }
        } else {
            Note::Claim { next: epoch.plus(1) }
        };
        Read::Stable(Committed { note, ..Committed::default() })
    };
    let reads: Vec<Read> = stands.iter().map(note).collect();
    let states = RefCell::new(untouched(states));
    let state_of = |label| states.borrow().get(&label).map_or(Modelled::Unknown, |(state, _)| *state);
    let mut claimed = false;
    loop {
        match model::plan(&reads, claimed, state_of, age, &modelled_terms()) {
            Plan::Commit(label) => drop(states.borrow_mut().insert(label, (Modelled::Committed, claimed))),
            Plan::RollBack(label) => drop(states.borrow_mut().insert(label, (Modelled::Aborted, claimed))),
            Plan::Claim => claimed = true,
            Plan::Gather => return Ok(states.into_inner()),
            Plan::Halt(_) => return Err(()),
            Plan::Wait | Plan::Reload(_) => unreachable!("all reads are stable, and nothing is mutated"),
        }
    }
}

/// By the host's own plan, and by the texts.
fn host_takes_over(stands: &[(u8, u8, bool)], states: BTreeMap<Label, Modelled>, age: u8) -> Left {
    let stem = |stem: u8| format!("orders-{stem}");
    let names: BTreeMap<String, Label> = states
        .keys()
        .map(|one| (label(&stem(one.epoch.stem), one.epoch.seq.into(), one.table.into()), *one))
        .collect();
    let text = |(number, seq, decided): &(u8, u8, bool)| {
        let tables = if *decided { u32::from(TABLES) } else { 0 };
        Decision::of_epoch(&stem(*number), (*seq).into(), tables, 0, &terms()).to_metadata()
    };
    let read = |text: String| Decision::read(&text).expect("our own form").expect("a decision");
    let before: Vec<Decision> = stands.iter().map(|stands| read(text(stands))).collect();
    let mut states = untouched(states);
    let (mut claimed, mut lost) = (false, false);
    for step in plan(before.iter()) {
        match step {
            Step::Finish(places) => {
                for one in places.into_iter().flat_map(|place| before[place].labels()) {
                    let state = states.get_mut(&names[&one]).expect("it is within reach");
                    match recover(of_model(state.0), HOUR * u32::from(age), terms().prepared_timeout) {
                        Recovery::Done => {}
                        Recovery::Commit => *state = (Modelled::Committed, claimed),
                        Recovery::Lost => lost = true,
                    }
                }
                if lost {
                    return Err(());
                }
            }
            Step::Claim => claimed = true,
            Step::GiveUp(labels) => {
                for one in labels {
                    let state = states.get_mut(&names[&one]).expect("it is within reach");
                    match of_model(state.0) {
                        LabelState::Prepare | LabelState::Prepared => *state = (Modelled::Aborted, claimed),
                        LabelState::Unknown
                        | LabelState::Committed
                        | LabelState::Visible
                        | LabelState::Aborted => {}
                    }
                }
            }
        }
    }
    assert!(claimed, "whoever reads on has claimed");
    Ok(states)
}
