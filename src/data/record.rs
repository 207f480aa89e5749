//! The types of records and their contents.

use crate::text::Message;

/// Type of all records of a set, under LMFlow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `text`.
    TextOnly,
    /// `input`, `output`.
    Text2Text,
    /// `messages`.
    Conversation,
    /// `chosen`, `rejected`: two conversations.
    PairedConversation,
    /// `prompt`, `chosen`, `rejected`: texts.
    PairedTextToText,
    /// `input`, `output`: a list of texts.
    TextToTextlist,
    /// `input`, `output`: a list of texts with scores.
    TextToScoredTextlist,
    /// `value`.
    FloatOnly,
    /// `input_ids`, JSON lines only.
    Tokenized,
}

impl Kind {
    /// Every kind that can be read.
    pub const ALL: [Kind; 9] = [
        Kind::TextOnly,
        Kind::Text2Text,
        Kind::Conversation,
        Kind::PairedConversation,
        Kind::PairedTextToText,
        Kind::TextToTextlist,
        Kind::TextToScoredTextlist,
        Kind::FloatOnly,
        Kind::Tokenized,
    ];

    /// The name in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::TextOnly => "text_only",
            Kind::Text2Text => "text2text",
            Kind::Conversation => "conversation",
            Kind::PairedConversation => "paired_conversation",
            Kind::PairedTextToText => "paired_text_to_text",
            Kind::TextToTextlist => "text_to_textlist",
            Kind::TextToScoredTextlist => "text_to_scored_textlist",
            Kind::FloatOnly => "float_only",
            Kind::Tokenized => "tokenized",
        }
    }
}

/// Messages of a dialogue; the system text stands apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Turns in order; roles as written.
    pub messages: Vec<Message>,
    /// The system text, where there is one.
    pub system: Option<String>,
    /// Name of the conversation, where it has one.
    pub id: Option<String>,
    /// Tool descriptions, as JSON.
    pub tools: Vec<serde_json::Value>,
}

impl Conversation {
    /// All messages, the system text first as a message of role `system`.
    pub fn with_system(&self) -> Vec<Message> {
        let system =
            self.system.iter().map(|text| Message { role: "system".into(), content: text.clone() });
        system.chain(self.messages.iter().cloned()).collect()
    }
}

/// An input with its answers.
#[derive(Clone, Debug, PartialEq)]
pub struct TextList {
    /// What was asked.
    pub input: String,
    /// The answers.
    pub output: Vec<String>,
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Plain text.
    TextOnly(String),
    /// A question with its answer.
    Text2Text {
        /// What is asked.
        input: String,
        /// What is to be answered.
        output: String,
    },
    /// A dialogue.
    Conversation(Conversation),
    /// Two dialogues, one of them preferred.
    PairedConversation {
        /// The preferred one.
        chosen: Conversation,
        /// The other.
        rejected: Conversation,
    },
    /// Two answers, one of them preferred.
    PairedTextToText {
        /// What is asked.
        prompt: String,
        /// The preferred answer.
        chosen: String,
        /// The other.
        rejected: String,
        /// By how much it is preferred, where that is known.
        margin: Option<f64>,
    },
    /// Several answers.
    TextToTextlist(TextList),
    /// Several answers with scores.
    TextToScoredTextlist {
        /// What is asked.
        input: String,
        /// Score and text of each answer.
        output: Vec<(f64, String)>,
    },
    /// A number.
    FloatOnly(f64),
    /// Token ids.
    Tokenized {
        /// The ids.
        input_ids: Vec<u32>,
        /// For each id the label, -100 for what is not scored; `None`: the ids themselves.
        labels: Option<Vec<i64>>,
    },
}

impl Record {
    /// The type that the record belongs to.
    pub fn kind(&self) -> Kind {
        match self {
            Record::TextOnly(_) => Kind::TextOnly,
            Record::Text2Text { .. } => Kind::Text2Text,
            Record::Conversation(_) => Kind::Conversation,
            Record::PairedConversation { .. } => Kind::PairedConversation,
            Record::PairedTextToText { .. } => Kind::PairedTextToText,
            Record::TextToTextlist(_) => Kind::TextToTextlist,
            Record::TextToScoredTextlist { .. } => Kind::TextToScoredTextlist,
            Record::FloatOnly(_) => Kind::FloatOnly,
            Record::Tokenized { .. } => Kind::Tokenized,
        }
    }
}
