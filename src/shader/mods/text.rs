//! The words of a caller's WGSL: enough of a lexer to drop comments, find declarations and rename them.

use std::{collections::BTreeMap, ops::Range};

/// What is wrong, and where in the caller's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The first byte, where it is known.
    pub at: Option<usize>,
    pub message: String,
    pub remedy: String,
}

impl Fault {
    pub fn at(at: usize, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            at: Some(at),
            ..Self::anywhere(message, remedy)
        }
    }

    pub fn anywhere(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            at: None,
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

/// The text with comments as spaces and every line end as `\n`, byte for byte in the same place, so that
/// nothing in a comment can be taken for a mark, and lines are lines to whoever reads them.
pub(super) fn without_comments(source: &str) -> Result<String, Fault> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let at = source.len() - rest.len();
        let taken = if rest.starts_with("//") {
            if rest.starts_with("//@") {
                return Err(Fault::at(
                    at,
                    "a comment that begins with `//@`",
                    "such marks are for foveate's own kernels: write the comment another way",
                ));
            }
            rest.find(is_line_end).unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
                .ok_or_else(|| Fault::at(at, "a comment that never ends", "close it with `*/`"))?
        } else if is_line_end(c) || c == '\t' {
            // A line end of one byte ends a line here too; longer ones are spaces.
            let ends_line =
                c == '\n' || (c != '\t' && c.len_utf8() == 1 && !rest.starts_with("\r\n"));
            if ends_line {
                out.push('\n');
                rest = &rest[1..];
                continue;
            }
            c.len_utf8()
        } else if c.is_ascii_graphic() || c == ' ' {
            out.push(c);
            rest = &rest[1..];
            continue;
        } else {
            return Err(Fault::at(
                at,
                format!("the character {c:?} outside of a comment"),
                "write names in ASCII",
            ));
        };
        let (comment, after) = rest.split_at(taken);
        out.extend(comment.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
        rest = after;
    }
    Ok(out)
}

/// WGSL's line breaks.
fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n' | '\u{b}' | '\u{c}' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// The length of the block comment, with those in it, that the text begins with.
fn block_comment(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(pair) = text.as_bytes().get(at..at + 2) {
        match pair {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An identifier or keyword.
    Word,
    Number,
    /// One byte of punctuation.
    Symbol(u8),
}

/// A token of text without comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: Kind,
    pub range: Range<usize>,
}

impl Token {
    pub fn is(&self, symbol: u8) -> bool {
        self.kind == Kind::Symbol(symbol)
    }
}

/// The tokens of ASCII text without comments.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(b' ');
    let in_word = |at: usize| byte(at).is_ascii_alphanumeric() || byte(at) == b'_';
    let mut list = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        at += 1;
        let first = byte(start);
        let kind = if first.is_ascii_whitespace() {
            continue;
        } else if first.is_ascii_digit() || (first == b'.' && byte(at).is_ascii_digit()) {
            let hexadecimal = matches!(&bytes[start..], [b'0', b'x' | b'X', ..]);
            let exponents: &[u8] = if hexadecimal { b"pP" } else { b"eE" };
            while in_word(at)
                || byte(at) == b'.'
                || (matches!(byte(at), b'+' | b'-') && exponents.contains(&byte(at - 1)))
            {
                at += 1;
            }
            Kind::Number
        } else if in_word(start) {
            while in_word(at) {
                at += 1;
            }
            Kind::Word
        } else {
            Kind::Symbol(first)
        };
        list.push(Token {
            kind,
            range: start..at,
        });
    }
    list
}

/// A name that is declared outside of any function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declaration<'a> {
    /// `fn`, `const`, `struct`, `alias`, `var`, `override`.
    pub keyword: &'a str,
    pub name: &'a str,
    pub at: usize,
}

/// What text declares at module scope, and the tokens in it that are names of struct members.
pub(super) fn declarations<'a>(
    text: &'a str,
    tokens: &[Token],
) -> (Vec<Declaration<'a>>, Vec<usize>) {
    const KEYWORDS: [&str; 6] = ["fn", "const", "struct", "alias", "var", "override"];
    let mut list = Vec::new();
    let mut members = Vec::new();
    let mut depth = 0usize;
    let mut in_struct = false;
    for (number, token) in tokens.iter().enumerate() {
        let word = &text[token.range.clone()];
        match token.kind {
            Kind::Symbol(b'{' | b'(' | b'[') => depth += 1,
            Kind::Symbol(b'}' | b')' | b']') => {
                depth = depth.saturating_sub(1);
                in_struct &= depth > 0;
            }
            Kind::Word if depth == 0 && KEYWORDS.contains(&word) => {
                let name = declared_name(text, &tokens[number + 1..]);
                in_struct = word == "struct";
                list.extend(name.map(|(name, at)| Declaration {
                    keyword: word,
                    name,
                    at,
                }));
            }
            Kind::Word
                if in_struct
                    && depth == 1
                    && tokens.get(number + 1).is_some_and(|next| next.is(b':')) =>
            {
                members.push(number);
            }
            _ => {}
        }
    }
    (list, members)
}

/// The first word after `fn`, `const` ... and, for variables, their `<storage, read>`.
fn declared_name<'a>(text: &'a str, tokens: &[Token]) -> Option<(&'a str, usize)> {
    let mut rest = tokens;
    if rest.first().is_some_and(|token| token.is(b'<')) {
        let end = rest.iter().position(|token| token.is(b'>'))?;
        rest = &rest[end + 1..];
    }
    rest.first()
        .filter(|token| token.kind == Kind::Word)
        .map(|token| (&text[token.range.clone()], token.range.start))
}

/// Text with names exchanged wherever they stand for what is declared: not after `.` or `@`, and not as a
/// struct's member.
pub(super) fn renamed(
    text: &str,
    tokens: &[Token],
    members: &[usize],
    names: &BTreeMap<&str, String>,
) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 4);
    let mut done = 0;
    for (number, token) in tokens.iter().enumerate() {
        let before = number.checked_sub(1).and_then(|before| tokens.get(before));
        if token.kind != Kind::Word
            || before.is_some_and(|before| before.is(b'.') || before.is(b'@'))
            || members.contains(&number)
        {
            continue;
        }
        if let Some(name) = names.get(&text[token.range.clone()]) {
            out.push_str(&text[done..token.range.start]);
            out.push_str(name);
            done = token.range.end;
        }
    }
    out.push_str(&text[done..]);
    out
}
