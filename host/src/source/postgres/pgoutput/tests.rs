use proptest::prelude::*;

use super::*;

/// A stream of PostgreSQL 15, see recorded.sql.
const RECORDED: &str = include_str!("recorded.hex");
/// The fuzzer's corpus, relative to this crate.
const CORPUS: &str = "../fuzz/corpus/pgoutput";

fn recorded() -> Vec<Vec<u8>> {
    let hex = |line: &str| {
        let byte = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).expect("hexadecimal digits");
        (0..line.len()).step_by(2).map(byte).collect()
    };
    RECORDED.lines().filter(|line| !line.starts_with('#')).map(hex).collect()
}

fn tuple(fields: &[Field<'_>]) -> Vec<u8> {
    let mut bytes = (fields.len() as u16).to_be_bytes().to_vec();
    for field in fields {
        match field {
            Field::Null => bytes.push(b'n'),
            Field::Unchanged => bytes.push(b'u'),
            Field::Text(text) => {
                bytes.push(b't');
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend(*text);
            }
        }
    }
    bytes
}

/// One message of each kind, made by hand after the protocol's documentation, with what it means.
fn by_hand() -> Vec<(Vec<u8>, &'static str)> {
    let new = tuple(&[Field::Text(b"10"), Field::Unchanged, Field::Null]);
    let key = tuple(&[Field::Text(b"1"), Field::Null, Field::Null]);
    let row = |before: &[(u8, &[u8])], kind: u8| {
        let mut bytes = vec![kind, 0, 0, 0x40, 0x08];
        for (mark, tuple) in before {
            bytes.push(*mark);
            bytes.extend(*tuple);
        }
        bytes
    };
    vec![
        (b"B\0\0\0\x16\xb3\x74\xd8\x48\0\0\0\0\0\0\0\x01\0\0\x02\xe0".to_vec(), "B 16/B374D848 946684800000001 736"),
        (
            b"C\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
            "C 0/1 0/2 946684799999999",
        ),
        (b"O\0\0\0\0\0\0\x01\x23far\0".to_vec(), "O 0/123 far"),
        (
            b"R\0\0\x40\x08public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0price\0\0\0\x06\xa4\0\x0a\0\x06"
                .to_vec(),
            "R 16392 public.t Default *id:23(-1) price:1700(655366)",
        ),
        (b"R\0\0\0\x01\0t\0n\0\0".to_vec(), "R 1 pg_catalog.t Nothing"),
        (b"Y\0\0\x40\x01public\0mood\0".to_vec(), "Y 16385 public.mood"),
        (row(&[(b'N', &new)], b'I'), "I 16392 N[10 ? -]"),
        (row(&[(b'N', &new)], b'U'), "U 16392 N[10 ? -]"),
        (row(&[(b'K', &key), (b'N', &new)], b'U'), "U 16392 K[1 - -] N[10 ? -]"),
        (row(&[(b'O', &key), (b'N', &new)], b'U'), "U 16392 O[1 - -] N[10 ? -]"),
        (row(&[(b'K', &key)], b'D'), "D 16392 K[1 - -]"),
        (row(&[(b'O', &key)], b'D'), "D 16392 O[1 - -]"),
        (b"T\0\0\0\x02\x01\0\0\x40\x08\0\0\x40\x16".to_vec(), "T [16392, 16406] true false"),
        (b"T\0\0\0\x00\x02".to_vec(), "T [] false true"),
        (b"M\x01\0\0\0\0\0\x01\x54\x53tide\0\0\0\0\x02a\0".to_vec(), "M true 0/15453 tide a\\x00"),
    ]
}

/// A message on one line: `*` a column of the identity, `-` NULL, `?` unchanged.
fn described(message: &Message<'_>) -> String {
    let tuple = |tuple: Tuple<'_>| {
        let field = |field: Field<'_>| match field {
            Field::Null => "-".to_owned(),
            Field::Unchanged => "?".to_owned(),
            // Long values are repetitions of one letter.
            Field::Text(text) if text.len() > 99 => format!("{}*{}", char::from(text[0]), text.len()),
            Field::Text(text) => String::from_utf8_lossy(text).into_owned(),
        };
        format!("[{}]", tuple.columns().map(field).collect::<Vec<_>>().join(" "))
    };
    let old = |old: &Old<'_>| match old {
        Old::Key(key) => format!("K{}", tuple(*key)),
        Old::Row(row) => format!("O{}", tuple(*row)),
    };
    match message {
        Message::Begin(it) => format!("B {} {} {}", it.final_lsn, it.commit_time_us, it.xid),
        Message::Commit(it) => format!("C {} {} {}", it.commit_lsn, it.end_lsn, it.commit_time_us),
        Message::Origin(it) => format!("O {} {}", it.commit_lsn, it.name),
        Message::Relation(it) => {
            let column = |column: &RelationColumn<'_>| {
                let identity = if column.in_identity { "*" } else { "" };
                format!(" {identity}{}:{}({})", column.name, column.type_oid, column.type_modifier)
            };
            let columns: String = it.columns.iter().map(column).collect();
            format!("R {} {}.{} {:?}{columns}", it.id, it.schema, it.name, it.identity)
        }
        Message::Type(it) => format!("Y {} {}.{}", it.oid, it.schema, it.name),
        Message::Insert(it) => format!("I {} N{}", it.relation, tuple(it.new)),
        Message::Update(it) => {
            let before = it.old.as_ref().map(|it| old(it) + " ").unwrap_or_default();
            format!("U {} {before}N{}", it.relation, tuple(it.new))
        }
        Message::Delete(it) => format!("D {} {}", it.relation, old(&it.old)),
        Message::Truncate(it) => format!("T {:?} {} {}", it.relations, it.cascade, it.restart_identity),
        Message::Logical(it) => {
            format!("M {} {} {} {}", it.transactional, it.lsn, it.prefix, it.content.escape_ascii())
        }
    }
}

