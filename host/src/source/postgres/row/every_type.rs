//! Every type with edge values, recorded of a PostgreSQL 15, by COPY and by the stream.

use crate::source::postgres::copy_text::CopyText;
use crate::source::postgres::kind::{TypeInfo, Types};
use crate::source::postgres::pgoutput::Message;
use crate::source::postgres::row::{ColumnSets, Layout, RowError};

fn types() -> Types {
    let mut types = Types::new();
    for line in include_str!("every_type/types.txt").lines().filter(|line| !line.starts_with('#')) {
        let cells: Vec<&str> = line.split(' ').collect();
        let character = |cell: usize| cells[cell].chars().next().expect("a character");
        types.add(TypeInfo {
            oid: cells[0].parse().expect("an OID"),
            name: cells[1].to_owned(),
            schema: cells[2].to_owned(),
            kind: character(3),
            category: character(4),
            element: cells[5].parse().expect("an OID"),
            base: cells[6].parse().expect("an OID"),
            base_modifier: cells[7].parse().expect("a modifier"),
            delimiter: character(8),
        });
    }
    types
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn copy_and_stream_give_the_documented_forms() {
    let types = types();
    let (mut layout, mut streamed) = (None, Vec::new());
    for line in include_str!("every_type/stream.hex").lines().filter(|line| !line.starts_with('#')) {
        let byte = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).expect("hexadecimal digits");
        let bytes: Vec<u8> = (0..line.len()).step_by(2).map(byte).collect();
        match Message::decode(&bytes).expect("a message") {
            Message::Relation(relation) => {
                assert!(types.unknown(relation.columns.iter().map(|column| column.type_oid)).is_empty());
                layout = Some(Layout::of(&relation, None, &types));
            }
            Message::Insert(insert) => {
                let layout = layout.as_ref().expect("a Relation before the rows");
                let mut out = Vec::new();
                let appended =
                    layout.append_row(insert.new, None, &mut ColumnSets::new(), &mut out).expect("a row");
                assert_eq!(appended.missing, None);
                streamed.push(format!("{} {}", appended.nulled, text(out)));
            }
            other => panic!("{other:?}"),
        }
    }
    let layout = layout.expect("a Relation");
    let mut copied = Vec::new();
    let told: Result<(), RowError> = CopyText::new().feed(include_bytes!("every_type/rows.copy"), |row| {
        let mut out = Vec::new();
        let appended = layout.append_copied(&row, &mut out)?;
        copied.push(format!("{} {}", appended.nulled, text(out)));
        Ok(())
    });
    told.expect("rows");
    assert_eq!(streamed, copied);
    // How many values became null, and the row without its NULL columns, for whoever reads it.
    let expected: Vec<&str> = include_str!("every_type/rows.txt").lines().collect();
    let without_nulls = |row: &String| {
        let (nulled, row) = row.split_once(' ').expect("a number before the row");
        let values: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(row).expect("an object");
        assert_eq!(values.len(), layout.columns().len());
        let raw: Vec<&str> = row.trim_matches(['{', '}']).split(",\"").collect();
        let told = raw.iter().filter(|member| !member.ends_with("\":null"));
        format!("{nulled} {{{}}}", told.copied().collect::<Vec<_>>().join(",\""))
    };
    assert_eq!(copied.iter().map(without_nulls).collect::<Vec<_>>(), expected);
}
