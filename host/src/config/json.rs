//! TOML → JSON, for the configuration of plugins.

use serde_json::{Map, Number, Value};
use toml::de::DeValue;

use super::node::{Node, integer};

/// The value as JSON: dates become strings. What JSON cannot hold is noted.
pub(super) fn from_toml(node: &Node<'_>) -> Option<Value> {
    match node.value {
        DeValue::String(text) => Some(Value::String(text.to_string())),
        DeValue::Boolean(value) => Some(Value::Bool(*value)),
        DeValue::Datetime(time) => Some(Value::String(time.to_string())),
        DeValue::Integer(written) => {
            let number = integer(written).and_then(Number::from_i128);
            number.map(Value::Number).or_else(|| unfit(node, "it does not fit 64 bits"))
        }
        DeValue::Float(written) => {
            let number = written.as_str().parse().ok().and_then(Number::from_f64);
            number.map(Value::Number).or_else(|| unfit(node, "JSON has no such number"))
        }
        DeValue::Array(_) => {
            // Every element is read, so that each mistake is noted.
            let values: Vec<_> = node.elements().iter().map(from_toml).collect();
            values.into_iter().collect::<Option<Vec<_>>>().map(Value::Array)
        }
        DeValue::Table(table) => {
            let mut object = Map::with_capacity(table.len());
            let mut complete = true;
            for (key, value) in table {
                let inner = Node {
                    source: node.source,
                    name: key.get_ref(),
                    value: value.get_ref(),
                    span: value.span(),
                };
                match from_toml(&inner) {
                    Some(value) => {
                        object.insert(key.get_ref().to_string(), value);
                    }
                    None => complete = false,
                }
            }
            complete.then_some(Value::Object(object))
        }
    }
}

fn unfit<T>(node: &Node<'_>, why: &str) -> Option<T> {
    let expected = "a number that JSON can hold, or a string";
    node.wrong(
        |problem| problem.expected(expected),
        format!("`{}` cannot reach the plugin as JSON: {why}", node.name),
    )
}