#[test]
fn each_kind_of_message_is_read_as_documented() {
    for (bytes, expected) in by_hand() {
        let message = Message::decode(&bytes).unwrap_or_else(|error| panic!("{expected}: {error}"));
        assert_eq!(described(&message), expected);
    }
}

#[test]
fn what_postgres_sends_is_read() {
    let messages = recorded();
    let messages: Vec<Message<'_>> =
        messages.iter().map(|bytes| Message::decode(bytes).expect("a message of Postgres")).collect();
    let begins = messages.iter().filter(|message| matches!(message, Message::Begin(_))).count();
    let commits = messages.iter().filter(|message| matches!(message, Message::Commit(_))).count();
    assert_eq!((begins, commits), (15, 15));
    let rest = messages.iter().filter(|message| !matches!(message, Message::Begin(_) | Message::Commit(_)));
    let rest: Vec<String> = rest.map(described).collect();
    let plain =
        "R 16485 public.plain Default *id:23(-1) name:25(-1) price:1700(655366) at:1184(-1) note:25(-1)";
    let uniq = "R 16499 public.uniq Index id:23(-1) *k:23(-1) v:25(-1)";
    assert_eq!(
        rest,
        [
            plain,
            "I 16485 N[1 Ann 99.50 2024-02-29 10:34:56.123456+00 x*2050]",
            "I 16485 N[2 - - - ]",
            "U 16485 N[1 Bob 99.50 2024-02-29 10:34:56.123456+00 ?]",
            // A changed key with an unchanged value out of line: no partial row can tell this.
            "U 16485 K[1 - - - -] N[10 Bob 99.50 2024-02-29 10:34:56.123456+00 ?]",
            "D 16485 K[2 - - - -]",
            "R 16492 public.whole Full *id:23(-1) *name:25(-1) *note:25(-1)",
            "I 16492 N[1 a y*2050]",
            "U 16492 O[1 a y*2050] N[1 b ?]",
            "D 16492 O[1 b y*2050]",
            // The generated column is not told.
            uniq,
            "I 16499 N[1 5 v]",
            "U 16499 K[- 5 -] N[1 6 v]",
            // The primary key changed, but the identity is another one.
            "U 16499 N[2 6 v]",
            "D 16499 K[- 6 -]",
            "Y 16385 public.mood",
            // A domain has its own OID and its base type's name.
            "Y 16390 pg_catalog.int4",
            "R 16508 public.typed Default *id:23(-1) m:16385(-1) d:16390(-1) a:1007(-1) v:1043(14)",
            "I 16508 N[1 ok 3 {1,NULL,3} vv]",
            "M true 0/16032C8 tide inside",
            "I 16485 N[3 é\"\\ 1.00 - -]",
            "M false 0/16033C0 hb beat",
            plain,
            uniq,
            "T [16485, 16499] true true",
            "O 0/123 far",
            uniq,
            "I 16499 N[7 7 ]",
        ]
    );
}

