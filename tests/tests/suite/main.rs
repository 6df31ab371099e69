//! The end-to-end suite: one binary, one module a subject.

mod check;
mod crash;
mod demo;
mod group;
mod http;
mod kafka_faults;
mod load;
mod memory;
mod plugins;
mod postgres;
mod records;
mod rejects;
mod several;
mod shutdown;
mod starrocks_faults;
