//! Whole files in, plans or messages out.
