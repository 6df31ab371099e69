//! Topics by regular expression, read by the same functions that librdkafka reads them with: POSIX
//! extended expressions of the C library (`rd_regex_comp` in its rdregex.c). So a file that passes is one
//! that librdkafka takes, and a topic that matches here is one that it subscribes to.

#![expect(unsafe_code, reason = "the C library's regcomp and regexec; each call says why it is sound")]

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;

/// What a pattern begins with, by librdkafka's rule; no topic's name can.
const MARK: char = '^';
/// Room for the C library's complaint about a pattern.
const COMPLAINT_BYTES: usize = 128;
/// Topics that Kafka keeps for itself, as a list of patterns.
pub(crate) const INTERNAL_TOPICS: &str = "^__consumer_offsets$,^__transaction_state$,^__share_group_state$";

/// Whether an entry of `topics` is a pattern.
pub(crate) fn is_pattern(topic: &str) -> bool {
    topic.starts_with(MARK)
}

/// A compiled pattern.
pub(crate) struct Pattern(Box<libc::regex_t>);

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// The C library's complaint.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let text = CString::new(text).map_err(|_| "it has a zero byte in it".to_owned())?;
        let mut compiled = Box::new(MaybeUninit::<libc::regex_t>::zeroed());
        let flags = libc::REG_EXTENDED | libc::REG_NOSUB;
        // SAFETY: the memory is writable and of the right size, the text ends with a zero byte.
        let code = unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), flags) };
        if code != 0 {
            return Err(complaint(code, compiled.as_ptr()));
        }
        // SAFETY: `regcomp` succeeded, so it has initialised all of it.
        Ok(Self(unsafe { Box::from_raw(Box::into_raw(compiled).cast()) }))
    }

    /// Whether a topic of this name is meant. Kafka's own topics never are.
    pub(crate) fn matches(&self, topic: &str) -> bool {
        let internal = INTERNAL_TOPICS.split(',').any(|name| name.trim_matches(['^', '$']) == topic);
        let Ok(topic) = CString::new(topic) else { return false };
        // SAFETY: compiled by `regcomp`, and not changed by this call; no places are asked for.
        let code = unsafe { libc::regexec(&raw const *self.0, topic.as_ptr(), 0, std::ptr::null_mut(), 0) };
        code != libc::REG_NOMATCH && !internal
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: compiled by `regcomp`, freed once.
        unsafe { libc::regfree(&raw mut *self.0) }
    }
}

fn complaint(code: libc::c_int, refused: *const libc::regex_t) -> String {
    let mut text = [0_u8; COMPLAINT_BYTES];
    // SAFETY: the buffer is writable and its length is told; the pattern is the one that gave the code.
    unsafe { libc::regerror(code, refused, text.as_mut_ptr().cast(), text.len()) };
    let text = CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy).unwrap_or_default();
    text.to_lowercase()
}

/// Whether a topic of this name is one of `topics`, by name or by pattern.
pub(crate) fn is_read(topics: &[String], topic: &str) -> bool {
    topics.iter().any(|entry| match is_pattern(entry) {
        // What does not compile was noted where it stands.
        true => Pattern::new(entry).is_ok_and(|pattern| pattern.matches(topic)),
        false => entry == topic,
    })
}

/// What to subscribe to. With a pattern among `topics` it is one expression for all of them: librdkafka
/// counts a topic once for every entry that it matches, and would then assign it twice.
pub(crate) fn subscription(topics: &[String]) -> Vec<String> {
    if !topics.iter().any(|topic| is_pattern(topic)) {
        return topics.to_vec();
    }
    let each = topics.iter().map(|topic| match is_pattern(topic) {
        true => topic.clone(),
        // Of what a topic's name may have in it only the dot means something in an expression.
        false => format!("^{}$", topic.replace('.', "\\.")),
    });
    vec![each.collect::<Vec<_>>().join("|")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_posix_extended_expressions() {
        let check = |pattern: &str, topic: &str, expected: bool| {
            let compiled = Pattern::new(pattern).expect(pattern);
            assert_eq!(compiled.matches(topic), expected, "{pattern} {topic}");
        };
        check("^shop\\..*", "shop.orders", true);
        check("^shop\\..*", "shopxorders", false);
        check("^shop\\..*", "my.shop.orders", false);
        check("^(a|b)[0-9]{2}$", "b42", true);
        check("^(a|b)[0-9]{2}$", "b421", false);
        check("^.*", "anything", true);
        check("^.*", "__consumer_offsets", false);
    }

    #[test]
    fn broken_patterns_are_told_why() {
        for (pattern, why) in
            [("^(a", "unmatched"), ("^[a", "unmatched"), ("^a{2,1}", "invalid"), ("^a\0", "zero byte")]
        {
            let refused = Pattern::new(pattern).err().expect(pattern);
            assert!(refused.contains(why), "{pattern}: {refused}");
        }
    }

    #[test]
    fn names_and_patterns_become_one_subscription() {
        let topics = |list: &[&str]| list.iter().map(|topic| (*topic).to_owned()).collect::<Vec<_>>();
        assert_eq!(subscription(&topics(&["a.b", "c"])), ["a.b", "c"]);
        let mixed = topics(&["a.b", "^shop\\..*"]);
        assert_eq!(subscription(&mixed), ["^a\\.b$|^shop\\..*"]);
        for (topic, expected) in [("a.b", true), ("axb", false), ("shop.x", true), ("a.b.c", false)] {
            assert_eq!(is_read(&mixed, topic), expected, "{topic}");
            let joined = Pattern::new(&subscription(&mixed)[0]).expect("compiles");
            assert_eq!(joined.matches(topic), expected, "{topic}");
        }
    }
}
