//! What a batch for a Primary Key table comes to: of each key only its last state is sent, and updates of
//! some columns are completed from earlier rows of the batch or set apart, a load for each set of columns.
//! Pure: no I/O.
//!
//! A load has one set of columns (reference/starrocks-load-protocol.md), so whole rows and partial ones cannot
//! share one. After folding, no key is in two groups: the order in which they are loaded does not matter to
//! any key (reference/postgres-cdc.md §2.5).
//!
//! A row that is not sent because a later one says it all is only as durable as that one, which StarRocks may refuse
//! and whose owner may give it up. So it is kept, as it was, until its key has landed; if the key did not land, it
//! is loaded after all ([`uncovered`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::batch::key::KeyHashes;
use crate::batch::{FIRST_ROW, PARTIAL_ROW, Piece};

/// How a row says that it deletes its key; `rows` writes it last.
const DELETE_MARK: &[u8] = b"\"__op\":1}";
/// The field that is no column.
const OP_FIELD: &str = "__op";

/// Rows that one load can hold.
#[derive(Debug)]
pub(super) struct Group {
    /// The columns that the rows update; none = whole rows and deletes.
    pub(super) columns: Option<Arc<[String]>>,
    /// The rows. No piece is without one.
    pub(super) pieces: Vec<Piece>,
}

/// Rows that are not sent: later ones of their keys replaced them, or were completed from them.
#[derive(Debug)]
pub(super) struct Hidden {
    /// A piece as it was before it was folded, under a ticket of its own.
    piece: Piece,
    /// Places of the hidden rows in it, ascending.
    rows: Vec<usize>,
}

impl Hidden {
    /// What stands for the hidden rows where their spans are settled or given up.
    pub(super) fn into_piece(self) -> Piece {
        let first = |row: &&usize| self.piece.flags(**row) & FIRST_ROW != 0;
        let records = self.rows.iter().filter(first).count() as u64;
        self.piece.emptied(records)
    }

    /// The piece that the rows are in.
    pub(super) fn piece(&self) -> &Piece {
        &self.piece
    }
}

/// A batch that was folded.
#[derive(Debug, Default)]
pub(super) struct Folded {
    /// What is sent. No key is in two groups, and none twice in one.
    pub(super) groups: Vec<Group>,
    /// What is not, in the order of the batch.
    pub(super) hidden: Vec<Hidden>,
}

impl Folded {
    /// A batch as it is.
    pub(super) fn not(pieces: Vec<Piece>) -> Folded {
        Folded { groups: vec![Group { columns: None, pieces }], hidden: Vec::new() }
    }
}

/// Folds the rows of a batch for a table with the key columns `key`. A row whose key cannot be read stays as
/// it is: StarRocks says what is wrong with it.
pub(super) fn fold(pieces: Vec<Piece>, key: &[String]) -> Folded {
    let repeated = repeated_keys(&pieces);
    let partial = pieces.iter().any(|piece| (0..piece.len()).any(|row| is_partial(piece, row)));
    if key.is_empty() || (repeated.is_empty() && !partial) {
        return Folded::not(pieces);
    }
    let fates = fates(&pieces, key, &repeated, partial);
    apart(pieces, &fates)
}

