//! How far a slot's changes are in StarRocks: rows in the same database (delivery.md §4).
//!
//! The slot's own position is not enough: a crash of Postgres takes it back, and so does a clean restart
//! before version 17. The position is passed to START_REPLICATION instead, and a slot that is ahead of it tells
//! that changes are lost. A row is only ever replaced by one of the same or a later position
//! (`merge_condition`), so that a load of a process that is dead, or thinks that it is not, cannot take it back.
//! They are read over a connection that was made for it: see [`Query`].

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use self::claim::CLAIM;
pub(super) use self::claim::{Claim, Claims};
use super::leadership::Leadership;
use super::lsn::Lsn;
use super::prepare::add_columns;
use super::table::TableName;
use super::warehouse_table::{Added, Remembered};
use crate::config::model::{StarRocks, TableModel};
use crate::delivery::carry::Carrier;
use crate::delivery::take_over::{Found, end_if_open};
use crate::fault::{Fault, FaultKind};
use crate::retry::{Backoff, Pace};
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::deliver::{DeliverContext, Delivered, Observer, Paces, Witness, deliver};
use crate::sink::starrocks::query::Query;
use crate::sink::starrocks::state::LabelState;
use crate::sink::{Destination, Fence, Guarded, Load};

mod claim;

/// The table, in the pipeline's own database.
pub(super) const TABLE: &str = "tidemill_positions";
/// The column for what has no column of its own, as JSON. Tables that were made before it came lack it.
const DETAILS: &str = "details";
/// Its type: columns of a table of 1600, with room to spare.
const DETAILS_TYPE: &str = "VARCHAR(1048576)";
/// Number of a timeline that is not known; Postgres counts from 1.
const UNKNOWN_TIMELINE: u32 = 0;
/// How long a row may take before it is given up, to be written again.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);
/// How long a position that is committed may take to be visible.
const VISIBLE_PATIENCE: Duration = Duration::from_secs(120);

/// What is known of a slot's life from earlier processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// All changes before it are in StarRocks; none = the stream never got that far.
    pub(super) stream: Option<Lsn>,
    /// `system_identifier` of the server that it was read from.
    pub(super) system: Option<String>,
    /// Tables that were copied whole, with the place in the log that the copy shows.
    pub(super) copied: BTreeMap<String, Lsn>,
    /// Timeline of that server, when `stream` was written.
    pub(super) timeline: Option<u32>,
    /// Columns of tables as the stream last told of them.
    pub(super) columns: BTreeMap<String, Vec<Remembered>>,
    /// Tables that have, or may have, rows in StarRocks.
    pub(super) traces: BTreeMap<String, Trace>,
    /// Who loads, or did, by the ids of their rows.
    pub(super) claims: Claims,
}

/// A table that is followed, or was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trace {
    /// `pg_class.oid`; none if a version that did not keep it told of the table last.
    pub(super) oid: Option<u32>,
    /// It is followed no more: changes of it have passed by, and its rows are still in StarRocks.
    pub(super) has_left: bool,
    /// The position that the row has.
    pub(super) at: Lsn,
}

/// A table as it is to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// Its name.
    pub(super) table: TableName,
    /// `pg_class.oid`.
    pub(super) oid: u32,
    /// Its columns.
    pub(super) columns: Vec<Remembered>,
}

impl Note {
    fn details(&self) -> Details {
        Details { oid: Some(self.oid), columns: Some(self.columns.clone()), ..Details::default() }
    }
}

impl Known {
    /// Tables that are followed, or were when somebody wrote of them last.
    pub(super) fn followed(&self) -> BTreeSet<&String> {
        let known = self.copied.keys().chain(self.columns.keys());
        known.filter(|table| !self.has_left(table)).collect()
    }

    /// Whether a table was followed once, and is no more.
    pub(super) fn has_left(&self, table: &str) -> bool {
        self.traces.get(table).is_some_and(|trace| trace.has_left)
    }