#[test]
fn a_message_cut_off_anywhere_is_an_error() {
    let by_hand = by_hand().into_iter().map(|(bytes, _)| bytes);
    for mut bytes in by_hand.chain(recorded()) {
        for length in 0..bytes.len() {
            let error = Message::decode(&bytes[..length]).expect_err("a part of a message");
            assert!(matches!(error, DecodeError::Short { at, .. } if at <= length), "{error}");
        }
        let at = bytes.len();
        bytes.push(0);
        assert_eq!(Message::decode(&bytes), Err(DecodeError::Long { at }));
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let check = |bytes: &[u8], text: &str| {
        let error = Message::decode(bytes).expect_err("no message");
        assert_eq!(error.to_string(), text);
    };
    check(b"", "pgoutput message ends within a kind of message, which begins at byte 0");
    check(
        b"S",
        "byte 0 of pgoutput message is 0x53, expected a message of protocol version 1 (B C O R Y I U D T M)",
    );
    check(b"I\0\0\0\x01O", "byte 5 of pgoutput message is 0x4f, expected N before the new row");
    check(b"U\0\0\0\x01X", "byte 5 of pgoutput message is 0x58, expected K, O or N before a row");
    check(b"U\0\0\0\x01K\0\0O", "byte 8 of pgoutput message is 0x4f, expected N before the new row");
    check(b"D\0\0\0\x01N\0\0", "byte 5 of pgoutput message is 0x4e, expected K or O before the old row");
    check(
        b"I\0\0\0\x01N\0\x01b\0\0\0\x01\0",
        "byte 8 of pgoutput message is 0x62, expected a column as n, u or t (b, binary, is never asked for)",
    );
    check(
        b"I\0\0\0\x01N\xff\xff",
        "the number of columns at byte 6 of pgoutput message is -1, expected none below 0",
    );
    check(
        b"I\0\0\0\x01N\0\x01t\x80\0\0\0",
        "a column's text at byte 9 of pgoutput message is -2147483648, expected none below 0",
    );
    check(
        b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xffabc",
        "pgoutput message ends within a column's text, which begins at byte 13",
    );
    check(b"Y\0\0\0\x01s\0\xff\0", "the type's name at byte 7 of pgoutput message is not UTF-8");
    check(
        b"R\0\0\0\x01s\0t\0x\0\0",
        "byte 9 of pgoutput message is 0x78, expected a replica identity (d f i n)",
    );
    check(
        b"T\x7f\xff\xff\xff\0\0\0\0\x01",
        "pgoutput message ends within the relation's OID, which begins at byte 10",
    );
}

/// Reads all that can be read of it.
fn read(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        let described = described(&message);
        assert!(!described.is_empty());
        let tuples: Vec<Tuple<'_>> = match &message {
            Message::Insert(it) => vec![it.new],
            Message::Update(it) => it.old.iter().map(Old::tuple).chain([it.new]).collect(),
            Message::Delete(it) => vec![it.old.tuple()],
            Message::Begin(_)
            | Message::Commit(_)
            | Message::Origin(_)
            | Message::Relation(_)
            | Message::Type(_)
            | Message::Truncate(_)
            | Message::Logical(_) => vec![],
        };
        for tuple in tuples {
            assert_eq!(tuple.columns().count(), tuple.len());
        }
    }
}

#[test]
fn the_corpus_is_read_without_a_panic() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(CORPUS);
    let files = std::fs::read_dir(&folder).expect("the corpus is checked in");
    let mut count = 0;
    for file in files {
        let path = file.expect("an entry").path();
        read(&std::fs::read(&path).expect("a readable file"));
        count += 1;
    }
    assert!(count >= 25, "{count} files in {}", folder.display());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_known_kind_are_read_or_refused(
        kind in prop::sample::select(b"BCORYIUDTM".to_vec()),
        rest in prop::collection::vec(prop_oneof![Just(0), Just(1), prop::sample::select(b"KONnut".to_vec()), any::<u8>()], 0..60),
    ) {
        let mut bytes = vec![kind];
        bytes.extend(rest);
        read(&bytes);
    }

    #[test]
    fn a_changed_byte_is_no_panic(message in 0_usize..58, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = recorded().swap_remove(message);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read(&bytes);
    }

    #[test]
    fn a_tuple_comes_back_as_it_went(
        values in prop::collection::vec(prop::option::of(prop::option::of(prop::collection::vec(any::<u8>(), 0..40))), 0..20),
    ) {
        let fields: Vec<Field<'_>> = values
            .iter()
            .map(|value| match value {
                None => Field::Null,
                Some(None) => Field::Unchanged,
                Some(Some(text)) => Field::Text(text),
            })
            .collect();
        let mut bytes = b"I\0\0\0\x01N".to_vec();
        bytes.extend(tuple(&fields));
        let Ok(Message::Insert(insert)) = Message::decode(&bytes) else { panic!("no insert") };
        prop_assert_eq!(insert.new.columns().collect::<Vec<_>>(), fields);
    }
}
