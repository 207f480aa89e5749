//! Records to token ids with a loss mask.
//!
//! | type | ids | scored |
//! |---|---|---|
//! | text_only | what the tokenizer adds itself, the text, EOS | all |
//! | text2text | the BOS that the tokenizer adds, input, output, EOS | output and EOS |
//! | conversation | what the template writes | the assistant's part |
//! | tokenized | as given | labels other than -100; all without labels |
//!
//! Input and output are encoded apart and joined. LMFlow ends a text without EOS and puts neither
//! BOS nor EOS around text2text: [`Rules::no_eos`] and [`Rules::lmflow_compat`].

use super::record::{Conversation, Kind, Record};
use super::rows::{Document, NOT_SCORED, n_targets};
use crate::error::{Error, Result};
use crate::text::{ChatTemplate, TextParts, Tokenizer};

/// What is written around texts, and what is scored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// No EOS after text_only and text2text, unless the tokenizer adds it itself.
    pub no_eos: bool,
    /// LMFlow's special tokens: text_only without EOS, text2text without BOS and EOS.
    pub lmflow_compat: bool,
    /// Score the whole conversation and not only the assistant's part; also the input of text2text.
    pub train_on_prompt: bool,
    /// LMFlow's name of a conversation template; `None`: the model's own, else `empty`.
    pub conversation_template: Option<String>,
}

/// Presets of LMFlow that write the tools into the conversation, which ours do not.
const TOOL_PRESETS: [&str; 3] = ["llama3_for_tool", "qwen2_for_tool", "hymba"];

/// What became of a record.
#[derive(Debug, PartialEq)]
pub(super) enum Rendered {
    /// Ids and labels.
    Document {
        ids: Vec<u32>,
        labels: Vec<i32>,
        /// It has tools, which were left out.
        without_tools: bool,
    },
    /// Nothing to train on: why.
    Nothing(String),
}

/// Renders the records of one kind.
pub(super) struct Renderer<'a> {
    rules: Rules,
    tokenizer: Option<&'a Tokenizer>,
    template: Option<ChatTemplate>,
    /// What the tokenizer puts in front of a text by itself.
    lead: Vec<u32>,
    eos: Option<u32>,
    vocab_size: usize,
}

/// `Ok` for kinds that supervised training takes.
pub(super) fn check_kind(kind: Kind, place: &str) -> Result<()> {
    let purpose = match kind {
        Kind::TextOnly | Kind::Text2Text | Kind::Conversation | Kind::Tokenized => return Ok(()),
        Kind::PairedConversation => "reward models and preference tuning (reward, dpo)",
        Kind::PairedTextToText => "preference tuning (dpo)",
        Kind::TextToTextlist => "answers to be scored (eval, reward)",
        Kind::TextToScoredTextlist => "preference tuning from scored answers (dpo)",
        Kind::FloatOnly => "the scores that a reward model gives",
    };
    Err(Error::Data {
        place: place.to_owned(),
        what: format!(
            "records of type \"{}\" are for {purpose}; wanted one of text_only, text2text, conversation, tokenized",
            kind.name()
        ),
    })
}

