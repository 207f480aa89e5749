//! The tokenizer and chat template of a checkpoint.

use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::text::{GgufVocab, TextParts};

/// Files of which at least one makes a Hugging Face directory one with a tokenizer.
const TOKENIZER_FILES: [&str; 2] = ["tokenizer.json", "tokenizer.model"];

/// Tokenizer and chat template; `None` where the checkpoint has no tokenizer.
///
/// # Errors
/// When a tokenizer is there but cannot be used.
pub fn text_parts(checkpoint: &Checkpoint) -> Result<Option<TextParts>> {
    if checkpoint.gguf.is_some() {
        return gguf_vocab(checkpoint)?.map(|vocab| TextParts::from_gguf(&vocab)).transpose();
    }
    let dir = &checkpoint.path;
    if !TOKENIZER_FILES.iter().any(|file| dir.join(file).exists()) {
        return Ok(None);
    }
    let mut parts = TextParts::from_hf_dir(dir)?;
    let eos = checkpoint.config.eos_ids.first().copied();
    parts.tokenizer.fill_ids(checkpoint.config.bos_id, eos);
    Ok(Some(parts))
}

/// The vocabulary of a GGUF checkpoint; `None` for a directory or a file without one.
///
/// # Errors
/// [`crate::Error::Format`] for values of the wrong type.
pub fn gguf_vocab(checkpoint: &Checkpoint) -> Result<Option<GgufVocab<'_>>> {
    let Some(vocab) = checkpoint.gguf_tokenizer()? else { return Ok(None) };
    Ok(Some(GgufVocab {
        model: vocab.model,
        pre: vocab.pre,
        tokens: vocab.tokens,
        scores: vocab.scores,
        token_types: vocab.token_types,
        merges: vocab.merges,
        bos_id: vocab.bos_id,
        eos_id: vocab.eos_id,
        unk_id: vocab.unk_id,
        pad_id: vocab.pad_id,
        add_bos: vocab.add_bos,
        add_eos: vocab.add_eos,
        add_space_prefix: vocab.add_space_prefix,
        chat_template: vocab.chat_template,
    }))
}
