//! `puna quickstart`: the whole way in a minute, on the built-in model and built-in questions:
//! measure, tune an adapter, measure again, compare answers.

use super::args::{Common, Device, HELP, Threads};
use super::failure::Failure;
use super::interrupt;
use super::terminal::{Log, print};
use super::train_watch::Screen;
use crate::data::{self, DataOptions, Layout, Record, write_atomically};
use crate::error::{Error, Result};
use crate::infer::{Context, GenerateOptions, Generation, Prompts, SamplerConfig, generate_batch};
use crate::model::builtin;
use crate::model::llama::{KvType, LoadOptions, Model};
use crate::model::tune::{LoraSpec, LoraTarget, Precision, TuneMethod, TuneModel, TuneOptions};
use crate::train::job::Measured;
use crate::train::optimizer::OptimArgs;
use crate::train::schedule::Schedule;
use crate::train::{End, Job, Length, Settings, output, train};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

const TRAIN: &str = include_str!("../../builtin/qa/train.json");
const HELD_OUT: &str = include_str!("../../builtin/qa/heldout.json");
const OUTPUT: &str = "puna-quickstart";
/// File that marks a directory as this command's, to be replaced by the next run.
const MARK: &str = ".quickstart";

/// Tokens of an answer at most; the longest right one has three and the end.
const ANSWER_TOKENS: usize = 8;
/// Questions answered at a time.
const WIDTH: usize = 32;
/// Answers shown before and after.
const SHOWN: usize = 3;

const RANK: usize = 16;
const EPOCHS: f64 = 5.0;
const BATCH: usize = 32;
const LEARNING_RATE: f64 = 3e-3;

/// Flags of `puna quickstart`.
#[derive(Args, Clone, Debug)]
#[command(help_template = HELP, override_usage = "puna quickstart [flags]")]
#[command(after_help = "Example: puna quickstart --output first-adapter")]
pub struct QuickstartArgs {
    /// Adapter, metrics, report and data [default: puna-quickstart]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Threads.
    #[command(flatten)]
    pub threads: Threads,
    /// Common flags.
    #[command(flatten)]
    pub common: Common,
}

/// What computes.
#[derive(Clone, Copy)]
struct Computer {
    threads: usize,
    device: Device,
}

/// A question with its right answer.
struct Question {
    input: String,
    answer: String,
}

/// Runs the command.
///
/// # Errors
/// An output that is somebody else's, and what measuring and training return.
pub fn run(args: &QuickstartArgs) -> Result<(), Failure> {
    args.common.device.check_build()?;
    let start = Instant::now();
    let (log, computer) =
        (args.common.log(), Computer { threads: args.threads.count(), device: args.common.device });
    let output = args.output.clone().unwrap_or_else(|| OUTPUT.into());
    let data = prepare_output(&output)?;
    let held_out = questions(&data.join("heldout.json"))?;
    let n_train = questions(&data.join("train").join("train.json"))?.len();

    log.remark(format!(
        "Puna's built-in model writes simple stories; it has never seen a question.\n\n\
         1. What does it answer to {} questions that tuning will not see?",
        held_out.len()
    ));
    let before = answers(&held_out, None, computer, log)?;
    log.remark(format!("   {} right\n", share(&held_out, &before)));

    log.remark(format!("2. Tuning a LoRA adapter on {n_train} other questions"));
    let training = Instant::now();
    let trained = tune(&output, &data.join("train"), computer, args.common.seed, log)?;
    let training = training.elapsed().as_secs_f64();
    if trained.end == End::Interrupted {
        return Err(Failure::Interrupted);
    }
    log.remark(format!("   done in {training:.0} s\n"));

    log.remark("3. The same questions again, with the adapter");
    let after = answers(&held_out, Some(&output), computer, log)?;
    log.remark(format!("   {} right\n", share(&held_out, &after)));

    let seconds = start.elapsed().as_secs_f64();
    let found = Found { held_out: &held_out, before: &before, after: &after, seconds };
    if args.common.json {
        print(&format!("{}\n", found.json(&output, n_train)))?;
    } else {
        print(&found.text(&output))?;
    }
    Ok(())
}