impl<'a> Renderer<'a> {
    /// `text` may be absent for tokenised records only.
    ///
    /// # Errors
    /// A kind that is not trained on; a template name that is unknown; no tokenizer.
    pub(super) fn new(
        rules: &Rules,
        text: Option<&'a TextParts>,
        kind: Kind,
        vocab_size: usize,
        place: &str,
    ) -> Result<Renderer<'a>> {
        check_kind(kind, place)?;
        let mut renderer = Renderer {
            rules: rules.clone(),
            tokenizer: None,
            template: None,
            lead: vec![],
            eos: None,
            vocab_size,
        };
        if kind == Kind::Tokenized {
            return Ok(renderer);
        }
        let Some(text) = text else {
            return Err(Error::Data {
                place: place.to_owned(),
                what: format!(
                    "records of type \"{}\" need a tokenizer and the model has none; wanted JSON lines with input_ids",
                    kind.name()
                ),
            });
        };
        let tokenizer = &text.tokenizer;
        if kind == Kind::Conversation {
            let name = rules.conversation_template.as_deref();
            renderer.template = Some(ChatTemplate::resolve(name, text.template.clone())?);
        }
        renderer.eos = tokenizer.eos_id();
        renderer.lead = tokenizer.encode("", true, true)?;
        if renderer.lead.len() > 1 || tokenizer.bos_id() != renderer.eos {
            renderer.lead.pop_if(|last| Some(*last) == tokenizer.eos_id());
        }
        renderer.tokenizer = Some(tokenizer);
        Ok(renderer)
    }

    /// What the tokenizer puts in front of a text by itself.
    pub(super) fn lead(&self) -> &[u32] {
        &self.lead
    }

    /// Whether EOS is to be added, but the tokenizer names none.
    pub(super) fn lacks_eos(&self) -> bool {
        let wanted = !self.rules.no_eos && !self.rules.lmflow_compat;
        wanted && self.tokenizer.is_some() && self.template.is_none() && self.eos.is_none()
    }

    /// Ids and labels of a record.
    ///
    /// # Errors
    /// What the tokenizer refuses; ids and labels beyond the vocabulary; a kind other than the
    /// renderer's.
    pub(super) fn render(&self, record: &Record) -> Result<Rendered> {
        self.render_as(record, false)
    }

    /// As [`Renderer::render`], but an empty output is one that ended at once: its EOS, where the
    /// rules add one.
    ///
    /// # Errors
    /// As [`Renderer::render`].
    pub(super) fn render_answer(&self, record: &Record) -> Result<Rendered> {
        self.render_as(record, true)
    }

    fn render_as(&self, record: &Record, may_be_empty: bool) -> Result<Rendered> {
        let (ids, labels, without_tools) = match (record, self.tokenizer, &self.template) {
            (Record::Tokenized { input_ids, labels }, ..) => {
                (input_ids.clone(), self.labels_of(input_ids, labels.as_deref())?, false)
            }
            (Record::TextOnly(text), Some(tokenizer), _) => {
                if text.is_empty() {
                    return Ok(Rendered::Nothing("key \"text\": empty".into()));
                }
                let mut ids = tokenizer.encode(text, true, true)?;
                if ids.last().copied() != self.eos {
                    ids.extend(self.end());
                }
                let labels = ids.iter().map(|&id| id as i32).collect();
                (ids, labels, false)
            }
            (Record::Text2Text { input, output }, Some(tokenizer), _) => {
                if output.is_empty() && !(may_be_empty && self.end().is_some()) {
                    return Ok(Rendered::Nothing("key \"output\": empty".into()));
                }
                let mut ids = if self.rules.lmflow_compat { vec![] } else { self.lead.clone() };
                ids.append(&mut tokenizer.encode(input, false, true)?);
                let n_prompt = if self.rules.train_on_prompt { 0 } else { ids.len() };
                ids.append(&mut tokenizer.encode(output, false, true)?);
                if output.is_empty() || ids.last().copied() != self.eos {
                    ids.extend(self.end());
                }
                let label = |(i, &id)| if i < n_prompt { NOT_SCORED } else { id as i32 };
                let labels = ids.iter().enumerate().map(label).collect();
                (ids, labels, false)
            }
            (Record::Conversation(conversation), Some(tokenizer), Some(template)) => {
                match self.conversation(conversation, tokenizer, template)? {
                    Rendered::Document { ids, labels, without_tools } => {
                        (ids, labels, without_tools)
                    }
                    nothing => return Ok(nothing),
                }
            }
            _ => {
                return Err(Error::Unsupported("a record of another type than the set's".into()));
            }
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(Error::Tokenizer(format!(
                "id {id} is beyond the model's vocabulary of {}",
                self.vocab_size
            )));
        }
        if n_targets(&labels) == 0 {
            let what = format!("{} tokens, of which none is a scored target", ids.len());
            return Ok(Rendered::Nothing(what));
        }
        Ok(Rendered::Document { ids, labels, without_tools })
    }

    fn end(&self) -> Option<u32> {
        self.eos.filter(|_| !self.rules.no_eos && !self.rules.lmflow_compat)
    }

    fn labels_of(&self, ids: &[u32], labels: Option<&[i64]>) -> Result<Vec<i32>> {
        let Some(labels) = labels else {
            return Ok(ids.iter().map(|&id| id as i32).collect());
        };
        let label = |(i, &label): (usize, &i64)| match i32::try_from(label) {
            Ok(NOT_SCORED) => Ok(NOT_SCORED),
            Ok(id) if id >= 0 && (id as usize) < self.vocab_size => Ok(id),
            _ => Err(Error::Tokenizer(format!(
                "labels[{i}] is {label}, beyond the model's vocabulary of {}",
                self.vocab_size
            ))),
        };
        labels.iter().enumerate().map(label).collect()
    }

    /// Ids and labels, not yet checked.
    fn conversation(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
    ) -> Result<Rendered> {
        let name = self.rules.conversation_template.as_deref().unwrap_or_default();
        if !conversation.tools.is_empty() && TOOL_PRESETS.contains(&name) {
            return Err(Error::Unsupported(format!(
                "key \"tools\": the template {name} would have to describe them to the model"
            )));
        }
        let mut system = conversation.system.as_deref();
        let mut messages = conversation.messages.as_slice();
        if let [first, rest @ ..] = messages
            && first.role == "system"
        {
            if system.is_some() {
                let what = "both key \"system\" and a message of role system";
                return Ok(Rendered::Nothing(what.into()));
            }
            (system, messages) = (Some(first.content.as_str()), rest);
        }
        let pieces = match template.encode_pieces(tokenizer, system, messages) {
            Ok(pieces) => pieces,
            Err(Error::Template(what)) => return Ok(Rendered::Nothing(what)),
            Err(other) => return Err(other),
        };
        let (mut ids, mut labels) = (vec![], vec![]);
        for piece in pieces {
            let scored = piece.in_loss || self.rules.train_on_prompt;
            labels.extend(piece.ids.iter().map(|&id| if scored { id as i32 } else { NOT_SCORED }));
            ids.extend(piece.ids);
        }
        Ok(Rendered::Document { ids, labels, without_tools: !conversation.tools.is_empty() })
    }
}

impl Rendered {
    /// As a document of an instance, or why there is nothing.
    pub(super) fn into_document(self, source: u32) -> Result<Document, String> {
        match self {
            Rendered::Document { ids, labels, .. } => Ok(Document { ids, labels, source }),
            Rendered::Nothing(why) => Err(why),
        }
    }
}
