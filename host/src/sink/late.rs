//! Tables that were not there when their pipeline started.
//!
//! What a pipeline sets up for a table at its start hangs on the table's key model: a Primary Key table has a fence, and takes
//! deletes (delivery.md §2). So a table that comes later is asked for its model before the body of its first load leaves. By then
//! StarRocks has begun that load: the table is there, and is the one that the rows would get into.

use std::sync::{Arc, OnceLock};

use super::starrocks::query;
use super::{Destination, Fence, FenceAnswer, Guarded};
use crate::config::model::{StarRocks, TableModel};
use crate::fault::Fault;
use crate::position::Stay;

/// A table's key model, which is not known as long as there is no such table.
#[derive(Debug, Clone, Default)]
pub struct Model(Arc<OnceLock<TableModel>>);

impl Model {
    /// What is known by now.
    pub fn get(&self) -> Option<TableModel> {
        self.0.get().copied()
    }

    fn is_known_as(&self, model: TableModel) {
        // Another load may have found out at the same time.
        let _ = self.0.set(model);
    }
}

impl From<TableModel> for Model {
    fn from(model: TableModel) -> Model {
        Model(Arc::new(OnceLock::from(model)))
    }
}

/// The tables of a pipeline whose models are not known.
#[derive(Debug, Clone, Default)]
pub struct LateTables(Arc<[Arc<LateTable>]>);

#[derive(Debug)]
struct LateTable {
    cluster: Arc<StarRocks>,
    table: String,
    model: Model,
}

impl LateTables {
    /// Those among `tables` that were not there.
    pub fn of<'a>(
        cluster: &Arc<StarRocks>,
        tables: impl Iterator<Item = (&'a String, &'a Model)>,
    ) -> LateTables {
        let late = tables.filter(|(_, model)| model.get().is_none()).map(|(table, model)| {
            let (cluster, table) = (Arc::clone(cluster), table.clone());
            Arc::new(LateTable { cluster, table, model: model.clone() })
        });
        LateTables(late.collect())
    }

    /// What asks for the model before the body of a load into `destination` leaves; none once it is known.
    pub fn guard(&self, destination: &Destination) -> Option<Guarded> {
        let is_it = |late: &&Arc<LateTable>| late.table == destination.table && late.model.get().is_none();
        let late = self.0.iter().find(is_it)?;
        Some(Guarded::new(Arc::clone(late) as Arc<dyn Fence>, 0))
    }
}

impl LateTable {
    async fn ask(&self) -> Result<(), Fault> {
        if self.model.get().is_some() {
            return Ok(());
        }
        let name = format!("{}.{}", self.cluster.database, self.table);
        match query::table_model(&self.cluster, &self.table).await? {
            None => Err(Fault::retry(format!("the table {name} has gone again"))),
            Some(TableModel::Primary) => Err(Fault::halt(
                format!("the table {name} was made with a Primary Key after the pipeline had started"),
                "start the pipeline again: nothing was loaded into the table, and what guards the rows of such tables, and \
                 their deletes, is set up at a start",
            )),
            Some(model) => {
                tracing::info!(table = %name, model = model.name(), "the table is there by now");
                self.model.is_known_as(model);
                Ok(())
            }
        }
    }
}

/// It looks at the table, and guards nobody's turn: no label has to be told.
impl Fence for LateTable {
    fn guards(&self, destination: &Destination) -> bool {
        destination.table == self.table
    }

    fn announce<'a>(&'a self, _number: u64, _stays: &'a [Stay]) -> FenceAnswer<'a> {
        Box::pin(async { Ok(()) })
    }

    fn holds(&self, _number: u64) -> FenceAnswer<'_> {
        Box::pin(self.ask())
    }

    fn settled(&self, _number: u64) {}
}

#[cfg(test)]
mod tests {
    use tidemill_sandbox::{Options, Sandbox};

    use super::*;
    use crate::config::model::Secret;
    use crate::fault::FaultKind;
    use crate::sink::starrocks::scripted;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_table_is_asked_for_its_model_until_it_is_known() {
        let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
        sandbox.execute("CREATE DATABASE shop").expect("a database");
        let cluster = Arc::new(StarRocks {
            query: Some(format!("127.0.0.1:{}", sandbox.query_port())),
            password: Secret::default(),
            ..scripted::cluster(&[&sandbox.fe_url()])
        });
        let destination = |table: &str| Destination {
            cluster: Arc::clone(&cluster),
            table: table.to_owned(),
            model: TableModel::Duplicate,
            key: Vec::new(),
        };
        let models = [Model::default(), Model::default(), Model::from(TableModel::Duplicate)];
        let names = ["plain", "keyed", "known"].map(str::to_owned);
        let late = LateTables::of(&cluster, names.iter().zip(&models));
        assert!(late.guard(&destination("known")).is_none() && late.guard(&destination("other")).is_none());
        let plain = late.guard(&destination("plain")).expect("it was not there");
        assert_eq!(plain.holds().await.expect_err("it still is not").kind, FaultKind::Retry);
        sandbox.execute("CREATE TABLE shop.plain (id BIGINT) DUPLICATE KEY(id)").expect("a table");
        sandbox.execute("CREATE TABLE shop.keyed (id BIGINT) PRIMARY KEY(id)").expect("a table");
        plain.holds().await.expect("nothing hangs on its model");
        assert_eq!(models[0].get(), Some(TableModel::Duplicate));
        assert!(late.guard(&destination("plain")).is_none(), "it would be asked for each load");
        let keyed = late.guard(&destination("keyed")).expect("it was not there");
        let fault = keyed.holds().await.expect_err("it needs a fence");
        assert_eq!(fault.kind, FaultKind::Halt);
        assert!(fault.story().contains("shop.keyed") && fault.story().contains("start the pipeline again"));
        assert_eq!(models[1].get(), None);
    }
}
