//! The host's code with a world around it that outlives it: released offsets, loaded rows, kept letters.

use std::sync::{Arc, mpsc};

use proptest_state_machine::StateMachineTest;

use super::super::PARTITIONS;
use super::super::lasting::Lasting;
use super::super::pipeline::{Pipeline, Ways, partition_of};
use super::super::reckoning::charged;
use super::super::records::{Hold, Record, records, rows_of};
use super::{IN_FLIGHT_MAX, LIMITS, Loss, Reference, Step, lands_in_the_end};
use crate::batch::stage::fakes::Shown;
use crate::batch::stage::{Done, Message, Slot};
use crate::batch::{Batch, Piece};
use crate::position::Watermark;

/// What outlives the process.
struct World {
    released: [i64; PARTITIONS],
    lasting: Lasting,
}

struct Flight {
    table: usize,
    batch: Batch,
    landed: bool,
}

/// What dies with the process.
struct Process {
    pipeline: Pipeline,
    /// Loads that the stage has started.
    started: mpsc::Receiver<(Batch, Done)>,
    flying: Vec<Flight>,
}

pub(super) struct System {
    world: World,
    process: Process,
}

impl World {
    fn land(&mut self, flight: &mut Flight) {
        // The label is known: the rows of a load are taken once.
        if !std::mem::replace(&mut flight.landed, true) {
            self.lasting.load(flight.table, rows_of(&flight.batch));
        }
    }
}

impl Process {
    fn start(world: &World) -> Process {
        let (shows, started) = mpsc::channel();
        let outlet = Arc::new(Shown(shows));
        let ways = Ways { limits: LIMITS, in_flight: IN_FLIGHT_MAX, outlet, epochs: None };
        Process { pipeline: Pipeline::starting(world.released, ways), started, flying: Vec::new() }
    }

    /// Takes up what the stage has started.
    fn take_up(&mut self) {
        for (batch, Done { slot, .. }) in self.started.try_iter() {
            let (rows, bytes) = (batch.rows(), batch.bytes());
            assert!((1..=LIMITS.max_rows).contains(&rows), "{rows} rows in a batch");
            assert!(bytes <= LIMITS.max_bytes || rows == 1, "{bytes} bytes in a batch");
            let Slot::Table(table) = slot else { panic!("no epochs here") };
            self.flying.push(Flight { table, batch, landed: false });
        }
    }

    fn finished(&mut self, table: usize) {
        self.pipeline.tell(Message::Finished(Slot::Table(table)));
    }

    fn land(&mut self, world: &mut World, flight: usize) {
        let mut flight = self.flying.remove(flight);
        world.land(&mut flight);
        self.pipeline.settle(flight.batch.pieces);
        self.finished(flight.table);
    }

    /// The row's letter is handed on, and the other rows go on under another label.
    fn refuse(&mut self, flight: usize, row: usize) {
        let Flight { table, batch, .. } = &mut self.flying[flight];
        let table = *table;
        batch.pieces = self.pipeline.set_aside(table, std::mem::take(&mut batch.pieces), row);
        if batch.pieces.is_empty() {
            self.flying.remove(flight);
            self.finished(table);
        }
    }

    fn release(&self, world: &mut World) {
        for Watermark { stay, upto } in self.pipeline.ledger.progress() {
            let partition = partition_of(&stay);
            assert_eq!(stay, self.pipeline.stays[partition], "a stay that has ended moves nothing");
            assert!(upto > world.released[partition], "{upto} is behind what was released of {stay:?}");
            world.released[partition] = upto;
        }
    }

    fn revoke(&mut self, world: &mut World, partition: usize, lost: bool) {
        let upto = self.pipeline.end_stay(partition);
        if !lost {
            world.released[partition] = upto;
        }
        self.pipeline.stay_anew(partition, world.released[partition]);
    }

    fn lose(&mut self, loss: Loss) {
        match loss {
            Loss::Rows { partition, places } => self.pipeline.read_and_lose(partition, places),
            Loss::Load { flight } => drop(self.flying.remove(flight)),
            Loss::Letters => self.pipeline.letters.clear(),
        }
    }

    /// Expects of partitions that go in order, and of which nothing is on its way any more, that whoever has them next reads
    /// nothing again that was sent.
    fn must_release_what_was_begun(&self, reference: &Reference, holds: &[Hold]) {
        for (partition, sent) in reference.sent.into_iter().enumerate() {
            let is_open = |hold: &Hold| hold.record.partition == partition && !hold.has_ended;
            let is_quiet = reference.leaves[partition] && !holds.iter().any(is_open);
            if let Some(sent) = sent.filter(|_| is_quiet && !reference.is_poisoned()) {
                let end = reference.reckoning.end_of(partition, sent);
                let upto = self.pipeline.watermark(partition);
                assert!(upto >= end, "{upto} is before {end}: rows that were sent are read again");
            }
        }
    }

