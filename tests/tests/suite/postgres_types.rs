//! Every type of docs/postgres-types.md with its edge values: copied and followed they are the same, and as documented.

use serde_json::Value;
use std::{fs, path::Path};
use tidemill_test_postgres::Settings;
use tidemill_tests::{
    limit::within,
    pipeline::{Pipeline, Source},
    replica::Replica,
};

/// A column: its type in PostgreSQL, the type that `create_tables` gives it, and values as SQL with the text that
/// StarRocks then shows; none = NULL.
struct Typed(&'static str, &'static str, &'static [(&'static str, Option<&'static str>)]);

const MADE: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'it''s \"ok\"', 'Überglücklich');
    CREATE TYPE pair AS (n int, t text);
    CREATE DOMAIN positive AS numeric(8,2) CHECK (VALUE > 0);
    CREATE DOMAIN tags AS text[];
    CREATE EXTENSION hstore; CREATE EXTENSION citext;";

const TYPES: &[Typed] = &[
    Typed("boolean", "boolean", &[("true", Some("1")), ("false", Some("0")), ("NULL", None)]),
    Typed("smallint", "smallint(6)", &[("-32768", Some("-32768")), ("32767", Some("32767"))]),
    Typed("integer", "int(11)", &[("-2147483648", Some("-2147483648")), ("2147483647", Some("2147483647"))]),
    Typed(
        "bigint",
        "bigint(20)",
        &[
            ("-9223372036854775808", Some("-9223372036854775808")),
            ("9223372036854775807", Some("9223372036854775807")),
        ],
    ),
    Typed("oid", "bigint(20)", &[("4294967295", Some("4294967295")), ("0", Some("0"))]),
    Typed("real", "float", &[("1.5", Some("1.5")), ("'NaN'", None), ("'-Infinity'", None)]),
    Typed(
        "double precision",
        "double",
        &[("0.1", Some("0.1")), ("'Infinity'", None), ("'NaN'", None), ("-1234.5", Some("-1234.5"))],
    ),
    Typed(
        "numeric(6,2)",
        "decimal(6,2)",
        &[("99.5", Some("99.50")), ("-9999.99", Some("-9999.99")), ("'NaN'", None)],
    ),
    Typed(
        "numeric(38,10)",
        "decimal(38,10)",
        &[("1234567890123456789012345678.0123456789", Some("1234567890123456789012345678.0123456789"))],
    ),
    Typed(
        "numeric",
        "varchar(1048576)",
        &[
            ("1e-20", Some("0.00000000000000000001")),
            ("1.50", Some("1.50")),
            ("'-Infinity'", None),
            ("1e50::numeric + 0.5", Some("100000000000000000000000000000000000000000000000000.5")),
        ],
    ),
    Typed(
        "money",
        "decimal(19,2)",
        &[
            ("'1234.56'", Some("1234.56")),
            ("'-0.5'", Some("-0.50")),
            ("92233720368547758.07::numeric::money", Some("92233720368547758.07")),
        ],
    ),
    Typed("varchar(5)", "varchar(20)", &[("'äöüß€'", Some("äöüß€")), ("''", Some(""))]),
    Typed("char(5)", "varchar(20)", &[("'ab'", Some("ab   "))]),
    Typed(
        "text",
        "varchar(1048576)",
        &[
            (
                r#"E'line\nfeed\ttab \\ \\N "quote" \b \u0001 '"#,
                Some("line\nfeed\ttab \\ \\N \"quote\" \u{8} \u{1} "),
            ),
            ("''", Some("")),
            ("'\\N'", Some("\\N")),
            ("'😀 null'", Some("😀 null")),
        ],
    ),
    Typed("citext", "varchar(1048576)", &[("'MiXeD'", Some("MiXeD"))]),
    Typed("name", "varchar(64)", &[("'a_name'", Some("a_name"))]),
    Typed("\"char\"", "varchar(4)", &[("'x'", Some("x")), ("''", Some(""))]),
    Typed("bytea", "varchar(1048576)", &[(r"'\xdeadBEEF00'", Some("deadbeef00")), ("''", Some(""))]),
    Typed(
        "date",
        "date",
        &[
            ("'2024-02-29'", Some("2024-02-29")),
            ("'0001-01-01'", Some("0001-01-01")),
            ("'9999-12-31'", Some("9999-12-31")),
            ("'infinity'", None),
            ("'0044-03-15 BC'", None),
            ("'10000-01-01'", None),
        ],
    ),
    Typed(
        "timestamp",
        "datetime",
        &[
            ("'2024-02-29 12:34:56.123456'", Some("2024-02-29 12:34:56.123456")),
            ("'2024-02-29 12:34:56'", Some("2024-02-29 12:34:56")),
            ("'-infinity'", None),
            ("'10000-01-01 00:00:00'", None),
        ],
    ),
    Typed(
        "timestamptz",
        "datetime",
        &[
            ("'2024-03-01 01:00:00+05:30'", Some("2024-02-29 19:30:00")),
            ("'infinity'", None),
            ("'1880-01-01 00:00:00+00'", Some("1880-01-01 00:00:00")),
        ],
    ),
    Typed("time", "varchar(16)", &[("'24:00:00'", Some("24:00:00")), ("'01:02:03.5'", Some("01:02:03.5"))]),
    Typed("timetz", "varchar(32)", &[("'00:00:00-15:59'", Some("00:00:00-15:59"))]),
    Typed(
        "interval",
        "varchar(64)",
        &[("'1 year 2 months -3 days 04:05:06.7'", Some("P1Y2M-3DT4H5M6.7S")), ("'0'", Some("PT0S"))],
    ),
    Typed(
        "uuid",
        "varchar(36)",
        &[("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"))],
    ),
    Typed(
        "json",
        "json",
        &[
            ("'{\"b\": 1.50, \"a\": [1, null]}'", Some(r#"{"b":1.50,"a":[1,null]}"#)),
            (r#"'"text"'"#, Some(r#""text""#)),
        ],
    ),
    Typed(
        "jsonb",
        "json",
        &[
            (
                "'{\"b\": 123456789012345678901234567890, \"a\": {}}'",
                Some(r#"{"a":{},"b":123456789012345678901234567890}"#),
            ),
            ("'[]'", Some("[]")),
        ],
    ),
    Typed(
        "int[]",
        "json",
        &[
            ("'{{1,2},{3,NULL}}'", Some("[[1,2],[3,null]]")),
            ("'[2:3]={7,8}'", Some("[7,8]")),
            ("'{}'", Some("[]")),
        ],
    ),
    Typed(
        "text[]",
        "json",
        &[(
            r#"ARRAY['a,b', 'q"x', NULL, 'NULL', '', E'\\', '{}']"#,
            Some(r#"["a,b","q\"x",null,"NULL","","\\","{}"]"#),
        )],
    ),
    Typed("double precision[]", "json", &[("'{1.5,NaN,Infinity}'", Some("[1.5,null,null]"))]),
    Typed("jsonb[]", "json", &[(r#"ARRAY['{"a": 1}'::jsonb, 'null']"#, Some(r#"[{"a":1},null]"#))]),
    Typed("tags", "json", &[("'{x,y}'", Some(r#"["x","y"]"#))]),
    Typed("box[]", "json", &[("'{(1,1),(0,0);(2,2),(0,0)}'", Some(r#"["(1,1),(0,0)","(2,2),(0,0)"]"#))]),
    Typed(
        "mood",
        "varchar(255)",
        &[
            ("'sad'", Some("sad")),
            ("'it''s \"ok\"'", Some("it's \"ok\"")),
            ("'Überglücklich'", Some("Überglücklich")),
        ],
    ),
    Typed("positive", "decimal(8,2)", &[("1.5", Some("1.50"))]),
    Typed("inet", "varchar(64)", &[("'192.168.1.5/24'", Some("192.168.1.5/24")), ("'::1'", Some("::1"))]),
    Typed("cidr", "varchar(64)", &[("'10.0.0.0/8'", Some("10.0.0.0/8"))]),
    Typed("macaddr", "varchar(32)", &[("'08:00:2B:01:02:03'", Some("08:00:2b:01:02:03"))]),
    Typed("pg_lsn", "varchar(32)", &[("'16/B374D848'", Some("16/B374D848"))]),
    Typed("bit(4)", "varchar(4)", &[("B'0101'", Some("0101"))]),
    Typed("varbit(8)", "varchar(8)", &[("B'101'", Some("101"))]),
    Typed("int4range", "varchar(1048576)", &[("'[1,10)'", Some("[1,10)")), ("'empty'", Some("empty"))]),
    Typed(
        "datemultirange",
        "varchar(1048576)",
        &[("'{[2024-01-01,2024-02-01)}'", Some("{[2024-01-01,2024-02-01)}"))],
    ),
    Typed("pair", "varchar(1048576)", &[("ROW(1, 'a,b')", Some(r#"(1,"a,b")"#))]),
    Typed("point", "varchar(1048576)", &[("'(1.5,2)'", Some("(1.5,2)"))]),
    Typed("xml", "varchar(1048576)", &[("'<a>&lt;</a>'", Some("<a>&lt;</a>"))]),
    Typed("tsvector", "varchar(1048576)", &[("'a:1 b:2'", Some("'a':1 'b':2"))]),
    Typed("hstore", "varchar(1048576)", &[("'a=>1, b=>NULL'", Some(r#""a"=>"1", "b"=>NULL"#))]),
];

fn rows() -> usize {
    TYPES.iter().map(|Typed(_, _, values)| values.len()).max().unwrap_or(0)
}

/// The statement that fills a table of all types: row n has the nth value of each.
fn insert(table: &str) -> String {
    let row = |number: usize| {
        let cells = TYPES.iter().map(|Typed(kind, _, values)| match values.get(number) {
            Some((sql, _)) => format!("({sql})::{kind}"),
            None => "NULL".to_owned(),
        });
        format!("({number}, {})", cells.collect::<Vec<_>>().join(", "))
    };
    format!("INSERT INTO {table} VALUES {}", (0..rows()).map(row).collect::<Vec<_>>().join(",\n"))
}

fn create(table: &str) -> String {
    let columns: String =
        (0..).zip(TYPES).map(|(number, Typed(kind, _, _))| format!(", c{number} {kind}")).collect();
    format!("CREATE TABLE {table} (id int PRIMARY KEY{columns})")
}

/// What differs from the documentation in a table of StarRocks, a line each.
fn wrong(replica: &Replica, table: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, Typed(kind, _, values)) in (0..).zip(TYPES) {
        let found = replica.warehouse.execute(&format!("SELECT `c{number}` FROM shop.{table} ORDER BY id"));
        for (row, cells) in found.iter().enumerate() {
            let expected = values.get(row).and_then(|(_, expected)| *expected);
            if cells.first().and_then(Option::as_deref) != expected {
                let sql = values.get(row).map_or("NULL", |(sql, _)| sql);
                wrong.push(format!("{table}: {kind} {sql} is {:?} and not {expected:?}", cells.first()));
            }
        }
    }
    wrong
}

#[test]
fn every_type_comes_out_as_documented_copied_and_followed_alike() {
    within(120, || {
        let replica = Replica::new("types");
        // Settings that change how values are printed; ours are pinned.
        let database = replica.name();
        for setting in [
            "datestyle = 'German, DMY'",
            "timezone = 'Asia/Kolkata'",
            "intervalstyle = 'postgres_verbose'",
            "bytea_output = 'escape'",
            "extra_float_digits = -5",
        ] {
            replica.postgres.run(&format!("ALTER DATABASE {database} SET {setting}"));
        }
        replica.postgres.run(&format!("{MADE} {}; {};", create("copied"), create("followed")));
        // Written under settings of its own.
        let pinned = "SET datestyle = ISO; SET timezone = UTC;";
        replica.postgres.run(&format!("{pinned} {}", insert("copied")));
        let pipeline = replica.pipeline();
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "copied", rows() as u64);
        replica.postgres.until_streaming(30, &replica.slot());
        replica.postgres.run(&format!("{pinned} {}", insert("followed")));
        replica.warehouse.until_rows(60, "followed", rows() as u64);

        let mut differs = wrong(&replica, "copied");
        differs.extend(wrong(&replica, "followed"));
        let types = replica.warehouse.execute("DESC shop.copied");
        for (column, Typed(kind, expected, _)) in types.iter().skip(1).zip(TYPES) {
            let found =
                column.get(1).cloned().flatten().unwrap_or_default().to_ascii_lowercase().replace(", ", ",");
            if found != *expected {
                differs.push(format!("{kind} is made {found} and not {expected}"));
            }
        }
        assert!(differs.is_empty(), "{}", differs.join("\n"));
        let metrics = tidemill.metrics().expect("metrics");
        let nulled = metrics.count("tidemill_postgres_values_nulled_total", &[]);
        assert!(nulled > 0 && nulled.is_multiple_of(2), "as many copied as followed: {nulled}");
        tidemill.drain(30);
    });
}

#[test]
fn keys_of_many_types_are_found_again() {
    within(90, || {
        let replica = Replica::new("key_types");
        replica.postgres.run(
            "CREATE TYPE mood AS ENUM ('sad', 'glad');
             CREATE TABLE keyed (n numeric(6,2), t timestamptz, d date, b boolean, e mood, x bytea, note text,
                                 PRIMARY KEY (n, t, d, b, e, x));
             INSERT INTO keyed SELECT n / 4.0, '2024-01-01 00:00:00.5+00'::timestamptz + n * interval '1 hour',
                 '2024-01-01'::date + n, n % 2 = 0, CASE n % 3 WHEN 0 THEN 'sad' ELSE 'glad' END::mood,
                 decode(md5(n::text), 'hex'), 'copied' FROM generate_series(1, 100) n",
        );
        let mut tidemill = replica.run(&replica.pipeline());
        replica.warehouse.until_rows(60, "keyed", 100);
        replica.postgres.until_streaming(30, &replica.slot());
        replica.postgres.run(
            "UPDATE keyed SET note = 'changed' WHERE b; DELETE FROM keyed WHERE e = 'sad';
             UPDATE keyed SET n = n + 500 WHERE n < 5",
        );
        let sorted = |mut rows: Vec<Vec<Option<String>>>| {
            rows.sort();
            rows
        };
        let expected = sorted(replica.postgres.rows("SELECT n, e, note FROM keyed"));
        let found = || sorted(replica.warehouse.execute("SELECT n, e, note FROM shop.keyed"));
        let equal = tidemill_tests::wait_until(std::time::Duration::from_secs(30), || {
            (found() == expected).then_some(())
        });
        equal.unwrap_or_else(|late| panic!("{late}: {:?} and not {expected:?}", found()));
        tidemill.drain(30);
    });
}

/// All dead letters of a directory, in no order.
fn letters(directory: &Path) -> Vec<Value> {
    let files =
        fs::read_dir(directory).expect("the directory is there").map(|entry| entry.expect("an entry").path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "ndjson"));
    let texts: Vec<String> = files.map(|file| fs::read_to_string(file).expect("a file of text")).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    lines.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// A database that does not know its encoding, with rows that are and are not UTF-8.
fn ascii() -> (Replica, Pipeline, impl Fn(&str)) {
    let replica = Replica::own("ascii", &Settings::default());
    replica
        .postgres
        .run("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    let client = replica.postgres.client().database("ascii");
    let run = move |sql: &str| {
        client.run(sql).unwrap_or_else(|fault| panic!("{fault}"));
    };
    run(r"CREATE TABLE notes (id int PRIMARY KEY, note text);
          INSERT INTO notes VALUES (1, 'plain'), (2, convert_from('\x6162ff41', 'SQL_ASCII')), (3, 'grün')");
    let mut pipeline = replica.pipeline();
    let Source::Postgres(source) = &mut pipeline.source else { panic!("it is one of Postgres") };
    source.database = "ascii".to_owned();
    (replica, pipeline, run)
}

#[test]
fn rows_with_text_that_is_not_utf8_become_dead_letters_of_copy_and_stream_alike() {
    within(120, || {
        let (replica, mut pipeline, run) = ascii();
        let directory = replica.folder.path().join("letters");
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "notes", 2);
        tidemill.until_logged(60, "following the slot");
        run(r"INSERT INTO notes VALUES (4, 'before'), (5, convert_from('\xfe', 'SQL_ASCII')), (6, 'behind');
              UPDATE notes SET note = convert_from('\x6dfc', 'SQL_ASCII') WHERE id = 1");
        replica.warehouse.until_rows(60, "notes", 4);
        tidemill.until_settled(30, 7);
        let mut letters: Vec<(String, String, String, String)> = letters(&directory)
            .iter()
            .map(|letter| {
                let text = |name: &str| letter[name].as_str().unwrap_or_default().to_owned();
                (text("stage"), text("key"), text("code"), text("message"))
            })
            .collect();
        letters.sort();
        let letter = |key: u32, at: u32| {
            let message = format!("column note: byte {at} is not UTF-8");
            ("read".to_owned(), format!("{{\"id\":{key}}}"), "value".to_owned(), message)
        };
        assert_eq!(letters, [letter(1, 1), letter(2, 2), letter(5, 0)]);
        assert_eq!(replica.warehouse.number("SELECT COUNT(*) FROM shop.notes WHERE note = 'grün'"), 1);
        // Mended, they come again.
        run("UPDATE notes SET note = 'mended' WHERE id IN (1, 2, 5)");
        replica.warehouse.until_rows(60, "notes", 6);
        tidemill.drain(30);
        assert_eq!(replica.warehouse.number("SELECT COUNT(*) FROM shop.notes WHERE note = 'mended'"), 3);
    });
}

#[test]
fn rows_with_text_that_is_not_utf8_halt_where_no_dead_letters_are_kept() {
    within(120, || {
        let (replica, pipeline, run) = ascii();
        let halts = || {
            let ended = replica.run(&pipeline).until_ended(60);
            assert_eq!(ended.code, Some(1), "{}", ended.log);
            let words = "column note: byte 2 is not UTF-8";
            assert!(ended.log.contains(words), "{words:?} is not in {}", ended.log);
        };
        halts();
        // Nothing is taken for done.
        halts();
        run("UPDATE notes SET note = 'mended' WHERE id = 2");
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "notes", 3);
        tidemill.until_logged(60, "following the slot");
        // The stream halts likewise, and nothing behind the row is loaded.
        run(
            r"INSERT INTO notes VALUES (4, 'before'), (5, convert_from('\x6162fe', 'SQL_ASCII')), (6, 'behind')",
        );
        run("INSERT INTO notes VALUES (7, 'behind')");
        let ended = tidemill.until_ended(60);
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert!(ended.log.contains("column note: byte 2 is not UTF-8"), "{}", ended.log);
        let loaded = || {
            let mut ids = replica.warehouse.ids("notes");
            ids.sort_unstable();
            ids
        };
        assert!([&[1, 2, 3][..], &[1, 2, 3, 4]].contains(&&loaded()[..]), "{:?}", loaded());
        halts();
        assert!([&[1, 2, 3][..], &[1, 2, 3, 4]].contains(&&loaded()[..]), "{:?}", loaded());
        // With a place for it, it goes on there.
        let mut pipeline = pipeline.clone();
        let directory = replica.folder.path().join("letters");
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "notes", 6);
        assert_eq!(loaded(), [1, 2, 3, 4, 6, 7]);
        tidemill.drain(30);
    });
}

#[test]
fn a_value_of_50_mb_becomes_a_dead_letter_and_its_neighbours_are_loaded() {
    within(120, || {
        let replica = Replica::new("huge_value");
        replica.postgres.run(
            "CREATE TABLE blobs (id int PRIMARY KEY, body text);
             INSERT INTO blobs VALUES (1, 'small'), (2, repeat('x', 50000000)), (3, 'small')",
        );
        let directory = replica.folder.path().join("letters");
        let mut pipeline = replica.pipeline();
        pipeline.batch.push_str("\nmax_bytes = \"8MiB\"");
        pipeline.dead_letters = format!("directory = {directory:?}");
        let mut tidemill = replica.run(&pipeline);
        replica.warehouse.until_rows(60, "blobs", 2);
        replica.postgres.until_streaming(30, &replica.slot());
        replica.postgres.run("INSERT INTO blobs VALUES (4, repeat('y', 50000000)), (5, 'small')");
        replica.warehouse.until_rows(60, "blobs", 3);
        tidemill.until_settled(30, 5);
        let resident = tidemill.resident_bytes_max() >> 20;
        assert!(resident < 700, "{resident} MiB");
        tidemill.drain(30);
        let mut ids = replica.warehouse.ids("blobs");
        ids.sort_unstable();
        assert_eq!(ids, [1, 3, 5]);
        let letters = letters(&directory);
        assert_eq!(letters.len(), 2);
        for letter in &letters {
            let text = letter.to_string();
            let head: String = text.chars().take(300).collect();
            assert!(text.contains("[batch] max_bytes is 8388608"), "{head}");
        }
    });
}
