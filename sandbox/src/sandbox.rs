//! Starting and stopping a sandbox.

use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle};

use crate::cluster::{Addresses, Cluster, LoadRecord, TableStats};
use crate::error::SandboxError;
use crate::fault::{Fault, FaultReport};
use crate::http::{OpenTransactions, Shared};
use crate::options::{Options, VersionLimits};
use crate::sql::Session;
use crate::store::Value;
use crate::{http, query_port};

/// How often overdue transactions are looked for.
const EXPIRE_EVERY: Duration = Duration::from_millis(200);

/// A running sandbox. Dropping it ends it.
pub struct Sandbox {
    cluster: Arc<Cluster>,
    /// The three ports and the background work; each ends its own connections when it is aborted.
    tasks: Vec<JoinHandle<()>>,
}

impl Sandbox {
    /// Opens the three ports on 127.0.0.1 and starts to answer. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a port is taken, or the temporary directory for the rows cannot be made.
    pub async fn start(options: Options) -> Result<Self, SandboxError> {
        let (frontend, fe_http) = listen(options.fe_http_port).await?;
        let (backend, be_http) = listen(options.be_http_port).await?;
        let (query, query_number) = listen(options.query_port).await?;
        let addresses = Addresses { fe_http, be_http, query: query_number };
        let cluster = Arc::new(Cluster::new(options, addresses)?);
        let shared =
            Shared { cluster: Arc::clone(&cluster), transactions: Arc::new(OpenTransactions::default()) };
        let tasks = vec![
            tokio::spawn(http::serve_frontend(shared.clone(), frontend)),
            tokio::spawn(http::serve_backend(shared.clone(), backend, be_http)),
            tokio::spawn(query_port::serve(Arc::clone(&cluster), query)),
            tokio::spawn(expire(shared)),
            tokio::spawn(compact(Arc::clone(&cluster))),
        ];
        Ok(Self { cluster, tasks })
    }

    /// The FE's HTTP address, `http://127.0.0.1:port`.
    pub fn fe_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.cluster.addresses.fe_http)
    }

    /// The BE's HTTP address, `http://127.0.0.1:port`.
    pub fn be_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.cluster.addresses.be_http)
    }

    /// The port of the MySQL protocol on 127.0.0.1.
    pub fn query_port(&self) -> u16 {
        self.cluster.addresses.query
    }

    /// Where everything is, with a `mysql` command to paste.
    pub fn banner(&self) -> String {
        banner(&self.cluster.addresses)
    }

    /// Runs one statement as the query port would; blocks while it runs.
    ///
    /// # Errors
    /// The refusal, in StarRocks' words.
    pub fn execute(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, SandboxError> {
        let result = Session::new(Arc::clone(&self.cluster)).execute(sql)?;
        let text = |value: &Value| match value {
            Value::Null => None,
            Value::Int(number) => Some(number.to_string()),
            Value::Real(number) => Some(number.to_string()),
            Value::Text(text) => Some(text.clone()),
        };
        Ok(result.rows.iter().map(|row| row.iter().map(text).collect()).collect())
    }

    /// What happened to a table so far; `None` when there is no such table.
    pub fn table_stats(&self, db: &str, table: &str) -> Option<TableStats> {
        self.cluster.table_stats(db, table)
    }

    /// All transactions that were committed or aborted, oldest first, up to [`Options::history_max`].
    pub fn loads(&self) -> Vec<LoadRecord> {
        self.cluster.loads()
    }

    /// How many transactions are begun and neither visible nor aborted: what may still land.
    pub fn open_transactions(&self) -> usize {
        self.cluster.transactions().open()
    }

    /// Switches a fault on and returns its id.
    pub fn set_fault(&self, fault: Fault) -> u64 {
        self.cluster.set_fault(fault)
    }

    /// Switches a fault off.
    pub fn clear_fault(&self, id: u64) {
        self.cluster.clear_fault(Some(id));
    }

    /// Switches all faults off.
    pub fn clear_faults(&self) {
        self.cluster.clear_fault(None);
    }

    /// The faults that are set, spent ones included, with how often each fired.
    pub fn faults(&self) -> Vec<FaultReport> {
        self.cluster.faults.reports()
    }

    /// Merges versions now, as one visit of the background compaction does.
    pub fn compact(&self) {
        self.cluster.compact();
    }

    /// What holds of versions now.
    pub fn version_limits(&self) -> VersionLimits {
        *self.cluster.version_limits.borrow()
    }

    /// Changes how many versions there may be, and how fast the compaction merges them, from now on.
    pub fn set_version_limits(&self, limits: VersionLimits) {
        self.cluster.version_limits.send_replace(limits);
    }

    /// Closes the ports and all connections, and waits until that is done.
    pub async fn stop(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            if let Err(error) = task.await
                && !JoinError::is_cancelled(&error)
            {
                tracing::error!(%error, "a port of the sandbox panicked");
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The lines that tell a user where to connect.
pub(crate) fn banner(addresses: &Addresses) -> String {
    let Addresses { fe_http, be_http, query } = addresses;
    format!(
        "FE (loads go here)   http://127.0.0.1:{fe_http}\n\
         BE (FE redirects)    http://127.0.0.1:{be_http}\n\
         faults and counters  http://127.0.0.1:{fe_http}/sandbox/faults  http://127.0.0.1:{fe_http}/sandbox/stats\n\
         SQL                  mysql -h 127.0.0.1 -P {query} -u root\n"
    )
}

async fn listen(port: u16) -> Result<(TcpListener, u16), SandboxError> {
    let failed = |source| SandboxError::Listen { port, source };
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(failed)?;
    let number = listener.local_addr().map_err(failed)?.port();
    Ok((listener, number))
}

async fn compact(cluster: Arc<Cluster>) {
    let mut limits = cluster.version_limits.subscribe();
    loop {
        let every = limits.borrow_and_update().compaction;
        let due = async {
            match every {
                Some(every) => tokio::time::sleep(every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = limits.changed() => if changed.is_err() { return },
            () = due => cluster.compact(),
        }
    }
}

async fn expire(shared: Shared) {
    let mut ticks = tokio::time::interval(EXPIRE_EVERY);
    loop {
        ticks.tick().await;
        shared.cluster.expire(Instant::now());
        shared.transactions.drop_decided(&shared.cluster);
    }
}
