//! The host's code with a world around it that outlives it.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use proptest_state_machine::StateMachineTest;

use super::super::PARTITIONS;
use super::super::lasting::Lasting;
use super::super::pipeline::{Pipeline, Ways, letter_of};
use super::super::reckoning::charged;
use super::super::records::{Letter, Record, rows_of};
use super::world::{World, terms};
use super::{LIMITS, Loss, Reference, Step, TAKE_OVER_STEPS};
use crate::batch::stage::fakes::Shown;
use crate::batch::stage::{Done, EpochOutlet, Message, Slot};
use crate::batch::{Batch, Piece};
use crate::config::model::{self, DeadLetters, Isolation, Kafka, KafkaSecurity};
use crate::dead_letter::{Bundle, DeadLetterBox, Outbox, Undecided};
use crate::delivery::decision::{Decision, label};
use crate::ledger::{Reach, Tickets};
use crate::position::Stay;

/// An epoch that the stage has started.
struct Running {
    batches: Vec<Batch>,
    slot: Slot,
    /// None while it waits for its next begin.
    seq: Option<u64>,
    prepared: usize,
    decision: Option<Decision>,
    committed: usize,
}

/// What dies with the process.
struct Process {
    stem: String,
    pipeline: Pipeline,
    /// Where letters wait for decisions, if they do.
    letters: Option<DeadLetterBox>,
    started: mpsc::Receiver<(Vec<Batch>, Done)>,
    running: Option<Running>,
    begun: u64,
}

pub(super) struct System {
    world: World,
    process: Process,
}

/// Shows each epoch to the test.
struct EpochsShown(mpsc::Sender<(Vec<Batch>, Done)>);

impl EpochOutlet for EpochsShown {
    fn start(&self, batches: Vec<Batch>, done: Done) {
        // A process that has died takes none.
        let _ = self.0.send((batches, done));
    }
}

/// A cluster that nobody reaches: letters on it wait for decisions about its offsets.
fn cluster() -> Kafka {
    Kafka {
        brokers: Vec::new(),
        topics: vec!["orders".into()],
        group: "orders".into(),
        start: model::Start::Earliest,
        isolation: Isolation::ReadCommitted,
        commit_interval: Duration::from_secs(1),
        fetch_queue_bytes: 1 << 20,
        security: KafkaSecurity::default(),
        properties: BTreeMap::new(),
    }
}

fn table_of(batch: &Batch) -> usize {
    usize::from(batch.destination.table == "t1")
}

/// How far each stay is safe.
type Reaches = BTreeMap<Stay, Reach>;

impl Process {
    /// Takes over and reads on.
    fn start(world: &mut World, decides_letters: bool) -> Process {
        let stem = world.take_over(TAKE_OVER_STEPS);
        let (shows, started) = mpsc::channel();
        let (outlet, epochs) = (Arc::new(Shown(mpsc::channel().0)), Some(Arc::new(EpochsShown(shows)) as _));
        let pipeline =
            Pipeline::starting(world.committed(), Ways { limits: LIMITS, in_flight: 1, outlet, epochs });
        let topic = DeadLetters::Kafka { topic: "dead".into(), brokers: Vec::new() };
        let letters = DeadLetterBox::decided(&topic, Some(&cluster()), &pipeline.owner.meter);
        let letters = letters.filter(|_| decides_letters);
        Process { stem, pipeline, letters, started, running: None, begun: 0 }
    }

    /// Takes up what the stage has started, and hands letters on.
    fn take_up(&mut self) {
        for (batches, Done { slot, .. }) in self.started.try_iter() {
            let (seq, prepared, decision, committed) = (None, 0, None, 0);
            let began = Running { batches, slot, seq, prepared, decision, committed };
            assert!(self.running.replace(began).is_none(), "one epoch at a time");
        }
        if let Some(letters) = self.letters.as_ref().filter(|_| !self.pipeline.letters.is_empty()) {
            let bundle = Bundle::new(std::mem::take(&mut self.pipeline.letters), &self.pipeline.share);
            let back = letters.post(bundle, Duration::ZERO).expect("it never ends");
            assert!(back.is_none(), "there is room");
        }
    }

    fn outbox(&self) -> Option<&Outbox> {
        self.letters.as_ref().and_then(DeadLetterBox::outbox)
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().expect("an epoch runs")
    }

    fn begin(&mut self) {
        self.begun += 1;
        let begun = self.begun;
        let running = self.running();
        (running.seq, running.prepared) = (Some(begun), 0);
    }

    fn labels(&self) -> Vec<String> {
        let running = self.running.as_ref().expect("an epoch runs");
        let seq = running.seq.expect("it has begun");
        (0..running.batches.len()).map(|place| label(&self.stem, seq, place as u32)).collect()
    }

    fn prepare(&mut self, world: &mut World) {
        let labels = self.labels();
        let running = self.running();
        if let Some(batch) = running.batches.get(running.prepared) {
            assert!(!batch.pieces.is_empty(), "an epoch has no load without rows");
            world.prepare(labels[running.prepared].clone(), table_of(batch), rows_of(batch));
            running.prepared += 1;
        }
    }

