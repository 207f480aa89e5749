//! The text of a session: decoded as it goes, watched for stop strings.

use crate::error::Result;
use crate::infer::stop::StopMatcher;
use crate::text::{StreamState, Tokenizer};

/// Bytes of text reserved for a token; more are taken when they are needed.
const BYTES_PER_TOKEN: usize = 8;
/// Bytes reserved at most.
const MOST_RESERVED: usize = 1 << 20;

/// What was chosen since the last prompt, as text.
#[derive(Debug)]
pub(super) struct Text {
    stream: StreamState,
    stop: StopMatcher,
    /// What the last token completed.
    piece: String,
    shown: String,
}

impl Clone for Text {
    fn clone(&self) -> Text {
        let mut shown = String::with_capacity(self.shown.capacity());
        shown.push_str(&self.shown);
        Text {
            stream: self.stream.clone(),
            stop: self.stop.clone(),
            piece: String::with_capacity(self.piece.capacity()),
            shown,
        }
    }
}

impl Text {
    pub(super) fn new(tokenizer: &Tokenizer, stop: &[String], ctx: usize) -> Result<Text> {
        let room = ctx.saturating_mul(BYTES_PER_TOKEN).min(MOST_RESERVED);
        Ok(Text {
            stream: tokenizer.stream_state(true),
            stop: StopMatcher::new(stop)?,
            piece: String::with_capacity(BYTES_PER_TOKEN * 8),
            shown: String::with_capacity(room),
        })
    }

    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Adds a token; whether its text ends the sequence.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<bool> {
        self.piece.clear();
        self.stream.push(tokenizer, id, &mut self.piece)?;
        Ok(self.stop.push_into(&self.piece, &mut self.shown))
    }

    /// Shows what was held back: nothing follows.
    pub(super) fn finish(&mut self) {
        self.piece.clear();
        self.stream.finish(&mut self.piece);
        if !self.stop.push_into(&self.piece, &mut self.shown) {
            self.shown.push_str(&self.stop.finish());
        }
    }

    /// Forgets everything; keeps its memory.
    pub(super) fn restart(&mut self) {
        self.stream.restart();
        self.stop.restart();
        self.shown.clear();
    }
}
