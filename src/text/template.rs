//! Chat templates: a conversation to token ids, for answering and for training.

use super::jinja::{self, Vars};
use super::pieces::{self, Preset};
use super::presets;
use super::tokenizer::{END_TOKENS, Tokenizer};
use crate::error::{Error, Result};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A stretch of an encoded conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its token ids.
    pub ids: Vec<u32>,
    /// Whether it is scored in training: what the assistant says.
    pub in_loss: bool,
}

/// The model's own Jinja template, or a preset of LMFlow by name.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Jinja { source: String },
    Pieces(&'static Preset),
}

impl ChatTemplate {
    /// A Jinja template in transformers' manner. It is compiled when it is used, so that a model
    /// with a faulty template can still be used without it.
    ///
    /// # Errors
    /// [`Error::Template`] for one of more than 1 MiB.
    pub fn jinja(source: impl Into<String>) -> Result<ChatTemplate> {
        let source = source.into();
        if source.len() > jinja::MAX_SOURCE_BYTES {
            return Err(Error::Template(format!(
                "{} bytes, at most {} are read",
                source.len(),
                jinja::MAX_SOURCE_BYTES
            )));
        }
        Ok(ChatTemplate { kind: Kind::Jinja { source } })
    }

    /// A preset by its LMFlow name.
    ///
    /// # Errors
    /// [`Error::Config`] for another name, with the known ones.
    pub fn preset(name: &str) -> Result<ChatTemplate> {
        if let Some(preset) = presets::PIECES.iter().find(|p| p.names.contains(&name)) {
            return Ok(ChatTemplate { kind: Kind::Pieces(preset) });
        }
        if let Some(source) = presets::jinja(name) {
            return Ok(ChatTemplate { kind: Kind::Jinja { source } });
        }
        let known = presets::names().join(", ");
        Err(Error::config(
            "conversation-template",
            name,
            format!("known: tokenizer, hf_auto, {known}"),
        ))
    }

    /// The Jinja source; `None` for a preset of pieces.
    pub fn source(&self) -> Option<&str> {
        match &self.kind {
            Kind::Jinja { source } => Some(source),
            Kind::Pieces(_) => None,
        }
    }

