//! One JSON value to one record, with errors that name the key, what was found and what wanted.

use super::record::{Conversation, Kind, Record, TextList};
use crate::error::{Error, Result};
use crate::text::Message;
use serde_json::{Map, Value};

/// A JSON object together with where it stands, for messages.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    place: &'a str,
    /// Keys that lead here from the record, each followed by a dot; empty at the record itself.
    path: &'a str,
    map: &'a Map<String, Value>,
}

/// What a JSON value is, in words.
pub(super) fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn fault(place: &str, what: impl Into<String>) -> Error {
    Error::Data { place: place.to_owned(), what: what.into() }
}

impl<'a> Object<'a> {
    pub(super) fn new(place: &'a str, path: &'a str, value: &'a Value) -> Result<Object<'a>> {
        match value {
            Value::Object(map) => Ok(Object { place, path, map }),
            other => {
                let what = if path.is_empty() { "found" } else { path.trim_end_matches('.') };
                Err(fault(place, format!("{what}: {}, wanted an object", describe(other))))
            }
        }
    }

    fn wrong(&self, key: &str, found: &str, wanted: &str) -> Error {
        fault(self.place, format!("key \"{}{key}\": {found}, wanted {wanted}", self.path))
    }

    fn optional(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn required(&self, key: &str, wanted: &str) -> Result<&'a Value> {
        self.map.get(key).ok_or_else(|| {
            let keys: Vec<String> = self.map.keys().map(|k| format!("\"{k}\"")).collect();
            let found = if keys.is_empty() { "no keys".into() } else { keys.join(", ") };
            self.wrong(key, &format!("not there (found {found})"), wanted)
        })
    }

    fn string(&self, key: &str) -> Result<String> {
        let value = self.required(key, "a string")?;
        let text = value.as_str().ok_or_else(|| self.wrong(key, describe(value), "a string"))?;
        Ok(text.to_owned())
    }

    fn list(&self, key: &str) -> Result<&'a [Value]> {
        let value = self.required(key, "a list")?;
        let list = value.as_array().ok_or_else(|| self.wrong(key, describe(value), "a list"))?;
        Ok(list)
    }

    fn number(&self, key: &str) -> Result<f64> {
        let value = self.required(key, "a number")?;
        value.as_f64().ok_or_else(|| self.wrong(key, describe(value), "a number"))
    }

    fn conversation(&self) -> Result<Conversation> {
        let mut messages = vec![];
        for (index, value) in self.list("messages")?.iter().enumerate() {
            let path = format!("{}messages[{index}].", self.path);
            let message = Object::new(self.place, &path, value)?;
            messages.push(Message {
                role: message.string("role")?,
                content: message.string("content")?,
            });
        }
        if messages.is_empty() {
            return Err(self.wrong("messages", "an empty list", "at least one message"));
        }
        let text = |key| self.optional(key).map(|_| self.string(key)).transpose();
        let tools = self.optional("tools").map(|_| self.list("tools")).transpose()?;
        Ok(Conversation {
            messages,
            system: text("system")?,
            id: match self.optional("conversation_id") {
                Some(Value::Number(number)) => Some(number.to_string()),
                _ => text("conversation_id")?,
            },
            tools: tools.unwrap_or_default().to_vec(),
        })
    }

    fn inner_conversation(&self, key: &str) -> Result<Conversation> {
        let path = format!("{}{key}.", self.path);
        Object::new(self.place, &path, self.required(key, "an object")?)?.conversation()
    }

    fn strings(&self, key: &str) -> Result<Vec<String>> {
        let read = |(index, value): (usize, &Value)| {
            let text = value.as_str().map(str::to_owned);
            text.ok_or_else(|| self.wrong(&format!("{key}[{index}]"), describe(value), "a string"))
        };
        self.list(key)?.iter().enumerate().map(read).collect()
    }

    fn scored(&self, key: &str) -> Result<Vec<(f64, String)>> {
        let read = |(index, value): (usize, &Value)| {
            let path = format!("{}{key}[{index}].", self.path);
            let answer = Object::new(self.place, &path, value)?;
            Ok((answer.number("score")?, answer.string("text")?))
        };
        self.list(key)?.iter().enumerate().map(read).collect()
    }

