//! Guards loads into Primary Key tables against coming after a successor's (delivery.md §2): between the begin of a
//! load and its body the group is asked whether its partitions are still ours, by a commit.
//!
//! All commits are the control thread's, so the fence asks that one. Loads that ask at the same time share a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::claim::{CLAIMED_AHEAD, Claim, OPEN_MAX};
use crate::config::model::TableModel;
use crate::fault::Fault;
use crate::meter::PipelineMeter;
use crate::position::Stay;
use crate::sink::{Destination, Fence, FenceAnswer};

/// How long the control thread may take to answer: it may be looking up offsets for another assignment meanwhile.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// What a load wants to know: whether a commit that is sent from now on comes through.
pub(super) struct Question {
    /// Partitions of its rows that have to be ours still.
    stays: Vec<Stay>,
    answer: oneshot::Sender<Result<(), Fault>>,
}

impl Question {
    /// Whether somebody still waits.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.answer.is_closed()
    }

    /// Whether all partitions that it is about are `ours`.
    pub(super) fn is_about(&self, ours: impl Fn(&Stay) -> bool) -> bool {
        self.stays.iter().all(ours)
    }

    /// A commit came through, and the partitions are ours.
    pub(super) fn holds(self) {
        // Whoever asked may have given up.
        let _ = self.answer.send(Ok(()));
    }

    /// None did, or nobody knows.
    pub(super) fn refuse(self, why: &Fault) {
        // As above.
        let _ = self.answer.send(Err(why.retold()));
    }
}

/// The questions of a pipeline's loads; bounded.
pub(super) struct Questions(Receiver<Question>);

impl Questions {
    /// The next one, if there is one.
    pub(super) fn next(&self) -> Option<Question> {
        self.0.try_recv().ok()
    }
}

/// The fence of one pipeline.
pub(crate) struct GroupFence {
    stem: String,
    meter: Arc<PipelineMeter>,
    questions: SyncSender<Question>,
    numbers: Mutex<Numbers>,
}

/// Numbers of labels.
#[derive(Default)]
struct Numbers {
    /// Of loads that are not decided, with the partitions of their rows.
    undecided: BTreeMap<u64, Vec<Stay>>,
    /// Behind the last one that was used.
    next: u64,
    /// What is known to stand beside the offset of every partition that is ours.
    claimed: Option<Claim>,
}

impl Numbers {
    fn is_claimed(&self, number: u64) -> bool {
        self.claimed.as_ref().is_some_and(|claim| claim.covers(number))
    }
}

impl fmt::Debug for GroupFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupFence").field("stem", &self.stem).finish_non_exhaustive()
    }
}

impl GroupFence {
    /// A fence for loads under labels that begin with `stem`, and what they ask.
    pub(super) fn new(stem: String, meter: Arc<PipelineMeter>) -> (Arc<GroupFence>, Questions) {
        // A load asks one question at a time.
        let (questions, receiver) = sync_channel(OPEN_MAX);
        let fence = GroupFence { stem, meter, questions, numbers: Mutex::default() };
        (Arc::new(fence), Questions(receiver))
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        // Single insertions, removals and assignments: a panic elsewhere leaves it usable.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a load is on its way, and may ask.
    pub(super) fn is_busy(&self) -> bool {
        !self.lock().undecided.is_empty()
    }

    /// Begin of the labels.
    pub(super) fn stem(&self) -> &str {
        &self.stem
    }

    /// What to claim next: what is open, and numbers for loads to come unless this is the `last` claim.
    pub(super) fn claim(&self, last: bool) -> Claim {
        let numbers = self.lock();
        let ahead = if last { 0 } else { CLAIMED_AHEAD };
        Claim::of(&self.stem, numbers.next, ahead, numbers.undecided.keys().copied())
    }

    /// What stands beside the offset of every partition that is ours; none = nobody knows.
    pub(super) fn claimed(&self, claim: Option<Claim>) {
        self.lock().claimed = claim;
    }

    /// Labels of loads that hold rows of `concerned` partitions and are not decided.
    pub(super) fn open_labels(&self, concerned: impl Fn(&Stay) -> bool) -> BTreeSet<String> {
        let numbers = self.lock();
        let open = numbers.undecided.iter().filter(|(_, stays)| stays.iter().any(&concerned));
        open.map(|(number, _)| format!("{}-{number}", self.stem)).collect()
    }

    async fn ask(&self, stays: Vec<Stay>) -> Result<(), Fault> {
        let (answer, answered) = oneshot::channel();
        let silent = || Fault::retry("cannot ask the group: the pipeline ends");
        match self.questions.try_send(Question { stays, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(Fault::retry("cannot ask the group: too many loads are asking already"));
            }
            Err(TrySendError::Disconnected(_)) => return Err(silent()),
        }
        match tokio::time::timeout(ANSWER_PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(silent()),
            Err(_) => {
                let waited = ANSWER_PATIENCE.as_secs();
                Err(Fault::retry(format!("no commit of offsets came through within {waited} s")))
            }
        }
    }

    async fn use_number(&self, number: u64, stays: &[Stay]) -> Result<(), Fault> {
        {
            let mut numbers = self.lock();
            if numbers.undecided.len() >= OPEN_MAX && !numbers.undecided.contains_key(&number) {
                return Err(Fault::retry(format!(
                    "{OPEN_MAX} loads of the pipeline are on their way already"
                )));
            }
            numbers.undecided.insert(number, stays.to_vec());
            numbers.next = numbers.next.max(number.saturating_add(1));
            if numbers.is_claimed(number) {
                return Ok(());
            }
        }
        self.ask(Vec::new()).await?;
        if self.lock().is_claimed(number) {
            return Ok(());
        }
        Err(Fault::retry("the label of a load could not be claimed"))
    }

    async fn validate(&self, number: u64) -> Result<(), Fault> {
        let began = Instant::now();
        let stays = self.lock().undecided.get(&number).cloned();
        let held = match stays {
            Some(stays) => self.ask(stays).await,
            None => Err(Fault::retry("the label of a load was never claimed")),
        };
        let took_ms = began.elapsed().as_millis();
        tracing::debug!(pipeline = %self.meter.name, number, took_ms, holds = held.is_ok(), "asked the group");
        held.inspect_err(|why| {
            self.meter.fence.refusals.inc();
            tracing::warn!(
                pipeline = %self.meter.name, label = %format_args!("{}-{number}", self.stem),
                "the rows of a load stay here: {}", why.story()
            );
        })
    }
}

impl Fence for GroupFence {
    /// In tables of other models a late load cannot bring old rows back over newer ones: it only adds.
    fn guards(&self, destination: &Destination) -> bool {
        destination.model == TableModel::Primary
    }

