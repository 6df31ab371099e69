//! Bugs planted on purpose, to see whether the tests would catch them (feature `faults`; never there otherwise).
//!
//! `TIDEMILL_PLANT=<name>` in the environment chooses one.