    fn integers<T: TryFrom<i64>>(&self, key: &str, wanted: &str) -> Result<Vec<T>> {
        let read = |(index, value): (usize, &Value)| {
            let number = value.as_i64().and_then(|n| T::try_from(n).ok());
            number.ok_or_else(|| self.wrong(&format!("{key}[{index}]"), &value.to_string(), wanted))
        };
        self.list(key)?.iter().enumerate().map(read).collect()
    }

    fn tokenized(&self) -> Result<Record> {
        let input_ids: Vec<u32> = self.integers("input_ids", "a token id")?;
        if input_ids.is_empty() {
            return Err(self.wrong("input_ids", "an empty list", "at least one id"));
        }
        let labels: Option<Vec<i64>> = match self.optional("labels") {
            Some(_) => Some(self.integers("labels", "a token id or -100")?),
            None => None,
        };
        for (index, &label) in labels.iter().flatten().enumerate() {
            if label != -100 && u32::try_from(label).is_err() {
                let key = format!("labels[{index}]");
                return Err(self.wrong(&key, &label.to_string(), "a token id or -100"));
            }
        }
        match &labels {
            Some(labels) if labels.len() != input_ids.len() => Err(self.wrong(
                "labels",
                &format!("{} entries", labels.len()),
                &format!("as many as input_ids has, {}", input_ids.len()),
            )),
            _ => Ok(Record::Tokenized { input_ids, labels }),
        }
    }

    /// The record of type `kind`.
    pub(super) fn record(&self, kind: Kind) -> Result<Record> {
        Ok(match kind {
            Kind::TextOnly => Record::TextOnly(self.string("text")?),
            Kind::Text2Text => {
                Record::Text2Text { input: self.string("input")?, output: self.string("output")? }
            }
            Kind::Conversation => Record::Conversation(self.conversation()?),
            Kind::PairedConversation => Record::PairedConversation {
                chosen: self.inner_conversation("chosen")?,
                rejected: self.inner_conversation("rejected")?,
            },
            Kind::PairedTextToText => Record::PairedTextToText {
                prompt: self.string("prompt")?,
                chosen: self.string("chosen")?,
                rejected: self.string("rejected")?,
                margin: self.optional("margin").map(|_| self.number("margin")).transpose()?,
            },
            Kind::TextToTextlist => Record::TextToTextlist(TextList {
                input: self.string("input")?,
                output: self.strings("output")?,
            }),
            Kind::TextToScoredTextlist => Record::TextToScoredTextlist {
                input: self.string("input")?,
                output: self.scored("output")?,
            },
            Kind::FloatOnly => Record::FloatOnly(self.number("value")?),
            Kind::Tokenized => self.tokenized()?,
        })
    }

    /// The type that the keys of a JSON line tell.
    pub(super) fn kind_by_keys(&self) -> Result<Kind> {
        let has = |key: &str| self.map.contains_key(key);
        let first_output = self.map.get("output").and_then(Value::as_array).map(|l| l.first());
        Ok(match () {
            () if has("input_ids") => Kind::Tokenized,
            () if has("messages") => Kind::Conversation,
            () if has("chosen") && has("rejected") && has("prompt") => Kind::PairedTextToText,
            () if has("chosen") && has("rejected") => Kind::PairedConversation,
            () if has("input") && has("output") => match first_output {
                None => Kind::Text2Text,
                Some(Some(Value::Object(_))) => Kind::TextToScoredTextlist,
                Some(_) => Kind::TextToTextlist,
            },
            () if has("images") => return Err(self.image_text()),
            () if has("text") => Kind::TextOnly,
            () if has("value") => Kind::FloatOnly,
            () => {
                let keys: Vec<&str> = self.map.keys().map(String::as_str).collect();
                let what = format!(
                    "keys [{}] belong to no type; wanted text, input and output, messages, \
                     chosen and rejected, value, or input_ids",
                    keys.join(", ")
                );
                return Err(fault(self.place, what));
            }
        })
    }

    fn image_text(&self) -> Error {
        Error::Unsupported(format!("{}: records of type image_text", self.place))
    }
}
