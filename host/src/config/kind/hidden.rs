//! Passwords and tokens.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

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
            DeValue::Table(_) => {
                let words = node.words(&self.expected())?;
                if let Some(("file", named)) = node.named_elsewhere().filter(|_| !words.text.is_empty()) {
                    warn_if_open(node.name, &node.source.resolve(named));
                }
                Some(Secret::new(words.text))
            }
            _ => {
                let what = format!("`{}` is {}", node.name, type_name(node.value));
                node.wrong(|problem| problem.expected(self.expected()).hushed(), what)
            }
        }
    }
}

/// The mode bit with which everybody on the machine may read a file.
const READABLE_BY_OTHERS: u32 = 0o004;

/// Says that others can read a secret's file. No more than that: where secrets are mounted, as in Kubernetes, the mode is
/// often not the user's to choose.
pub(crate) fn warn_if_open(key: &str, file: &Path) {
    // A file that cannot be looked at was refused, or will be, by whoever reads it.
    let Ok(metadata) = std::fs::metadata(file) else { return };
    if metadata.permissions().mode() & READABLE_BY_OTHERS != 0 {
        let file = file.display();
        tracing::warn!(key, %file, "everybody on this machine can read this secret: `chmod 600` its file");
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
