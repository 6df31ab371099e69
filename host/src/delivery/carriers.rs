//! The carriers of a process: one for each cluster that loads are shaped for, so that pipelines into the
//! same tables can share batches.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::carry::{Carrier, Shared};
use crate::config::model::StarRocks;
use crate::fault::Fault;
use crate::sink::starrocks::client::Client;
use crate::sink::starrocks::deliver::{Paces, Witness};
use crate::sink::starrocks::label::Labels;

/// Carriers by what shapes their loads.
#[derive(Default)]
pub struct Carriers(Mutex<Vec<(Arc<StarRocks>, Carrier)>>);

impl Carriers {
    /// The carrier for `sink`: the same one for sections that shape loads in the same way.
    ///
    /// # Errors
    /// If an address, a header or a TLS file of a new one cannot be used. Nothing is sent.
    pub fn carrier(&self, sink: &Arc<StarRocks>, runtime: &Handle) -> Result<Carrier, Fault> {
        // Entries are only added: a panic elsewhere leaves them usable.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, carrier)) = known.iter().find(|(other, _)| other.shapes_loads_as(sink)) {
            return Ok(carrier.clone());
        }
        let carrier = Carrier::new(Shared {
            runtime: runtime.clone(),
            client: Client::new(Arc::clone(sink))?,
            labels: Labels::default(),
            witness: Arc::new(Witness::new()),
            paces: Paces::default(),
        });
        known.push((Arc::clone(sink), carrier.clone()));
        Ok(carrier)
    }
}