    fn abandon(&mut self, world: &mut World, arrives: bool) {
        for label in self.labels() {
            if arrives {
                world.roll_back(&label);
            } else {
                world.stray(label);
            }
        }
        self.running().seq = None;
    }

    /// A row of the load that is next is refused: what is prepared is rolled back, and the row's letter handed on.
    fn refuse(&mut self, world: &mut World, row: usize) {
        self.abandon(world, true);
        let mut running = self.running.take().expect("an epoch runs");
        let batch = &mut running.batches[running.prepared];
        batch.pieces = self.pipeline.set_aside(table_of(batch), std::mem::take(&mut batch.pieces), row);
        running.batches.retain(|batch| !batch.pieces.is_empty());
        if running.batches.is_empty() {
            self.pipeline.tell(Message::Finished(running.slot));
        } else {
            self.running = Some(running);
        }
    }

    /// How far all is safe once an epoch with these tickets is decided, and with it the letters that it reaches.
    fn reach_with(&self, tickets: &Tickets) -> Option<Reaches> {
        let letters = self.outbox().map(Outbox::tickets).unwrap_or_default();
        self.pipeline.ledger.safe_with(tickets, &letters)
    }

    fn offsets(&self, reach: &Reaches) -> [i64; PARTITIONS] {
        std::array::from_fn(|partition| reach[&self.pipeline.stays[partition]].upto)
    }

    /// Takes out the letters that are reached.
    fn take_letters(&self, reach: &Reaches) -> Vec<Undecided> {
        let is_reached = |stay: &Stay, place| reach.get(stay).is_some_and(|reach| place < reach.places);
        self.outbox().map(|outbox| outbox.take(is_reached)).unwrap_or_default()
    }

    fn letters_are_kept(&self, letters: Vec<Undecided>) {
        if let Some(outbox) = self.outbox() {
            outbox.kept(letters);
        }
    }

    fn decide(&mut self, world: &mut World, written: bool, answered: bool) {
        let (stem, running) = (self.stem.clone(), self.running());
        let mut tickets = Tickets::new();
        for piece in running.batches.iter().flat_map(|batch| &batch.pieces) {
            *tickets.entry((piece.ticket().stay().clone(), piece.ticket().place())).or_default() += 1;
        }
        let seq = running.seq.expect("it has begun");
        let decision = Decision::of_epoch(&stem, seq, running.batches.len() as u32, 1, &terms());
        let Some(reach) = self.reach_with(&tickets) else { return };
        let letters = self.take_letters(&reach);
        if written {
            world.write(self.offsets(&reach), &decision, told_by(&letters));
        }
        let stands = |world: &World| world.decision_at(0).is_some_and(|found| found.is_same_epoch(&decision));
        let known = if answered { written } else { stands(world) };
        if known {
            self.letters_are_kept(letters);
            self.running().decision = Some(decision);
        } else {
            if let Some(outbox) = self.outbox() {
                outbox.give_back(letters);
            }
            self.abandon(world, true);
        }
    }

    fn commit(&mut self, world: &mut World) {
        let labels = self.labels();
        let running = self.running();
        let decision = running.decision.as_ref().expect("it is decided");
        world.settle(&labels[running.committed], decision);
        running.committed += 1;
    }

    fn leave(&mut self) {
        let Running { batches, slot, .. } = self.running.take().expect("an epoch runs");
        self.pipeline.settle(batches.into_iter().flat_map(|batch| batch.pieces));
        self.pipeline.tell(Message::Finished(slot));
    }

    fn write_done(&self, world: &mut World) {
        let Some(reach) = self.reach_with(&Tickets::new()) else { return };
        let (committed, safe) = (world.committed(), self.offsets(&reach));
        let offsets = std::array::from_fn(|partition| committed[partition].max(safe[partition]));
        let letters = self.take_letters(&reach);
        world.write(offsets, &Decision::empty(&self.stem, self.begun, &terms()), told_by(&letters));
        self.letters_are_kept(letters);
    }

    fn lose(&mut self, loss: Loss) {
        match loss {
            Loss::Rows { partition, places } => self.pipeline.read_and_lose(partition, places),
            Loss::Epoch => drop(self.running.take()),
            Loss::Letters => {
                self.pipeline.letters.clear();
                drop(self.outbox().map(|outbox| outbox.take(|_, _| true)));
            }
        }
    }

    /// What a halted pipeline does before it ends.
    fn wind_up(&mut self, world: &mut World, commits: bool) {
        self.pipeline.remove();
        self.outbox().into_iter().for_each(Outbox::end);
        self.pipeline.keep_letters(&mut world.lasting);
        let is_decided = |running: &Running| running.decision.is_some();
        if self.running.as_ref().is_some_and(is_decided) {
            if !commits {
                return;
            }
            while self.running().committed < self.running().batches.len() {
                self.commit(world);
            }
            self.leave();
        } else if let Some(Running { seq, .. }) = &self.running {
            if seq.is_some() {
                self.abandon(world, true);
            }
            let rows = self.running.take().into_iter().flat_map(|running| running.batches);
            rows.flat_map(|batch| batch.pieces).for_each(Piece::forget);
        }
        assert_eq!(self.pipeline.ledger.open_spans(), 0, "a halted pipeline waits for nobody");
    }
}

