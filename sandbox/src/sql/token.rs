//! Splitting SQL into tokens, and walking over them.

use crate::error::SqlError;

/// What a token is. Texts are without quotes and escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A bare word: keyword, name or function.
    Word(String),
    /// A back-ticked name.
    Name(String),
    /// A string in either kind of quotes.
    Text(String),
    Number(String),
    /// `@@session.name` or `@name`, with its at signs.
    Variable(String),
    /// One character of punctuation.
    Sign(char),
}

impl Token {
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(have) if have.eq_ignore_ascii_case(word))
    }

    pub(super) fn is_sign(&self, sign: char) -> bool {
        *self == Self::Sign(sign)
    }

    /// The token as a name, bare or back-ticked.
    pub(super) fn as_name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Name(name) => Some(name),
            Self::Text(_) | Self::Number(_) | Self::Variable(_) | Self::Sign(_) => None,
        }
    }
}

/// Splits a statement; comments and a closing semicolon are left out.
pub(super) fn tokens(sql: &str) -> Result<Vec<Token>, SqlError> {
    let mut found = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = rest.trim_start();
        } else if let Some(after) = comment(rest) {
            rest = after;
        } else {
            let (token, after) = token(rest, first)?;
            found.push(token);
            rest = after;
        }
    }
    while found.last().is_some_and(|last| last.is_sign(';')) {
        found.pop();
    }
    Ok(found)
}

fn comment(text: &str) -> Option<&str> {
    if let Some(block) = text.strip_prefix("/*") {
        return Some(block.split_once("*/").map_or("", |(_, after)| after));
    }
    let line = text.strip_prefix('#').or_else(|| text.strip_prefix("-- "))?;
    Some(line.split_once('\n').map_or("", |(_, after)| after))
}

fn token(text: &str, first: char) -> Result<(Token, &str), SqlError> {
    let in_word = |character: char| character.is_alphanumeric() || matches!(character, '_' | '$');
    match first {
        '\'' | '"' => quoted(text, first).map(|(content, after)| (Token::Text(content), after)),
        '`' => quoted(text, first).map(|(content, after)| (Token::Name(content), after)),
        '@' => {
            let end = text.find(|c: char| !(in_word(c) || matches!(c, '@' | '.'))).unwrap_or(text.len());
            Ok((Token::Variable(text[..end].to_owned()), &text[end..]))
        }
        '0'..='9' => {
            let mut end = text.find(|c: char| !(in_word(c) || c == '.')).unwrap_or(text.len());
            let signed = text[end..].starts_with(['+', '-']) && text[..end].ends_with(['e', 'E']);
            if signed && !text.starts_with("0x") {
                let digits = &text[end + 1..];
                end += 1 + digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            }
            Ok((Token::Number(text[..end].to_owned()), &text[end..]))
        }
        character if in_word(character) => {
            let end = text.find(|c: char| !in_word(c)).unwrap_or(text.len());
            Ok((Token::Word(text[..end].to_owned()), &text[end..]))
        }
        character => Ok((Token::Sign(character), &text[character.len_utf8()..])),
    }
}

/// The content of a quoted token: doubled quotes and, in strings, backslashes are undone.
fn quoted(text: &str, quote: char) -> Result<(String, &str), SqlError> {
    let mut content = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == quote {
            if characters.peek().is_some_and(|(_, next)| *next == quote) {
                characters.next();
                content.push(quote);
                continue;
            }
            return Ok((content, &text[at + quote.len_utf8()..]));
        }
        if character == '\\' && quote != '`' {
            if let Some((_, escaped)) = characters.next() {
                content.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    '0' => '\0',
                    other => other,
                });
            }
            continue;
        }
        content.push(character);
    }
    Err(SqlError::syntax("a quote is not closed"))
}

/// A position in a list of tokens.
pub(super) struct Cursor<'t> {
    tokens: &'t [Token],
    at: usize,
}

impl<'t> Cursor<'t> {
    pub(super) fn new(tokens: &'t [Token]) -> Self {
        Self { tokens, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<&'t Token> {
        self.tokens.get(self.at)
    }

    pub(super) fn next(&mut self) -> Option<&'t Token> {
        let token = self.tokens.get(self.at);
        self.at += usize::from(token.is_some());
        token
    }

