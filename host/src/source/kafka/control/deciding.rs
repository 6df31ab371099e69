//! What the control thread of an exactly_once pipeline knows of its decisions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::place_of;
use crate::dead_letter::{Outbox, Undecided};
use crate::delivery::carry::Carrier;
use crate::delivery::decision::Decision;
use crate::delivery::epoch::Epochs;
use crate::delivery::first_sight::digest;
use crate::ledger::Reach;
use crate::meter::Waiting;
use crate::position::Stay;
use crate::sink::Destination;
use crate::source::kafka::decider::{Decider, Standings};

/// How long after an attempt to decide that failed the next one is made.
const DECIDE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What exactly_once needs of the rest of its pipeline.
pub(crate) struct Exactly {
    /// What the carrier of epochs hears and says.
    pub(crate) epochs: Epochs,
    /// Asks and commits what was decided.
    pub(crate) carrier: Carrier,
    /// A destination of the pipeline: labels are the database's.
    pub(crate) destination: Arc<Destination>,
    /// Dead letters that are written with decisions; none if they are kept elsewhere.
    pub(crate) letters: Option<Outbox>,
}

/// Its state on the control thread.
pub(super) struct Deciding {
    pub(super) parts: Exactly,
    pub(super) decider: Decider,
    /// Digest of the FEs that are asked for labels.
    pub(super) frontends: u32,
    /// Assignments so far: each has a stem of its own.
    pub(super) stems: u64,
    /// Offset (the next one to read) that the group has for each partition.
    pub(super) committed: BTreeMap<(String, i32), i64>,
    pub(super) stands: Stands,
    /// Rebalances are not heard any more.
    pub(super) draining: bool,
    pub(super) tried_at: Option<Instant>,
    pub(super) written_at: Instant,
    /// Why nothing can be decided just now, told once.
    pub(super) trouble: Option<Waiting>,
}

/// What stands beside the offsets of our partitions.
#[derive(Debug)]
pub(super) enum Stands {
    /// A claim, or that all loads of a decision are committed.
    Done,
    /// A decision with loads: it is written over once they are committed.
    Decided,
    /// Nobody knows whether this does.
    Unknown(Asked),
}

/// What was given to the brokers to be written in one transaction.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) standings: Standings,
    /// The dead letters in the same transaction.
    pub(super) letters: Vec<Undecided>,
    /// It decides the epoch on offer; if not, it says how far all is done.
    pub(super) epoch: bool,
}

/// A place, and what stands or is to stand there.
type Standing<'a> = (&'a (String, i32), &'a (i64, Decision));

impl Asked {
    /// Whether it moves something past records: what does not may be given up unheard.
    fn matters(&self) -> bool {
        self.epoch || !self.letters.is_empty()
    }

    /// A partition by which can be told whether it was written: one whose offset it moves, if there is one.
    pub(super) fn telling(&self, committed: &BTreeMap<(String, i32), i64>) -> Option<Standing<'_>> {
        let moves = |(place, (offset, _)): &Standing<'_>| committed.get(place) != Some(offset);
        self.standings.iter().find(moves).or_else(|| self.standings.iter().next())
    }
}

impl Deciding {
    pub(super) fn new(parts: Exactly, decider: Decider) -> Deciding {
        let mut frontends: Vec<&str> = parts.destination.cluster.fe.iter().map(String::as_str).collect();
        frontends.sort_unstable();
        Deciding {
            frontends: digest(frontends.into_iter()),
            parts,
            decider,
            stems: 0,
            committed: BTreeMap::new(),
            stands: Stands::Done,
            draining: false,
            tried_at: None,
            written_at: Instant::now(),
            trouble: None,
        }
    }

    /// Whether an epoch waits for its decision, or may soon, or it is to be found out whether something was written.
    /// Partitions neither come nor go by an answer of ours meanwhile: a claim would stand over what is not known.
    pub(super) fn is_busy(&self) -> bool {
        self.parts.epochs.is_running() || self.is_unknown()
    }

    /// No further epoch begins.
    pub(super) fn close(&self) {
        self.parts.epochs.close();
    }

    /// What is not decided is given up, unless nobody knows whether it was.
    pub(super) fn abandon(&self) {
        if !self.unknown().is_some_and(|asked| asked.epoch) {
            self.parts.epochs.abandon();
        }
    }

    fn unknown(&self) -> Option<&Asked> {
        match &self.stands {
            Stands::Unknown(asked) => Some(asked),
            Stands::Done | Stands::Decided => None,
        }
    }

    /// Whether nobody knows what the last transaction wrote.
    pub(super) fn is_unknown(&self) -> bool {
        self.unknown().is_some()
    }

