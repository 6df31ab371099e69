//! The sandbox in the place of StarRocks, in this process: tables, faults, and what is in the tables.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tidemill_sandbox::{
    Fault, FaultKind, FaultReport, LoadRecord, Options, Sandbox, TableStats, TransactionState, VersionLimits,
};
use tokio::runtime::Runtime;

/// A load that is sent again meets its fault after a few pauses, which grow.
const FIRED_WITHIN: Duration = Duration::from_secs(30);

/// A running sandbox with a database `shop`.
pub struct Warehouse {
    // Fields drop in this order: the sandbox before the runtime that it lives on.
    sandbox: Option<Sandbox>,
    runtime: Runtime,
}

impl Warehouse {
    /// Starts a sandbox on free ports with the settings of a small StarRocks.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// Starts a sandbox with these settings.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn with(options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime for the sandbox");
        let sandbox = runtime.block_on(Sandbox::start(options)).expect("the sandbox starts");
        sandbox.execute("CREATE DATABASE shop").expect("a database can be created");
        Self { sandbox: Some(sandbox), runtime }
    }

    fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().expect("it is there until it is dropped")
    }

    /// Address of the FE: `http://127.0.0.1:port`.
    #[must_use]
    pub fn fe(&self) -> String {
        self.sandbox().fe_url()
    }

    /// Where the FE listens, for a proxy in front of it.
    ///
    /// # Panics
    /// When the sandbox names no address.
    #[must_use]
    pub fn fe_address(&self) -> SocketAddr {
        let url = self.fe();
        url.trim_start_matches("http://").parse().unwrap_or_else(|_| panic!("{url} is no address"))
    }

    /// Address of the query port: `127.0.0.1:port`.
    #[must_use]
    pub fn query(&self) -> String {
        format!("127.0.0.1:{}", self.sandbox().query_port())
    }

    /// Creates a Duplicate Key table `shop.<name>` with the columns of [`row`].
    pub fn duplicate_table(&self, name: &str) {
        self.table(name, "DUPLICATE");
    }

    /// Creates a Primary Key table `shop.<name>` with the columns of [`row`].
    pub fn primary_table(&self, name: &str) {
        self.table(name, "PRIMARY");
    }

    fn table(&self, name: &str, model: &str) {
        self.execute(&format!(
            "CREATE TABLE shop.{name} (id BIGINT NOT NULL, amount BIGINT, note VARCHAR(1000)) {model} KEY(id) \
             DISTRIBUTED BY HASH(id)"
        ));
    }

    /// Runs a statement and returns its rows as text; NULL is `None`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn execute(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.sandbox().execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`execute`](Self::execute), for statements that may be refused.
    ///
    /// # Errors
    /// StarRocks' own words.
    pub fn attempt(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        self.sandbox().execute(sql).map_err(|error| error.to_string())
    }

    /// Sets a fault for ever; returns its number.
    pub fn fault(&self, kind: FaultKind) -> u64 {
        self.sandbox().set_fault(Fault::always(kind))
    }

    /// Sets a fault of one table for ever; returns its number.
    pub fn fault_on(&self, table: &str, kind: FaultKind) -> u64 {
        self.sandbox().set_fault(Fault::always(kind).on(table))
    }

    /// Sets a fault that fires so many times; returns its number.
    pub fn fault_times(&self, kind: FaultKind, times: u64) -> u64 {
        self.sandbox().set_fault(Fault::times(kind, times))
    }

    /// Sets a fault of one table that fires so many times; returns its number.
    pub fn fault_times_on(&self, table: &str, kind: FaultKind, times: u64) -> u64 {
        self.sandbox().set_fault(Fault::times(kind, times).on(table))
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        self.sandbox().clear_faults();
    }

    /// Takes one fault back, by its number.
    pub fn clear_fault(&self, id: u64) {
        self.sandbox().clear_fault(id);
    }

    /// The faults that are set, spent ones included, with how often each fired.
    #[must_use]
    pub fn faults(&self) -> Vec<FaultReport> {
        self.sandbox().faults()
    }

    /// How often the faults fired, all together: a test whose fault never fired has shown nothing.
    #[must_use]
    pub fn faults_fired(&self) -> u64 {
        self.faults().iter().map(|report| report.fired).sum()
    }

    /// How often a fault fired, by its number.
    ///
    /// # Panics
    /// When there is no such fault, or it was taken back.
    #[must_use]
    pub fn fired(&self, id: u64) -> u64 {
        let reports = self.faults();
        let report = reports.iter().find(|report| report.id == id);
        report.unwrap_or_else(|| panic!("there is no fault {id} in {reports:?}")).fired
    }

    /// Waits until a fault has fired this often.
    ///
    /// # Panics
    /// When it has not within half a minute.
    pub fn until_fired(&self, id: u64, times: u64) {
        let outcome = crate::wait_until(FIRED_WITHIN, || (self.fired(id) >= times).then_some(()));
        outcome.unwrap_or_else(|late| {
            panic!("fault {id} is to fire {times} times: {late}; {:?}", self.faults())
        });
    }

    /// From now on a table may have so many versions.
    pub fn allow_versions(&self, tablet_max_versions: u32) {
        let limits = VersionLimits { tablet_max_versions, ..self.sandbox().version_limits() };
        self.sandbox().set_version_limits(limits);
    }

    /// From now on versions are merged this often.
    pub fn compact_every(&self, every: Duration) {
        let limits = VersionLimits { compaction: Some(every), ..self.sandbox().version_limits() };
        self.sandbox().set_version_limits(limits);
    }

    /// All transactions so far that were committed or aborted, oldest first.
    #[must_use]
    pub fn loads(&self) -> Vec<LoadRecord> {
        self.sandbox().loads()
    }

    /// Waits until the rows of all loads that are committed can be seen.
    ///
    /// # Panics
    /// When they cannot within `seconds`.
    pub fn until_visible(&self, seconds: u64) {
        let unseen = || self.loads().into_iter().filter(|load| load.state == TransactionState::Committed);
        let outcome =
            crate::wait_until(Duration::from_secs(seconds), || unseen().next().is_none().then_some(()));
        outcome.unwrap_or_else(|late| panic!("{:?}: {late}", unseen().collect::<Vec<_>>()));
    }

    /// Transactions that are begun and not visible or aborted yet.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.sandbox().open_transactions()
    }

    /// Loads, versions and rows of a table of `shop`.
    ///
    /// # Panics
    /// When there is no such table.
    #[must_use]
    pub fn stats(&self, table: &str) -> TableStats {
        self.sandbox().table_stats("shop", table).unwrap_or_else(|| panic!("there is no table shop.{table}"))
    }

    /// The single number that a query yields.
    ///
    /// # Panics
    /// When it yields something else.
    #[must_use]
    pub fn number(&self, sql: &str) -> u64 {
        match self.execute(sql).as_slice() {
            [row] => match row.as_slice() {
                [Some(number)] => number.parse().unwrap_or_else(|_| panic!("{sql} yields {number}")),
                other => panic!("{sql} yields {other:?}"),
            },
            other => panic!("{sql} yields {} rows", other.len()),
        }
    }

    /// All values of the column `id` of a table of `shop`.
    ///
    /// # Panics
    /// When one is not a number.
    #[must_use]
    pub fn ids(&self, table: &str) -> Vec<u64> {
        let rows = self.execute(&format!("SELECT id FROM shop.{table}"));
        rows.into_iter()
            .flatten()
            .map(|id| id.and_then(|id| id.parse().ok()).expect("an identifier"))
            .collect()
    }

    /// `amount` by `id` of a Primary Key table of `shop`.
    ///
    /// # Panics
    /// When a cell is not a number, or an `id` is there twice.
    #[must_use]
    pub fn amounts(&self, table: &str) -> BTreeMap<u64, u64> {
        let number =
            |cell: &Option<String>| cell.as_deref().and_then(|text| text.parse().ok()).expect("a number");
        let rows = self.execute(&format!("SELECT id, amount FROM shop.{table}"));
        let amounts: BTreeMap<u64, u64> = rows.iter().map(|row| (number(&row[0]), number(&row[1]))).collect();
        assert_eq!(amounts.len(), rows.len(), "an id is there twice");
        amounts
    }

    /// Waits until a table of `shop` is there and has this many rows.
    ///
    /// # Panics
    /// When it has not within `seconds`.
    pub fn until_rows(&self, seconds: u64, table: &str, rows: u64) {
        let mut last = 0;
        let count = format!("SELECT COUNT(*) FROM shop.{table}");
        let outcome = crate::wait_until(Duration::from_secs(seconds), || {
            // The table itself may still be to be made.
            self.attempt(&count).ok()?;
            last = self.number(&count);
            (last >= rows).then_some(())
        });
        outcome.unwrap_or_else(|late| panic!("{last} of {rows} rows in {table}: {late}"));
    }
}

impl Drop for Warehouse {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            self.runtime.block_on(sandbox.stop());
        }
    }
}

/// The JSON of one row of the tables that [`Warehouse`] creates; what it holds is a function of `id`.
#[must_use]
pub fn row(id: u64) -> String {
    format!(r#"{{"id":{id},"amount":{},"note":"order {id}"}}"#, amount(id))
}

/// What stands in `amount` beside `id`.
#[must_use]
pub fn amount(id: u64) -> u64 {
    id.wrapping_mul(2_654_435_761) % 10_007
}

#[cfg(test)]
mod tests {
    use super::Warehouse;
    use tidemill_plugin_orders::sample::CREATE_TABLE;

    #[test]
    fn tables_can_be_made_and_counted() {
        let warehouse = Warehouse::start();
        warehouse.duplicate_table("added");
        warehouse.primary_table("changed");
        warehouse.execute(&CREATE_TABLE.replacen("TABLE orders", "TABLE shop.orders", 1));
        for table in ["added", "changed", "orders"] {
            assert_eq!(warehouse.number(&format!("SELECT COUNT(*) FROM shop.{table}")), 0);
        }
        assert!(warehouse.ids("added").is_empty());
        assert_eq!(warehouse.stats("changed").loads, 0);
    }
}
