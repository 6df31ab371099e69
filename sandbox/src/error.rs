//! What can go wrong while starting a sandbox or running SQL in it.

/// A failure of the sandbox itself or of a statement given to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// A port could not be taken.
    #[error("could not listen on 127.0.0.1:{port}")]
    Listen {
        /// The port asked for; 0 stands for any free one.
        port: u16,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The temporary directory for the rows could not be made.
    #[error("could not make a temporary directory for the sandbox's rows")]
    Directory(#[source] std::io::Error),
    /// SQLite could not be opened or written.
    #[error("could not open the sandbox's row store")]
    Store(#[from] rusqlite::Error),
    /// The statement was refused, in StarRocks' words.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

/// The class of a refused statement; it decides the MySQL error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SqlErrorKind {
    /// Not understood (1064).
    Syntax,
    /// No such database (1049).
    UnknownDatabase,
    /// The database exists already (1007).
    DatabaseExists,
    /// No such table (1146).
    UnknownTable,
    /// The table exists already (1050).
    TableExists,
    /// Understood but impossible, such as a wrong type or a duplicate column (1064).
    Analysis,
    /// The user may not do that (1227; a StarRocks has the number 5203 for it).
    AccessDenied,
    /// Something StarRocks can do and the sandbox cannot (1235).
    Unsupported,
    /// The row store failed (1105).
    Internal,
}

/// A refused statement with the text a client gets.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// What class of refusal it is.
    pub kind: SqlErrorKind,
    /// The text, as the MySQL client prints it.
    pub message: String,
}

impl SqlError {
    pub(crate) fn new(kind: SqlErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn syntax(detail: impl std::fmt::Display) -> Self {
        let message = format!("Getting syntax error. Detail message: {detail}.");
        Self::new(SqlErrorKind::Syntax, message)
    }

    pub(crate) fn analysis(detail: impl std::fmt::Display) -> Self {
        let message = format!("Getting analyzing error. Detail message: {detail}.");
        Self::new(SqlErrorKind::Analysis, message)
    }

    pub(crate) fn unknown_database(db: &str) -> Self {
        let message = format!("Getting analyzing error. Detail message: Unknown database '{db}'.");
        Self::new(SqlErrorKind::UnknownDatabase, message)
    }

    pub(crate) fn unknown_table(db: &str, table: &str) -> Self {
        let message = format!("Getting analyzing error. Detail message: Unknown table '{db}.{table}'.");
        Self::new(SqlErrorKind::UnknownTable, message)
    }

    pub(crate) fn access_denied(privilege: &str, object: &str) -> Self {
        let message = format!(
            "Access denied; you need (at least one of) the {privilege} privilege(s) on {object} for this operation. \
             Please ask the admin to grant permission(s) or try activating existing roles using <set [default] role>. \
             Current role(s): NONE. Inactivated role(s): NONE."
        );
        Self::new(SqlErrorKind::AccessDenied, message)
    }

    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        let message = format!("the sandbox does not do this: {what}");
        Self::new(SqlErrorKind::Unsupported, message)
    }
}

impl From<rusqlite::Error> for SqlError {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(SqlErrorKind::Internal, format!("sandbox storage: {error}"))
    }
}