    /// Whether an epoch, or letters, may have been decided.
    pub(super) fn may_have_decided(&self) -> bool {
        self.unknown().is_some_and(Asked::matters)
    }

    /// Whether all of what stands is committed and says so.
    pub(super) fn is_done(&self) -> bool {
        match self.stands {
            Stands::Done => true,
            Stands::Decided | Stands::Unknown(_) => false,
        }
    }

    /// The partitions left after a revocation have to be claimed before anything begins.
    pub(super) fn is_unclaimed(&self) -> bool {
        !self.parts.epochs.is_open() && !self.committed.is_empty()
    }

    /// All partitions are another's now: whoever has them finds out what was decided.
    pub(super) fn leave_undecided(&mut self) {
        let Some(asked) = self.take_unknown() else { return };
        self.forget_taken(asked.letters);
        if asked.epoch {
            self.parts.epochs.leave_undecided();
        }
    }

    /// What nobody knew of, which is known now. Until it is said otherwise, a decision may stand.
    pub(super) fn take_unknown(&mut self) -> Option<Asked> {
        if !self.is_unknown() {
            return None;
        }
        match std::mem::replace(&mut self.stands, Stands::Decided) {
            Stands::Unknown(asked) => Some(asked),
            Stands::Done | Stands::Decided => None,
        }
    }

    /// Nothing begins any more. What is not decided is given up, and what may be is left to the next start.
    pub(super) fn end(&mut self) {
        self.parts.epochs.end();
        self.leave_undecided();
        self.parts.epochs.abandon();
        if let Some(letters) = &self.parts.letters {
            letters.end();
        }
    }

    /// Partitions that are another's now: what is left has to be claimed anew.
    pub(super) fn gave_up(&mut self, stays: &[Stay]) {
        for stay in stays {
            self.committed.remove(&place_of(stay));
        }
        // Nobody is left for whom something could be said.
        if self.committed.is_empty() {
            self.stands = Stands::Done;
        }
    }

    /// Letters of partitions that are being given up are not waited for: unless an epoch runs that they belong to, their
    /// next owner reads their records again.
    pub(super) fn forget_letters(&self, stays: &[Stay]) {
        if let Some(letters) = self.parts.letters.as_ref().filter(|_| !self.is_busy()) {
            letters.forget(stays);
        }
    }

    /// The pipeline drains: a rebalance is not waited for any more, and what it closed is opened again.
    pub(super) fn drains(&mut self) {
        self.draining = true;
    }

    pub(super) fn may_try(&mut self) -> bool {
        let may = self.tried_at.is_none_or(|at| at.elapsed() >= DECIDE_AGAIN_AFTER);
        if may {
            self.tried_at = None;
        }
        may
    }

    /// Takes out the letters that a decision which reaches so far moves past.
    pub(super) fn take_letters(&self, reach: &BTreeMap<Stay, Reach>) -> Vec<Undecided> {
        let Some(letters) = &self.parts.letters else { return Vec::new() };
        letters.take(|stay, place| reach.get(stay).is_some_and(|reach| place < reach.places))
    }

    /// They wait for another decision.
    pub(super) fn give_letters_back(&self, taken: Vec<Undecided>) {
        if let Some(letters) = &self.parts.letters {
            letters.give_back(taken);
        }
    }

    /// They are durable.
    pub(super) fn letters_are_kept(&self, taken: Vec<Undecided>) {
        if let Some(letters) = self.parts.letters.as_ref().filter(|_| !taken.is_empty()) {
            letters.kept(taken);
        }
    }

    fn forget_taken(&self, taken: Vec<Undecided>) {
        if let Some(letters) = &self.parts.letters {
            letters.forget_all(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::decision::Terms;

    #[test]
    fn a_partition_whose_offset_moves_tells_whether_it_was_written() {
        let terms =
            Terms { tables_max: 1, prepared_timeout: Duration::from_secs(86_400), database: "shop".into() };
        let decision = Decision::empty("s", 3, &terms);
        let place = |partition| ("orders".to_owned(), partition);
        let standings =
            [(place(0), (10, decision.clone())), (place(1), (25, decision.clone()))].into_iter().collect();
        let asked = Asked { standings, letters: Vec::new(), epoch: false };
        let told = |committed: &[(i32, i64)]| {
            let committed =
                committed.iter().map(|(partition, offset)| (place(*partition), *offset)).collect();
            asked.telling(&committed).map(|((_, partition), (offset, _))| (*partition, *offset))
        };
        assert_eq!(told(&[(0, 10), (1, 20)]), Some((1, 25)));
        assert_eq!(told(&[(0, 10), (1, 25)]), Some((0, 10)), "none moves: any of them");
        assert_eq!(told(&[]), Some((0, 10)));
        assert!(!asked.matters());
    }
}
