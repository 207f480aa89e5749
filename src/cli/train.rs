//! `puna train`: tunes a model or an adapter on a data set. The work is `train`'s; here flags are
//! read, data prepared, and what comes out is shown.

use super::args::model_path;
use super::failure::Failure;
use super::interrupt;
use super::machine::Machine;
use super::session::context_limit;
use super::terminal::{Log, human_bytes, human_count, print, print_line};
use super::train_args::{Method, TrainArgs};
use super::train_fit;
use super::train_plan::{self, Load};
use super::train_setup::{Setup, usage};
use super::train_watch::Screen;
use crate::data::{self, DataOptions, Epochs, Prepared, RowSet};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::model::tune::{TuneMethod, TuneModel};
use crate::train::identity::{adapter_digest, weights_digest};
use crate::train::job::Measured;
use crate::train::state::Setting;
use crate::train::{End, Job, Outcome, Rows, output, train};
use serde_json::json;
use std::io::IsTerminal;
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// Wrong usage, and what loading, reading data and training return; [`Failure::Interrupted`] once a
/// checkpoint is saved.
pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    let setup = Setup::new(args)?;
    let path = model_path(args.model.as_deref());
    args.common.device.check_build()?;
    let log = args.common.log();
    if let Some(output) = &setup.output {
        check_output(output, path, args)?;
    }
    // A resumed run's evaluation and a new one's both need the data: look before the long load.
    for data in std::iter::once(&setup.dataset).chain(&args.eval.eval_dataset) {
        std::fs::metadata(data).map_err(|source| Error::io(data, source))?;
    }
    let device = args.common.device.open(setup.tune.threads)?;
    let mut model = TuneModel::open_on(path, &setup.tune, device)
        .map_err(|error| train_fit::explain(error, path, &setup.tune))?;
    let prepared = prepare(&setup.dataset, &model, &setup.data, log, &[])?;
    if let Some(n) = args.data.show_batch {
        return show(n, &prepared.train, &model, &setup);
    }
    let held_out = match &args.eval.eval_dataset {
        Some(path) => {
            let options = DataOptions { holdout: None, ..setup.data.clone() };
            let said = &prepared.report.warnings;
            Some(prepare(path, &model, &options, log, said)?.train)
        }
        None => prepared.held_out,
    };
    let rows = Measured::new(prepared.train)?;
    let eval = held_out.map(Measured::new).transpose()?;
    warn_about_lengths(&rows, &model, log);
    train_fit::fit(&setup, &model, &rows, rows.n_tokens())?;
    if args.steps.dry_run {
        let machine = Machine::detect()?;
        let load = Load {
            rows: &rows,
            n_tokens: rows.n_tokens(),
            n_scored: rows.n_scored(),
            n_eval: eval.as_ref().map(|rows| rows.n_rows()),
        };
        let plan = train_plan::plan(&setup, &mut model, |model| model, &load, &machine)?;
        train_plan::items(&plan).iter().for_each(|line| log.detail(line));
        return Ok(train_plan::print(&plan, args.common.json)?);
    }
    let Some(output) = &setup.output else {
        return Err(Failure::usage("no output named"));
    };
    if args.save.overwrite {
        output::wipe(output)?;
    }
    let of_eval = eval.as_ref().map(|rows| rows.digest.as_str());
    let identity = identity(path, &setup, model.config(), &rows.digest, of_eval)?;
    let n_trained = model.params().n_elements();
    let shown = shown(path, &setup, n_trained, &identity, rows.n_rows())?;
    log.detail(format!("{} parameters are trained", human_count(n_trained as u64)));
    let job = Job {
        model: &mut model,
        train: &rows,
        eval: eval.as_ref().map(|rows| rows as &dyn Rows),
        settings: &setup.settings,
        identity,
        title: format!("puna train {}", path.display()),
        shown,
        output,
        stop: interrupt::flag_or_exit(),
    };
    let mut screen = Screen::new(log, args.save.logging_steps.unwrap_or(10));
    let outcome = train(job, args.save.resume, &mut screen);
    screen.close();
    finish(&outcome?, args, setup.method, output, n_trained, log)
}

