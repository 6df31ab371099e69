//! The end-to-end suite: one binary, one module a subject.

mod check;
mod crash;
mod demo;
mod formats;
mod group;
mod http;
mod kafka_faults;
mod load;
mod memory;
mod patterns;
mod plugins;
mod postgres;
mod postgres_check;
mod postgres_faults;
mod postgres_fence;
mod postgres_schema;
mod postgres_shapes;
mod postgres_storm;
mod postgres_types;
mod records;
mod rejects;
mod several;
mod shutdown;
mod starrocks_faults;