/// Sorts hidden rows by whether a row of their key is among those that landed: hidden ones that are safe, and those
/// that have to be loaded after all. Reads all keys: not for the runtime.
pub(super) fn uncovered(hidden: Vec<Hidden>, landed: &[Piece], key: &[String]) -> (Vec<Hidden>, Vec<Piece>) {
    let key_of = |piece: &Piece, row: usize| key_text(piece.row(row), key);
    let every = hidden.iter().flat_map(|Hidden { piece, rows }| rows.iter().map(move |row| (piece, *row)));
    let mut missing: HashSet<Vec<u8>> = every.filter_map(|(piece, row)| key_of(piece, row)).collect();
    for piece in landed {
        for row in 0..piece.len() {
            if let Some(key) = key_of(piece, row) {
                missing.remove(&key);
            }
        }
    }
    let (mut safe, mut bare) = (Vec::with_capacity(hidden.len()), Vec::new());
    for Hidden { piece, rows } in hidden {
        let is_missing = |row: &usize| key_of(&piece, *row).is_some_and(|key| missing.contains(&key));
        let (open, rows): (Vec<usize>, Vec<usize>) = rows.into_iter().partition(is_missing);
        if !open.is_empty() {
            bare.push(piece.twin().rewritten(|row, _, text, body| {
                let stays = open.binary_search(&row).is_ok();
                if stays {
                    body.extend_from_slice(text);
                }
                stays
            }));
        }
        safe.push(Hidden { piece, rows });
    }
    (safe, bare)
}

fn is_partial(piece: &Piece, row: usize) -> bool {
    piece.flags(row) & PARTIAL_ROW != 0
}

/// Hashes that more than one row has.
fn repeated_keys(pieces: &[Piece]) -> KeyHashes {
    let rows = pieces.iter().map(Piece::len).sum();
    let (mut seen, mut repeated) =
        (KeyHashes::with_capacity_and_hasher(rows, Default::default()), KeyHashes::default());
    for piece in pieces {
        for hash in (0..piece.len()).filter_map(|row| piece.key(row)) {
            if !seen.insert(hash) {
                repeated.insert(hash);
            }
        }
    }
    repeated
}

/// What becomes of a row that does not simply stay.
#[derive(Debug)]
enum Fate {
    /// A later row of its key says it all.
    Replaced,
    /// It was completed from earlier rows: a whole row.
    Completed(Vec<u8>),
    /// It updates these columns, and earlier ones of its key with it.
    Partial(Arc<[String]>, Vec<u8>),
}

/// Place of a row: piece, row within it.
type Place = (usize, usize);

/// The last state of a key so far.
struct State {
    place: Place,
    /// Whether the row is, with what was before it, an update of some columns.
    partial: bool,
    deletes: bool,
    /// The row made of several; none = the row as it stands.
    merged: Option<Vec<u8>>,
}

fn fates(pieces: &[Piece], key: &[String], repeated: &KeyHashes, any_partial: bool) -> BTreeMap<Place, Fate> {
    let mut states: HashMap<Vec<u8>, State> = HashMap::new();
    let mut fates = BTreeMap::new();
    for (number, piece) in pieces.iter().enumerate() {
        for row in 0..piece.len() {
            let partial = is_partial(piece, row);
            // A plugin may give rows of different records the same key: with partial rows about, all keys
            // are read.
            if !any_partial && !piece.key(row).is_some_and(|hash| repeated.contains(&hash)) {
                continue;
            }
            let text = piece.row(row);
            let Some(key) = key_text(text, key) else { continue };
            let place = (number, row);
            let before = states.remove(&key);
            if let Some(before) = &before {
                fates.insert(before.place, Fate::Replaced);
            }
            let state = match before.filter(|before| partial && !before.deletes) {
                None => State {
                    place,
                    partial,
                    deletes: text.trim_ascii_end().ends_with(DELETE_MARK),
                    merged: None,
                },
                Some(before) => {
                    let earlier = before.merged.as_deref();
                    let earlier = earlier.unwrap_or_else(|| pieces[before.place.0].row(before.place.1));
                    let merged = merged(earlier, text);
                    State { place, partial: before.partial, deletes: false, merged }
                }
            };
            states.insert(key, state);
        }
    }
    for state in states.into_values() {
        let row = || pieces[state.place.0].row(state.place.1).to_vec();
        let fate = match (state.partial, state.merged) {
            (false, None) => continue,
            (false, Some(merged)) => Fate::Completed(merged),
            (true, merged) => {
                let row = merged.unwrap_or_else(row);
                match columns_of(&row) {
                    Some(columns) => Fate::Partial(columns, row),
                    None => continue,
                }
            }
        };
        fates.insert(state.place, fate);
    }
    fates
}

