//! `puna generate`: continues a text, or answers a data set (see [`super::dataset`]).

use super::args::{
    Common, HELP, ModelArgs, Sampling, Threads, check_token_ids, positive, token_ids,
};
use super::failure::Failure;
use super::output::{sequence_json, speculation_json, speculation_summary, summary};
use super::session::Session;
use super::terminal::{print, print_line};
use super::{dataset, interrupt};
use crate::error::{Error, Result};
use crate::infer::{
    Context, Draft, DraftModel, GenerateOptions, Generation, Speculation, generate,
    generate_speculative,
};
use crate::model::llama::{KvType, LoadOptions};
use crate::text::Message;
use clap::Args;
use std::path::PathBuf;

/// Tokens written where nothing says how many.
pub const MAX_NEW_TOKENS: usize = 256;
/// Most sequences of one prompt; each has a cache of its own.
const MAX_SEQUENCES: usize = 256;

/// Flags of `puna generate`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna generate MODEL -p TEXT [flags]")]
#[command(
    after_help = "Example: puna generate smollm2.gguf -p \"A telescope is\" --max-new-tokens 64"
)]
pub struct GenerateArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// What to continue.
    #[command(flatten)]
    pub source: Source,
    /// Where the answers to --dataset go (JSON)
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Prompt is a user message in a chat
    #[arg(long)]
    pub chat: bool,
    /// System text of that chat
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Preset in place of the model's template
    #[arg(long, value_name = "T")]
    pub conversation_template: Option<String>,
    /// Sequences from the prompt [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub n: Option<usize>,
    /// With --json: K likeliest at each token
    #[arg(long, value_name = "K")]
    pub logprobs: Option<usize>,
    /// Let this smaller model guess ahead
    #[arg(long, value_name = "MODEL", conflicts_with = "prompt_lookup")]
    pub draft: Option<PathBuf>,
    /// Guess what stood in the text before
    #[arg(long)]
    pub prompt_lookup: bool,
    /// Most tokens guessed at once [default: 8]
    #[arg(long, value_name = "K", value_parser = positive)]
    pub draft_tokens: Option<usize>,
    /// Context size [default: as needed]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub ctx: Option<usize>,
    /// Print the prompt's ids on stderr
    #[arg(long)]
    pub verbose_prompt: bool,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// What to continue: one of these.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct Source {
    /// The prompt
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Prompt from a file
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// Prompt as ids: 1,2,3 or @FILE.json
    #[arg(long, value_name = "IDS")]
    pub tokens: Option<String>,
    /// Answer every record of this data set
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
}

