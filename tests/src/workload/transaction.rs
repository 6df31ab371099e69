//! What a writer sends: pure functions of its random numbers.

use super::Settings;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

/// Statements of a transaction at most.
const STATEMENTS_MAX: u32 = 6;
/// Writers begin this far from each other in the sequence of seeds.
const SEEDS_OF_A_WRITER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Letters that no compression shortens by much: six bits each, none of which SQL needs to quote.
const NOISE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// What encoders stumble over.
const NOTES: [&str; 10] = [
    "NULL",
    "''",
    "'plain'",
    r#"'quoted "so" and ''so'''"#,
    r"'back\slash \N \t'",
    "E'tab\\tfeed\\nreturn\\r'",
    "'Grüße, 東京, 🦀'",
    r#"'{"json": [1, null, "x"]}'"#,
    "'__op'",
    "E'\\u0001\\u001f\\u007f'",
];

/// What a writer does between two COMMITs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transaction {
    /// What to run after BEGIN.
    pub statements: Vec<String>,
    /// COMMIT or ROLLBACK.
    pub commits: bool,
}

/// The random numbers of one writer.
pub(super) fn random(settings: &Settings, writer: u32) -> StdRng {
    StdRng::seed_from_u64(settings.seed.wrapping_add(SEEDS_OF_A_WRITER.wrapping_mul(u64::from(writer) + 1)))
}

/// The INSERTs that fill the tables before any writer begins.
pub(super) fn first_rows(settings: &Settings) -> String {
    let mut random = StdRng::seed_from_u64(settings.seed);
    let mut sql = String::from("BEGIN;\n");
    for id in 0..settings.rows.min(settings.keys) {
        sql += &account_row(&mut random, id);
        sql += ";\n";
        sql += &format!("INSERT INTO pair VALUES ({}, {}, {});\n", id / 10, id % 10, note(&mut random));
    }
    // Free keys are left, so that keys can change.
    for id in 0..settings.rows.min(settings.documents / 2) {
        sql += &document_row(&mut random, settings, id);
        sql += ";\n";
    }
    sql + "COMMIT;\n"
}

impl Transaction {
    /// The next one of a writer.
    #[must_use]
    pub fn random(random: &mut StdRng, settings: &Settings) -> Self {
        let mut statements = Vec::new();
        for number in 0..random.random_range(1..=STATEMENTS_MAX) {
            if random.random_ratio(1, 8) {
                // What came before stays, what comes within goes.
                statements.push(format!("SAVEPOINT s{number}"));
                statements.push(statement(random, settings));
                let rolled_back = random.random_ratio(2, 3);
                let end = if rolled_back { "ROLLBACK TO" } else { "RELEASE" };
                statements.push(format!("{end} SAVEPOINT s{number}"));
            } else {
                statements.push(statement(random, settings));
            }
        }
        Self { statements, commits: random.random_ratio(9, 10) }
    }
}

fn statement(random: &mut StdRng, settings: &Settings) -> String {
    match random.random_range(0..20) {
        0..10 => account(random, settings.keys),
        10..16 => pair(random, settings.keys),
        _ => document(random, settings),
    }
}

fn account(random: &mut StdRng, keys: u64) -> String {
    let (id, other) = (random.random_range(0..keys), random.random_range(0..keys));
    match random.random_range(0..10) {
        0..3 => {
            let row = account_row(random, id);
            format!(
                "{row} ON CONFLICT (id) DO UPDATE SET balance = account.balance + 1, note = EXCLUDED.note"
            )
        }
        3 => format!("{} ON CONFLICT DO NOTHING", account_row(random, id)),
        4 | 5 => format!("UPDATE account SET balance = balance + 1, note = {} WHERE id = {id}", note(random)),
        6 => format!("UPDATE account SET active = NOT active WHERE id BETWEEN {id} AND {id} + 20"),
        7 => {
            format!(
                "UPDATE account SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM account WHERE id = {other})"
            )
        }
        8 => format!("DELETE FROM account WHERE id = {id}"),
        // Gone and back in one transaction.
        _ => {
            let row = account_row(random, id);
            format!("DELETE FROM account WHERE id = {id}; {row} ON CONFLICT DO NOTHING")
        }
    }
}

fn account_row(random: &mut StdRng, id: u64) -> String {
    let owner: u32 = random.random_range(0..100);
    let balance = random.random_range(-1_000_000_000_000_i64..1_000_000_000_000);
    let active = ["true", "false", "NULL"][random.random_range(0..3)];
    format!(
        "INSERT INTO account (id, owner, balance, active, note) VALUES ({id}, 'owner {owner}', {balance}, {active}, {})",
        note(random)
    )
}

fn pair(random: &mut StdRng, keys: u64) -> String {
    let (id, other) = (random.random_range(0..keys), random.random_range(0..keys));
    let (a, b, other) = (id / 10, id % 10, other / 10);
    let value = note(random);
    match random.random_range(0..6) {
        0 | 1 => {
            format!(
                "INSERT INTO pair VALUES ({a}, {b}, {value}) ON CONFLICT (a, b) DO UPDATE SET value = EXCLUDED.value"
            )
        }
        2 => format!("UPDATE pair SET value = {value} WHERE a = {a}"),
        3 => format!("DELETE FROM pair WHERE a = {a} AND b = {b}"),
        // Half of the key.
        _ => format!(
            "UPDATE pair SET a = {other} WHERE a = {a} AND b = {b} AND NOT EXISTS (SELECT FROM pair WHERE a = {other} AND b = {b})"
        ),
    }
}

fn document(random: &mut StdRng, settings: &Settings) -> String {
    let (id, other) =
        (random.random_range(0..settings.documents), random.random_range(0..settings.documents));
    match random.random_range(0..8) {
        0 | 1 => {
            let row = document_row(random, settings, id);
            format!(
                "{row} ON CONFLICT (id) DO UPDATE SET body = EXCLUDED.body, revision = document.revision + 1"
            )
        }
        // The large values stay as they are, and are not sent.
        2..5 => {
            format!("UPDATE document SET title = {}, revision = revision + 1 WHERE id = {id}", note(random))
        }
        5 => format!("UPDATE document SET body = {}, appendix = NULL WHERE id = {id}", note(random)),
        6 => {
            format!(
                "UPDATE document SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM document WHERE id = {other})"
            )
        }
        _ => format!("DELETE FROM document WHERE id = {id}"),
    }
}

fn document_row(random: &mut StdRng, settings: &Settings, id: u64) -> String {
    let title = note(random);
    let body = noise(random, settings.toast_bytes);
    let appendix = noise(random, settings.toast_bytes / 10);
    format!(
        "INSERT INTO document (id, title, body, appendix, revision) VALUES ({id}, {title}, '{body}', '{appendix}', 1)"
    )
}

fn note(random: &mut StdRng) -> &'static str {
    NOTES[random.random_range(0..NOTES.len())]
}

fn noise(random: &mut StdRng, bytes: usize) -> String {
    let mut text = vec![0; bytes];
    random.fill_bytes(&mut text);
    text.iter().map(|byte| char::from(NOISE[usize::from(byte % 64)])).collect()
}
