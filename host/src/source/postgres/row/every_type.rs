//! Every type with edge values, recorded of a PostgreSQL 15, by COPY and by the stream.

use tidemill_sandbox::{Options, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::sink::starrocks::query::Column;
use crate::source::postgres::copy_text::CopyText;
use crate::source::postgres::kind::{TypeInfo, Types};
use crate::source::postgres::pgoutput::Message;
use crate::source::postgres::row::{ColumnSets, Layout, table_of};
use crate::source::postgres::warehouse_table::{Comparison, create_table};

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

fn messages() -> Vec<Vec<u8>> {
    let lines = include_str!("every_type/stream.hex").lines().filter(|line| !line.starts_with('#'));
    let bytes = |line: &str| {
        let byte = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).expect("hexadecimal digits");
        (0..line.len()).step_by(2).map(byte).collect()
    };
    lines.map(bytes).collect()
}

#[test]
fn copy_and_stream_give_the_documented_forms() {
    let types = types();
    let (mut layout, mut streamed) = (None, Vec::new());
    for bytes in messages() {
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
    let mut copy = CopyText::new();
    for line in include_str!("every_type/rows.copy").lines() {
        let mut out = Vec::new();
        let appended = layout.append_copied(&copy.row(line.as_bytes()), &mut out).expect("a row");
        copied.push(format!("{} {}", appended.nulled, text(out)));
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starrocks_takes_the_rows_into_the_table_that_was_made_for_them() {
    let (types, messages) = (types(), messages());
    let Ok(Message::Relation(relation)) = Message::decode(&messages[0]) else { panic!("no Relation") };
    let (table, layout) = (table_of(&relation, None), Layout::of(&relation, None, &types));
    let sandbox = Sandbox::start(Options::default()).await.expect("free ports");
    sandbox.execute("CREATE DATABASE shop").expect("a database");
    let created = create_table(&table, &types, "shop", "every_type").expect("a statement");
    sandbox.execute(&created).expect("a table");

    let cell = |row: &[Option<String>], at: usize| row[at].clone().unwrap_or_default().to_lowercase();
    let described = sandbox.execute("DESC shop.every_type").expect("a description");
    let column = |row: &Vec<Option<String>>| Column {
        name: cell(row, 0),
        sql_type: cell(row, 1),
        nullable: cell(row, 2) == "yes",
        key: cell(row, 3) == "true",
    };
    let warehouse: Vec<Column> = described.iter().map(column).collect();
    let comparison = Comparison {
        table: &table,
        types: &types,
        database: "shop",
        name: "every_type",
        warehouse: &warehouse,
        before: None,
    };
    let difference = comparison.difference();
    assert_eq!((difference.incompatible, difference.added, difference.unfed), (vec![], vec![], vec![]));

    let mut body = Vec::new();
    let mut copy = CopyText::new();
    for line in include_str!("every_type/rows.copy").lines() {
        let _appended = layout.append_copied(&copy.row(line.as_bytes()), &mut body).expect("a row");
        body.push(b'\n');
    }
    let answer = stream_load(&sandbox, &body).await;
    assert!(answer.contains("\"Success\""), "{answer}");
    let read = "SELECT id, bo, i8, np, by, tz, dm, en FROM shop.every_type ORDER BY id";
    let read = sandbox.execute(read).expect("rows");
    assert_eq!(read.len(), 5);
    let first: Vec<&str> = read[0].iter().map(|cell| cell.as_deref().expect("a value")).collect();
    let expected =
        ["1", "1", "-9223372036854775808", "99.50", "deadbeef", "2024-02-29 10:34:56.500000", "12.500", "ok"];
    assert_eq!(first, expected);
    assert!(read[4][1..].iter().all(Option::is_none));
}

/// A Stream Load straight to the BE, by hand: what is tested is the rows.
async fn stream_load(sandbox: &Sandbox, body: &[u8]) -> String {
    let url = sandbox.be_url();
    let address = url.trim_start_matches("http://");
    let mut connection = TcpStream::connect(address).await.expect("a BE");
    let head = format!(
        "PUT /api/shop/every_type/_stream_load HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic cm9vdDo=\r\n\
         label: every-type\r\nformat: json\r\nstrict_mode: true\r\nmax_filter_ratio: 0\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.expect("a request");
    connection.write_all(body).await.expect("a body");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("an answer");
    answer
}
