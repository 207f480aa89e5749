//! `puna generate --dataset DIR --output FILE`: answers every record, writes text_to_textlist.
//!
//! Prompts: the text of text_only, the input of text2text (both with `--chat` as a user's
//! message), the messages of a conversation up to its last, which must be the user's. The
//! `input` of an answer is the prompt as the model saw it. All prompts are made before the first
//! answer, so that a bad record is found at once; on Ctrl-C the finished ones are saved.

use super::failure::Failure;
use super::generate::{GenerateArgs, Prompt, chat_messages, chat_prompt, options, plain_prompt};
use super::interrupt;
use super::output::sequence_json;
use super::session::Session;
use super::terminal::print_line;
use crate::data::{Conversation, DataSet, Kind, Record, TextList, read, write_textlist};
use crate::error::{Error, Result};
use crate::infer::{Context, GenerateOptions, Generated, Generation, Prompts, generate_batch};
use crate::model::llama::KvType;
use crate::text::Message;
use std::collections::BTreeMap;
use std::path::Path;

/// Most sequences at a time.
const WIDTH: usize = 32;
/// Most bytes that their caches may take together.
const CACHE_BYTES: usize = 2 << 30;

/// Answers the data set at `path`.
///
/// # Errors
/// Records that cannot be answered, and what generating and writing return.
pub fn run(
    args: &GenerateArgs,
    mut session: Session,
    path: &Path,
    max_new_tokens: usize,
) -> Result<(), Failure> {
    let output = args.output.as_deref().unwrap_or(Path::new(""));
    let set = read(path)?;
    let chat = args.chat || set.kind == Kind::Conversation;
    if chat && !args.chat && args.conversation_template.is_none() {
        session.choose_template(None)?;
    }
    let prompts = prompts(args, &session, path, &set)?;
    check_folder(output)?;
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    let capacity = session.capacity(args.ctx, longest.saturating_add(max_new_tokens));
    for (index, prompt) in prompts.iter().enumerate() {
        if args.verbose_prompt {
            session.show_prompt(&prompt.ids);
        }
        let needed = prompt.ids.len();
        if needed > capacity {
            let what = format!("{needed} prompt tokens, wanted at most the context's {capacity}");
            return Err(Error::Data { place: place(path, index), what }.into());
        }
    }
    let work = Work {
        options: options(args, &session, chat, max_new_tokens)?,
        prompts: &prompts,
        json: args.common.json,
    };
    let mut context = Context::new(&session.model, capacity, args.model.kv(KvType::F16))?;
    let mut answers = Vec::with_capacity(prompts.len());
    let end = answer(&work, &mut session, &mut context, &mut answers);
    // What was finished is saved whatever ended the work.
    write_textlist(output, &answers)?;
    let (done, all) = (answers.len(), prompts.len());
    session.log.detail(format!("{done} of {all} records answered in {}", output.display()));
    end
}

/// Finds an output that cannot be written before the work, not after.
fn check_folder(output: &Path) -> Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            Err(Error::config("output", output.display(), "its folder is not there"))
        }
        _ => Ok(()),
    }
}

/// What is to be done with the prompts.
struct Work<'a> {
    options: GenerateOptions,
    prompts: &'a [Prompt],
    json: bool,
}

/// Sequences at a time: [`WIDTH`], or as many as the caches of [`CACHE_BYTES`] are.
fn width(context: &Context) -> usize {
    (CACHE_BYTES / context.bytes().max(1)).clamp(1, WIDTH)
}

/// Answers all prompts until done, cancelled or failed; `answers` gets what is finished, in the
/// order of the records.
fn answer(
    work: &Work<'_>,
    session: &mut Session,
    context: &mut Context,
    answers: &mut Vec<TextList>,
) -> Result<(), Failure> {
    let bar = session.log.bar(work.prompts.len(), "records");
    let ids: Vec<&[u32]> = work.prompts.iter().map(|prompt| &prompt.ids[..]).collect();
    let prompts = Prompts { ids: &ids, width: width(context), ..Prompts::default() };
    let load_ms = session.load_ms;
    let mut n_cut = 0;
    // Those that wait for an earlier record.
    let mut early = BTreeMap::new();
    let mut done = |index: usize, generation: Generation| {
        n_cut += usize::from(generation.context_full);
        early.insert(index, generation.sequences);
        while let Some(sequences) = early.remove(&answers.len()) {
            let prompt = &work.prompts[answers.len()];
            for one in sequences.iter().filter(|_| work.json) {
                let value = sequence_json(&prompt.text, &prompt.ids, one, load_ms);
                bar.suspend(|| print_line(&value.to_string()))?;
            }
            answers.push(textlist(prompt, sequences));
        }
        bar.inc(1);
        Ok(())
    };
    let Session { model, workspace, .. } = &mut *session;
    let (options, cancel) = (&work.options, interrupt::flag());
    let end = generate_batch(model, workspace, context, &prompts, options, cancel, &mut done);
    let late = early.into_iter().map(|(index, list)| textlist(&work.prompts[index], list));
    answers.extend(late);
    end?;
    bar.finish_and_clear();
    if n_cut > 0 {
        let capacity = context.capacity();
        session.log.warn(format!("context full at {capacity} positions for {n_cut} records"));
    }
    Ok(())
}

