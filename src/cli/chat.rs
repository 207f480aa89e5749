//! `puna chat`: a conversation in the terminal, or line by line from a pipe.
//!
//! Each turn renders the whole conversation and computes only what the cache does not hold yet.
//! When the context has no room for an answer, the oldest turns are dropped, which is said.
//! Ctrl-C ends an answer; what was said of it stays in the conversation. At the prompt, Ctrl-C
//! twice leaves. From a pipe Ctrl-C ends the program, as nobody is there to go on.

use super::args::{Common, HELP, ModelArgs, Sampling, Threads, positive};
use super::failure::Failure;
use super::interrupt;
use super::lines::{Input, Lines};
use super::output::{sequence_json, summary};
use super::session::Session;
use super::terminal::{Log, print, print_line};
use crate::data::{Conversation, Record, read, write_conversation};
use crate::error::{Error, Result};
use crate::infer::{Context, FinishReason, GenerateOptions, Generated, Generation, generate};
use crate::model::llama::KvType;
use crate::text::Message;
use clap::Args;
use std::io::IsTerminal;
use std::path::Path;

/// Positions of the context unless told otherwise.
const CTX: usize = 4096;
/// Tokens of an answer unless told otherwise.
const MAX_NEW_TOKENS: usize = 1024;

const COMMANDS: &str = "\
/reset        forget the conversation
/system TEXT  set the system text (nothing: none)
/save FILE    write the conversation (JSON)
/load FILE    go on with a written one
/stats        context and speed
/exit         leave (also Ctrl-D)
Ctrl-C stops an answer.";