/// A prompt as text and as ids.
pub struct Prompt {
    /// The text; for ids, what they decode to.
    pub text: String,
    /// The ids.
    pub ids: Vec<u32>,
}

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading and generating return.
pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    check(args)?;
    let mut session = Session::load(&args.model, args.threads.count(), &args.common)?;
    if args.chat || args.conversation_template.is_some() {
        session.choose_template(args.conversation_template.as_deref())?;
    }
    let max_new_tokens = args.sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    if let Some(path) = &args.source.dataset {
        return dataset::run(args, session, path, max_new_tokens);
    }
    let prompt = read_prompt(args, &session)?;
    if args.verbose_prompt {
        session.show_prompt(&prompt.ids);
    }
    let options = options(args, &session, args.chat, max_new_tokens)?;
    if options.n > 1 && options.sampler.is_greedy() {
        session
            .log
            .warn("greedy: all sequences will be the same; --temperature 1 makes them differ");
    }
    let capacity = session.capacity(args.ctx, prompt.ids.len().saturating_add(max_new_tokens));
    let kv = args.model.kv(KvType::F16);
    let mut context = Context::new(&session.model, capacity, kv)?;
    let stream = options.n == 1 && !args.common.json;
    let mut sink = |_: usize, text: &str| match stream && !text.is_empty() {
        true => print(text),
        false => Ok(()),
    };
    let mut draft = draft(args, &session, capacity, kv)?;
    let Session { model, workspace, .. } = &mut session;
    let cancel = interrupt::flag();
    let (ids, context) = (&prompt.ids[..], &mut context);
    let generation = match &mut draft {
        None => generate(model, workspace, context, ids, &options, cancel, &mut sink),
        Some(draft) => {
            generate_speculative(model, workspace, context, draft, ids, &options, cancel, &mut sink)
        }
    }?;
    let done = draft.map(|draft| draft.done);
    print_results(args, &session, &prompt, &generation, done)?;
    if generation.context_full {
        session.warn_full(capacity);
    }
    if generation.cancelled() { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Most tokens guessed at once where nothing says how many.
const DRAFT_TOKENS: usize = 8;

impl GenerateArgs {
    fn speculates(&self) -> bool {
        self.draft.is_some() || self.prompt_lookup
    }
}

/// What guesses ahead, where the flags ask for it.
fn draft(
    args: &GenerateArgs,
    session: &Session,
    capacity: usize,
    kv: KvType,
) -> Result<Option<Draft>> {
    let most = args.draft_tokens.unwrap_or(DRAFT_TOKENS);
    if args.prompt_lookup {
        return Ok(Some(Draft::lookup(most)));
    }
    let Some(path) = &args.draft else { return Ok(None) };
    let ModelArgs { exact, cache_weights, .. } = args.model;
    let options = LoadOptions { exact, cache_weights, ..LoadOptions::default() };
    let model = session.model.load_beside(path, &options)?;
    let model = DraftModel::new(model, &session.model, capacity, kv)?;
    Ok(Some(Draft::model(model, most)))
}

/// Refuses combinations that mean nothing.
fn check(args: &GenerateArgs) -> Result<(), Failure> {
    let Source { prompt, prompt_file, tokens, dataset } = &args.source;
    let none = prompt.is_none() && prompt_file.is_none() && tokens.is_none();
    let refuse =
        |message: &str, hint: &str| Err(Failure::Usage(message.to_owned(), Some(hint.to_owned())));
    match dataset {
        None if none => refuse("nothing to continue", "give -p TEXT, --prompt-file or --tokens"),
        None if args.output.is_some() => {
            refuse("--output goes with --dataset only", "one text goes to standard output")
        }
        Some(_) if args.output.is_none() => {
            refuse("--dataset without --output", "--output FILE says where the answers go")
        }
        _ if tokens.is_some() && (args.chat || args.system.is_some()) => {
            refuse("--tokens with --chat or --system", "ids are taken as they are")
        }
        _ if args.system.is_some() && !args.chat => {
            refuse("--system without --chat", "add --chat to apply the model's template")
        }
        _ if args.draft_tokens.is_some() && !args.speculates() => refuse(
            "--draft-tokens without a draft",
            "--draft MODEL or --prompt-lookup says who guesses",
        ),
        Some(_) if args.speculates() => {
            refuse("--draft or --prompt-lookup with --dataset", "records share passes already")
        }
        _ if args.speculates() && args.n.is_some_and(|n| n > 1) => {
            refuse("--draft or --prompt-lookup with --n above 1", "a draft continues one sequence")
        }
        _ if args.n.is_some_and(|n| n > MAX_SEQUENCES) => refuse(
            &format!("--n above {MAX_SEQUENCES}"),
            "run the command again with another --seed",
        ),
        _ => check_token_ids(tokens.as_deref()),
    }
}

/// What to generate, from all flags of the command.
///
/// # Errors
/// Settings out of range.
pub fn options(
    args: &GenerateArgs,
    session: &Session,
    chat: bool,
    max_new_tokens: usize,
) -> Result<GenerateOptions> {
    let options = session.options(&args.sampling, &args.common, chat, max_new_tokens)?;
    Ok(GenerateOptions { n: args.n.unwrap_or(1), logprobs: args.logprobs, ..options })
}

fn read_prompt(args: &GenerateArgs, session: &Session) -> Result<Prompt> {
    let Source { prompt, prompt_file, tokens, .. } = &args.source;
    let text = match (prompt, prompt_file, tokens) {
        (_, _, Some(tokens)) => {
            let ids = token_ids(tokens)?;
            // Ids beyond the vocabulary are refused later, with their position.
            let known = ids.iter().all(|&id| (id as usize) < session.model.config.vocab_size);
            let text = if known { session.decode(&ids)? } else { String::new() };
            return Ok(Prompt { text, ids });
        }
        (_, Some(file), _) => {
            std::fs::read_to_string(file).map_err(|source| Error::io(file, source))?
        }
        (Some(text), ..) => text.clone(),
        (None, None, None) => String::new(),
    };
    if !args.chat {
        return plain_prompt(session, &text);
    }
    chat_prompt(session, &chat_messages(args.system.as_deref(), &text))
}

/// A user's message, with the system text before it.
pub fn chat_messages(system: Option<&str>, text: &str) -> Vec<Message> {
    let message =
        |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let system = system.map(|system| message("system", system));
    system.into_iter().chain([message("user", text)]).collect()
}

/// A text as a prompt.
///
/// # Errors
/// As [`Session::encode`].
pub fn plain_prompt(session: &Session, text: &str) -> Result<Prompt> {
    Ok(Prompt { text: text.to_owned(), ids: session.encode(text)? })
}

/// A conversation as a prompt; its text is what the template makes of it.
///
/// # Errors
/// As [`Session::encode_messages`].
pub fn chat_prompt(session: &Session, messages: &[Message]) -> Result<Prompt> {
    let ids = session.encode_messages(messages)?;
    Ok(Prompt { text: session.decode(&ids)?, ids })
}

fn print_results(
    args: &GenerateArgs,
    session: &Session,
    prompt: &Prompt,
    generation: &Generation,
    speculation: Option<Speculation>,
) -> Result<()> {
    let many = generation.sequences.len() > 1;
    for (index, one) in generation.sequences.iter().enumerate() {
        if args.common.json {
            let mut value = sequence_json(&prompt.text, &prompt.ids, one, session.load_ms);
            if let Some(done) = &speculation {
                value["speculation"] = speculation_json(done);
            }
            print_line(&value.to_string())?;
        } else if session.model.text.is_none() {
            let ids: Vec<String> = one.tokens.iter().map(u32::to_string).collect();
            print_line(&ids.join(","))?;
        } else if many {
            let head = format!("--- {} of {} ---", index + 1, generation.sequences.len());
            print_line(&format!("{head}\n{}", one.text))?;
        } else {
            // The text itself was streamed.
            print_line("")?;
        }
        session.log.detail(summary(prompt.ids.len(), generation.n_reused, one));
        if let Some(done) = &speculation {
            session.log.detail(speculation_summary(done));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn refusal(args: &[&str]) -> String {
        let all = ["puna", "generate", "m"].iter().chain(args);
        match Cli::try_parse_from(all) {
            Err(error) => error.to_string(),
            Ok(Cli { command: Command::Generate(args) }) => match check(&args) {
                Ok(()) => "fine".into(),
                Err(failure) => failure.lines().join("\n"),
            },
            Ok(_) => "another command".into(),
        }
    }

    #[test]
    fn combinations_that_mean_nothing_are_refused() {
        let cases: [(&[&str], &str); 15] = [
            (&[], "nothing to continue"),
            (&["-p", "x", "--tokens", "1"], "cannot be used with"),
            (&["-p", "x", "--dataset", "d"], "cannot be used with"),
            (&["-p", "x", "--output", "o"], "--output goes with --dataset only"),
            (&["--dataset", "d"], "--dataset without --output"),
            (&["--tokens", "1", "--chat"], "--tokens with --chat"),
            (&["-p", "x", "--system", "s"], "--system without --chat"),
            (&["-p", "x", "--n", "0"], "at least 1"),
            (&["-p", "x", "--n", "1000"], "--n above 256"),
            (&["-p", "x", "--kv-type", "q4"], "q4"),
            (&["--tokens", "1,x"], "tokens = \"x\""),
            (&["-p", "x", "--draft", "d", "--prompt-lookup"], "cannot be used with"),
            (&["-p", "x", "--draft-tokens", "4"], "--draft-tokens without"),
            (&["-p", "x", "--prompt-lookup", "--n", "2"], "--n above 1"),
            (&["--dataset", "d", "--output", "o", "--draft", "d"], "with --dataset"),
        ];
        for (args, part) in cases {
            let message = refusal(args);
            assert!(message.contains(part), "{args:?}: {message}");
        }
        let fine: [&[&str]; 4] = [
            &["-p", "x", "--chat", "--system", "s", "--n", "4"],
            &["-p", "-x", "--stop", "--", "--stop", "b"],
            &["--tokens", "1,2", "--logprobs", "3"],
            &["--dataset", "d", "--output", "o", "--chat", "--system", "s"],
        ];
        for args in fine {
            assert_eq!(refusal(args), "fine", "{args:?}");
        }
    }

    #[test]
    fn the_system_text_comes_first() {
        let roles = |m: Vec<Message>| m.into_iter().map(|m| m.role).collect::<Vec<_>>();
        assert_eq!(roles(chat_messages(None, "x")), ["user"]);
        assert_eq!(roles(chat_messages(Some("s"), "x")), ["system", "user"]);
    }
}
