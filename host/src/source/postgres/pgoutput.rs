//! Decoder of `pgoutput`, the logical decoding plugin that Postgres comes with: protocol version 1, values as text.
//!
//! One message is the content of one XLogData. Decoding borrows from it and checks all of it at once, so
//! that reading a [`Tuple`] afterwards cannot fail.
//! Protocol: <https://www.postgresql.org/docs/15/protocol-logicalrep-message-formats.html>.

use super::lsn::Lsn;
use super::table::Identity;

mod reader;
#[cfg(test)]
mod tests;

use reader::Reader;

/// Microseconds from 1970-01-01 to 2000-01-01, where Postgres begins to count.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// Bit of a column's flags in a Relation: it belongs to the replica identity.
const COLUMN_IN_IDENTITY: u8 = 1;
/// Bits of a Truncate's flags.
const TRUNCATE_CASCADE: u8 = 1;
const TRUNCATE_RESTART_IDENTITY: u8 = 2;
/// Bit of a logical message's flags.
const MESSAGE_TRANSACTIONAL: u8 = 1;

/// Why bytes are no message, and where: places are bytes from the start of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("pgoutput message ends within {expected}, which begins at byte {at}")]
    Short {
        /// Where it begins.
        at: usize,
        /// What should have been there.
        expected: &'static str,
    },
    /// The bytes go on behind the message.
    #[error("pgoutput message goes on at byte {at}, where its end was expected")]
    Long {
        /// First byte too many.
        at: usize,
    },
    /// A byte that says what follows is none that is known.
    #[error("byte {at} of pgoutput message is {found:#04x}, expected {expected}")]
    Byte {
        /// Its place.
        at: usize,
        /// The byte.
        found: u8,
        /// What is known there.
        expected: &'static str,
    },
    /// A length or a count below zero.
    #[error("{expected} at byte {at} of pgoutput message is {found}, expected none below 0")]
    Negative {
        /// Its place.
        at: usize,
        /// The number.
        found: i32,
        /// What it counts.
        expected: &'static str,
    },
    /// A name that is not UTF-8.
    #[error("{expected} at byte {at} of pgoutput message is not UTF-8")]
    NotUtf8 {
        /// Where the name begins.
        at: usize,
        /// What it names.
        expected: &'static str,
    },
}

/// A decoded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins.
    Begin(Begin),
    /// It ends.
    Commit(Commit),
    /// The transaction came to this server from another one.
    Origin(Origin<'a>),
    /// What the rows that follow look like.
    Relation(Relation<'a>),
    /// The name of a type that does not come with Postgres.
    Type(TypeName<'a>),
    /// A new row.
    Insert(Insert<'a>),
    /// A changed row.
    Update(Update<'a>),
    /// A deleted row.
    Delete(Delete<'a>),
    /// Tables were emptied.
    Truncate(Truncate),
    /// `pg_logical_emit_message`.
    Logical(Logical<'a>),
}

/// The start of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// LSN of the commit record; grows from transaction to transaction.
    pub final_lsn: Lsn,
    /// Time of the commit, microseconds since 1970, UTC.
    pub commit_time_us: i64,
    /// Transaction id, without its epoch: wraps around.
    pub xid: u32,
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// LSN of the commit record.
    pub commit_lsn: Lsn,
    /// LSN behind the transaction: what may be confirmed once all of it is durable.
    pub end_lsn: Lsn,
    /// Time of the commit, microseconds since 1970, UTC.
    pub commit_time_us: i64,
}

/// Where a transaction was made first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// LSN of the commit on that server.
    pub commit_lsn: Lsn,
    /// Name of the origin.
    pub name: &'a str,
}

/// A table as it was when the rows that follow were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    /// `pg_class.oid`, by which rows name it.
    pub id: u32,
    /// Schema. Empty in the protocol for `pg_catalog`; spelt out here.
    pub schema: &'a str,
    /// Name.
    pub name: &'a str,
    /// `REPLICA IDENTITY`.
    pub identity: Identity,
    /// Columns in the order of tuples. Stored generated ones are absent up to PostgreSQL 17.
    pub columns: Vec<RelationColumn<'a>>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Whether it belongs to the replica identity; all do with `FULL`.
    pub in_identity: bool,
    /// Name.
    pub name: &'a str,
    /// `pg_type.oid`; for a domain the domain's own.
    pub type_oid: u32,
    /// `atttypmod`; -1 = none.
    pub type_modifier: i32,
}

/// The name of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeName<'a> {
    /// `pg_type.oid`; for a domain the domain's own, though the name is that of its base type.
    pub oid: u32,
    /// Schema. Empty in the protocol for `pg_catalog`; spelt out here.
    pub schema: &'a str,
    /// Name.
    pub name: &'a str,
}

/// A new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// [`Relation::id`].
    pub relation: u32,
    /// The row.
    pub new: Tuple<'a>,
}

/// A changed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// [`Relation::id`].
    pub relation: u32,
    /// What it was; none if the replica identity did not change and is not `FULL`.
    pub old: Option<Old<'a>>,
    /// What it is.
    pub new: Tuple<'a>,
}

