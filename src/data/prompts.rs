//! Prompts to be answered by a model in training, and answers written behind them.
//!
//! | type | prompt | reference answer |
//! |---|---|---|
//! | text_only | `text` | none |
//! | text2text | `input` | `output` |
//! | conversation | the messages before the last one of the assistant, else all | that message |
//! | paired_text_to_text, paired_conversation | that of `chosen` | none |
//! | text_to_textlist, text_to_scored_textlist | `input` | none |
//!
//! A prompt has the ids that [`prepare()`](super::prepare()) gives it before an answer, so that what is
//! sampled behind it is a training row as it stands.

use super::record::{Conversation, Kind, Record};
use super::render::{Rendered, Renderer, Rules};
use super::source::Source;
use crate::error::{Error, Result};
use crate::text::{ChatTemplate, Message, TextParts};
use std::path::Path;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// A text to be continued.
    Text(String),
    /// A conversation whose next turn is the assistant's.
    Conversation(Conversation),
}

/// A question as a model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What is asked.
    pub question: Question,
    /// Its ids, which end where the answer begins.
    pub ids: Vec<u32>,
    /// The text that is asked: of a conversation the last message.
    pub text: String,
    /// The answer that the data have for it.
    pub answer: Option<String>,
    /// Where it stands, for people.
    pub place: String,
}

/// How a data set becomes prompts.
#[derive(Clone, Debug)]
pub struct PromptOptions {
    /// What is written around texts.
    pub rules: Rules,
    /// Longer prompts are left out and counted.
    pub max_length: usize,
    /// Leave out and count what is no prompt.
    pub skip_bad_instances: bool,
}

/// The prompts of a data set.
#[derive(Clone, Debug, Default)]
pub struct PromptSet {
    /// The prompts, in the order of the data.
    pub prompts: Vec<Prompt>,
    /// Prompts left out because they are too long, and the place of the first.
    pub too_long: (usize, Option<String>),
    /// Instances left out because they are none, with the first one's place and reason.
    pub skipped: (usize, Option<String>),
    /// Ids that end an answer beside the model's own.
    pub stop_ids: Vec<u32>,
}

/// Reads the prompts of the data set at `path`.
///
/// # Errors
/// Files that cannot be read; records of a type that asks nothing; a model without tokenizer;
/// unless they are to be skipped, empty prompts; a set of which none is left.
pub fn prompts(
    path: &Path,
    text: Option<&TextParts>,
    vocab_size: usize,
    options: &PromptOptions,
) -> Result<PromptSet> {
    let source = Source::open(path)?;
    let mut out = PromptSet::default();
    let mut asking: Option<Asking<'_>> = None;
    source.for_each(&mut |instance| {
        let place = source.name(instance.place);
        let kind = instance.record.kind();
        let fault = |what: String| Error::Data { place: place.clone(), what };
        let Some((question, answer)) = question_of(instance.record) else {
            return Err(fault(format!(
                "records of type \"{}\", wanted texts, conversations or pairs of these",
                kind.name()
            )));
        };
        let asking = match &mut asking {
            Some(asking) => asking,
            none => none.insert(Asking::new(&options.rules, text, vocab_size, &place)?),
        };
        match asking.prompt(&question).map_err(|error| named(error, &place))? {
            Ok(ids) if ids.len() > options.max_length => {
                out.too_long.0 += 1;
                out.too_long.1.get_or_insert(format!("{place}, {} tokens", ids.len()));
            }
            Ok(ids) => {
                let text = question.text().to_owned();
                out.prompts.push(Prompt { question, ids, text, answer, place });
            }
            Err(what) if options.skip_bad_instances => {
                out.skipped.0 += 1;
                out.skipped.1.get_or_insert(format!("{place}: {what}"));
            }
            Err(what) => return Err(fault(what)),
        }
        Ok(())
    })?;
    if let Some(asking) = &asking
        && out.prompts.iter().any(|one| matches!(one.question, Question::Conversation(_)))
    {
        out.stop_ids = asking.template.stop_ids(&asking.text.tokenizer);
    }
    if out.prompts.is_empty() {
        let what = match &out.too_long {
            (0, _) => "no prompt in it, wanted at least one".to_owned(),
            (n, first) => format!(
                "none of {n} prompts has at most {} tokens; the first: {}",
                options.max_length,
                first.as_deref().unwrap_or_default()
            ),
        };
        return Err(Error::Data { place: path.display().to_string(), what });
    }
    Ok(out)
}

fn named(error: Error, place: &str) -> Error {
    match error {
        Error::Tokenizer(what) => Error::Data { place: place.to_owned(), what },
        other => other,
    }
}