    /// What a halted pipeline does before it ends.
    fn wind_up(&mut self, world: &mut World, lands: u8) {
        self.pipeline.remove();
        for (place, mut flight) in std::mem::take(&mut self.flying).into_iter().enumerate() {
            if lands_in_the_end(lands, place) {
                world.land(&mut flight);
                self.pipeline.settle(flight.batch.pieces);
            } else {
                flight.batch.pieces.into_iter().for_each(Piece::forget);
            }
        }
        self.pipeline.keep_letters(&mut world.lasting);
        assert_eq!(self.pipeline.ledger.open_spans(), 0, "a halted pipeline waits for nobody");
        self.release(world);
    }
}

impl System {
    fn crash(&mut self, lands: u8) {
        for (place, flight) in self.process.flying.iter_mut().enumerate() {
            if lands_in_the_end(lands, place) {
                self.world.land(flight);
            }
        }
        self.process = Process::start(&self.world);
    }

    /// Loads and releases whatever is left of what was ever read.
    fn drain(&mut self) {
        let System { world, process } = self;
        process.pipeline.read_up_to(world.lasting.seen);
        process.pipeline.drain();
        process.take_up();
        while !process.flying.is_empty() {
            (0..process.flying.len()).rev().for_each(|flight| process.land(world, flight));
            process.take_up();
        }
        process.pipeline.keep_letters(&mut world.lasting);
        process.release(world);
        process.pipeline.must_be_idle();
    }
}

impl StateMachineTest for System {
    type SystemUnderTest = System;
    type Reference = Reference;

    fn init_test(reference: &Reference) -> System {
        let released = reference.released;
        let world = World { released, lasting: Lasting::behind(released) };
        System { process: Process::start(&world), world }
    }

    fn apply(mut system: System, _: &Reference, step: Step) -> System {
        let System { world, process } = &mut system;
        match step {
            Step::Read { partition, places } => process.pipeline.read(partition, places),
            Step::Linger => process.pipeline.linger_is_over(),
            Step::Press => process.pipeline.press(),
            Step::Drain => process.pipeline.drain(),
            Step::Land { flight } => process.land(world, flight),
            Step::LandUnheard { flight } => world.land(&mut process.flying[flight]),
            Step::Refuse { flight, row } => process.refuse(flight, row),
            Step::KeepLetters => process.pipeline.keep_letters(&mut world.lasting),
            Step::Release => process.release(world),
            Step::GiveUp { partition } => process.pipeline.forget(partition, true),
            Step::Revoke { partition, lost } => process.revoke(world, partition, lost),
            Step::Lose(loss) => process.lose(loss),
            Step::Halt { lands } => {
                process.wind_up(world, lands);
                *process = Process::start(world);
            }
            Step::Crash { lands } => system.crash(lands),
        }
        system.process.take_up();
        system.world.lasting.see(system.process.pipeline.read);
        system
    }

    fn check_invariants(system: &System, reference: &Reference) {
        let System { world, process } = system;
        let rows = |flight: &Flight| (flight.table, rows_of(&flight.batch));
        let flying: Vec<(usize, Vec<Record>)> = process.flying.iter().map(rows).collect();
        let expected = reference.flying.iter();
        let expected =
            expected.map(|flying| (flying.table, flying.rows.iter().map(|row| row.record).collect()));
        assert_eq!(flying, expected.collect::<Vec<_>>(), "tables and rows in flight");
        let holds = reference.holds();
        process.pipeline.must_be(&reference.reckoning, &holds);
        assert_eq!(process.pipeline.share.used(), charged(&holds), "bytes in flight");
        assert_eq!(process.pipeline.has_deadline(), reference.has_deadline(), "a batch grows old");
        process.must_release_what_was_begun(reference, &holds);
        assert_eq!(world.released, reference.released, "released");
        for (partition, released) in world.released.into_iter().enumerate() {
            for record in records(partition, -1, released) {
                world.lasting.must_have(record, |_| false);
            }
        }
    }

    fn teardown(mut system: System, _: Reference) {
        system.crash(0);
        system.drain();
        let World { released, lasting } = &system.world;
        assert_eq!(*released, lasting.seen, "all is released in the end");
        for (partition, released) in released.iter().enumerate() {
            records(partition, -1, *released).for_each(|record| lasting.must_have(record, |_| false));
        }
    }
}
