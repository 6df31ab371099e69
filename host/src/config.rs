//! Pipeline files: raw TOML as written → one validated [`model::Plan`], or all the errors at once.

pub mod model;