    /// `pg_class.oid` of a table that is or was followed.
    pub(super) fn oid(&self, table: &str) -> Option<u32> {
        self.traces.get(table).and_then(|trace| trace.oid)
    }
}

/// What a row is about in the place of a table's name: the stream.
const STREAM: &str = "";
/// Likewise, with the table's name behind it: its oid and its columns, from before its first row is loaded until it is to be
/// copied anew, also when it is followed no more. A table's own row tells that it was copied, and a table that is
/// followed without a copy has none.
const COLUMNS: &str = "#columns ";

/// What stands in [`DETAILS`]. What is not there is not known.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Details {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeline: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    columns: Option<Vec<Remembered>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    oid: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
}

/// The position rows of one pipeline and slot.
pub(super) struct Positions {
    sink: Arc<StarRocks>,
    client: Client,
    destination: Arc<Destination>,
    /// Names the labels: numbers of the claim.
    carrier: Carrier,
    /// Guards and announces them. It holds these positions itself, to claim labels.
    fence: Weak<Leadership>,
    witness: Arc<Witness>,
    pipeline: String,
    slot: String,
    system: String,
    timeline: AtomicU32,
}

#[derive(Serialize)]
struct Row<'a> {
    id: String,
    pipeline: &'a str,
    slot: &'a str,
    source_table: &'a str,
    system_identifier: &'a str,
    lsn: u64,
    lsn_text: String,
    stem: &'a str,
    first_label: u64,
    end_label: u64,
    details: String,
}

/// Progress of position rows is no news to anybody.
struct Unobserved;

impl Observer for Unobserved {
    fn attempting(&self, _label: &str, _number: u32) {}
    fn waiting(&self, _label: &str, _since: Instant, _why: &Fault) {}
    fn resumed(&self, _label: &str, _waited: Duration) {}
    fn possible_duplicate(&self, _label: &str) {}
}

fn cannot_be_json(error: serde_json::Error) -> Fault {
    Fault::halt("cannot write a position as JSON", "report this defect").caused_by(error)
}

/// The statement that makes the table.
pub(super) fn create_statement(database: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS `{database}`.`{TABLE}` (id VARCHAR(64) NOT NULL, pipeline VARCHAR(256), slot \
         VARCHAR(64), source_table VARCHAR(1024), system_identifier VARCHAR(32), lsn BIGINT, lsn_text VARCHAR(32), \
         stem VARCHAR(128), first_label BIGINT, end_label BIGINT, {DETAILS} {DETAILS_TYPE}) PRIMARY KEY (id) DISTRIBUTED BY HASH (id) BUCKETS 1"
    )
}

/// What is known of a pipeline's slot; none if the table is not there. Changes nothing.
///
/// # Errors
/// If StarRocks cannot be asked.
pub(super) async fn known(sink: &StarRocks, pipeline: &str, slot: &str) -> Result<Option<Known>, Fault> {
    let mut query = Query::connect(sink).await?;
    rows(&mut query, &sink.database, pipeline, slot).await
}

