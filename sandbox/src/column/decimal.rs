//! Decimals: range check and rounding to the column's scale, digit by digit.

/// Decimal digits that a double always carries exactly.
pub(crate) const DOUBLE_DIGITS_MAX: u32 = 15;

#[derive(Debug, PartialEq)]
pub(crate) enum Converted {
    /// At most [`DOUBLE_DIGITS_MAX`] digits.
    Number(f64),
    Text(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotDecimal {
    OutOfRange,
    Malformed,
}

/// Converts `text` to DECIMAL(`precision`, `scale`); extra fraction digits round half up.
pub(crate) fn convert(text: &str, precision: u32, scale: u32) -> Result<Converted, NotDecimal> {
    let Some((negative, integer, fraction)) = split(text) else {
        // An exponent is rare enough to go by way of a double.
        let number: f64 = text.trim().parse().map_err(|_| NotDecimal::Malformed)?;
        if !number.is_finite() || number.abs() >= 1e38 {
            return Err(NotDecimal::OutOfRange);
        }
        return convert(&format!("{number:.*}", scale as usize + 1), precision, scale);
    };
    let (unscaled, carry_on) = unscaled(integer, fraction, scale).ok_or(NotDecimal::OutOfRange)?;
    let unscaled = unscaled.checked_add(u128::from(carry_on)).ok_or(NotDecimal::OutOfRange)?;
    let limit = 10_u128.checked_pow(precision).ok_or(NotDecimal::OutOfRange)?;
    if unscaled >= limit {
        return Err(NotDecimal::OutOfRange);
    }
    if precision <= DOUBLE_DIGITS_MAX {
        let number = unscaled as f64 / 10_f64.powi(scale as i32);
        return Ok(Converted::Number(if negative { -number } else { number }));
    }
    Ok(Converted::Text(print(unscaled, scale, negative)))
}

/// Sign, integer digits and fraction digits; `None` when there is anything else.
fn split(text: &str) -> Option<(bool, &str, &str)> {
    let text = text.trim();
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let some = !integer.is_empty() || !fraction.is_empty();
    (some && all_digits(integer) && all_digits(fraction)).then_some((negative, integer, fraction))
}

/// The number times 10^scale, and whether the digits cut off round it up.
fn unscaled(integer: &str, fraction: &str, scale: u32) -> Option<(u128, bool)> {
    let scale = scale as usize;
    let kept =
        fraction.bytes().take(scale).chain(std::iter::repeat_n(b'0', scale.saturating_sub(fraction.len())));
    let mut value: u128 = 0;
    for digit in integer.bytes().chain(kept) {
        value = value.checked_mul(10)?.checked_add(u128::from(digit - b'0'))?;
    }
    let round_up = fraction.as_bytes().get(scale).is_some_and(|digit| *digit >= b'5');
    Some((value, round_up))
}

fn print(unscaled: u128, scale: u32, negative: bool) -> String {
    let sign = if negative && unscaled != 0 { "-" } else { "" };
    if scale == 0 {
        return format!("{sign}{unscaled}");
    }
    let digits = format!("{unscaled:0>width$}", width = scale as usize + 1);
    let (integer, fraction) = digits.split_at(digits.len() - scale as usize);
    format!("{sign}{integer}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::{Converted, NotDecimal, convert};

    #[test]
    fn rounds_half_up_and_checks_the_range() {
        assert_eq!(convert("1.005", 10, 2), Ok(Converted::Number(1.01)));
        assert_eq!(convert("-7", 20, 2), Ok(Converted::Text("-7.00".to_owned())));
        assert_eq!(convert("99.995", 4, 2), Err(NotDecimal::OutOfRange));
        assert_eq!(convert("1e2", 20, 0), Ok(Converted::Text("100".to_owned())));
        assert_eq!(convert("1,5", 10, 2), Err(NotDecimal::Malformed));
        assert_eq!(convert(".5", 20, 1), Ok(Converted::Text("0.5".to_owned())));
    }
}