fn told_by(letters: &[Undecided]) -> Vec<Letter> {
    letters.iter().flat_map(Undecided::letters).map(letter_of).collect()
}

impl System {
    fn decides_letters(&self) -> bool {
        self.process.letters.is_some()
    }

    fn crash(&mut self, arrives: bool, steps: usize) {
        let is_undecided = |running: &Running| running.seq.is_some() && running.decision.is_none();
        if arrives && self.process.running.as_ref().is_some_and(is_undecided) {
            self.process.prepare(&mut self.world);
        }
        if steps < TAKE_OVER_STEPS {
            self.world.take_over(steps);
        }
        self.restart();
    }

    fn restart(&mut self) {
        let decides_letters = self.decides_letters();
        self.process = Process::start(&mut self.world, decides_letters);
        self.world.must_hold_what_is_committed(decides_letters);
    }

    /// Loads and decides whatever is left of what was ever read.
    fn drain(&mut self) {
        let System { world, process } = self;
        process.pipeline.read_up_to(world.lasting.seen);
        process.pipeline.drain();
        loop {
            process.take_up();
            process.pipeline.keep_letters(&mut world.lasting);
            if process.running.is_none() {
                break;
            }
            process.begin();
            (0..process.labels().len()).for_each(|_| process.prepare(world));
            process.decide(world, true, true);
            (0..process.labels().len()).for_each(|_| process.commit(world));
            process.leave();
        }
        process.write_done(world);
        process.pipeline.must_be_idle();
    }
}

impl StateMachineTest for System {
    type SystemUnderTest = System;
    type Reference = Reference;

    fn init_test(reference: &Reference) -> System {
        let mut world = World::behind(reference.committed);
        System { process: Process::start(&mut world, reference.decides_letters), world }
    }

    fn apply(mut system: System, _: &Reference, step: Step) -> System {
        let System { world, process } = &mut system;
        match step {
            Step::Read { partition, places } => process.pipeline.read(partition, places),
            Step::Linger => process.pipeline.linger_is_over(),
            Step::Press => process.pipeline.press(),
            Step::Drain => process.pipeline.drain(),
            Step::Begin => process.begin(),
            Step::Prepare => process.prepare(world),
            Step::Refuse { row } => process.refuse(world, row),
            Step::Abandon { arrives } => process.abandon(world, arrives),
            Step::Decide { written, answered } => process.decide(world, written, answered),
            Step::Commit => process.commit(world),
            Step::Leave => process.leave(),
            Step::WriteDone => process.write_done(world),
            Step::KeepLetters => process.pipeline.keep_letters(&mut world.lasting),
            Step::Forget => world.forget(),
            Step::Lose(loss) => process.lose(loss),
            Step::Halt { commits } => {
                process.wind_up(world, commits);
                system.restart();
            }
            Step::Crash { arrives, steps } => system.crash(arrives, steps),
        }
        system.process.take_up();
        system.world.lasting.see(system.process.pipeline.read);
        system
    }

    fn check_invariants(system: &System, reference: &Reference) {
        let System { world, process } = system;
        let running = process.running.iter().flat_map(|running| &running.batches);
        let running: Vec<(usize, Vec<Record>)> =
            running.map(|batch| (table_of(batch), rows_of(batch))).collect();
        let expected = reference.epoch.iter().flat_map(|(epoch, _)| epoch.iter().enumerate());
        let expected = expected.filter(|(_, rows)| !rows.is_empty());
        let expected = expected.map(|(table, rows)| (table, rows.iter().map(|row| row.record).collect()));
        assert_eq!(running, expected.collect::<Vec<_>>(), "tables and rows of the epoch on its way");
        let holds = reference.holds();
        process.pipeline.must_be(&reference.reckoning, &holds);
        let charged = charged(&holds);
        let of_letters = process.pipeline.share.used().checked_sub(charged).expect("rows are charged");
        let waits = process.outbox().is_some_and(|outbox| !outbox.is_empty());
        assert_eq!(of_letters > 0, waits, "letters that wait are charged beside {charged} bytes of rows");
        assert_eq!(process.pipeline.has_deadline(), reference.could_go(), "what gathers grows old");
        assert_eq!(world.committed(), reference.committed, "offsets in Kafka");
        world.must_hold(reference.decides_letters);
    }

    fn teardown(mut system: System, _: Reference) {
        system.crash(true, TAKE_OVER_STEPS);
        system.drain();
        let Lasting { seen, .. } = &system.world.lasting;
        assert_eq!(system.world.committed(), *seen, "all is decided in the end");
        system.world.must_hold_what_is_committed(system.decides_letters());
    }
}
