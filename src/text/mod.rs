//! (interfaces agreed on; bodies being written)
#![allow(missing_docs, unused_variables, clippy::all)]
use crate::error::Result;
use std::path::Path;

/// Tokenizer, stream decoder and chat template of one model.
pub struct TextParts {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
}

pub struct Tokenizer;
impl Tokenizer {
    /// Ids of `text`; `add_special`: add BOS/EOS exactly as the model's own configuration says. Special tokens written in the text are recognised iff `parse_special`.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        todo!()
    }
    /// Text of `ids`; special tokens left out if `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        todo!()
    }
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
    pub fn bos_id(&self) -> Option<u32> {
        todo!()
    }
    pub fn eos_id(&self) -> Option<u32> {
        todo!()
    }
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        todo!()
    }
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        todo!()
    }
    /// One line for `puna info`: family, pre-tokenizer, sizes.
    pub fn describe(&self) -> String {
        todo!()
    }
    /// Incremental decoder: push(id) returns the text that is now complete (never half a UTF-8 character), finish() the rest.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        todo!()
    }
}
pub struct StreamDecoder<'a> {
    _t: &'a Tokenizer,
}
impl StreamDecoder<'_> {
    pub fn push(&mut self, id: u32) -> Result<String> {
        todo!()
    }
    pub fn finish(&mut self) -> Result<String> {
        todo!()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// The model's own Jinja template, or a preset of LMFlow by name.
pub enum ChatTemplate {}
impl ChatTemplate {
    /// Ids of a conversation; with `add_generation_prompt` it ends where the assistant begins to speak.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        todo!()
    }
    pub fn resolve(name: Option<&str>, own: Option<ChatTemplate>) -> Result<ChatTemplate> {
        todo!()
    }
    pub fn preset(name: &str) -> Result<ChatTemplate> {
        todo!()
    }
    /// Tokens that end an answer besides EOS (the template's own end-of-turn).
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        todo!()
    }
}
