//! What tests of the stage and of those who use it put at its far end.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::{Done, Outlet, PipelineId, Signs, Slot};
use crate::batch::Batch;
use crate::budget::Share;
use crate::buffers::Buffers;
use crate::config::model::{Compression, PartialUpdate, RowFormat, Secret, StarRocks, TableModel};
use crate::dead_letter::Rejects;
use crate::delivery::Alarm;
use crate::delivery::owner::Owner;
use crate::meter::Meter;
use crate::sink::Destination;
use crate::sink::late::LateTables;

/// Shows each batch to the test, which ends the load.
pub(crate) struct Shown(pub(crate) mpsc::Sender<(Batch, Done)>);

impl Outlet for Shown {
    fn start(&self, batch: Batch, done: Done) {
        // A test that has seen enough is gone.
        let _ = self.0.send((batch, done));
    }
}

/// A cluster behind `fe`, with a database `shop`.
pub(crate) fn cluster(fe: Vec<String>) -> StarRocks {
    StarRocks {
        fe,
        query: None,
        database: "shop".into(),
        table: None,
        tables: Vec::new(),
        create_tables: false,
        user: "root".into(),
        password: Secret::default(),
        table_model: None,
        in_flight: 1,
        load_timeout: Duration::from_secs(600),
        prepared_timeout: Duration::from_secs(86_400),
        redirect_hosts: Vec::new(),
        ca: None,
        properties: BTreeMap::new(),
        format: RowFormat::Json,
        columns: Vec::new(),
        partial_update: false,
        partial_update_mode: PartialUpdate::Row,
        compression: Compression::None,
    }
}

/// A table of the Duplicate Key model in a cluster that nobody reaches.
pub(crate) fn destination(table: &str) -> Arc<Destination> {
    let cluster = Arc::new(cluster(Vec::new()));
    Arc::new(Destination { cluster, table: table.into(), model: TableModel::Duplicate, key: Vec::new() })
}

/// A pipeline that loads `orders` and keeps no rejects.
pub(crate) fn owner(pipeline: PipelineId, share: &Share, rejects: Rejects) -> Owner {
    let (meter, name) = (Meter::new(), format!("pipeline-{pipeline}"));
    Owner {
        pipeline,
        tables: BTreeMap::from([("orders".to_owned(), meter.table(&name, "shop.orders"))]),
        meter: meter.pipeline(&name),
        giving_up: Arc::default(),
        alarm: Alarm::default(),
        rejects,
        share: share.clone(),
        buffers: Buffers::default(),
        fence: None,
        late: LateTables::default(),
    }
}

impl Signs {
    /// Signs that nobody hears.
    pub(crate) fn unheard() -> Signs {
        Signs { inbox: tokio::sync::mpsc::channel(1).0, slot: Slot::Table(0) }
    }
}