/// Makes the output directory with the data in it, in place of an earlier run's.
fn prepare_output(output: &Path) -> Result<PathBuf, Failure> {
    let mark = output.join(MARK);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::io(&path, source)
    };
    if output.exists() && !mark.is_file() {
        let empty =
            output.is_dir() && std::fs::read_dir(output).map_err(io(output))?.next().is_none();
        if !empty {
            let message = format!("--output {}: there already, wanted a new one", output.display());
            return Err(Failure::Usage(message, Some("name another directory".into())));
        }
    }
    if mark.is_file() {
        output::wipe(output)?;
    }
    let data = output.join("data");
    std::fs::create_dir_all(data.join("train")).map_err(io(&data))?;
    write_atomically(&mark, b"")?;
    write_atomically(&data.join("train").join("train.json"), TRAIN.as_bytes())?;
    write_atomically(&data.join("heldout.json"), HELD_OUT.as_bytes())?;
    Ok(data)
}

fn questions(path: &Path) -> Result<Vec<Question>> {
    let records = data::read(path)?.records;
    let questions = records.into_iter().filter_map(|record| match record {
        Record::Text2Text { input, output } => {
            Some(Question { input, answer: output.trim().to_owned() })
        }
        _ => None,
    });
    Ok(questions.collect())
}

/// The likeliest answer to each question, up to the end of its line.
fn answers(
    questions: &[Question],
    adapter: Option<&Path>,
    computer: Computer,
    log: Log,
) -> Result<Vec<String>> {
    let adapters = adapter.map(Path::to_owned).into_iter().collect();
    let place = computer.device.place();
    let options = LoadOptions { adapters, place, ..LoadOptions::threads(computer.threads) };
    let model = Model::load(Path::new(builtin::NAME), &options)?;
    let tokenizer = match &model.text {
        Some(parts) => &parts.tokenizer,
        None => return Err(Error::Unsupported("a built-in model without a tokenizer".into())),
    };
    let ids = questions
        .iter()
        .map(|question| tokenizer.encode(&question.input, true, true))
        .collect::<Result<Vec<_>>>()?;
    let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let longest = ids.iter().map(|ids| ids.len()).max().unwrap_or(0);
    let mut context = Context::new(&model, longest + ANSWER_TOKENS, KvType::F16)?;
    let options = GenerateOptions {
        sampler: SamplerConfig::GREEDY,
        max_new_tokens: ANSWER_TOKENS,
        stop: vec!["\n".into()],
        end_ids: model.generation.eos_ids.clone(),
        ignore_eos: false,
        n: 1,
        logprobs: None,
    };
    let mut texts = vec![String::new(); ids.len()];
    let bar = log.bar(ids.len(), "questions");
    let mut done = |index: usize, generation: Generation| {
        if let Some(one) = generation.sequences.first() {
            texts[index] = one.text.trim().to_owned();
        }
        bar.inc(1);
        Ok(())
    };
    let prompts = Prompts { ids: &ids, width: WIDTH, ..Prompts::default() };
    let mut ws = model.workspace();
    let end = generate_batch(
        &model,
        &mut ws,
        &mut context,
        &prompts,
        &options,
        interrupt::flag(),
        &mut done,
    );
    bar.finish_and_clear();
    end?;
    Ok(texts)
}

fn n_right(questions: &[Question], answers: &[String]) -> usize {
    questions.iter().zip(answers).filter(|(question, answer)| question.answer == **answer).count()
}

fn share(questions: &[Question], answers: &[String]) -> String {
    let (right, all) = (n_right(questions, answers), questions.len());
    format!("{right} of {all} ({:.0} %)", 100.0 * right as f64 / all.max(1) as f64)
}