/// A deleted row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// [`Relation::id`].
    pub relation: u32,
    /// What it was.
    pub old: Old<'a>,
}

/// What is told of a row before its change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old<'a> {
    /// The columns of the replica identity. The others are there too, as NULL, which says nothing of them.
    Key(Tuple<'a>),
    /// All columns (`REPLICA IDENTITY FULL`).
    Row(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// The tuple, whatever it tells.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Old::Key(tuple) | Old::Row(tuple) => *tuple,
        }
    }
}

/// Tables that were emptied together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// [`Relation::id`] of each.
    pub relations: Vec<u32>,
    /// `CASCADE`.
    pub cascade: bool,
    /// `RESTART IDENTITY`.
    pub restart_identity: bool,
}

/// What `pg_logical_emit_message` was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logical<'a> {
    /// Whether it belongs to the transaction around it; otherwise it may stand anywhere, also in another one.
    pub transactional: bool,
    /// Its own LSN.
    pub lsn: Lsn,
    /// Prefix: whose message it is.
    pub prefix: &'a str,
    /// Content: any bytes.
    pub content: &'a [u8],
}

/// A row as the stream tells it, checked and not yet taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    fields: &'a [u8],
}

/// A column's value in a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// NULL.
    Null,
    /// Stored out of line (TOAST) and not changed, so it is not told.
    Unchanged,
    /// The output of the type's output function, in the client's encoding.
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Number of columns.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether there is no column.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Values in the order of the Relation's columns.
    pub fn columns(&self) -> Fields<'a> {
        Fields { left: self.count, rest: self.fields }
    }

    /// Bytes of the tuple as it was sent, for accounting.
    pub fn wire_bytes(&self) -> usize {
        self.fields.len()
    }
}

