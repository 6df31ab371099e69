//! Passwords and tokens.

use toml::de::DeValue;

use super::Kind;
use crate::config::model::Secret;
use crate::config::node::{Node, type_name};

/// A text that must never be printed.
#[derive(Debug)]
pub(in crate::config) struct Hidden;

impl Kind for Hidden {
    type Value = Secret;

    fn expected(&self) -> String {
        "{ env = \"NAME\" }, { file = \"path\" } or a string".to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<Secret> {
        match node.value {
            DeValue::String(text) => Some(Secret::new(text.to_string())),
            DeValue::Table(_) => node.words(&self.expected()).map(|words| Secret::new(words.text)),
            _ => {
                let what = format!("`{}` is {}", node.name, type_name(node.value));
                node.wrong(|problem| problem.expected(self.expected()).hushed(), what)
            }
        }
    }
}

/// Any number of texts that must never be printed; a single one needs no brackets.
#[derive(Debug)]
pub(in crate::config) struct HiddenList {
    pub(in crate::config) expected: &'static str,
    /// Whether a text can be used at all.
    pub(in crate::config) valid: fn(&str) -> bool,
}

impl Kind for HiddenList {
    type Value = Vec<Secret>;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, node: &Node<'_>) -> Option<Vec<Secret>> {
        let noted = node.source.noted();
        let mut secrets = Vec::new();
        for element in node.elements() {
            let Some(secret) = Hidden.read(&element) else { continue };
            if !(self.valid)(secret.reveal()) {
                let empty = if secret.reveal().is_empty() { "is empty" } else { "cannot be used" };
                let what = format!("one of `{}` {empty}", node.name);
                element.wrong::<()>(|problem| problem.expected(self.expected).hushed(), what);
            }
            secrets.push(secret);
        }
        (node.source.noted() == noted).then_some(secrets)
    }
}