    /// Names of all presets.
    pub fn preset_names() -> Vec<&'static str> {
        presets::names()
    }

    /// What `--conversation-template` means: a preset's name; `tokenizer`, the model's `own`;
    /// `hf_auto` or nothing, the own one and else `empty`.
    ///
    /// # Errors
    /// As [`preset`](Self::preset), and [`Error::Config`] for `tokenizer` without an own template.
    pub fn resolve(name: Option<&str>, own: Option<ChatTemplate>) -> Result<ChatTemplate> {
        match (name, own) {
            (None | Some("hf_auto" | "tokenizer"), Some(own)) => Ok(own),
            (None | Some("hf_auto"), None) => ChatTemplate::preset("empty"),
            (Some("tokenizer"), None) => Err(Error::config(
                "conversation-template",
                "tokenizer",
                "the model has no chat template of its own",
            )),
            (Some(name), _) => ChatTemplate::preset(name),
        }
    }

    /// The conversation as text; `bos` and `eos` are the tokenizer's tokens.
    ///
    /// # Errors
    /// [`Error::Template`], with the template's line where it has one.
    pub fn render(
        &self,
        bos: &str,
        eos: &str,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        match &self.kind {
            Kind::Jinja { source } => {
                let marks = ("", "");
                jinja::render(source, &Vars { messages, add_generation_prompt, bos, eos, marks })
            }
            Kind::Pieces(preset) => {
                let (system, turns) = split_system(messages);
                Ok(pieces::text(&preset.halves(system, turns, add_generation_prompt)?, bos, eos))
            }
        }
    }

    /// Ids of a conversation; with `add_generation_prompt` it ends where the assistant begins to
    /// speak. BOS is only where the template puts it.
    ///
    /// # Errors
    /// [`Error::Template`] and what [`Tokenizer::encode`] returns.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Jinja { .. } => {
                let (bos, eos) = bos_eos(tokenizer);
                let text = self.render(&bos, &eos, messages, add_generation_prompt)?;
                tokenizer.encode(&text, false, true)
            }
            Kind::Pieces(preset) => {
                let (system, turns) = split_system(messages);
                let halves = preset.halves(system, turns, add_generation_prompt)?;
                let pieces = pieces::encode(&halves, tokenizer)?;
                Ok(pieces.into_iter().flat_map(|piece| piece.ids).collect())
            }
        }
    }

    /// A finished conversation for training, in stretches that are or are not in the loss. For a
    /// preset of pieces these are the halves of its turns (the system text in the first), of which
    /// a last one without an answer is left out. For a Jinja template the assistant's part is what
    /// its `generation` blocks hold; in a template without them, what an answer adds to the text
    /// with the generation prompt. The stretches of a Jinja template are encoded one by one.
    ///
    /// # Errors
    /// [`Error::Template`] when the conversation does not begin with a user's message and an
    /// answer, or the assistant's part cannot be told.
    pub fn encode_pieces(
        &self,
        tokenizer: &Tokenizer,
        system: Option<&str>,
        messages: &[Message],
    ) -> Result<Vec<Piece>> {
        let answers = messages.iter().rposition(|m| m.role == "assistant");
        let (Some(last), Some("user")) = (answers, messages.first().map(|m| m.role.as_str()))
        else {
            return Err(Error::Template(
                "a conversation to train on begins with a user's message and has an answer".into(),
            ));
        };
        let messages = &messages[..=last];
        match &self.kind {
            Kind::Pieces(preset) => {
                pieces::encode(&preset.halves(system, messages, false)?, tokenizer)
            }
            Kind::Jinja { source } => {
                let system = system.filter(|s| !s.trim().is_empty());
                let all: Vec<Message> = system
                    .map(|text| Message::new("system", text))
                    .into_iter()
                    .chain(messages.iter().cloned())
                    .collect();
                let parts = if jinja::marks_generation(source) {
                    self.marked_parts(source, tokenizer, &all)?
                } else {
                    self.added_parts(tokenizer, &all)?
                };
                (parts.into_iter().filter(|(text, _)| !text.is_empty()))
                    .map(|(text, in_loss)| {
                        Ok(Piece { ids: tokenizer.encode(&text, false, true)?, in_loss })
                    })
                    .collect()
            }
        }
    }

    /// The text cut at the ends of the template's `generation` blocks.
    fn marked_parts(
        &self,
        source: &str,
        tokenizer: &Tokenizer,
        messages: &[Message],
    ) -> Result<Vec<(String, bool)>> {
        let (bos, eos) = bos_eos(tokenizer);
        // A mark that nobody has written: no text of n bytes holds all of n + 1 different ones.
        let mut n = 0usize;
        let mark = loop {
            let mark = format!("\u{e000}{n}\u{e001}");
            if !messages.iter().any(|m| m.content.contains(&mark) || m.role.contains(&mark)) {
                break mark;
            }
            n += 1;
        };
        let vars = Vars {
            messages,
            add_generation_prompt: false,
            bos: &bos,
            eos: &eos,
            marks: (&mark, &mark),
        };
        let text = jinja::render(source, &vars)?;
        let parts = text.split(mark.as_str());
        Ok(parts.enumerate().map(|(i, part)| (part.to_string(), i % 2 == 1)).collect())
    }

    /// The text cut by what each answer adds to it.
    fn added_parts(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
    ) -> Result<Vec<(String, bool)>> {
        let (bos, eos) = bos_eos(tokenizer);
        let whole = self.render(&bos, &eos, messages, false)?;
        let mut parts = Vec::new();
        let mut done = 0;
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let before = self.render(&bos, &eos, &messages[..i], true)?;
            let after = self.render(&bos, &eos, &messages[..=i], false)?;
            if before.len() < done || !whole.starts_with(&after) || !after.starts_with(&before) {
                return Err(Error::Template(format!(
                    "the assistant's part of message {i} cannot be told: the template has no generation blocks and writes earlier messages anew"
                )));
            }
            parts.push((whole[done..before.len()].to_string(), false));
            parts.push((whole[before.len()..after.len()].to_string(), true));
            done = after.len();
        }
        parts.push((whole[done..].to_string(), false));
        Ok(parts)
    }

    /// What decides how the template writes, as text: to tell templates apart, not to be read.
    pub fn identity(&self) -> String {
        match &self.kind {
            Kind::Jinja { source } => format!("jinja:{source}"),
            Kind::Pieces(preset) => format!("{preset:?}"),
        }
    }

    /// Tokens that end an answer besides EOS: the template's own ends of turns that are in the
    /// vocabulary, and EOS where it ends turns with it.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let (texts, eos): (Vec<&str>, bool) = match &self.kind {
            Kind::Jinja { source } => (vec![source], source.contains("eos_token")),
            Kind::Pieces(preset) => (preset.literals().collect(), preset.ends_with_eos()),
        };
        let own: &[&str] = match &self.kind {
            Kind::Jinja { .. } => &[],
            Kind::Pieces(preset) => preset.stops,
        };
        let mut ids: Vec<u32> = tokenizer.eos_id().filter(|_| eos).into_iter().collect();
        for token in END_TOKENS.iter().chain(own) {
            if texts.iter().any(|text| text.contains(token)) {
                ids.extend(tokenizer.token_to_id(token).filter(|id| !ids.contains(id)));
            }
        }
        ids
    }
}

fn split_system(messages: &[Message]) -> (Option<&str>, &[Message]) {
    match messages.split_first() {
        Some((first, rest)) if first.role == "system" => (Some(&first.content), rest),
        _ => (None, messages),
    }
}

fn bos_eos(tokenizer: &Tokenizer) -> (String, String) {
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
    (token(tokenizer.bos_id()), token(tokenizer.eos_id()))
}
