//! Conversation presets made of pieces: what stands around the system, user and assistant texts,
//! which of it is in the loss, and where BOS and EOS go.
//!
//! Every text piece is encoded on its own, without automatic special tokens; special tokens
//! written in it are recognised. With a SentencePiece tokenizer each piece therefore begins with
//! the tokenizer's own space.

use super::template::{Message, Piece};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// A part of a format; in a text, `{}` is where the content goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Bos,
    Eos,
    Text(&'static str),
}

/// Where the system text goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum System {
    /// Pieces of its own, before the first user piece.
    Pieces(&'static [Part]),
    /// Inside the first user text, in front of it.
    InUser(&'static str),
    /// There is no place for one.
    None,
}

/// A preset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preset {
    pub(super) names: &'static [&'static str],
    /// Once, at the very beginning.
    pub(super) start: &'static [Part],
    pub(super) system: System,
    /// The system piece is written even without a system text.
    pub(super) force_system: bool,
    pub(super) user: &'static [Part],
    pub(super) assistant: &'static [Part],
    /// What a tool answered; presets without it take no tool roles.
    pub(super) tool: Option<&'static [Part]>,
    /// Once, after the last answer.
    pub(super) end: &'static [Part],
    /// A final token with this id is taken away before `end`.
    pub(super) drop_last: Option<u32>,
    /// Without a system text the first user piece loses the newline it begins with.
    pub(super) no_first_newline: bool,
    /// Tokens that end an answer though they belong to the next turn.
    pub(super) stops: &'static [&'static str],
}

/// A piece of a conversation before it is encoded.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Atom {
    Bos,
    Eos,
    Text(String),
    /// Take the last id away if it is this one.
    DropLast(u32),
}

/// The atoms of one half of a turn, and whether they are in the loss.
pub(super) struct Half {
    pub(super) atoms: Vec<Atom>,
    pub(super) in_loss: bool,
}

fn fill(parts: &[Part], content: &str, out: &mut Vec<Atom>) {
    for part in parts {
        out.push(match part {
            Part::Bos => Atom::Bos,
            Part::Eos => Atom::Eos,
            Part::Text(format) => Atom::Text(match format.split_once("{}") {
                Some((before, after)) => [before, content, after].concat(),
                None => (*format).to_string(),
            }),
        });
    }
}

/// An empty text is one space: there is always something between the marks.
fn or_space(content: &str) -> &str {
    if content.is_empty() { " " } else { content }
}

impl Preset {
    /// The conversation as halves of turns; with `add_generation_prompt` the assistant's next answer
    /// is begun, otherwise the conversation is over.
    pub(super) fn halves(
        &self,
        system: Option<&str>,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<Half>> {
        let system = system.filter(|s| !s.trim().is_empty());
        let mut lead = Vec::new();
        fill(self.start, "", &mut lead);
        let mut in_user = None;
        match (self.system, system) {
            (System::Pieces(parts), Some(text)) => fill(parts, text, &mut lead),
            (System::Pieces(parts), None) if self.force_system => fill(parts, "", &mut lead),
            (System::InUser(format), Some(text)) => in_user = Some(format.replacen("{}", text, 1)),
            (System::None, Some(_)) => {
                return Err(Error::Template(format!(
                    "the preset {} has no place for a system text",
                    self.names[0]
                )));
            }
            (_, None) => {}
        }
        let mut first_newline = self.no_first_newline && system.is_none();
        let mut halves: Vec<Half> = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            let (parts, in_loss) = self.role(i, &message.role)?;
            let mut atoms = std::mem::take(&mut lead);
            let at = atoms.len();
            let content = or_space(&message.content);
            match in_user.take_if(|_| message.role == "user") {
                Some(system) => fill(parts, &(system + content), &mut atoms),
                None => fill(parts, content, &mut atoms),
            }
            if std::mem::take(&mut first_newline)
                && let Some(Atom::Text(text)) = atoms.get_mut(at)
                && text.starts_with('\n')
            {
                text.remove(0);
            }
            match halves.last_mut() {
                // What a function call and its answer say belongs to the masked half before it.
                Some(last) if last.in_loss == in_loss => last.atoms.append(&mut atoms),
                _ => halves.push(Half { atoms, in_loss }),
            }
        }
        if !lead.is_empty() {
            halves.push(Half { atoms: lead, in_loss: false });
        }
        if add_generation_prompt {
            let atoms = self.answer_begins();
            halves.push(Half { atoms, in_loss: false });
        } else if let Some(last) = halves.last_mut().filter(|half| half.in_loss) {
            last.atoms.extend(self.drop_last.map(Atom::DropLast));
            fill(self.end, "", &mut last.atoms);
        }
        Ok(halves)
    }