/// Refuses an output that would destroy something, or mix two runs.
pub(super) fn check_output(output: &Path, model: &Path, args: &TrainArgs) -> Result<(), Failure> {
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    let sources = std::iter::once(model).chain(args.method.adapter.as_deref());
    let folder = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
    for source in sources {
        let lone = source.is_file() && source.file_name().is_some_and(|name| name == "config.json");
        if same(output, source) || (lone && same(output, &folder(source))) {
            let message =
                format!("--output {}: that is what training starts from", output.display());
            return Err(Failure::Usage(message, Some("name another directory".into())));
        }
    }
    if output.exists() && !output.is_dir() {
        let message = format!("--output {}: a file, wanted a directory", output.display());
        return Err(Failure::usage(message));
    }
    // A dry run and a look at the data write nothing.
    let writes = !args.steps.dry_run && args.data.show_batch.is_none();
    if writes
        && !args.save.resume
        && !args.save.overwrite
        && let Some(found) = output::occupied(output)?
    {
        let message = format!("--output {}: holds {found} of a run", output.display());
        let hint = "--resume goes on with it, --overwrite starts anew";
        return Err(Failure::Usage(message, Some(hint.into())));
    }
    Ok(())
}

/// The rows of a data set, with a bar while they are made, and what the user should know of them
/// but for what was said before.
pub(super) fn prepare(
    path: &Path,
    model: &TuneModel,
    options: &DataOptions,
    log: Log,
    said: &[String],
) -> Result<Prepared, Failure> {
    let bar = log.bar(0, "bytes of data");
    let mut progress = |now: data::Progress| {
        bar.set_length(now.total_bytes);
        bar.set_position(now.done_bytes);
    };
    let (vocab, longest) = (model.config().vocab_size, context_limit(model.config()));
    let prepared = data::prepare(path, model.text(), vocab, longest, options, &mut progress);
    bar.finish_and_clear();
    let prepared = prepared.map_err(usage)?;
    let report = &prepared.report;
    for text in report.warnings.iter().filter(|text| !said.contains(text)) {
        log.warn(text);
    }
    if report.skipped > 0 {
        let first = report.skipped_first.first().map(String::as_str).unwrap_or_default();
        log.warn(format!("{} instances left out; the first: {first}", report.skipped));
    }
    log.remark(format!(
        "{}: {} {} instances, {} rows, {} tokens, {} of them scored",
        path.display(),
        report.instances,
        report.kind,
        report.rows,
        human_count(prepared.train.n_tokens()),
        human_count(prepared.train.n_scored())
    ));
    Ok(prepared)
}

fn warn_about_lengths(rows: &Measured, model: &TuneModel, log: Log) {
    let limit = context_limit(model.config());
    if rows.longest() > limit {
        log.warn(format!(
            "the longest row has {} tokens, the model was made for {limit}",
            rows.longest()
        ));
    }
}

/// Prints the first rows of the first epoch with their loss mask.
fn show(n: usize, rows: &RowSet, model: &TuneModel, setup: &Setup) -> Result<(), Failure> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let tokenizer = model.text().map(|text| &text.tokenizer);
    let epochs = Epochs::new(rows.len(), setup.settings.seed, setup.settings.shuffle);
    for position in 0..n.min(rows.len()) {
        let row = rows.row(epochs.index(0, position))?;
        print(&format!(
            "row {} of {}: {} tokens, {} scored\n{}\n",
            position + 1,
            rows.len(),
            row.ids.len(),
            row.n_scored(),
            data::show(&row, tokenizer, colour)?
        ))?;
    }
    Ok(())
}

