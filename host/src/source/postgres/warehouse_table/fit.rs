//! Whether values of a source column load into a column that is there already.

use super::column_type::ColumnType;
use crate::source::postgres::kind::Kind;

/// Longest text of a moment with microseconds.
const DATETIME_BYTES: u32 = 26;
/// Longest text of a double.
const DOUBLE_BYTES: u32 = 25;
/// Where a STRING that somebody chose for JSON is long enough to be meant.
const DOCUMENT_BYTES: u32 = 65_533;

/// How well values fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// All of them, exactly.
    All,
    /// Some not, or not exactly: a choice that the owner of a table may make, but that nobody makes by
    /// changing the source's type.
    Some(&'static str),
    /// They are of another nature.
    None(&'static str),
}

const SMALLER: Fit = Fit::Some("it holds smaller numbers");
const INEXACT: Fit = Fit::Some("it holds fewer digits");
const SHORTER: Fit = Fit::Some("it holds shorter text");
const OTHER: Fit = Fit::Some("Tidemill has no form for this type");

/// Whether values of `kind`, for which `wanted` would be created, load into `actual`.
pub(super) fn fit(kind: &Kind, wanted: &ColumnType, actual: &ColumnType) -> Fit {
    match actual {
        // Anything is JSON, and what is unknown is the owner's business.
        ColumnType::Json => Fit::All,
        ColumnType::Other(_) => OTHER,
        ColumnType::Varchar(bytes) => at_least(*bytes, text_bytes(wanted), SHORTER),
        ColumnType::Array(_) => match kind {
            Kind::Array { .. } | Kind::Vector => Fit::All,
            Kind::Json => Fit::Some("it holds arrays only"),
            _scalar => Fit::None("it holds arrays"),
        },
        ColumnType::Boolean => match kind {
            Kind::Bool => Fit::All,
            _other => Fit::None("it holds truth values"),
        },
        ColumnType::Integer(bytes) => into_integer(kind, wanted, *bytes),
        ColumnType::Float => match (kind, wanted) {
            (_, ColumnType::Float | ColumnType::Integer(1..=2)) => Fit::All,
            (Kind::Integer | Kind::Float | Kind::Numeric | Kind::Money, _) => INEXACT,
            _other => Fit::None("it holds numbers"),
        },
        ColumnType::Double => match (kind, wanted) {
            (_, ColumnType::Float | ColumnType::Double | ColumnType::Integer(1..=4)) => Fit::All,
            (Kind::Integer | Kind::Numeric | Kind::Money, _) => INEXACT,
            _other => Fit::None("it holds numbers"),
        },
        ColumnType::Decimal { precision, scale } => into_decimal(kind, wanted, *precision, *scale),
        ColumnType::Date => match kind {
            Kind::Date => Fit::All,
            Kind::Timestamp | Kind::TimestampTz => Fit::Some("it holds no time of day"),
            _other => Fit::None("it holds days"),
        },
        ColumnType::DateTime => match kind {
            Kind::Date | Kind::Timestamp | Kind::TimestampTz => Fit::All,
            _other => Fit::None("it holds moments"),
        },
    }
}

fn at_least(actual: u32, wanted: u32, otherwise: Fit) -> Fit {
    if actual >= wanted { Fit::All } else { otherwise }
}

/// Bytes that the text of such values may take.
fn text_bytes(wanted: &ColumnType) -> u32 {
    match wanted {
        ColumnType::Boolean => 5,
        ColumnType::Integer(bytes) => integer_digits(*bytes) + 1,
        ColumnType::Float | ColumnType::Double => DOUBLE_BYTES,
        ColumnType::Decimal { precision, .. } => precision + 3,
        ColumnType::Date => 10,
        ColumnType::DateTime => DATETIME_BYTES,
        ColumnType::Varchar(bytes) => *bytes,
        ColumnType::Json | ColumnType::Array(_) | ColumnType::Other(_) => DOCUMENT_BYTES,
    }
}

/// Most decimal digits of an integer of that many bytes.
fn integer_digits(bytes: u8) -> u32 {
    match bytes {
        0..=1 => 3,
        2 => 5,
        3..=4 => 10,
        5..=8 => 19,
        _large => 38,
    }
}

fn into_integer(kind: &Kind, wanted: &ColumnType, actual_bytes: u8) -> Fit {
    match (kind, wanted) {
        (Kind::Integer, ColumnType::Integer(bytes)) => {
            if actual_bytes >= *bytes {
                Fit::All
            } else {
                SMALLER
            }
        }
        (Kind::Numeric, ColumnType::Decimal { precision, scale: 0 })
            if *precision < integer_digits(actual_bytes) =>
        {
            Fit::All
        }
        (Kind::Integer | Kind::Float | Kind::Numeric | Kind::Money, _) => INEXACT,
        _other => Fit::None("it holds whole numbers"),
    }
}

fn into_decimal(kind: &Kind, wanted: &ColumnType, precision: u32, scale: u32) -> Fit {
    let whole = precision.saturating_sub(scale);
    match (kind, wanted) {
        (Kind::Integer, ColumnType::Integer(bytes)) => at_least(whole, integer_digits(*bytes), SMALLER),
        (Kind::Numeric | Kind::Money, ColumnType::Decimal { precision: wanted, scale: wanted_scale }) => {
            if scale >= *wanted_scale && whole >= wanted.saturating_sub(*wanted_scale) {
                Fit::All
            } else {
                INEXACT
            }
        }
        (Kind::Integer | Kind::Float | Kind::Numeric | Kind::Money, _) => INEXACT,
        _other => Fit::None("it holds numbers"),
    }
}