    fn role(&self, i: usize, role: &str) -> Result<(&'static [Part], bool)> {
        match (role, self.tool) {
            ("user", _) => Ok((self.user, false)),
            ("assistant", _) => Ok((self.assistant, true)),
            ("function", Some(_)) => Ok((self.assistant, false)),
            ("observation" | "tool", Some(tool)) => Ok((tool, false)),
            _ => Err(Error::Template(format!(
                "message {i} has the role {role:?}, the preset {} takes {}",
                self.names[0],
                match self.tool {
                    Some(_) =>
                        "user, assistant, function, observation, and system at the beginning",
                    None => "user, assistant, and system at the beginning",
                }
            ))),
        }
    }

    /// What stands before the assistant's content. A space at its end is left to the answer, whose
    /// first token brings its own.
    fn answer_begins(&self) -> Vec<Atom> {
        let mut atoms = Vec::new();
        for part in self.assistant {
            match part {
                Part::Text(format) => {
                    if let Some((before, _)) = format.split_once("{}") {
                        let before = before.trim_end_matches(' ');
                        if !before.is_empty() {
                            atoms.push(Atom::Text(before.to_string()));
                        }
                        break;
                    }
                    atoms.push(Atom::Text((*format).to_string()));
                }
                Part::Bos => atoms.push(Atom::Bos),
                Part::Eos => atoms.push(Atom::Eos),
            }
        }
        atoms
    }

    /// Everything that is written by the preset itself, for looking up its special tokens.
    pub(super) fn literals(&self) -> impl Iterator<Item = &'static str> {
        let system = match self.system {
            System::Pieces(parts) => parts,
            System::InUser(_) | System::None => &[],
        };
        [self.start, system, self.user, self.assistant, self.end]
            .into_iter()
            .flatten()
            .filter_map(|part| match part {
                Part::Text(text) => Some(*text),
                Part::Bos | Part::Eos => None,
            })
            .chain(self.stops.iter().copied())
    }

    pub(super) fn ends_with_eos(&self) -> bool {
        self.assistant.contains(&Part::Eos) || self.end.contains(&Part::Eos)
    }
}

/// Ids of the halves. A tokenizer without BOS leaves it out; one without EOS cannot end a turn.
pub(super) fn encode(halves: &[Half], tokenizer: &Tokenizer) -> Result<Vec<Piece>> {
    let mut pieces = Vec::with_capacity(halves.len());
    for half in halves {
        let mut ids = Vec::new();
        for atom in &half.atoms {
            match atom {
                Atom::Bos => ids.extend(tokenizer.bos_id()),
                Atom::Eos => ids.push(tokenizer.eos_id().ok_or_else(|| {
                    Error::Template(
                        "the template ends a turn with EOS, but the tokenizer names none".into(),
                    )
                })?),
                Atom::Text(text) => ids.append(&mut tokenizer.encode(text, false, true)?),
                Atom::DropLast(id) => {
                    ids.pop_if(|last| last == id);
                }
            }
        }
        pieces.push(Piece { ids, in_loss: half.in_loss });
    }
    Ok(pieces)
}

/// The conversation as one text, for reading.
pub(super) fn text(halves: &[Half], bos: &str, eos: &str) -> String {
    let mut out = String::new();
    for atom in halves.iter().flat_map(|half| &half.atoms) {
        match atom {
            Atom::Bos => out.push_str(bos),
            Atom::Eos => out.push_str(eos),
            Atom::Text(text) => out.push_str(text),
            Atom::DropLast(_) => {
                if out.ends_with('\n') {
                    out.pop();
                }
            }
        }
    }
    out
}