/// Values of a [`Tuple`], one after the other.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    #[inline]
    fn next(&mut self) -> Option<Field<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The bytes were checked by `Reader::tuple`, so no `?` below ends the iteration early.
        let (kind, rest) = self.rest.split_first()?;
        match kind {
            b'n' => {
                self.rest = rest;
                Some(Field::Null)
            }
            b'u' => {
                self.rest = rest;
                Some(Field::Unchanged)
            }
            _text => {
                let (length, rest) = rest.split_first_chunk()?;
                let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.rest = rest;
                Some(Field::Text(text))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Fields<'_> {}

impl<'a> Message<'a> {
    /// Decodes one message, which must fill `payload`.
    ///
    /// # Errors
    /// If `payload` is no message of protocol version 1 with values as text.
    pub fn decode(payload: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut reader = Reader::new(payload);
        let kind = reader.byte("a kind of message")?;
        let message = match kind {
            b'B' => Message::Begin(reader.begin()?),
            b'C' => Message::Commit(reader.commit()?),
            b'O' => Message::Origin(Origin {
                commit_lsn: reader.lsn("the origin's commit LSN")?,
                name: reader.name("the origin's name")?,
            }),
            b'R' => Message::Relation(reader.relation()?),
            b'Y' => Message::Type(TypeName {
                oid: reader.u32("the type's OID")?,
                schema: reader.schema("the type's schema")?,
                name: reader.name("the type's name")?,
            }),
            b'I' => {
                let relation = reader.u32("the relation's OID")?;
                reader.expect(b'N', "N before the new row")?;
                Message::Insert(Insert { relation, new: reader.tuple()? })
            }
            b'U' => Message::Update(reader.update()?),
            b'D' => {
                let relation = reader.u32("the relation's OID")?;
                match reader.old()? {
                    Some(old) => Message::Delete(Delete { relation, old }),
                    None => return Err(reader.unknown("K or O before the old row")),
                }
            }
            b'T' => Message::Truncate(reader.truncate()?),
            b'M' => Message::Logical(reader.logical()?),
            found => {
                let expected = "a message of protocol version 1 (B C O R Y I U D T M)";
                return Err(DecodeError::Byte { at: 0, found, expected });
            }
        };
        reader.end()?;
        Ok(message)
    }
}

impl<'a> Reader<'a> {
    fn begin(&mut self) -> Result<Begin, DecodeError> {
        Ok(Begin {
            final_lsn: self.lsn("the transaction's final LSN")?,
            commit_time_us: self.time("the commit's time")?,
            xid: self.u32("the transaction's id")?,
        })
    }

    fn commit(&mut self) -> Result<Commit, DecodeError> {
        // No flag is defined.
        self.byte("the commit's flags")?;
        Ok(Commit {
            commit_lsn: self.lsn("the commit's LSN")?,
            end_lsn: self.lsn("the transaction's end LSN")?,
            commit_time_us: self.time("the commit's time")?,
        })
    }

    fn relation(&mut self) -> Result<Relation<'a>, DecodeError> {
        let id = self.u32("the relation's OID")?;
        let schema = self.schema("the relation's schema")?;
        let name = self.name("the relation's name")?;
        let identity = match self.byte("the replica identity")? {
            b'd' => Identity::Default,
            b'f' => Identity::Full,
            b'i' => Identity::Index,
            b'n' => Identity::Nothing,
            found => {
                let expected = "a replica identity (d f i n)";
                return Err(DecodeError::Byte { at: self.at() - 1, found, expected });
            }
        };
        let count = self.count("the number of columns")?;
        let mut columns = Vec::new();
        for _ in 0..count {
            columns.push(RelationColumn {
                in_identity: self.byte("the column's flags")? & COLUMN_IN_IDENTITY != 0,
                name: self.name("the column's name")?,
                type_oid: self.u32("the OID of the column's type")?,
                type_modifier: self.i32("the modifier of the column's type")?,
            });
        }
        Ok(Relation { id, schema, name, identity, columns })
    }

    fn update(&mut self) -> Result<Update<'a>, DecodeError> {
        let relation = self.u32("the relation's OID")?;
        let old = self.old()?;
        let expected = if old.is_some() { "N before the new row" } else { "K, O or N before a row" };
        self.expect(b'N', expected)?;
        Ok(Update { relation, old, new: self.tuple()? })
    }

    /// The old row, if one is next.
    fn old(&mut self) -> Result<Option<Old<'a>>, DecodeError> {
        match self.peek("K, O or N before a row")? {
            b'K' => {
                self.byte("K")?;
                Ok(Some(Old::Key(self.tuple()?)))
            }
            b'O' => {
                self.byte("O")?;
                Ok(Some(Old::Row(self.tuple()?)))
            }
            _new => Ok(None),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let count = self.count("the number of columns")?;
        let start = self.at();
        for _ in 0..count {
            match self.byte("a column")? {
                b'n' | b'u' => {}
                b't' => {
                    self.sized("a column's text")?;
                }
                found => {
                    let expected = "a column as n, u or t (b, binary, is never asked for)";
                    return Err(DecodeError::Byte { at: self.at() - 1, found, expected });
                }
            }
        }
        Ok(Tuple { count, fields: self.since(start) })
    }

    fn truncate(&mut self) -> Result<Truncate, DecodeError> {
        let count = self.length("the number of relations")?;
        let flags = self.byte("the truncate's flags")?;
        let mut relations = Vec::new();
        for _ in 0..count {
            relations.push(self.u32("the relation's OID")?);
        }
        Ok(Truncate {
            relations,
            cascade: flags & TRUNCATE_CASCADE != 0,
            restart_identity: flags & TRUNCATE_RESTART_IDENTITY != 0,
        })
    }

    fn logical(&mut self) -> Result<Logical<'a>, DecodeError> {
        Ok(Logical {
            transactional: self.byte("the message's flags")? & MESSAGE_TRANSACTIONAL != 0,
            lsn: self.lsn("the message's LSN")?,
            prefix: self.name("the message's prefix")?,
            content: self.sized("the message's content")?,
        })
    }

    fn lsn(&mut self, expected: &'static str) -> Result<Lsn, DecodeError> {
        self.array(expected).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    fn time(&mut self, expected: &'static str) -> Result<i64, DecodeError> {
        self.array(expected).map(|bytes| i64::from_be_bytes(bytes).saturating_add(POSTGRES_EPOCH_US))
    }

    fn schema(&mut self, expected: &'static str) -> Result<&'a str, DecodeError> {
        self.name(expected).map(|name| if name.is_empty() { "pg_catalog" } else { name })
    }
}
