//! What can be asked for.

use serde::Deserialize;

/// What a value contains to ask for a misdeed; the name follows.
const MARK: &[u8] = b"#hostile:";

macro_rules! misdeeds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What the plugin can do to its host, by the name in a mark or in the configuration.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
        pub enum Misdeed {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl Misdeed {
            /// Every misdeed.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

misdeeds! {
    /// Executes `unreachable`.
    Trap = "trap",
    /// Panics in Rust, with a message.
    Panic = "panic",
    /// Reads behind the end of its memory.
    OutOfBounds = "out_of_bounds",
    /// Calls itself for ever.
    StackOverflow = "stack_overflow",
    /// Loops for ever.
    Spin = "spin",
    /// Takes memory in large pieces for ever.
    Grow = "grow",
    /// Takes memory in small pieces for ever.
    GrowSmall = "grow_small",
    /// Takes a million small pieces of memory and gives them back, and keeps the records as they are.
    Small = "small",
    /// Keeps one MiB more after each call, and the records as they are.
    Leak = "leak",
    /// Writes a million lines to the log, and keeps the records as they are.
    Flood = "flood",
    /// Writes one line of 8 MiB with control characters to the log, and keeps the records as they are.
    LongLine = "long_line",
    /// Gives each row the number of calls so far as its value: a replay differs.
    Remember = "remember",
    /// Looks for variables, files and networks, and gives each row what it found as its value. Built for wasip2 only:
    /// elsewhere there is nothing to ask, and the records stay as they are.
    Snoop = "snoop",
    /// Fails the batch with `retry`.
    Retry = "retry",
    /// Fails the batch with `fatal`.
    Fatal = "fatal",
    /// Imports a function that the host does not have, and calls it (only with the feature `extra-import`).
    Fetch = "fetch",
    /// Returns the rows' inputs in descending order, if there are two rows.
    InputsDescending = "inputs_descending",
    /// Returns a row of a record that does not exist.
    InputBeyond = "input_beyond",
    /// Returns a million rows of the first record: allowed if that is short.
    ManyRows = "many_rows",
    /// Returns a table that was not declared.
    TableBeyond = "table_beyond",
    /// Returns one table fewer than rows.
    TablesShort = "tables_short",
    /// Returns one value fewer than rows.
    ValuesShort = "values_short",
    /// Returns ends of values that go back.
    ValuesDescending = "values_descending",
    /// Returns ends of values behind their data.
    ValuesBeyond = "values_beyond",
    /// Returns data of values behind the last end.
    ValuesRest = "values_rest",
    /// Returns 48 MiB of values, and has them in memory twice at a time: too much for one limit or the other.
    ValuesHuge = "values_huge",
    /// Returns values that are not UTF-8.
    ValuesBytes = "values_bytes",
    /// Returns values that are not JSON.
    ValuesText = "values_text",
    /// Returns values of arrays in arrays, a hundred thousand deep.
    ValuesDeep = "values_deep",
    /// Returns one mark fewer than rows.
    MarksShort = "marks_short",
    /// Returns marks with reserved bits.
    MarksReserved = "marks_reserved",
    /// Returns marks without bit 2 for rows that have values.
    MarksNoValue = "marks_no_value",
    /// Returns keys for rows whose marks deny them.
    KeysDenied = "keys_denied",
    /// Returns one key fewer than rows.
    KeysShort = "keys_short",
    /// Returns one timestamp fewer than rows.
    TimestampsShort = "timestamps_short",
    /// Returns headers for one row fewer.
    HeadersShort = "headers_short",
    /// Returns ends of headers behind their names.
    HeadersBeyond = "headers_beyond",
    /// Returns more names than contents of headers.
    HeadersUneven = "headers_uneven",
    /// Returns names of headers that are not UTF-8.
    HeadersBytes = "headers_bytes",
    /// Returns an error of a record that does not exist.
    ErrorBeyond = "error_beyond",
    /// Returns two errors of the same record.
    ErrorTwice = "error_twice",
    /// Returns an error of a record that also has a row.
    ErrorAndRow = "error_and_row",
    /// Returns an error whose code has capital letters and spaces.
    ErrorCode = "error_code",
    /// Returns an error with a message of one MiB, which is allowed and must be cut.
    ErrorMessage = "error_message",
}

/// The misdeed that a value asks for.
pub fn marked(value: &[u8]) -> Option<Misdeed> {
    let at = value.windows(MARK.len()).position(|window| window == MARK)?;
    let rest = &value[at + MARK.len()..];
    let length = rest.iter().take_while(|byte| matches!(byte, b'a'..=b'z' | b'_')).count();
    Misdeed::ALL.iter().copied().find(|misdeed| misdeed.name().as_bytes() == &rest[..length])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn every_misdeed_is_found_by_its_mark_and_by_the_configuration() {
        for misdeed in Misdeed::ALL {
            let name = misdeed.name();
            assert_eq!(marked(format!(r##"{{"id":1,"do":"#hostile:{name}"}}"##).as_bytes()), Some(*misdeed));
            let config: Config = serde_json::from_str(&format!(r#"{{"always":"{name}"}}"#)).unwrap();
            assert_eq!(config.always, Some(*misdeed));
        }
    }

    #[test]
    fn other_values_ask_for_nothing() {
        for value in ["", "{}", "#hostile:", "#hostile:unheard_of", "hostile:trap", "#hostile:TRAP"] {
            assert_eq!(marked(value.as_bytes()), None, "{value}");
        }
    }
}
