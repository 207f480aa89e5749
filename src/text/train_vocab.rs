//! Training a tokenizer: byte-level BPE on a corpus, as `tokenizer.json` and
//! `tokenizer_config.json` of a Hugging Face directory.
//!
//! Text is cut as GPT-2 cuts it (the pre-tokenizer that GGUF names `gpt-2`); every byte has a
//! token, so no text is refused. Merging is the tokenizers crate's. The ids are: the end token 0,
//! the 256 bytes, then the merges, most frequent first; equal ones by id, so the result depends on
//! the corpus alone.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Core};

/// Ends a text and an answer; also what is named for beginning and for filling up.
pub const END_TOKEN: &str = "<|endoftext|>";

/// The end token and the 256 bytes, which every vocabulary has.
pub const MIN_VOCAB_SIZE: usize = 257;

/// Chat template of a trained tokenizer: questions and answers on lines of their own.
const CHAT_TEMPLATE: &str = "{% for message in messages %}\
{% if message.role == 'user' %}Q: {{ message.content }}\nA:\
{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}\
{% else %}{{ message.content }}\n{% endif %}{% endfor %}";

/// The files of a trained tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct VocabFiles {
    /// Content of `tokenizer.json`.
    pub tokenizer: Value,
    /// Content of `tokenizer_config.json`.
    pub config: Value,
    /// Tokens; fewer than asked for where the corpus has no more pairs to merge.
    pub n_tokens: usize,
}

