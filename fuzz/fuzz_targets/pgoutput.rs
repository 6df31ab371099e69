//! Any bytes as a message of the replication stream: no panic, nothing read past the end, and a tuple that
//! was accepted has as many columns as it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_fuzz::source::postgres::pgoutput::{Field, Message, Old, Tuple};

fuzz_target!(|payload: &[u8]| {
    let Ok(message) = Message::decode(payload) else { return };
    match message {
        Message::Insert(insert) => check(insert.new),
        Message::Update(update) => {
            update.old.iter().map(Old::tuple).for_each(check);
            check(update.new);
        }
        Message::Delete(delete) => check(delete.old.tuple()),
        Message::Begin(_)
        | Message::Commit(_)
        | Message::Origin(_)
        | Message::Relation(_)
        | Message::Type(_)
        | Message::Truncate(_)
        | Message::Logical(_) => {}
    }
});

fn check(tuple: Tuple<'_>) {
    assert_eq!(tuple.columns().count(), tuple.len());
    let bytes = |field: Field<'_>| match field {
        Field::Null | Field::Unchanged => 1,
        Field::Text(text) => text.len() + 5,
    };
    assert_eq!(tuple.columns().map(bytes).sum::<usize>(), tuple.wire_bytes());
}
