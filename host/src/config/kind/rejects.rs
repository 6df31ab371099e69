//! How many rejects a pipeline bears.

use toml::de::DeValue;

use super::{Count, Kind};
use crate::config::model::MaxRejects;
use crate::config::node::Node;

/// `{ window = 1000, limit = 50 }`, each of the two with this default, or `false` for no limit.
#[derive(Debug)]
pub(in crate::config) struct Rejects {
    pub(in crate::config) window_max: u64,
}

const DEFAULT: MaxRejects = MaxRejects { window: 1000, limit: 50 };

impl Kind for Rejects {
    type Value = Option<MaxRejects>;

    fn expected(&self) -> String {
        format!(
            "a table such as {{ window = {}, limit = {} }}, or false for no limit",
            DEFAULT.window, DEFAULT.limit
        )
    }

    fn read(&self, node: &Node<'_>) -> Option<Option<MaxRejects>> {
        let table = match node.value {
            DeValue::Boolean(false) => return Some(None),
            DeValue::Table(table) => table,
            _ => return node.wrong_type(&self.expected()),
        };
        let noted = node.source.noted();
        let mut rejects = DEFAULT;
        for (key, value) in table {
            let name: &str = key.get_ref();
            let inner = Node { source: node.source, name, value: value.get_ref(), span: value.span() };
            match name {
                "window" => {
                    let window = Count { min: 1, max: self.window_max }.read(&inner);
                    rejects.window = window.unwrap_or(rejects.window);
                }
                "limit" => {
                    let limit = Count { min: 0, max: self.window_max }.read(&inner);
                    rejects.limit = limit.unwrap_or(rejects.limit);
                }
                _other => {
                    let at_key = Node { span: key.span(), ..inner };
                    let what = format!("`{}` has an unknown key", node.name);
                    at_key.wrong::<()>(|problem| problem.expected(self.expected()), what);
                }
            }
        }
        if node.source.noted() == noted && rejects.limit >= rejects.window {
            let what = format!(
                "`{}` has a limit of {} in a window of {}, which can never be passed",
                node.name, rejects.limit, rejects.window
            );
            return node.wrong(|problem| problem.expected("a limit that is less than the window"), what);
        }
        (node.source.noted() == noted).then_some(Some(rejects))
    }
}
