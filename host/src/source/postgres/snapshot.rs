//! The copy of what is in the tables already: cut into ranges, read by several connections in one snapshot.

pub mod bar;
pub mod copy;
pub mod plan;