/// The key of a row: its parts may be longer together than the 128 bytes of a primary key.
fn id_of(pipeline: &str, slot: &str, table: &str) -> String {
    let text = format!("{pipeline}\0{slot}\0{table}");
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Forgets that a table was copied: it is copied at the next start.
///
/// # Errors
/// Retry, if StarRocks cannot be asked.
pub(super) async fn forget(
    query: &mut Query,
    database: &str,
    pipeline: &str,
    slot: &str,
    table: &str,
) -> Result<(), Fault> {
    // In this order: columns of a table that has to be copied are known anew anyway.
    for table in [table, &format!("{COLUMNS}{table}")] {
        let id = id_of(pipeline, slot, table);
        query.execute(&format!("DELETE FROM `{database}`.`{TABLE}` WHERE id = '{id}'")).await?;
    }
    Ok(())
}

/// The rows; none if the table is not there.
async fn rows(query: &mut Query, database: &str, pipeline: &str, slot: &str) -> Result<Option<Known>, Fault> {
    let Some(there) = query.columns(TABLE).await? else { return Ok(None) };
    let details = if there.iter().any(|column| column.name == DETAILS) { DETAILS } else { "NULL" };
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "''");
    let statement = format!(
        "SELECT id, source_table, lsn, system_identifier, stem, first_label, end_label, {details} FROM `{database}`.`{TABLE}` \
         WHERE pipeline = '{}' AND slot = '{}'",
        quoted(pipeline),
        quoted(slot)
    );
    let number = |text: &str| {
        text.parse::<u64>().map_err(|error| {
            Fault::halt(
                format!("a row of {database}.{TABLE} has no number where one belongs"),
                "mend or delete the pipeline's rows there",
            )
            .caused_by(error)
        })
    };
    let mut known = Known::default();
    for row in query.execute(&statement).await? {
        let [Some(id), Some(table), Some(lsn), system, stem, first, end, details] = row.as_slice() else {
            continue;
        };
        let place = number(lsn)?;
        let Details { timeline, columns, oid, left } = read_details(details.as_deref());
        if let Some(table) = table.strip_prefix(COLUMNS) {
            known.traces.insert(table.to_owned(), Trace { oid, has_left: left, at: Lsn(place) });
            known.columns.extend(columns.map(|columns| (table.to_owned(), columns)));
            continue;
        }
        match table.as_str() {
            STREAM => {
                known.stream = Some(Lsn(place));
                known.timeline = timeline;
            }
            CLAIM => {
                let text = |cell: &Option<String>| cell.clone().unwrap_or_default();
                let (first, end) = (number(&text(first))?, number(&text(end))?);
                known.claims.insert(id.clone(), Claim::read(place, text(stem), first, end));
                continue;
            }
            table => {
                known.copied.insert(table.to_owned(), Lsn(place));
            }
        }
        known.system = system.clone().or(known.system);
    }
    Ok(Some(known))
}

