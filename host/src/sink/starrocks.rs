//! StarRocks over Stream Load: requests in `client`, answers to [`crate::sink::Outcome`] in `outcome`.
