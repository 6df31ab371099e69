//! Remembers in StarRocks that a pipeline has read a topic, so that offsets that vanish are noticed.
//!
//! A group that loses its committed offsets (deleted, or expired while nobody read) looks like a new one:
//! it would begin at `start` again and load everything twice, or skip what lies between. A row in
//! StarRocks tells the two apart (delivery.md §1 rule 5). It is kept as well as rights allow: without
//! the query port or the right to make a table the pipeline runs all the same, and says so once.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use crate::config::model::StarRocks;
use crate::fault::Fault;
use crate::sink::starrocks::query::Query;

/// The table, in the pipeline's own database.
pub const TABLE: &str = "tidemill_runs";

/// The statement that makes the table; decision 0014 has it, too, for whoever makes it by hand.
fn create_statement(database: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS `{database}`.`{TABLE}` (id VARCHAR(64) NOT NULL, pipeline VARCHAR(256), kafka_group \
         VARCHAR(1024), topic VARCHAR(1024)) PRIMARY KEY (id) DISTRIBUTED BY HASH (id) BUCKETS 1"
    )
}

/// A pipeline's marker.
#[derive(Clone)]
pub struct Marker {
    runtime: Handle,
    sink: Arc<StarRocks>,
    pipeline: String,
    group: String,
}

impl Marker {
    /// A marker for `pipeline`, which reads as `group`. Nothing is asked or written yet.
    pub fn new(runtime: Handle, sink: Arc<StarRocks>, pipeline: &str, group: &str) -> Marker {
        Marker { runtime, sink, pipeline: pipeline.to_owned(), group: group.to_owned() }
    }

    /// The key: pipeline, group and topic may be longer together than the 128 bytes of a primary key.
    fn key(&self, topic: &str) -> String {
        let text = format!("{}\0{}\0{topic}", self.pipeline, self.group);
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether the pipeline has read `topic` before; false if that cannot be known. Blocks for one
    /// question; from plain threads only.
    pub fn has_read(&self, topic: &str) -> bool {
        let statement = format!(
            "SELECT count(*) FROM `{}`.`{TABLE}` WHERE id = '{}'",
            self.sink.database,
            self.key(topic)
        );
        let asked = self.runtime.block_on(async {
            let mut query = Query::connect(&self.sink).await?;
            // A missing table is an answer, too: nothing was ever marked.
            if !query.table_exists(TABLE).await? {
                return Ok(None);
            }
            query.execute(&statement).await.map(Some)
        });
        match asked {
            Ok(Some(rows)) => {
                rows.first().and_then(|row| row.first()?.as_deref()).is_some_and(|count| count != "0")
            }
            Ok(None) => false,
            Err(fault) => {
                self.cannot(&fault);
                false
            }
        }
    }

    /// Marks topics as read, in the background.
    pub fn keep(&self, topics: Vec<String>) {
        let marker = self.clone();
        self.runtime.spawn(async move {
            if let Err(fault) = marker.write(&topics).await {
                marker.cannot(&fault);
            }
        });
    }

    async fn write(&self, topics: &[String]) -> Result<(), Fault> {
        let database = &self.sink.database;
        let mut query = Query::connect(&self.sink).await?;
        if !query.table_exists(TABLE).await? {
            query.create_table(&create_statement(database)).await?;
        }
        for topic in topics {
            let key = self.key(topic);
            let known = query
                .execute(&format!("SELECT count(*) FROM `{database}`.`{TABLE}` WHERE id = '{key}'"))
                .await?;
            if known.first().and_then(|row| row.first()?.as_deref()) != Some("0") {
                continue;
            }
            let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "''");
            let statement = format!(
                "INSERT INTO `{database}`.`{TABLE}` (id, pipeline, kafka_group, topic) VALUES ('{key}', '{}', '{}', '{}')",
                quoted(&self.pipeline),
                quoted(&self.group),
                quoted(topic)
            );
            query.execute(&statement).await?;
        }
        Ok(())
    }

    fn cannot(&self, fault: &Fault) {
        tracing::info!(
            pipeline = %self.pipeline,
            "cannot use the table {}.{TABLE}, so that lost group offsets will not be noticed: {}",
            self.sink.database,
            fault.story()
        );
    }

    /// The fault of a group whose offsets are gone.
    pub fn offsets_gone(&self, topic: &str) -> Fault {
        Fault::halt(
            format!(
                "group `{}` has no committed offsets for topic `{topic}`, but this pipeline has read it before",
                self.group
            ),
            format!(
                "they were deleted or have expired: set them with kafka-consumer-groups --reset-offsets to where \
                 reading should go on; or, to begin at `start` again, DELETE FROM {}.{TABLE} WHERE id = '{}'",
                self.sink.database,
                self.key(topic)
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::create_statement;

    #[test]
    fn the_decision_page_has_the_statement_for_whoever_makes_the_table_by_hand() {
        let page = include_str!("../../../docs/decisions/0014-a-marker-row-for-lost-offsets.md");
        let words: Vec<&str> = page.split_whitespace().collect();
        assert!(words.join(" ").contains(&create_statement("shop")), "{}", create_statement("shop"));
    }
}