    pub(super) fn is_done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// Takes the words when they all stand here, one after the other.
    pub(super) fn words(&mut self, words: &str) -> bool {
        let wanted: Vec<&str> = words.split(' ').collect();
        let here = self.tokens.get(self.at..).unwrap_or_default();
        let fits =
            here.len() >= wanted.len() && wanted.iter().zip(here).all(|(word, token)| token.is_word(word));
        if fits {
            self.at += wanted.len();
        }
        fits
    }

    pub(super) fn sign(&mut self, sign: char) -> bool {
        let fits = self.peek().is_some_and(|token| token.is_sign(sign));
        self.at += usize::from(fits);
        fits
    }

    pub(super) fn expect_sign(&mut self, sign: char) -> Result<(), SqlError> {
        if self.sign(sign) { Ok(()) } else { Err(self.unexpected(&format!("'{sign}'"))) }
    }

    pub(super) fn expect_words(&mut self, words: &str) -> Result<(), SqlError> {
        if self.words(words) { Ok(()) } else { Err(self.unexpected(words)) }
    }

    pub(super) fn name(&mut self) -> Result<String, SqlError> {
        match self.peek().and_then(Token::as_name) {
            Some(name) => {
                self.at += 1;
                Ok(name.to_owned())
            }
            None => Err(self.unexpected("a name")),
        }
    }

    /// `table` or `db.table`, with the session's database for the first.
    pub(super) fn table_name(&mut self, database: Option<&str>) -> Result<(String, String), SqlError> {
        let first = self.name()?;
        if self.sign('.') {
            return Ok((first, self.name()?));
        }
        match database {
            Some(database) => Ok((database.to_owned(), first)),
            None => Err(SqlError::analysis("No database selected")),
        }
    }

    /// `(a, b, c)`.
    pub(super) fn name_list(&mut self) -> Result<Vec<String>, SqlError> {
        self.expect_sign('(')?;
        let mut names = vec![self.name()?];
        while self.sign(',') {
            names.push(self.name()?);
        }
        self.expect_sign(')')?;
        Ok(names)
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Result<T, SqlError> {
        match self.peek() {
            Some(Token::Number(digits)) => {
                let number = digits.parse().map_err(|_| self.unexpected("a number"))?;
                self.at += 1;
                Ok(number)
            }
            Some(_) | None => Err(self.unexpected("a number")),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, SqlError> {
        match self.peek() {
            Some(Token::Text(text)) => {
                self.at += 1;
                Ok(text.clone())
            }
            Some(_) | None => Err(self.unexpected("a string")),
        }
    }

    pub(super) fn expect_end(&self) -> Result<(), SqlError> {
        if self.is_done() { Ok(()) } else { Err(self.unexpected("the end of the statement")) }
    }

    pub(super) fn unexpected(&self, wanted: &str) -> SqlError {
        match self.peek() {
            Some(token) => {
                let found = match token {
                    Token::Word(text)
                    | Token::Name(text)
                    | Token::Text(text)
                    | Token::Number(text)
                    | Token::Variable(text) => text.clone(),
                    Token::Sign(sign) => sign.to_string(),
                };
                SqlError::syntax(format!("Unexpected input '{found}', the most similar input is {wanted}"))
            }
            None => SqlError::syntax(format!("Unexpected input '<EOF>', the most similar input is {wanted}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Token, tokens};

    #[test]
    fn splits() {
        let found = tokens("SELECT `a`, \"it''s\" -- all\n, 1.5e-3 /* x */ FROM t;").expect("well-formed");
        let expected = vec![
            Token::Word("SELECT".into()),
            Token::Name("a".into()),
            Token::Sign(','),
            Token::Text("it''s".into()),
            Token::Sign(','),
            Token::Number("1.5e-3".into()),
            Token::Word("FROM".into()),
            Token::Word("t".into()),
        ];
        assert_eq!(found, expected);
        assert!(tokens("SELECT 'open").is_err());
    }
}
