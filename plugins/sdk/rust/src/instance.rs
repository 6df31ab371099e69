//! A configured plugin, apart from how its batches arrive: the component and the tests both run this.

use crate::Transform;
use crate::columns::{Batch, BatchError, Columns, Rows};
use crate::output::Output;
use crate::record::Record;
use crate::setup::{Setup, read_config};

/// A plugin with what it said when it was configured.
pub struct Instance<T> {
    transform: T,
    setup: Setup,
}

impl<T: Transform> Instance<T> {
    /// Configures the plugin with a JSON object.
    ///
    /// # Errors
    ///
    /// A sentence for the person who wrote the configuration.
    pub fn configure(config: &str) -> Result<Self, String> {
        let mut setup = Setup::default();
        let transform = T::configure(read_config(config)?, &mut setup)?;
        setup.check()?;
        Ok(Self { transform, setup })
    }

    /// The columns that the plugin asked for.
    pub fn wants(&self) -> Columns {
        self.setup.wants
    }

    /// The tables that it declared.
    pub fn tables(&self) -> &[String] {
        &self.setup.tables
    }

    /// Turns a batch into rows.
    ///
    /// # Errors
    ///
    /// What [`Transform::begin_batch`] answered.
    pub fn process(&mut self, batch: &Batch) -> Result<Rows, BatchError> {
        self.transform.begin_batch(&batch.source)?;
        let mut output = Output::new(batch, &self.setup);
        let mut start = 0;
        for (index, end) in batch.values.ends.iter().enumerate() {
            let end = *end as usize;
            // A batch is in one call's memory, so that its records are fewer than 2^32.
            output.begin(index as u32);
            let record = Record::new(batch, index, &batch.values.data[start..end]);
            let verdict = self.transform.record(record, &mut output);
            output.end(verdict);
            start = end;
        }
        Ok(output.finish())
    }
}
