//! SentencePiece BPE: the pieces with their scores, and the merging.
//!
//! Encoding a text, after its spaces were escaped to U+2581:
//!
//! ```text
//! symbols = the characters (user-defined pieces stay whole and are never merged)
//! repeat: of all neighbours whose concatenation is a piece, join the pair with the best score,
//!         the leftmost among equals
//! a symbol that is no piece becomes its UTF-8 bytes' tokens, or the unknown token
//! ```
//!
//! Source: Kudo and Richardson, "SentencePiece" (2018), and the behaviour of its BPE model.

use super::marks::Marks;
use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// The escaped space of SentencePiece pieces.
pub(super) const SPACE: &str = "\u{2581}";

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte(u8),
}

impl Kind {
    /// From the integer that GGUF and `tokenizer.model` share; `text` tells a byte token's value.
    pub(super) fn from_code(code: i64, text: &str) -> Kind {
        match code {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => byte_value(text).map_or(Kind::Unused, Kind::Byte),
            _ => Kind::Normal,
        }
    }
}

/// The value of a byte token's text, `<0x00>` to `<0xFF>`.
pub(super) fn byte_value(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// One piece as a file gives it.
pub(super) struct Piece {
    pub(super) text: Box<str>,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// How a text becomes symbols before the merging.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Put a space in front of a text.
    pub(super) add_space_prefix: bool,
    /// ... and also in front of text that follows a special token.
    pub(super) prefix_after_special: bool,
    /// Trim spaces at both ends and join runs of them.
    pub(super) remove_extra_spaces: bool,
}

/// A SentencePiece BPE vocabulary, ready to encode.
pub(super) struct Spm {
    pieces: Vec<Piece>,
    ids: HashMap<Box<str>, u32>,
    /// Token of each byte value, when the vocabulary has all 256.
    bytes: Option<Box<[u32; 256]>>,
    unk: Option<u32>,
    /// User-defined pieces that are matched inside the escaped text.
    frozen: Marks,
    rules: Rules,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Zero once merged into its left neighbour.
    len: usize,
    prev: usize,
    next: usize,
    id: Option<u32>,
    frozen: bool,
}

/// No neighbour on this side.
const NONE: usize = usize::MAX;

struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
    id: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        // Scores are never NaN and never -0.0 (both are dealt with when the vocabulary is made).
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// Takes the pieces in the order of their ids. `frozen_user_defined`: user-defined pieces are
    /// matched inside the escaped text, as `tokenizer.model` means them.
    ///
    /// # Errors
    /// Two pieces of one text, a score that is not a number, ids beyond the vocabulary.
    pub(super) fn new(
        mut pieces: Vec<Piece>,
        unk: Option<u32>,
        frozen_user_defined: bool,
        rules: Rules,
    ) -> Result<Self> {
        let mut ids = HashMap::with_capacity(pieces.len());
        let mut bytes = [u32::MAX; 256];
        let mut frozen = Marks::new();
        for (id, piece) in pieces.iter_mut().enumerate() {
            let id = u32::try_from(id)
                .map_err(|_| Error::Tokenizer("more tokens than 32-bit ids".into()))?;
            if piece.score.is_nan() {
                return Err(Error::Tokenizer(format!("token {id} has the score NaN")));
            }
            piece.score += 0.0; // -0.0 becomes 0.0, so that equal scores compare equal
            if piece.text.is_empty() {
                continue;
            }
            if let Some(first) = ids.insert(piece.text.clone(), id) {
                return Err(Error::Tokenizer(format!(
                    "tokens {first} and {id} have the same text {:?}",
                    piece.text
                )));
            }
            match piece.kind {
                Kind::Byte(byte) => bytes[usize::from(byte)] = id,
                Kind::UserDefined if frozen_user_defined => frozen.add(&piece.text, id, false)?,
                _ => {}
            }
        }
        let bytes = bytes.iter().all(|&id| id != u32::MAX).then(|| Box::new(bytes));
        if let Some(id) = unk.filter(|&id| id as usize >= pieces.len()) {
            return Err(Error::Tokenizer(format!(
                "unknown-token id {id}, but the vocabulary has {} tokens",
                pieces.len()
            )));
        }
        Ok(Spm { pieces, ids, bytes, unk, frozen, rules })
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn has_byte_fallback(&self) -> bool {
        self.bytes.is_some()
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn piece(&self, id: u32) -> Option<&Piece> {
        self.pieces.get(id as usize)
    }

    /// The id of a piece that merging may produce.
    fn mergeable(&self, text: &str) -> Option<u32> {
        let id = self.id(text)?;
        match self.pieces[id as usize].kind {
            Kind::Normal | Kind::UserDefined | Kind::Unused => Some(id),
            Kind::Unknown | Kind::Control | Kind::Byte(_) => None,
        }
    }

    /// Appends the ids of a stretch of ordinary text; `first`: nothing but special tokens stand
    /// before it, `after_special`: a special token stands right before it.
    pub(super) fn encode(
        &self,
        text: &str,
        first: bool,
        after_special: bool,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let prefix = self.rules.add_space_prefix
            && (first || after_special && self.rules.prefix_after_special);
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + SPACE.len());
        if self.rules.remove_extra_spaces {
            for word in text.split(' ').filter(|w| !w.is_empty()) {
                if !escaped.is_empty() || prefix {
                    escaped.push_str(SPACE);
                }
                escaped.push_str(word);
            }
        } else {
            if prefix && !text.is_empty() {
                escaped.push_str(SPACE);
            }
            for c in text.chars() {
                if c == ' ' { escaped.push_str(SPACE) } else { escaped.push(c) }
            }
        }
        self.merge(&escaped, out)
    }

    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let mark = self.frozen.at(&text.as_bytes()[at..], true);
            let len = mark.map_or(c.len_utf8(), |(_, len)| len);
            let id = mark.map(|(id, _)| id).or_else(|| self.mergeable(&text[at..at + len]));
            let i = symbols.len();
            let prev = if i == 0 { NONE } else { i - 1 };
            symbols.push(Symbol { start: at, len, prev, next: i + 1, id, frozen: mark.is_some() });
            at += len;
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    fn merge(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut symbols = self.symbols(text);
        let mut queue = BinaryHeap::new();
        // How an unused piece was put together: its text to the length of its left part.
        let mut parts: HashMap<&str, usize> = HashMap::new();
        for right in 1..symbols.len() {
            self.offer(text, &symbols, right - 1, right, &mut queue, &mut parts);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue; // one of the two was merged since
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].id = Some(pair.id);
            symbols[pair.left].next = right.next;
            symbols[pair.right].len = 0;
            if right.next != NONE {
                symbols[right.next].prev = pair.left;
                self.offer(text, &symbols, pair.left, right.next, &mut queue, &mut parts);
            }
            if left.prev != NONE {
                self.offer(text, &symbols, left.prev, pair.left, &mut queue, &mut parts);
            }
        }
        let mut after_unknown = false;
        let mut at = if symbols.is_empty() { NONE } else { 0 };
        while at != NONE {
            let symbol = symbols[at];
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match symbol.id {
                Some(id) => {
                    after_unknown = false;
                    self.push_parts(piece, id, &parts, out);
                }
                None => self.push_unknown(piece, &mut after_unknown, out)?,
            }
            at = symbol.next;
        }
        Ok(())
    }

    /// Queues the pair of neighbours if together they are a piece.
    fn offer<'t>(
        &self,
        text: &'t str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        queue: &mut BinaryHeap<Pair>,
        parts: &mut HashMap<&'t str, usize>,
    ) {
        let (l, r) = (symbols[left], symbols[right]);
        if l.frozen || r.frozen {
            return;
        }
        let len = l.len + r.len;
        let joined = &text[l.start..l.start + len];
        let Some(id) = self.mergeable(joined) else { return };
        let piece = &self.pieces[id as usize];
        if piece.kind == Kind::Unused {
            parts.insert(joined, l.len);
        }
        queue.push(Pair { score: piece.score, left, right, len, id });
    }

    /// Appends a piece; an unused one falls apart again into what it was merged from.
    fn push_parts(&self, piece: &str, id: u32, parts: &HashMap<&str, usize>, out: &mut Vec<u32>) {
        if self.pieces[id as usize].kind != Kind::Unused {
            out.push(id);
            return;
        }
        let mut todo = vec![piece];
        while let Some(piece) = todo.pop() {
            match (self.mergeable(piece), parts.get(piece)) {
                (Some(id), Some(&cut)) if self.pieces[id as usize].kind == Kind::Unused => {
                    todo.push(&piece[cut..]);
                    todo.push(&piece[..cut]);
                }
                (Some(id), _) => out.push(id),
                // A part of a piece is always a piece or a character; the latter may be unknown.
                (None, _) => match &self.bytes {
                    Some(bytes) => out.extend(piece.bytes().map(|b| bytes[usize::from(b)])),
                    None => out.extend(self.unk),
                },
            }
        }
    }

    fn push_unknown(
        &self,
        piece: &str,
        after_unknown: &mut bool,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        if let Some(bytes) = &self.bytes {
            out.extend(piece.bytes().map(|b| bytes[usize::from(b)]));
            return Ok(());
        }
        let Some(unk) = self.unk else {
            return Err(Error::Tokenizer(format!(
                "no token for {piece:?}: the vocabulary has neither it nor byte tokens nor an unknown token"
            )));
        };
        // A run of unknown characters is one unknown token.
        if !*after_unknown {
            out.push(unk);
        }
        *after_unknown = true;
        Ok(())
    }

    /// Appends the text of a token as bytes; special tokens as written, or not at all.
    pub(super) fn push_text(&self, piece: &Piece, skip_special: bool, out: &mut Vec<u8>) {
        match piece.kind {
            Kind::Byte(byte) => out.push(byte),
            Kind::Control | Kind::Unknown if skip_special => {}
            Kind::Control | Kind::Unknown => out.extend_from_slice(piece.text.as_bytes()),
            Kind::Normal | Kind::UserDefined | Kind::Unused => {
                let mut parts = piece.text.split(SPACE);
                if let Some(head) = parts.next() {
                    out.extend_from_slice(head.as_bytes());
                }
                for part in parts {
                    out.push(b' ');
                    out.extend_from_slice(part.as_bytes());
                }
            }
        }
    }
}
