//! `[pipeline]`

use crate::config::kind::{Flag, OneOf, Refusal, Text};
use crate::config::model::Delivery;
use crate::config::schema::{Key, Presence, Section};

pub(in crate::config) static SECTION: Section = Section {
    path: &["pipeline"],
    repeated: false,
    rare: false,
    doc: "What the pipeline is called and what it promises.",
    keys: &[&NAME, &DELIVERY, &VERIFY],
    tables: &[],
};

pub(in crate::config) static NAME: Key<Text> = Key {
    name: "name",
    kind: Text { expected: "1 to 64 of A-Z a-z 0-9 _ -, such as \"orders\"", parse: pipeline_name },
    presence: Presence::Required("\"my-pipeline\""),
    doc: "The name: it begins the label of every load and is the Kafka group unless `group` says another. \
          Processes that run the same file share the work; two different pipelines need two names. Renaming \
          a pipeline without setting `group` makes it start anew.",
};

pub(in crate::config) static DELIVERY: Key<OneOf<Delivery>> = Key {
    name: "delivery",
    kind: OneOf {
        words: &[("at_least_once", Delivery::AtLeastOnce), ("exactly_once", Delivery::ExactlyOnce)],
        refused: &[],
    },
    presence: Presence::Default("\"at_least_once\""),
    doc: "What is promised. `at_least_once`: nothing is lost; a row can come twice only after a crash, an \
          undrained rebalance or a label that StarRocks has forgotten. `exactly_once`, from Kafka only: each \
          record's rows come once into any table model, by loads in two phases and Kafka transactions; it needs \
          the right to write transactions (TransactionalId).",
};

pub(in crate::config) static VERIFY: Key<Flag> = Key {
    name: "verify",
    kind: Flag,
    presence: Presence::Default("false"),
    doc: "With `exactly_once`: whether plugins have to make the same rows of the same records once more, on a fresh \
          instance, before anything of them is loaded. Of each lane the 1st, 2nd, 4th, … 64th chunk is looked at and then \
          one in 100. A plugin that makes others halts the pipeline, which names the record.",
};

const NAME_CHARS_MAX: usize = 64;

fn pipeline_name(text: &str) -> Result<String, Refusal> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if text.is_empty() {
        return Refusal::because("a name cannot be empty");
    }
    if let Some(bad) = text.chars().find(|c| !valid(*c)) {
        return Refusal::because(format!("{bad:?} cannot be part of a label"));
    }
    if text.len() > NAME_CHARS_MAX {
        return Refusal::because(format!("it has {} characters", text.len()));
    }
    Ok(text.to_owned())
}
