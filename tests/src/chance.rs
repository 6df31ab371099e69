//! Random choices of a test, which can be made again.

use rand::{SeedableRng as _, rngs::StdRng};
use std::env;

/// Names the seed to repeat.
const VARIABLE: &str = "TIDEMILL_TEST_SEED";

/// Choices that follow from a seed: a new one each time, or the one that the environment names. It is printed, so that a
/// test that fails says how to make the same choices again. When threads run is chosen by nobody.
///
/// # Panics
/// When what the environment names is no number.
#[must_use]
pub fn seeded() -> StdRng {
    let seed = env::var(VARIABLE).map_or_else(
        |_| rand::random(),
        |text| text.parse().unwrap_or_else(|_| panic!("{VARIABLE}={text} is no whole number")),
    );
    println!("{VARIABLE}={seed} makes the same choices again");
    StdRng::seed_from_u64(seed)
}