/// What decides the numbers beside the settings.
pub(super) fn identity(
    path: &Path,
    setup: &Setup,
    config: &Config,
    rows: &str,
    eval: Option<&str>,
) -> Result<Vec<Setting>> {
    let mut list: Vec<Setting> = vec![];
    let mut add = |name: &str, value: String| list.push((name.to_owned(), value));
    let (layers, dim, vocab) = (config.n_layers, config.dim, config.vocab_size);
    add("model", format!("{layers} layers of width {dim}, vocabulary {vocab}"));
    add("model_files", weights_digest(path)?);
    add("method", setup.method.name().to_owned());
    add("dtype", format!("{:?}", setup.tune.precision).to_lowercase());
    if let TuneMethod::QLora { double_quant, .. } = setup.tune.method {
        add("quant_type", "nf4".to_owned());
        add("double_quant", double_quant.to_string());
    }
    if let Some((spec, adapter)) = setup.tune.method.adapter() {
        let targets: Vec<&str> = spec.targets.iter().map(|target| target.hf_name()).collect();
        add("lora_r", spec.r.to_string());
        add("lora_alpha", spec.alpha.to_string());
        add("lora_dropout", spec.dropout.to_string());
        add("lora_target_modules", targets.join(","));
        add("use_rslora", spec.use_rslora.to_string());
        if let Some(dir) = adapter {
            add("adapter", adapter_digest(dir)?);
        }
    }
    add("data", rows.to_owned());
    let decides = setup.settings.keep_best || setup.settings.patience.is_some();
    if let Some(eval) = eval.filter(|_| decides) {
        add("eval_data", eval.to_owned());
    }
    Ok(list)
}

/// The settings of the report.
pub(super) fn shown(
    path: &Path,
    setup: &Setup,
    n_trained: usize,
    identity: &[Setting],
    n_rows: usize,
) -> Result<Vec<(String, String)>> {
    let plan = setup.settings.plan(n_rows)?;
    let digest = |name: &str| matches!(name, "model_files" | "adapter" | "data" | "eval_data");
    let mut list = vec![
        ("model_path".to_owned(), path.display().to_string()),
        ("dataset".to_owned(), setup.dataset.display().to_string()),
        ("rows".to_owned(), n_rows.to_string()),
        ("trained_parameters".to_owned(), n_trained.to_string()),
    ];
    list.extend(identity.iter().filter(|(name, _)| !digest(name)).cloned());
    list.extend(setup.settings.fingerprint(plan.total_steps));
    list.push(("threads".to_owned(), setup.tune.threads.to_string()));
    Ok(list)
}

/// Prints what came out.
pub(super) fn finish(
    outcome: &Outcome,
    args: &TrainArgs,
    method: Method,
    output: &Path,
    n_trained: usize,
    log: Log,
) -> Result<(), Failure> {
    if args.common.json {
        let mut value = outcome.json();
        value["method"] = json!(method.name());
        value["trained_parameters"] = json!(n_trained);
        value["output"] = json!(output);
        print_line(&value.to_string())?;
    } else if outcome.end != End::Interrupted {
        print_line(&summary(outcome, output))?;
    }
    if outcome.end == End::Interrupted {
        let step = outcome.state.step;
        log.remark(format!("stopped after step {step}, saved; the same with --resume goes on"));
        return Err(Failure::Interrupted);
    }
    Ok(())
}

fn summary(outcome: &Outcome, output: &Path) -> String {
    let value = outcome.json();
    let (step, total) = (outcome.state.step, outcome.total_steps);
    let mut text = match outcome.end {
        End::AlreadyDone => return format!("{}: this run is done already", output.display()),
        End::EarlyStop => format!("{step} of {total} steps: no gain since"),
        _ => format!("{step} steps"),
    };
    text += &format!(" in {:.1} s", outcome.seconds);
    if let Some(loss) = value["train_loss"].as_f64() {
        text += &format!(", mean loss {loss:.4}");
    }
    if let Some(line) = &outcome.eval {
        text += &format!(", evaluation loss {:.4}", line.eval_loss);
    }
    if let Some(peak) = value["peak_bytes"].as_u64() {
        text += &format!(", at most {}", human_bytes(peak));
    }
    text + &format!("; in {}", output.display())
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