fn tune(
    output: &Path,
    dataset: &Path,
    computer: Computer,
    seed: u64,
    log: Log,
) -> Result<crate::train::Outcome> {
    let spec = LoraSpec {
        r: RANK,
        alpha: 2.0 * RANK as f32,
        dropout: 0.0,
        targets: LoraTarget::ALL.to_vec(),
        use_rslora: false,
    };
    let options = TuneOptions {
        threads: computer.threads,
        precision: Precision::F32,
        method: TuneMethod::Lora { spec, adapter: None },
        gradient_checkpointing: false,
        score: false,
        value: false,
        seed,
    };
    let device = computer.device.open(computer.threads)?;
    let mut model = TuneModel::open_on(Path::new(builtin::NAME), &options, device)?;
    let data_options = DataOptions {
        layout: Layout::Blocks,
        seed,
        cache_dir: Some(output.join("cache")),
        ..DataOptions::default()
    };
    let (vocab, longest) = (model.config().vocab_size, model.config().max_seq_len);
    let prepared =
        data::prepare(dataset, model.text(), vocab, longest, &data_options, &mut |_| {})?;
    let rows = Measured::new(prepared.train)?;
    let settings = Settings {
        batch_size: BATCH,
        accumulation: 1,
        length: Length::Epochs(EPOCHS),
        optim: "adamw".into(),
        optim_args: OptimArgs::default(),
        learning_rate: LEARNING_RATE,
        schedule: Schedule::parse("cosine", None)?,
        warmup_steps: 10,
        warmup_ratio: 0.0,
        max_grad_norm: 1.0,
        seed,
        shuffle: true,
        slice_tokens: None,
        eval_steps: None,
        eval_on_start: false,
        keep_best: false,
        patience: None,
        threshold: 0.0,
        save_steps: 0,
        save_total_limit: None,
    };
    let job = Job {
        model: &mut model,
        train: &rows,
        eval: None,
        settings: &settings,
        identity: vec![("model".into(), builtin::NAME.into())],
        title: "puna quickstart".into(),
        shown: vec![
            ("model".into(), builtin::NAME.into()),
            ("method".into(), "lora, all linear layers".into()),
            ("lora_r".into(), RANK.to_string()),
            ("learning_rate".into(), LEARNING_RATE.to_string()),
            ("batch_size".into(), BATCH.to_string()),
            ("epochs".into(), EPOCHS.to_string()),
        ],
        output,
        stop: interrupt::flag_or_exit(),
    };
    let mut screen = Screen::new(log, 20);
    let outcome = train(job, false, &mut screen);
    screen.close();
    outcome
}

/// What came out.
struct Found<'a> {
    held_out: &'a [Question],
    before: &'a [String],
    after: &'a [String],
    seconds: f64,
}

impl Found<'_> {
    fn json(&self, output: &Path, n_train: usize) -> Value {
        let all = self.held_out.len() as f64;
        let accuracy = |answers: &[String]| n_right(self.held_out, answers) as f64 / all;
        let shown = self.shown().map(|(question, before, after)| {
            json!({
                "question": question.input, "answer": question.answer,
                "before": before, "after": after,
            })
        });
        json!({
            "accuracy_before": accuracy(self.before), "accuracy_after": accuracy(self.after),
            "held_out": self.held_out.len(), "trained_on": n_train, "seconds": self.seconds,
            "output": output, "answers": shown.collect::<Vec<_>>(),
        })
    }

    /// Some questions, evenly spread.
    fn shown(&self) -> impl Iterator<Item = (&Question, &String, &String)> {
        let step = (self.held_out.len() / SHOWN).max(1);
        let both = self.before.iter().zip(self.after);
        let all = self.held_out.iter().zip(both).map(|(q, (before, after))| (q, before, after));
        all.step_by(step).take(SHOWN)
    }

    fn text(&self, output: &Path) -> String {
        let dir = output.display();
        let mut text = String::new();
        for (question, before, after) in self.shown() {
            text += &format!("   {}\n", question.input.replace('\n', "\n   "));
            text += &format!("      before  {}\n      after   {after}\n\n", quoted(before));
        }
        text += &format!(
            "Accuracy on questions it was not tuned on: {} before, {} after, in {:.0} s.\n\n",
            share(self.held_out, self.before),
            share(self.held_out, self.after),
            self.seconds
        );
        text += &format!(
            "{dir}/ holds the adapter (PEFT's format), metrics.jsonl, report.html and the data.\n\n\
             Next:\n  \
             puna generate builtin --adapter {dir} --chat -p \"Ben has a green hat. What color \
             is the hat?\"\n  \
             puna merge builtin --adapter {dir} tuned.gguf\n  \
             puna train MODEL --dataset DIR --method lora --output OUT    # your model, your data, \
             written as in {dir}/data/train/train.json\n"
        );
        text
    }
}

/// An answer in one line, cut where it is long.
fn quoted(answer: &str) -> String {
    let line = answer.replace('\n', " ");
    if line.chars().count() <= 60 {
        return if line.is_empty() { "(nothing)".into() } else { line };
    }
    line.chars().take(60).chain("...".chars()).collect()
}