/// Flags of `puna chat`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna chat MODEL [flags]")]
#[command(after_help = "Example: puna chat smollm2.gguf --system \"You are brief.\"")]
pub struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// System text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Preset in place of the model's template
    #[arg(long, value_name = "T")]
    pub conversation_template: Option<String>,
    /// Context size [default: at most 4096]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub ctx: Option<usize>,
    /// Print every prompt's ids on stderr
    #[arg(long)]
    pub verbose_prompt: bool,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// A line of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said<'a> {
    Nothing,
    Message(&'a str),
    Reset,
    System(&'a str),
    Save(&'a str),
    Load(&'a str),
    Stats,
    Exit,
    Help,
    Unknown(&'a str),
}

impl Said<'_> {
    fn parse(line: &str) -> Said<'_> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "" => Said::Nothing,
            "/reset" => Said::Reset,
            "/system" => Said::System(rest),
            "/save" => Said::Save(rest),
            "/load" => Said::Load(rest),
            "/stats" => Said::Stats,
            "/exit" | "/quit" => Said::Exit,
            "/help" => Said::Help,
            _ if word.starts_with('/') => Said::Unknown(word),
            _ => Said::Message(line),
        }
    }
}

/// The conversation and what answers in it.
struct Chat {
    session: Session,
    context: Context,
    options: GenerateOptions,
    talk: Conversation,
    json: bool,
    verbose_prompt: bool,
    /// Summary of the last answer.
    last: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading returns; from a pipe, whatever stops an answer.
pub fn run(args: &ChatArgs) -> Result<(), Failure> {
    let mut session = Session::load(&args.model, args.threads.count(), &args.common)?;
    session.choose_template(args.conversation_template.as_deref())?;
    let max_new_tokens = args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    let options = session.options(&args.sampling, &args.common, true, max_new_tokens)?;
    let capacity = session.capacity(args.ctx, CTX);
    let context = Context::new(&session.model, capacity, args.model.kv(KvType::F16))?;
    let talk = Conversation { system: args.system.clone(), ..Conversation::default() };
    let (json, verbose_prompt) = (args.common.json, args.verbose_prompt);
    let mut chat = Chat { session, context, options, talk, json, verbose_prompt, last: None };
    interrupt::flag();
    let interactive = std::io::stdin().is_terminal();
    chat.talk_until_end(&Lines::of_stdin(), interactive)
}

impl Chat {
    fn log(&self) -> Log {
        self.session.log
    }

    fn talk_until_end(&mut self, lines: &Lines, interactive: bool) -> Result<(), Failure> {
        let log = self.log();
        if interactive && !log.quiet {
            log.always(format!("{}: say something; /help lists commands", self.session.name));
        }
        let mut leaving = false;
        loop {
            if interactive {
                log.prompt();
            }
            let line = match lines.next() {
                Input::Line(line) => line,
                Input::End => return Ok(()),
                Input::Interrupt if interactive && !leaving => {
                    leaving = true;
                    log.always("\n(Ctrl-C again leaves)");
                    continue;
                }
                Input::Interrupt => return Err(Failure::Interrupted),
            };
            leaving = false;
            let said = Said::parse(&line);
            if said == Said::Exit {
                return Ok(());
            }
            match self.react(said) {
                Ok(()) => {}
                Err(Failure::Interrupted) if interactive => log.always("(stopped)"),
                Err(failure @ Failure::Failed(_)) if interactive => {
                    failure.lines().iter().for_each(|line| log.always(line));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    fn react(&mut self, said: Said<'_>) -> Result<(), Failure> {
        let log = self.log();
        match said {
            Said::Nothing | Said::Exit => {}
            Said::Message(text) => self.answer(text)?,
            Said::Reset => {
                self.talk.messages.clear();
                self.context.clear();
                log.remark("(forgotten)");
            }
            Said::System(text) => {
                self.talk.system = (!text.is_empty()).then(|| text.to_owned());
                log.remark("(system text set)");
            }
            Said::Save("") | Said::Load("") => log.always("a file name is missing"),
            Said::Save(file) => {
                write_conversation(Path::new(file), &self.talk)?;
                log.remark(format!("({} messages in {file})", self.talk.messages.len()));
            }
            Said::Load(file) => {
                self.talk = load(Path::new(file))?;
                log.remark(format!("({} messages from {file})", self.talk.messages.len()));
            }
            Said::Stats => log.always(self.stats()),
            Said::Help => log.always(COMMANDS),
            Said::Unknown(word) => log.always(format!("no command {word}; /help lists them")),
        }
        Ok(())
    }

    fn stats(&self) -> String {
        let (used, capacity) = (self.context.used(), self.context.capacity());
        let last = self.last.as_deref().unwrap_or("no answer yet");
        let n = self.talk.messages.len();
        format!("{n} messages, context {used} of {capacity} positions; last: {last}")
    }

    /// One turn. Where it fails, or is stopped before it said anything, the message is taken back.
    fn answer(&mut self, text: &str) -> Result<(), Failure> {
        self.talk.messages.push(Message { role: "user".into(), content: text.to_owned() });
        let result = self.generate();
        let said = match result {
            Ok((_, ref one)) if !(cancelled(one) && one.text.is_empty()) => one.text.clone(),
            _ => {
                self.talk.messages.pop();
                result?;
                return Err(Failure::Interrupted);
            }
        };
        self.talk.messages.push(Message { role: "assistant".into(), content: said });
        let (ids, one) = result?;
        if self.json {
            let prompt = self.session.decode(&ids)?;
            print_line(&sequence_json(&prompt, &ids, &one, self.session.load_ms).to_string())?;
        } else {
            print_line("")?;
        }
        if cancelled(&one) { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// Makes room, renders and answers; returns the prompt's ids with the answer.
    fn generate(&mut self) -> Result<(Vec<u32>, Generated)> {
        let ids = self.fitting_prompt()?;
        if self.verbose_prompt {
            self.session.show_prompt(&ids);
        }
        let json = self.json;
        let mut sink = |_: usize, text: &str| match json || text.is_empty() {
            true => Ok(()),
            false => print(text),
        };
        let Session { model, workspace, log, .. } = &mut self.session;
        let (context, options) = (&mut self.context, &self.options);
        let Generation { mut sequences, n_reused, context_full } =
            generate(model, workspace, context, &ids, options, interrupt::flag(), &mut sink)?;
        interrupt::take();
        let Some(one) = sequences.pop() else { return Err(Error::Cancelled) };
        let line = summary(ids.len(), n_reused, &one);
        log.detail(&line);
        self.last = Some(line);
        if context_full {
            self.session.warn_full(self.context.capacity());
        }
        Ok((ids, one))
    }

    /// The prompt's ids, after dropping as many of the oldest turns as it takes to leave room.
    fn fitting_prompt(&mut self) -> Result<Vec<u32>> {
        let capacity = self.context.capacity();
        let mut n_dropped = 0;
        loop {
            let ids = self.session.encode_messages(&self.talk.with_system())?;
            let room = room_for_answer(capacity, self.options.max_new_tokens);
            let fits = ids.len() + room <= capacity;
            if fits || !drop_oldest_turn(&mut self.talk.messages) {
                if n_dropped > 0 {
                    self.log().remark(format!(
                        "(context full: the oldest {n_dropped} turns are forgotten; /reset begins anew)"
                    ));
                }
                // One turn alone may use the room of the answer; more than everything is an
                // error of `generate`.
                return Ok(ids);
            }
            n_dropped += 1;
        }
    }
}

fn cancelled(one: &Generated) -> bool {
    one.finish_reason == FinishReason::Cancelled
}

/// Positions to keep free for an answer: what it may take, at most a quarter of the context.
fn room_for_answer(capacity: usize, max_new_tokens: usize) -> usize {
    max_new_tokens.min(capacity / 4).max(1)
}

/// Drops the first message and all up to the next one of the user; `false` where there is none.
fn drop_oldest_turn(messages: &mut Vec<Message>) -> bool {
    let next = messages.iter().skip(1).position(|message| message.role == "user");
    match next {
        Some(at) => {
            messages.drain(..=at);
            true
        }
        None => false,
    }
}

fn load(file: &Path) -> Result<Conversation> {
    let set = read(file)?;
    match set.records.into_iter().next() {
        Some(Record::Conversation(conversation)) => Ok(conversation),
        _ => Err(Error::Data {
            place: file.display().to_string(),
            what: format!("type \"{}\", wanted \"conversation\"", set.kind.name()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        let cases = [
            ("  ", Said::Nothing),
            ("hello there ", Said::Message("hello there")),
            ("/reset", Said::Reset),
            ("/system  Be brief. ", Said::System("Be brief.")),
            ("/system", Said::System("")),
            ("/save a b.json", Said::Save("a b.json")),
            ("/load x", Said::Load("x")),
            ("/exit", Said::Exit),
            ("/stats now", Said::Stats),
            ("/stat", Said::Unknown("/stat")),
        ];
        for (line, wanted) in cases {
            assert_eq!(Said::parse(line), wanted);
        }
    }

    #[test]
    fn the_oldest_turn_goes_first_and_the_last_question_stays() {
        let message = |role: &str| Message { role: role.into(), content: String::new() };
        let mut messages: Vec<Message> =
            ["user", "assistant", "user", "assistant", "user"].map(message).into();
        assert!(drop_oldest_turn(&mut messages));
        assert_eq!(messages.len(), 3);
        assert!(drop_oldest_turn(&mut messages));
        assert!(!drop_oldest_turn(&mut messages));
        assert_eq!(messages, [message("user")]);
    }

    #[test]
    fn an_answer_gets_at_most_a_quarter_kept_free() {
        assert_eq!(room_for_answer(4096, 100), 100);
        assert_eq!(room_for_answer(4096, 5000), 1024);
        assert_eq!(room_for_answer(2, 0), 1);
    }

    #[test]
    fn conversations_are_saved_and_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("talk.json");
        let message = Message { role: "user".into(), content: "hi".into() };
        let talk = Conversation {
            messages: vec![message],
            system: Some("s".into()),
            ..Conversation::default()
        };
        write_conversation(&file, &talk).unwrap();
        assert_eq!(load(&file).unwrap(), talk);
        std::fs::write(&file, r#"{"type":"text_only","instances":[{"text":"x"}]}"#).unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("wanted \"conversation\""));
    }
}
