//! Which labels a process may have open: told in StarRocks before one is used (delivery.md §2, decision 0036).
//!
//! Each time that a process takes the slot over it has a row of its own: no process can write over what another one
//! claims, however late its load is. Within a row the place of the position grows with every write, so that of two writes of one
//! process the later one stays, in whatever order they land.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{Details, Positions, Row, TABLE};
use crate::config::model::TableModel;
use crate::fault::Fault;
use crate::sink::Destination;
use crate::sink::starrocks::client::Client;
use crate::source::postgres::lsn::Lsn;

/// What a claim's row is about in the place of a table's name.
pub(super) const CLAIM: &str = "#claim";
/// The generation is above these bits of a row's position, the revision in them. Versions before had the generation alone
/// there, and one row for all claims.
const REVISION_BITS: u32 = 32;
/// What deletes a row of a Primary Key table.
const DELETE_OP: u8 = 1;

/// Claims by the ids of their rows: those of processes whose successor has not tidied up, too.
pub(in crate::source::postgres) type Claims = BTreeMap<String, Claim>;

/// Which labels a process may have open: `<stem>-<number>` with numbers from `first` to before `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source::postgres) struct Claim {
    /// Grows with each process that takes the slot over.
    pub(in crate::source::postgres) generation: u64,
    /// Grows with each write of the claim; 0 if a version wrote it that did not count.
    pub(in crate::source::postgres) revision: u64,
    /// Begin of its labels.
    pub(in crate::source::postgres) stem: String,
    /// First number that may be undecided.
    pub(in crate::source::postgres) first: u64,
    /// Number behind the last one that may be used.
    pub(in crate::source::postgres) end: u64,
}

impl Claim {
    /// The claim of a process that has just taken over from these.
    pub(in crate::source::postgres) fn after(before: &Claims, stem: &str) -> Claim {
        let newest = before.values().map(|claim| claim.generation).max().unwrap_or(0);
        Claim { generation: newest + 1, revision: 1, stem: stem.to_owned(), first: 0, end: 0 }
    }

    /// As it stands in a row.
    pub(super) fn read(place: u64, stem: String, first: u64, end: u64) -> Claim {
        let (generation, revision) = match place >> REVISION_BITS {
            0 => (place, 0),
            generation => (generation, place & ((1 << REVISION_BITS) - 1)),
        };
        Claim { generation, revision, stem, first, end }
    }

    /// In the place of the position.
    pub(super) fn place(&self) -> u64 {
        (self.generation << REVISION_BITS).saturating_add(self.revision)
    }

    /// Whether it is the newest of `found`, which others may have written since it was.
    pub(in crate::source::postgres) fn is_newest(&self, found: &Claims) -> bool {
        let is_own = |claim: &Claim| (claim.generation, &claim.stem) == (self.generation, &self.stem);
        let (own, others): (Vec<_>, Vec<_>) = found.values().partition(|claim| is_own(claim));
        !own.is_empty() && others.iter().all(|claim| claim.generation < self.generation)
    }
}

/// A row that is to go.
#[derive(Serialize)]
struct Gone<'a> {
    id: &'a str,
    #[serde(rename = "__op")]
    op: u8,
}

impl Positions {
    fn claim_id(&self, claim: &Claim) -> String {
        self.id(&format!("{CLAIM} {} {}", claim.generation, claim.stem))
    }

    /// Labels of `claim` may be open from now on.
    ///
    /// # Errors
    /// As [`Positions::reached`].
    pub(in crate::source::postgres) async fn claimed(&self, claim: &Claim) -> Result<(), Fault> {
        let row = Row {
            id: self.claim_id(claim),
            stem: &claim.stem,
            first_label: claim.first,
            end_label: claim.end,
            ..self.row(CLAIM, Lsn(claim.place()), &Details::default())?
        };
        self.write(&[row], self.claim_label(), Vec::new()).await
    }

    /// Nothing of these claims is open. A row that its process writes once more after that names labels that are asked for
    /// in vain.
    ///
    /// # Errors
    /// As [`Positions::reached`].
    pub(in crate::source::postgres) async fn tidied(&self, claims: &Claims) -> Result<(), Fault> {
        if claims.is_empty() {
            return Ok(());
        }
        // A condition does not go with deletes.
        let mut plain = (*self.sink).clone();
        plain.properties.clear();
        let plain = Arc::new(plain);
        let destination = Destination {
            cluster: Arc::clone(&plain),
            table: TABLE.to_owned(),
            model: TableModel::Primary,
            key: Vec::new(),
        };
        let rows: Vec<Gone<'_>> = claims.keys().map(|id| Gone { id, op: DELETE_OP }).collect();
        let client = Client::new(plain)?;
        self.send(&client, &Arc::new(destination), &rows, self.claim_label(), Vec::new()).await
    }

    /// Nobody has to look for it.
    fn claim_label(&self) -> String {
        self.carrier.next_label(&format!("{}-claim", self.pipeline)).0
    }
}
