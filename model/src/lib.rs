//! The delivery protocols of Tidemill as finite models, explored exhaustively: every interleaving,
//! within stated bounds, of members that freeze and die, answers that are lost, requests that arrive
//! late, and rebalances. `docs/model.md` says what is modelled and what was found.

pub mod exactly_once;
pub mod explore;
pub mod primary_key;
