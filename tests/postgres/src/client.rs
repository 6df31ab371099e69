use crate::Fault;
use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

/// One row; NULL is none.
pub type Row = Vec<Option<String>>;

/// Runs SQL by `psql`, one process a call: by default as the superuser, over the Unix socket.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) psql: PathBuf,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
}

impl Client {
    /// In another database.
    #[must_use]
    pub fn database(self, name: &str) -> Self {
        Self { database: name.to_owned(), ..self }
    }

    /// As another role.
    #[must_use]
    pub fn user(self, name: &str) -> Self {
        Self { user: name.to_owned(), ..self }
    }

    /// Over TCP, as strangers come, with a password.
    #[must_use]
    pub fn over_tcp(self, password: &str) -> Self {
        Self { host: "127.0.0.1".to_owned(), password: Some(password.to_owned()), ..self }
    }

    /// Runs statements, each in a transaction of its own unless they say otherwise, and returns what they print: rows
    /// unaligned, columns separated by `|`.
    ///
    /// # Errors
    /// The server's or psql's own words about the first statement that fails; the rest is not run.
    pub fn run(&self, sql: &str) -> Result<String, Fault> {
        let attempt = format!("run SQL in database {} as {}", self.database, self.user);
        let mut psql = Command::new(&self.psql);
        psql.args([
            "--no-psqlrc",
            "--no-password",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set",
            "ON_ERROR_STOP=1",
        ])
        .args(["--host", &self.host, "--port", &self.port.to_string()])
        .args(["--username", &self.user, "--dbname", &self.database, "--file", "-"])
        // Nothing of the caller's own ways with PostgreSQL.
        .env_clear()
        .envs(self.password.iter().map(|password| ("PGPASSWORD", password)))
        .env("PGCLIENTENCODING", "UTF8");
        let psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for whoever runs it, who then decides.
        let psql = psql.process_group(0);
        let mut child = psql.spawn().map_err(Fault::io(attempt.clone()))?;
        let stdin = child.stdin.take();
        // Beside the reading: a long script and a long answer would otherwise wait for each other.
        let output = thread::scope(|scope| {
            scope.spawn(move || {
                // It stops reading at the first error, and then says so itself.
                stdin.map(|mut stdin| drop(stdin.write_all(sql.as_bytes())))
            });
            child.wait_with_output()
        });
        let output = output.map_err(Fault::io(attempt.clone()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Fault::said(attempt, said.replace("psql:<stdin>:", "line ").trim()))
    }

    /// The rows of one query, exact whatever stands in them: they are read by `COPY`.
    ///
    /// # Errors
    /// As [`run`](Self::run). `SHOW` cannot be copied: ask for `current_setting('…')`.
    pub fn query(&self, sql: &str) -> Result<Vec<Row>, Fault> {
        let sql = sql.trim().trim_end_matches(';');
        Ok(self.run(&format!("COPY (\n{sql}\n) TO STDOUT"))?.lines().map(row).collect())
    }
}

/// A line of COPY's text format: cells separated by tabs, `\N` for NULL.
fn row(line: &str) -> Row {
    line.split('\t').map(|cell| (cell != r"\N").then(|| unescaped(cell))).collect()
}

fn unescaped(cell: &str) -> String {
    let mut text = String::with_capacity(cell.len());
    let mut characters = cell.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next() {
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\u{b}',
                Some(itself) => itself,
                None => '\\',
            },
            plain => plain,
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::row;

    #[test]
    fn cells_are_read_as_copy_writes_them() {
        let expected = [None, Some(""), Some("a\tb\\N\r\n"), Some("\u{b}ü")];
        let expected: Vec<_> = expected.iter().map(|cell| cell.map(str::to_owned)).collect();
        assert_eq!(row("\\N\t\ta\\tb\\\\N\\r\\n\t\\vü"), expected);
    }
}
