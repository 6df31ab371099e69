//! What `tidemill check` and `tidemill plugin inspect` say about a plugin.

use super::engine::{Descriptor, Engine};
use crate::config::model::Transform;
use crate::fault::Fault;

/// Loads and configures the plugin of one `[[transform]]`, and forgets it: what `tidemill check` does.
///
/// # Errors
///
/// Those of [`Engine::load`].
pub fn check(engine: &Engine, transform: &Transform) -> Result<Descriptor, Fault> {
    engine.load(transform).map(|plugin| plugin.descriptor.clone())
}