/// What another version wrote in another form is not known.
fn read_details(text: Option<&str>) -> Details {
    let text = text.filter(|text| !text.is_empty());
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

impl Positions {
    /// Makes the table if it is not there.
    ///
    /// # Errors
    /// If StarRocks cannot be asked, or does not let the user make a table.
    pub(super) async fn open(
        sink: &StarRocks,
        pipeline: &str,
        slot: &str,
        system: &str,
        carrier: &Carrier,
        fence: &Arc<Leadership>,
    ) -> Result<Positions, Fault> {
        let mut own = sink.clone();
        own.properties = BTreeMap::from([("merge_condition".to_owned(), "lsn".to_owned())]);
        let own = Arc::new(own);
        let mut query = Query::connect(&own).await?;
        match query.columns(TABLE).await? {
            None => {
                query.create_table(&create_statement(&own.database)).await?;
            }
            Some(there) if there.iter().any(|column| column.name == DETAILS) => {}
            Some(_older) => {
                let sql = format!(
                    "ALTER TABLE `{}`.`{TABLE}` ADD COLUMN {DETAILS} {DETAILS_TYPE} NULL",
                    own.database
                );
                add_columns(&mut query, TABLE, &[Added { column: DETAILS.to_owned(), sql }]).await?;
            }
        }
        let destination = Destination {
            cluster: Arc::clone(&own),
            table: TABLE.to_owned(),
            model: TableModel::Primary,
            key: Vec::new(),
        };
        Ok(Positions {
            client: Client::new(Arc::clone(&own))?,
            sink: own,
            destination: Arc::new(destination),
            carrier: carrier.clone(),
            fence: Arc::downgrade(fence),
            witness: Arc::new(Witness::new()),
            pipeline: pipeline.to_owned(),
            slot: slot.to_owned(),
            system: system.to_owned(),
            timeline: AtomicU32::new(UNKNOWN_TIMELINE),
        })
    }

    fn id(&self, table: &str) -> String {
        id_of(&self.pipeline, &self.slot, table)
    }

    /// What earlier processes left.
    ///
    /// # Errors
    /// If StarRocks cannot be asked.
    pub(super) async fn read(&self) -> Result<Known, Fault> {
        let mut query = Query::connect(&self.sink).await?;
        Ok(rows(&mut query, &self.sink.database, &self.pipeline, &self.slot).await?.unwrap_or_default())
    }

    /// All changes before `lsn` are in StarRocks. Done when everybody can see it.
    ///
    /// # Errors
    /// Halt, if StarRocks will not have it.
    pub(super) async fn reached(&self, lsn: Lsn) -> Result<(), Fault> {
        let timeline = self.timeline();
        let row = self.row(STREAM, lsn, &Details { timeline, ..Details::default() })?;
        self.write_positions(&[row]).await
    }

    /// A table was copied as it was at `lsn`.
    ///
    /// # Errors
    /// As [`Positions::reached`].
    pub(super) async fn copied(&self, note: &Note, lsn: Lsn) -> Result<(), Fault> {
        let (name, shape) = (note.table.to_string(), format!("{COLUMNS}{}", note.table));
        let copied = self.row(&name, lsn, &Details::default())?;
        self.write_positions(&[copied, self.row(&shape, lsn, &note.details())?]).await
    }

    /// Tables are followed in this shape from `lsn` on, or are about to be copied.
    ///
    /// # Errors
    /// As [`Positions::reached`].
    pub(super) async fn remember(&self, notes: &[Note], lsn: Lsn) -> Result<(), Fault> {
        if notes.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = notes.iter().map(|note| format!("{COLUMNS}{}", note.table)).collect();
        let rows: Result<Vec<Row<'_>>, Fault> =
            names.iter().zip(notes).map(|(name, note)| self.row(name, lsn, &note.details())).collect();
        self.write_positions(&rows?).await
    }

    /// A table of which `known` tells is followed no more, from `lsn` on. Its changes pass by, and its rows stay in
    /// StarRocks: should it come back, they must not be taken for its own.
    ///
    /// # Errors
    /// As [`Positions::reached`].
    pub(super) async fn left(&self, table: &str, known: &Known, lsn: Lsn) -> Result<(), Fault> {
        tracing::warn!(table, "it is not followed any more, and its rows stay in StarRocks");
        let (name, trace) = (format!("{COLUMNS}{table}"), known.traces.get(table));
        let columns = known.columns.get(table).cloned();
        let details = Details { oid: known.oid(table), left: true, columns, ..Details::default() };
        // A row is replaced by later ones only.
        let lsn = trace.map_or(lsn, |trace| lsn.max(trace.at));
        self.write_positions(&[self.row(&name, lsn, &details)?]).await
    }

    /// The server whose changes these are.
    pub(super) fn system(&self) -> &str {
        &self.system
    }

    /// The pipeline that they are of.
    pub(super) fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// The server's timeline up to the last position, if it is known.
    pub(super) fn timeline(&self) -> Option<u32> {
        Some(self.timeline.load(Ordering::Relaxed)).filter(|timeline| *timeline != UNKNOWN_TIMELINE)
    }

    /// Positions are of this timeline from now on.
    pub(super) fn follow_timeline(&self, timeline: u32) {
        self.timeline.store(timeline, Ordering::Relaxed);
    }

    /// Asks how a label of another process stands, and ends it if it is open; true once it is decided.
    ///
    /// # Errors
    /// Retry, if StarRocks cannot be asked.
    pub(super) async fn resolve(&self, label: &str) -> Result<bool, Fault> {
        let found = end_if_open(&self.client, &self.sink.database, TABLE, label).await?;
        Ok(found == Found::Decided)
    }

    fn row<'a>(&'a self, table: &'a str, lsn: Lsn, details: &Details) -> Result<Row<'a>, Fault> {
        Ok(Row {
            id: self.id(table),
            pipeline: &self.pipeline,
            slot: &self.slot,
            source_table: table,
            system_identifier: &self.system,
            lsn: lsn.0,
            lsn_text: lsn.to_string(),
            stem: "",
            first_label: 0,
            end_label: 0,
            details: serde_json::to_string(details).map_err(cannot_be_json)?,
        })
    }

    async fn write_positions(&self, rows: &[Row<'_>]) -> Result<(), Fault> {
        let Some(fence) = self.fence.upgrade() else {
            return Err(Fault::retry("cannot write a position: the slot was given up"));
        };
        let (label, number) = self.carrier.next_label(&self.pipeline);
        // A successor ends it if it is still open: it would take the position past what that one has loaded.
        fence.announce(number, &[]).await?;
        let guarded = Guarded::new(Arc::clone(&fence) as Arc<dyn Fence>, number);
        let written = self.write(rows, label, vec![guarded]).await;
        fence.settled(number);
        written
    }

    async fn write(&self, rows: &[Row<'_>], label: String, fences: Vec<Guarded>) -> Result<(), Fault> {
        self.send(&self.client, &self.destination, rows, label, fences).await
    }

    async fn send(
        &self,
        client: &Client,
        destination: &Arc<Destination>,
        rows: &[impl Serialize],
        label: String,
        fences: Vec<Guarded>,
    ) -> Result<(), Fault> {
        let mut body = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut body, row).map_err(cannot_be_json)?;
            body.push(b'\n');
        }
        let mut load = Load {
            destination: Arc::clone(destination),
            label,
            columns: None,
            packed: None,
            bytes: body.len() as u64,
            segments: vec![Bytes::from(body)],
            rows: rows.len() as u64,
            fences,
            body_sent: false,
        };
        let (give_up, stop) = watch::channel(false);
        let context = DeliverContext {
            observer: Arc::new(Unobserved),
            witness: Arc::clone(&self.witness),
            stop,
            paces: Paces::default(),
        };
        let delivered = {
            let mut delivering = pin!(deliver(client, &mut load, &context));
            match tokio::time::timeout(WRITE_PATIENCE, delivering.as_mut()).await {
                Ok(delivered) => delivered,
                Err(_elapsed) => {
                    give_up.send_replace(true);
                    delivering.await
                }
            }
        };
        match delivered {
            Delivered::Durable(receipt) if receipt.visible => Ok(()),
            Delivered::Durable(_) => self.visible(&load.label).await,
            Delivered::Halt(fault) => Err(fault),
            Delivered::Released => Err(Fault::retry("writing a position was given up")),
            Delivered::BadRows(rejection) => Err(Fault::halt(
                format!("StarRocks refused a row of {TABLE}: {}", rejection.message),
                format!(
                    "the table has been changed: drop {}.{TABLE} only if the pipeline may copy all tables anew",
                    self.sink.database
                ),
            )),
        }
    }

    /// A committed position that nobody can see yet would be missed by the next process.
    async fn visible(&self, label: &str) -> Result<(), Fault> {
        let deadline = Instant::now() + VISIBLE_PATIENCE;
        let mut backoff = Backoff::new(Pace::POLLING);
        while Instant::now() < deadline {
            match self.client.label_state(&self.sink.database, label).await {
                Ok(LabelState::Visible) => return Ok(()),
                Ok(_) => {}
                Err(fault) if fault.kind == FaultKind::Halt => return Err(fault),
                Err(_passing) => {}
            }
            backoff.wait().await;
        }
        Err(Fault::retry(format!(
            "the position under label {label} is committed and not visible after {} s",
            VISIBLE_PATIENCE.as_secs()
        )))
    }
}

#[cfg(test)]
mod tests;