/// What a record asks, and its own answer; `None` for types that ask nothing.
fn question_of(record: Record) -> Option<(Question, Option<String>)> {
    Some(match record {
        Record::TextOnly(text) => (Question::Text(text), None),
        Record::Text2Text { input, output } => (Question::Text(input), Some(output)),
        Record::Conversation(conversation) => open(conversation),
        Record::PairedConversation { chosen, .. } => (open(chosen).0, None),
        Record::PairedTextToText { prompt, .. } => (Question::Text(prompt), None),
        Record::TextToTextlist(list) => (Question::Text(list.input), None),
        Record::TextToScoredTextlist { input, .. } => (Question::Text(input), None),
        Record::FloatOnly(_) | Record::Tokenized { .. } => return None,
    })
}

/// A conversation without the assistant's last turn, and that turn.
fn open(mut conversation: Conversation) -> (Question, Option<String>) {
    let last = conversation.messages.pop_if(|message| message.role == "assistant");
    (Question::Conversation(conversation), last.map(|message| message.content))
}

impl Question {
    /// The text that is asked.
    pub fn text(&self) -> &str {
        match self {
            Question::Text(text) => text,
            Question::Conversation(conversation) => {
                conversation.messages.last().map_or("", |message| &message.content)
            }
        }
    }
}

/// Writes questions, and answers behind them, as a model's training rows are written.
pub struct Asking<'a> {
    text: &'a TextParts,
    template: ChatTemplate,
    texts: Renderer<'a>,
    conversations: Renderer<'a>,
    vocab_size: usize,
    /// What the tokenizer puts in front of a text by itself.
    lead: Vec<u32>,
}

impl<'a> Asking<'a> {
    /// For a model's tokenizer and template.
    ///
    /// # Errors
    /// No tokenizer; a template name that is unknown.
    pub fn new(
        rules: &Rules,
        text: Option<&'a TextParts>,
        vocab_size: usize,
        place: &str,
    ) -> Result<Asking<'a>> {
        let new = |kind| Renderer::new(rules, text, kind, vocab_size, place);
        let (texts, conversations) = (new(Kind::Text2Text)?, new(Kind::Conversation)?);
        let none = || Error::Tokenizer(format!("{place}: the model has none"));
        let text = text.ok_or_else(none)?;
        let name = rules.conversation_template.as_deref();
        let template = ChatTemplate::resolve(name, text.template.clone())?;
        let lead = texts.lead().to_vec();
        Ok(Asking { text, template, texts, conversations, vocab_size, lead })
    }

    /// Ids up to where the answer begins, or why there are none.
    ///
    /// # Errors
    /// What the tokenizer refuses; ids beyond the vocabulary.
    pub fn prompt(&self, question: &Question) -> Result<Result<Vec<u32>, String>> {
        let tokenizer = &self.text.tokenizer;
        let ids = match question {
            Question::Text(text) => {
                let mut ids = self.lead.clone();
                ids.append(&mut tokenizer.encode(text, false, true)?);
                ids
            }
            Question::Conversation(conversation) => {
                match conversation.messages.last() {
                    Some(last) if last.role != "assistant" => {}
                    _ => return Ok(Err("no message to be answered".to_owned())),
                }
                match self.template.encode(tokenizer, &conversation.with_system(), true) {
                    Ok(ids) => ids,
                    Err(Error::Template(what)) => return Ok(Err(what)),
                    Err(other) => return Err(other),
                }
            }
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            let what = format!("id {id} is beyond the model's vocabulary of {}", self.vocab_size);
            return Err(Error::Tokenizer(what));
        }
        Ok(if ids.is_empty() { Err("empty, wanted a prompt".to_owned()) } else { Ok(ids) })
    }

    /// Ids of a question with an answer behind it, as a reward model was trained on them. An empty
    /// answer is only its end.
    ///
    /// # Errors
    /// As [`Asking::prompt`]; a conversation that the template refuses.
    pub fn answered(&self, question: &Question, answer: &str) -> Result<Vec<u32>> {
        let (renderer, record) = match question {
            Question::Text(input) => {
                let (input, output) = (input.clone(), answer.to_owned());
                (&self.texts, Record::Text2Text { input, output })
            }
            Question::Conversation(conversation) => {
                let mut whole = conversation.clone();
                whole.messages.push(Message::new("assistant", answer));
                (&self.conversations, Record::Conversation(whole))
            }
        };
        match renderer.render_answer(&record)? {
            Rendered::Document { ids, .. } => Ok(ids),
            Rendered::Nothing(_) if answer.is_empty() => {
                let ids = self.prompt(question)?.map_err(Error::Template)?;
                Ok(ids.into_iter().chain(self.text.tokenizer.eos_id()).collect())
            }
            Rendered::Nothing(what) => Err(Error::Template(what)),
        }
    }
}
