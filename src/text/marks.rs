//! Finds special and added tokens that stand literally in a text: leftmost first, the longest at
//! one place. What is between them goes to the tokenizer proper.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// Longest text of a token that is recognised inside a prompt, in bytes.
const MAX_MARK_BYTES: usize = 1024;

/// A stretch of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Span<'t> {
    /// Ordinary text.
    Text(&'t str),
    /// A token written out.
    Token(u32),
}

#[derive(Clone, Copy)]
struct Mark {
    id: u32,
    /// Recognised only when the caller asks for special tokens to be parsed.
    special: bool,
}

/// The tokens to look for.
pub(super) struct Marks {
    by_text: HashMap<Box<[u8]>, Mark>,
    /// Per first byte: the lengths of the tokens that begin with it, longest first.
    lengths: Vec<Vec<usize>>,
}

impl Marks {
    pub(super) fn new() -> Self {
        Marks { by_text: HashMap::new(), lengths: vec![Vec::new(); 256] }
    }

    /// Adds a token; the first of two with the same text stays. Empty ones are ignored.
    pub(super) fn add(&mut self, text: &str, id: u32, special: bool) -> Result<()> {
        let bytes = text.as_bytes();
        let Some(&first) = bytes.first() else { return Ok(()) };
        if bytes.len() > MAX_MARK_BYTES {
            return Err(Error::Tokenizer(format!(
                "special token {id} has {} bytes of text, at most {MAX_MARK_BYTES} can be recognised",
                bytes.len()
            )));
        }
        self.by_text.entry(bytes.into()).or_insert(Mark { id, special });
        let lengths = &mut self.lengths[usize::from(first)];
        if let Err(at) = lengths.binary_search_by(|have| bytes.len().cmp(have)) {
            lengths.insert(at, bytes.len());
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_text.is_empty()
    }

    /// The token that stands at the beginning of `bytes`, with its length.
    pub(super) fn at(&self, bytes: &[u8], parse_special: bool) -> Option<(u32, usize)> {
        let first = *bytes.first()?;
        for &len in &self.lengths[usize::from(first)] {
            if let Some(mark) = bytes.get(..len).and_then(|head| self.by_text.get(head))
                && (parse_special || !mark.special)
            {
                return Some((mark.id, len));
            }
        }
        None
    }

    /// `text` cut at the tokens written in it; no span is empty.
    pub(super) fn split<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Span<'t>> {
        let bytes = text.as_bytes();
        let mut spans = Vec::new();
        let mut begin = 0;
        let mut at = 0;
        if !self.is_empty() {
            while at < bytes.len() {
                // A mark is whole UTF-8, so it begins and ends on character boundaries.
                match self.at(&bytes[at..], parse_special) {
                    Some((id, len)) => {
                        if begin < at {
                            spans.push(Span::Text(&text[begin..at]));
                        }
                        spans.push(Span::Token(id));
                        at += len;
                        begin = at;
                    }
                    None => at += 1,
                }
            }
        }
        if begin < bytes.len() {
            spans.push(Span::Text(&text[begin..]));
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        let mut m = Marks::new();
        m.add("<a>", 1, true).unwrap();
        m.add("<a><b>", 2, true).unwrap();
        m.add("é", 3, false).unwrap();
        m
    }

    #[test]
    fn leftmost_longest_and_special_only_when_asked() {
        let m = marks();
        use Span::{Text, Token};
        assert_eq!(
            m.split("x<a><b>é<a>y", true),
            [Text("x"), Token(2), Token(3), Token(1), Text("y")]
        );
        assert_eq!(m.split("x<a>éy", false), [Text("x<a>"), Token(3), Text("y")]);
        assert_eq!(m.split("", true), []);
        assert_eq!(m.split("<a", true), [Text("<a")]);
    }

    #[test]
    fn an_endless_special_token_is_refused() {
        assert!(Marks::new().add(&"x".repeat(2000), 0, true).is_err());
    }
}
