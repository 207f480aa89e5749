//! Decoding token by token: text is handed out as soon as it is whole UTF-8.

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Incremental decoder; made by [`Tokenizer::stream`]. Each step costs as much as its own token.
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// Spaces still to be dropped from the beginning of the text.
    strip: usize,
    /// Nothing was decoded yet.
    first: bool,
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool, strip: usize) -> Self {
        StreamDecoder { tokenizer, skip_special, strip, first: true, pending: Vec::new() }
    }

    /// The text that `id` completes; may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        let before = self.pending.len();
        self.tokenizer.push_bytes(id, self.first, self.skip_special, &mut self.pending)?;
        if self.pending.len() > before {
            self.first = false;
        }
        Ok(self.take(false))
    }

    /// What is left: a character that never became complete is U+FFFD. The decoder then starts
    /// anew.
    ///
    /// # Errors
    /// None at present.
    pub fn finish(&mut self) -> Result<String> {
        Ok(self.take(true))
    }

    /// Moves the complete characters out of `pending`; with `all`, everything.
    fn take(&mut self, all: bool) -> String {
        let mut text = String::with_capacity(self.pending.len());
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
        let spaces = text.bytes().take(self.strip).take_while(|&b| b == b' ').count();
        if spaces < text.len() {
            self.strip = 0; // something that is no leading space has been reached
        } else {
            self.strip -= spaces;
        }
        text.drain(..spaces);
        text
    }
}
