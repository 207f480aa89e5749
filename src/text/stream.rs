//! Decoding token by token: text is handed out as soon as it is whole UTF-8.

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Incremental decoder; made by [`Tokenizer::stream`]. Each step costs as much as its own token.
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    state: StreamState,
}

/// What a decoder keeps between tokens, apart from the tokenizer; made by
/// [`Tokenizer::stream_state`]. It belongs to that tokenizer.
#[derive(Clone, Debug)]
pub struct StreamState {
    skip_special: bool,
    /// Spaces to be dropped from the beginning of a text.
    strip_left: usize,
    /// Those of them that are still to be dropped.
    strip: usize,
    /// Nothing was decoded yet.
    first: bool,
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool, strip: usize) -> Self {
        StreamDecoder { tokenizer, state: StreamState::new(skip_special, strip) }
    }

    /// The text that `id` completes; may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        let mut text = String::new();
        self.state.push(self.tokenizer, id, &mut text)?;
        Ok(text)
    }

    /// What is left: a character that never became complete is U+FFFD. The decoder then starts
    /// anew.
    ///
    /// # Errors
    /// None at present.
    pub fn finish(&mut self) -> Result<String> {
        let mut text = String::new();
        self.state.finish(&mut text);
        Ok(text)
    }
}

impl StreamState {
    pub(super) fn new(skip_special: bool, strip: usize) -> Self {
        StreamState { skip_special, strip_left: strip, strip, first: true, pending: Vec::new() }
    }

    /// Appends the text that `id` completes, maybe none, to `text`.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) -> Result<()> {
        let before = self.pending.len();
        tokenizer.push_bytes(id, self.first, self.skip_special, &mut self.pending)?;
        if self.pending.len() > before {
            self.first = false;
        }
        self.take(false, text);
        Ok(())
    }

    /// Appends what is left: a character that never became complete is U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        self.take(true, text);
    }

    /// Begins another text.
    pub fn restart(&mut self) {
        (self.strip, self.first) = (self.strip_left, true);
        self.pending.clear();
    }

    /// Moves the complete characters out of `pending`; with `all`, everything.
    fn take(&mut self, all: bool, text: &mut String) {
        let start = text.len();
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                }
                Err(fault) => {
                    let (whole, tail) = rest.split_at(fault.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    match fault.error_len() {
                        Some(len) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &tail[len..];
                        }
                        None if all => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &[];
                        }
                        None => {
                            rest = tail;
                            break;
                        }
                    }
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        let new = &text[start..];
        let spaces = new.bytes().take(self.strip).take_while(|&b| b == b' ').count();
        if spaces < new.len() {
            self.strip = 0; // something that is no leading space has been reached
        } else {
            self.strip -= spaces;
        }
        text.drain(start..start + spaces);
    }
}