/// Trains on `texts` until there are `vocab_size` tokens. A merged pair stands in the corpus at
/// least twice; end tokens written in the texts are only ends.
///
/// # Errors
/// A size below [`MIN_VOCAB_SIZE`], or texts with nothing in them.
pub fn train_vocab(texts: &[&str], vocab_size: usize) -> Result<VocabFiles> {
    if vocab_size < MIN_VOCAB_SIZE {
        let why = format!("wanted at least {MIN_VOCAB_SIZE}: each byte and the end token");
        return Err(Error::config("vocab-size", vocab_size, why));
    }
    if texts.iter().all(|text| text.is_empty()) {
        return Err(Error::Tokenizer("the corpus has no text to train on".into()));
    }
    let fault = |what: &str, e: tokenizers::Error| Error::Tokenizer(format!("{what}: {e}"));
    let mut core = Core::new(BPE::default());
    core.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    core.with_decoder(Some(ByteLevel::new(true, true, true)));
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(vec![AddedToken::from(END_TOKEN, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let parts = texts.iter().flat_map(|text| text.split(END_TOKEN));
    core.train(&mut TrainerWrapper::BpeTrainer(trainer), parts)
        .map_err(|e| fault("training", e))?;
    let text = core.to_string(false).map_err(|e| fault("tokenizer.json", e))?;
    let tokenizer = serde_json::from_str(&text)
        .map_err(|e| Error::Tokenizer(format!("tokenizer.json: {e}")))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_TOKEN,
        "eos_token": END_TOKEN,
        "pad_token": END_TOKEN,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    Ok(VocabFiles { tokenizer, config, n_tokens: core.get_vocab_size(true) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{GgufVocab, Message, TextParts};

    const CORPUS: [&str; 4] = [
        "The cat sat on the mat. The cat has a hat, and the dog's hat is red.",
        "Tom has a red ball.\nAnn has 12 hats.\n\nThe dog has the ball.",
        "The dog and the cat sat.  They don't have the ball.",
        "",
    ];

    fn trained(vocab_size: usize) -> VocabFiles {
        train_vocab(&CORPUS, vocab_size).unwrap()
    }

    fn parts(files: &VocabFiles) -> TextParts {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        };
        write("tokenizer.json", &files.tokenizer);
        write("tokenizer_config.json", &files.config);
        TextParts::from_hf_dir(dir.path()).unwrap()
    }

    #[test]
    fn frequent_words_become_tokens_and_every_text_comes_back() {
        let files = trained(280);
        assert_eq!(files.n_tokens, 280);
        let tokenizer = parts(&files).tokenizer;
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(0), Some(0)));
        for word in ["Ġthe", "Ġcat", "Ġball"] {
            assert!(tokenizer.token_to_id(word).is_some(), "{word}");
        }
        for text in [CORPUS[1], "naïve 🦙\t\u{0}", "  two  spaces \n", ""] {
            let ids = tokenizer.encode(text, true, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
        let ended = tokenizer.encode("a<|endoftext|>", true, true).unwrap();
        assert_eq!(ended.last(), Some(&0));
    }

    #[test]
    fn the_same_corpus_gives_the_same_files() {
        assert_eq!(trained(282), trained(282));
        assert_ne!(trained(282), trained(281));
    }

    #[test]
    fn end_tokens_in_the_corpus_teach_nothing() {
        let ended: Vec<String> = CORPUS.iter().map(|text| format!("{text}{END_TOKEN}")).collect();
        let ended: Vec<&str> = ended.iter().map(String::as_str).collect();
        assert_eq!(train_vocab(&ended, 282).unwrap(), trained(282));
    }

    #[test]
    fn it_stops_where_nothing_stands_twice() {
        let files = train_vocab(&["ab ab"], 1000).unwrap();
        // "ab" stands alone and after a space: a + b is the only pair that comes twice.
        assert_eq!(files.n_tokens, MIN_VOCAB_SIZE + 1);
    }

    #[test]
    fn as_gguf_metadata_it_gives_the_same_ids() {
        let files = trained(280);
        let hf = parts(&files).tokenizer;
        let tokens: Vec<String> = (0..280).map(|id| hf.id_to_token(id).unwrap()).collect();
        let merge = |value: &Value| match value {
            Value::String(text) => text.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        let merges = files.tokenizer["model"]["merges"].as_array().unwrap();
        let merges: Vec<String> = merges.iter().map(merge).collect();
        let mut types = vec![1; 280];
        types[0] = 3;
        let gguf = TextParts::from_gguf(&GgufVocab {
            model: "gpt2",
            pre: Some("gpt-2"),
            tokens: tokens.iter().map(String::as_str).collect(),
            token_types: Some(types),
            merges: Some(merges.iter().map(String::as_str).collect()),
            bos_id: Some(0),
            eos_id: Some(0),
            ..GgufVocab::default()
        });
        let gguf = gguf.unwrap().tokenizer;
        for text in CORPUS.into_iter().chain(["It's 1999!! <|endoftext|>\n\n naïve  x", "\r\n a"])
        {
            let wanted = hf.encode(text, true, true).unwrap();
            assert_eq!(gguf.encode(text, true, true).unwrap(), wanted, "{text:?}");
        }
    }

    #[test]
    fn its_chat_is_questions_and_answers() {
        let parts = parts(&trained(280));
        let template = parts.template.unwrap();
        let messages = [Message::new("user", "Who?"), Message::new("assistant", "Tom.")];
        let text = |messages: &[Message], prompt| {
            template.render(END_TOKEN, END_TOKEN, messages, prompt).unwrap()
        };
        assert_eq!(text(&messages[..1], true), "Q: Who?\nA:");
        assert_eq!(text(&messages, false), "Q: Who?\nA: Tom.<|endoftext|>");
        let pieces = template.encode_pieces(&parts.tokenizer, None, &messages).unwrap();
        let scored: Vec<u32> =
            pieces.iter().filter(|p| p.in_loss).flat_map(|p| p.ids.clone()).collect();
        assert_eq!(parts.tokenizer.decode(&scored, false).unwrap(), " Tom.<|endoftext|>");
    }

    #[test]
    fn what_cannot_be_trained_is_refused() {
        assert!(train_vocab(&CORPUS, 256).unwrap_err().to_string().contains("at least 257"));
        assert!(train_vocab(&["", ""], 300).is_err() && train_vocab(&[], 300).is_err());
    }
}