/// Sorts rows into a group for each set of columns, and one of whole rows.
fn apart(pieces: Vec<Piece>, fates: &BTreeMap<Place, Fate>) -> Folded {
    let mut hidden = Vec::new();
    let mut whole = Vec::with_capacity(pieces.len());
    let mut partial: BTreeMap<Arc<[String]>, Vec<Piece>> = BTreeMap::new();
    for (number, piece) in pieces.into_iter().enumerate() {
        let own = |row: usize| fates.get(&(number, row));
        let sets: HashSet<&Arc<[String]>> = (0..piece.len())
            .filter_map(|row| match own(row) {
                Some(Fate::Partial(columns, _)) => Some(columns),
                Some(Fate::Replaced | Fate::Completed(_)) | None => None,
            })
            .collect();
        for set in sets {
            let rows = piece.twin().rewritten(|row, _, _, body| match own(row) {
                Some(Fate::Partial(columns, text)) if columns == set => {
                    append_line(text, body);
                    true
                }
                Some(_) | None => false,
            });
            partial.entry(Arc::clone(set)).or_default().push(rows);
        }
        if fates.range((number, 0)..(number + 1, 0)).next().is_none() {
            whole.push(piece);
            continue;
        }
        let replaced: Vec<usize> =
            (0..piece.len()).filter(|row| matches!(own(*row), Some(Fate::Replaced))).collect();
        let write = |row: usize, _, text: &[u8], body: &mut Vec<u8>| match own(row) {
            None => {
                body.extend_from_slice(text);
                true
            }
            Some(Fate::Completed(text)) => {
                append_line(text, body);
                true
            }
            Some(Fate::Replaced | Fate::Partial(..)) => false,
        };
        let rest = if replaced.is_empty() {
            piece.rewritten(write)
        } else {
            // Both are in memory until the batch is decided, and both are charged.
            let rest = piece.twin().rewritten(write);
            hidden.push(Hidden { piece, rows: replaced });
            rest
        };
        if rest.is_empty() {
            // Its span is held by what became of its rows.
            drop(rest.settle());
        } else {
            whole.push(rest);
        }
    }
    let groups = partial.into_iter().map(|(columns, pieces)| Group { columns: Some(columns), pieces });
    let whole = Some(Group { columns: None, pieces: whole }).filter(|group| !group.pieces.is_empty());
    Folded { groups: groups.chain(whole).collect(), hidden }
}

fn append_line(row: &[u8], body: &mut Vec<u8>) {
    body.extend_from_slice(row.trim_ascii_end());
    body.push(b'\n');
}

/// The fields of a JSON object, in order, values as they were written.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A field's name, borrowed unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn fields(row: &[u8]) -> Option<Fields<'_>> {
    serde_json::from_slice(row).ok()
}

/// The texts of the key's columns, with a zero byte behind each.
fn key_text(row: &[u8], key: &[String]) -> Option<Vec<u8>> {
    let Fields(fields) = fields(row)?;
    let mut text = Vec::new();
    for column in key {
        let (_, value) = fields.iter().find(|(name, _)| name == column)?;
        text.extend_from_slice(value.get().as_bytes());
        text.push(0);
    }
    Some(text)
}

/// The row `earlier` with the fields of `later` in their place; none if one of them is no object.
fn merged(earlier: &[u8], later: &[u8]) -> Option<Vec<u8>> {
    let (Fields(mut row), Fields(changes)) = (fields(earlier)?, fields(later)?);
    for (name, value) in changes {
        match row.iter_mut().find(|(known, _)| *known == name) {
            Some(field) => field.1 = value,
            None => row.push((name, value)),
        }
    }
    let mut text = vec![b'{'];
    for (place, (name, value)) in row.iter().enumerate() {
        if place > 0 {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, name.as_ref()).ok()?;
        text.push(b':');
        text.extend_from_slice(value.get().as_bytes());
    }
    text.push(b'}');
    Some(text)
}

