//! Text: tokenizers, decoding as a stream, chat templates.
//!
//! Holds everything between strings and token ids. A tokenizer comes from a Hugging Face directory
//! ([`TextParts::from_hf_dir`]) or from GGUF metadata that the caller has read
//! ([`TextParts::from_gguf`]). Models, files in general and sampling are elsewhere.

mod alphabet;
mod gguf;
mod hf;
mod jinja;
mod marks;
mod pieces;
mod presets;
mod sentencepiece;
mod spm;
mod stream;
mod template;
mod to_gguf;
mod to_hf;
mod tokenizer;
mod train_vocab;

pub use gguf::GgufVocab;
pub use stream::{StreamDecoder, StreamState};
pub use template::{ChatTemplate, Message, Piece};
pub use to_gguf::GgufVocabBuf;
pub use to_hf::HfTokenizer;
pub use tokenizer::Tokenizer;
pub use train_vocab::{MIN_VOCAB_SIZE, VocabFiles, train_vocab};

use crate::error::Result;

/// Tokenizer and chat template of one model.
pub struct TextParts {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The model's own chat template, where it has one.
    pub template: Option<ChatTemplate>,
}

impl TextParts {
    /// Tokenizer and chat template from GGUF metadata.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn from_gguf(vocab: &GgufVocab<'_>) -> Result<TextParts> {
        let tokenizer = Tokenizer::from_gguf(vocab)?;
        let template = vocab.chat_template.map(ChatTemplate::jinja).transpose()?;
        Ok(TextParts { tokenizer, template })
    }
}