    fn announce<'a>(&'a self, number: u64, stays: &'a [Stay]) -> FenceAnswer<'a> {
        Box::pin(self.use_number(number, stays))
    }

    fn holds(&self, number: u64) -> FenceAnswer<'_> {
        Box::pin(self.validate(number))
    }

    fn settled(&self, number: u64) {
        self.lock().undecided.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;
    use crate::position::{Epoch, Partition};

    fn fence() -> (Arc<GroupFence>, Questions) {
        GroupFence::new("s".into(), Meter::new().pipeline("p"))
    }

    fn stay(number: u32) -> Stay {
        Stay { partition: Partition { source: "t".into(), number }, epoch: Epoch(1) }
    }

    async fn question(questions: &Questions) -> Question {
        loop {
            if let Some(question) = questions.next() {
                return question;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_number_is_used_when_a_successor_would_know_of_it() {
        let (fence, questions) = fence();
        let announcing = tokio::spawn({
            let fence = Arc::clone(&fence);
            async move { fence.announce(7, &[stay(1)]).await }
        });
        let asked = question(&questions).await;
        let claim = fence.claim(false);
        assert!(claim.covers(7) && claim.covers(8) && !claim.covers(6));
        fence.claimed(Some(claim));
        asked.holds();
        announcing.await.expect("no panic").expect("it is claimed");
        // The next ones are claimed already.
        fence.announce(8, &[stay(1)]).await.expect("it is claimed");
        // One before the claim is not.
        fence.settled(7);
        fence.claimed(Some(fence.claim(false)));
        let announcing = tokio::spawn({
            let fence = Arc::clone(&fence);
            async move { fence.announce(6, &[stay(1)]).await }
        });
        let asked = question(&questions).await;
        assert!(fence.claim(false).covers(6));
        asked.refuse(&Fault::retry("no broker"));
        assert!(announcing.await.expect("no panic").is_err());
    }

    #[tokio::test]
    async fn a_body_stays_when_a_partition_of_its_rows_is_gone_or_nobody_answers() {
        let (fence, questions) = fence();
        fence.claimed(Some(fence.claim(false)));
        fence.announce(0, &[stay(1), stay(2)]).await.expect("it is claimed");
        for is_ours in [true, false] {
            let validating = tokio::spawn({
                let fence = Arc::clone(&fence);
                async move { fence.holds(0).await }
            });
            let asked = question(&questions).await;
            assert_eq!(asked.is_about(|held| is_ours || *held == stay(1)), is_ours);
            if is_ours {
                asked.holds();
            } else {
                asked.refuse(&Fault::retry("one of them is gone"));
            }
            assert_eq!(validating.await.expect("no panic").is_ok(), is_ours);
        }
        drop(questions);
        assert!(fence.holds(0).await.is_err());
        assert!(fence.holds(1).await.is_err(), "it was never claimed");
        assert_eq!(fence.meter.fence.refusals.get(), 3);
    }

    #[tokio::test]
    async fn what_is_open_is_named_until_it_is_decided() {
        let (fence, _questions) = fence();
        fence.claimed(Some(fence.claim(false)));
        fence.announce(0, &[stay(1)]).await.expect("it is claimed");
        fence.announce(2, &[stay(2)]).await.expect("it is claimed");
        assert_eq!(fence.open_labels(|held| *held == stay(2)), BTreeSet::from(["s-2".to_owned()]));
        let last: Vec<String> = fence.claim(true).labels().collect();
        assert_eq!(last, ["s-0", "s-2"]);
        fence.settled(0);
        fence.settled(2);
        assert!(!fence.is_busy() && fence.claim(true).labels().next().is_none());
    }
}