fn textlist(prompt: &Prompt, sequences: Vec<Generated>) -> TextList {
    let output = sequences.into_iter().map(|one| one.text).collect();
    TextList { input: prompt.text.clone(), output }
}

fn place(path: &Path, index: usize) -> String {
    format!("{}, record {index}", path.display())
}

fn prompts(
    args: &GenerateArgs,
    session: &Session,
    path: &Path,
    set: &DataSet,
) -> Result<Vec<Prompt>> {
    let system = args.system.as_deref();
    let prompt = |(index, record): (usize, &Record)| {
        let text = match record {
            Record::TextOnly(text) => text,
            Record::Text2Text { input, .. } => input,
            Record::Conversation(conversation) => {
                let messages = open_conversation(conversation, system, &place(path, index))?;
                return chat_prompt(session, &messages);
            }
            _ => {
                let what = format!(
                    "type \"{}\", wanted text_only, text2text or conversation",
                    set.kind.name()
                );
                return Err(Error::Data { place: path.display().to_string(), what });
            }
        };
        if args.chat {
            chat_prompt(session, &chat_messages(system, text))
        } else {
            plain_prompt(session, text)
        }
    };
    set.records.iter().enumerate().map(prompt).collect()
}

/// The messages up to and with the last one, which must be the user's; `system` stands in where
/// the conversation has no system text.
fn open_conversation(
    conversation: &Conversation,
    system: Option<&str>,
    place: &str,
) -> Result<Vec<Message>> {
    let fault = |what: String| Err(Error::Data { place: place.to_owned(), what });
    match conversation.messages.last() {
        Some(last) if last.role == "user" => {}
        last => {
            let role = last.map_or("nobody", |last| last.role.as_str());
            return fault(format!("the last message is from \"{role}\", wanted \"user\""));
        }
    }
    if !conversation.tools.is_empty() {
        return fault("it has tools, which templates do not get in this build".into());
    }
    let mut conversation = conversation.clone();
    if conversation.system.is_none() && conversation.messages[0].role != "system" {
        conversation.system = system.map(str::to_owned);
    }
    Ok(conversation.with_system())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(roles: &[&str]) -> Conversation {
        let message = |role: &&str| Message { role: (*role).into(), content: "c".into() };
        Conversation { messages: roles.iter().map(message).collect(), ..Conversation::default() }
    }

    fn roles(conversation: &Conversation, system: Option<&str>) -> Result<Vec<String>> {
        let messages = open_conversation(conversation, system, "here")?;
        Ok(messages.into_iter().map(|m| m.role).collect())
    }

    #[test]
    fn a_conversation_must_wait_for_an_answer() {
        let open = conversation(&["user", "assistant", "user"]);
        assert_eq!(roles(&open, None).unwrap(), ["user", "assistant", "user"]);
        let closed = roles(&conversation(&["user", "assistant"]), None).unwrap_err().to_string();
        assert!(closed.contains("here") && closed.contains("\"assistant\""), "{closed}");
    }

    #[test]
    fn its_own_system_text_comes_before_the_flag() {
        let mut open = conversation(&["user"]);
        let flagged = open_conversation(&open, Some("flag"), "here").unwrap();
        assert_eq!((flagged.len(), flagged[0].content.as_str()), (2, "flag"));
        open.system = Some("own".into());
        let own = open_conversation(&open, Some("flag"), "here").unwrap();
        assert_eq!((own.len(), own[0].content.as_str()), (2, "own"));
        assert_eq!(
            roles(&conversation(&["system", "user"]), Some("x")).unwrap(),
            ["system", "user"]
        );
    }

    #[test]
    fn tools_are_refused_not_ignored() {
        let mut open = conversation(&["user"]);
        open.tools.push("tool".into());
        assert!(roles(&open, None).is_err());
    }
}