/// The columns that a row names, in order of their names.
fn columns_of(row: &[u8]) -> Option<Arc<[String]>> {
    let Fields(fields) = fields(row)?;
    let names = fields.into_iter().map(|(name, _)| name.into_owned());
    let mut names: Vec<String> = names.filter(|name| name != OP_FIELD).collect();
    names.sort_unstable();
    Some(names.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::fakes::rows;

    const W: bool = false;
    const P: bool = true;

    /// Folds rows of a table with key `id`, given as text and whether they are partial, in pieces; returns
    /// columns and rows of each group.
    fn check(pieces: &[&[(&str, bool)]], expected: &[(Option<&[&str]>, &[&str])]) {
        let pieces: Vec<Piece> = pieces.iter().map(|piece| rows(piece, key_of)).collect();
        let given: u64 = pieces.iter().map(Piece::records).sum();
        let Folded { groups, hidden } = fold(pieces, &["id".to_owned()]);
        let text = |row: &[u8]| String::from_utf8_lossy(row).trim_end().to_owned();
        let found: Vec<(Option<Vec<String>>, Vec<String>)> = groups
            .iter()
            .map(|group| {
                let columns = group.columns.as_ref().map(|columns| columns.to_vec());
                let rows = group.pieces.iter().flat_map(|piece| piece.iter().map(|(_, row)| text(row)));
                (columns, rows.collect())
            })
            .collect();
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let expected: Vec<_> =
            expected.iter().map(|(columns, rows)| (columns.map(owned), owned(rows))).collect();
        assert_eq!(found, expected);
        let pieces = groups.into_iter().flat_map(|group| group.pieces);
        let pieces = pieces.chain(hidden.into_iter().map(Hidden::into_piece));
        let records: u64 = pieces.map(|piece| (piece.records(), piece.settle()).0).sum();
        assert_eq!(records, given, "each record counts once, whatever became of its row");
    }

    fn key_of(row: &str) -> u64 {
        let id = key_text(row.as_bytes(), &["id".to_owned()]).expect("an id");
        id.iter().fold(0, |hash, byte| hash * 31 + u64::from(*byte))
    }

    #[test]
    fn the_last_state_of_a_key_is_what_is_sent() {
        let (one, two, other) = (r#"{"id":1,"v":"a"}"#, r#"{"id":1,"v":"b"}"#, r#"{"id":2,"v":"c"}"#);
        check(&[&[(one, W), (other, W)], &[(two, W)]], &[(None, &[other, two])]);
        check(&[&[(one, W), (other, W)]], &[(None, &[one, other])]);
        let delete = r#"{"id":1,"__op":1}"#;
        check(&[&[(one, W), (delete, W)]], &[(None, &[delete])]);
        check(&[&[(delete, W), (two, W)]], &[(None, &[two])]);
    }

    #[test]
    fn a_partial_row_is_completed_from_the_row_before_it() {
        let whole = r#"{"id":1,"v":"a","big":"x"}"#;
        let partial = r#"{"id":1,"v":"b"}"#;
        check(&[&[(whole, W)], &[(partial, P)]], &[(None, &[r#"{"id":1,"v":"b","big":"x"}"#])]);
        // What comes behind it says it all.
        check(&[&[(partial, P)], &[(whole, W)]], &[(None, &[whole])]);
        let delete = r#"{"id":1,"__op":1}"#;
        check(&[&[(partial, P), (delete, W)]], &[(None, &[delete])]);
    }

    #[test]
    fn partial_rows_are_grouped_by_their_columns() {
        let pieces: &[(&str, bool)] = &[
            (r#"{"id":1,"v":"b"}"#, P),
            (r#"{"id":2,"v":"c","w":1,"__op":0}"#, P),
            (r#"{"id":3,"v":"d","w":2,"big":"x"}"#, W),
            (r#"{"id":4,"v":"e"}"#, P),
            (r#"{"id":4,"w":30}"#, P),
        ];
        check(
            &[pieces],
            &[
                (Some(&["id", "v"]), &[r#"{"id":1,"v":"b"}"#]),
                (
                    Some(&["id", "v", "w"]),
                    &[r#"{"id":2,"v":"c","w":1,"__op":0}"#, r#"{"id":4,"v":"e","w":30}"#],
                ),
                (None, &[r#"{"id":3,"v":"d","w":2,"big":"x"}"#]),
            ],
        );
    }

    /// What has to be loaded if of the folded rows of these `landed` only those with one of these ids.
    fn check_uncovered(rows_of: &[&[(&str, bool)]], landed: &[&str], expected: &[&[&str]]) {
        let key = ["id".to_owned()];
        let pieces: Vec<Piece> = rows_of.iter().map(|piece| rows(piece, key_of)).collect();
        let given: u64 = pieces.iter().map(Piece::records).sum();
        let Folded { groups, hidden } = fold(pieces, &key);
        let (mut there, mut gone) = (Vec::new(), 0);
        for piece in groups.into_iter().flat_map(|group| group.pieces) {
            let lands =
                |row: usize| landed.iter().any(|id| key_text(piece.row(row), &key) == Some(id_text(id)));
            let bad: Vec<usize> = (0..piece.len()).filter(|row| !lands(*row)).collect();
            gone += bad.len() as u64;
            there.extend(piece.without(&bad));
        }
        let (safe, bare) = uncovered(hidden, &there, &key);
        let text = |row: &[u8]| String::from_utf8_lossy(row).trim_end().to_owned();
        let found: Vec<Vec<String>> =
            bare.iter().map(|piece| piece.iter().map(|(_, row)| text(row)).collect()).collect();
        assert_eq!(found, expected);
        let pieces = there.into_iter().chain(bare).chain(safe.into_iter().map(Hidden::into_piece));
        let records: u64 = pieces.map(|piece| (piece.records(), piece.settle()).0).sum();
        assert_eq!(records + gone, given, "each record counts once");
    }

    fn id_text(id: &str) -> Vec<u8> {
        format!("{id}\0").into_bytes()
    }

    #[test]
    fn rows_behind_one_that_did_not_land_are_loaded_after_all() {
        let (one, partial, two) = (r#"{"id":1,"v":"a","w":1}"#, r#"{"id":1,"v":"b"}"#, r#"{"id":2,"v":"c"}"#);
        let (again, other) = (r#"{"id":1,"v":"d","w":2}"#, r#"{"id":2,"v":"e"}"#);
        let batch: &[&[(&str, bool)]] = &[&[(one, W), (two, W), (partial, P)], &[(again, W), (other, W)]];
        check_uncovered(batch, &["1", "2"], &[]);
        check_uncovered(batch, &["2"], &[&[one, partial]]);
        check_uncovered(batch, &["1"], &[&[two]]);
        check_uncovered(batch, &[], &[&[one, two, partial]]);
        // A row that was merged into the one that did not land, too.
        check_uncovered(&[&[(one, W)], &[(partial, P), (two, W)]], &["2"], &[&[one]]);
        check_uncovered(&[&[(partial, P)], &[(r#"{"id":1,"w":3}"#, P)]], &[], &[&[partial]]);
    }

    #[test]
    fn numbers_and_odd_names_stay_as_they_were_written() {
        let whole = r#"{"id":1,"n\"":123456789012345678901234567890.50,"v":1}"#;
        let merged = r#"{"id":1,"n\"":123456789012345678901234567890.50,"v":2}"#;
        check(&[&[(whole, W), (r#"{"id":1,"v":2}"#, P)]], &[(None, &[merged])]);
    }
}
