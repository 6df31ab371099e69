//! Points on a record's way at which a test can make the process die or wait (feature `faults`; nothing otherwise).
//!
//! `FAILPOINTS="hop=1%return(kill)"` in the environment arms them, in the language of the `fail` crate.
