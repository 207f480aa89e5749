//! What is to be measured: tests, and the random model that `--shape` asks for.

use super::{BenchArgs, or_usual};
use crate::cli::failure::Failure;
use crate::model::llama::Model;
use crate::model::{panel_cache, shapes};
use std::path::PathBuf;

/// One kind of measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Tokens of the prompt, 0 for a token test.
    pub n_prompt: usize,
    /// Single tokens of each sequence, 0 for a prompt test.
    pub n_gen: usize,
    /// Positions filled before.
    pub depth: usize,
    /// Sequences decoded together; 1 for a prompt test.
    pub batch: usize,
}

impl Test {
    /// llama-bench's name, `pp512`, `tg64 @ d2048`, and how many sequences: `tg64 b8`.
    pub fn name(self) -> String {
        let mut name = match self.n_gen {
            0 => format!("pp{}", self.n_prompt),
            n => format!("tg{n}"),
        };
        if self.batch > 1 {
            name += &format!(" b{}", self.batch);
        }
        if self.depth > 0 {
            name += &format!(" @ d{}", self.depth);
        }
        name
    }

    /// Tokens of one sequence.
    pub fn n_tokens(self) -> usize {
        self.n_prompt + self.n_gen
    }
}

/// The tests in llama-bench's order: at each depth the prompts, then the tokens.
///
/// # Errors
/// Nothing to measure, or more sequences than a forward pass takes.
pub fn plan(args: &BenchArgs) -> Result<Vec<Test>, Failure> {
    let (prompts, gens) = (or_usual(&args.n_prompt, 512), or_usual(&args.n_gen, 128));
    let batches = or_usual(&args.batch, 1);
    if let Some(batch) = batches.iter().find(|&&batch| batch > Model::MAX_ROWS) {
        let most = Model::MAX_ROWS;
        return Err(Failure::usage(format!("-b {batch}: wanted at most {most} sequences")));
    }
    let mut tests = vec![];
    for depth in or_usual(&args.n_depth, 0) {
        tests.extend(prompts.iter().map(|&n_prompt| Test { n_prompt, n_gen: 0, depth, batch: 1 }));
        for &n_gen in &gens {
            tests.extend(batches.iter().map(|&batch| Test { n_prompt: 0, n_gen, depth, batch }));
        }
    }
    tests.retain(|test| test.n_tokens() > 0);
    if tests.is_empty() {
        let hint = "-p and -n are both 0".to_owned();
        return Err(Failure::Usage("nothing to measure".into(), Some(hint)));
    }
    Ok(tests)
}

/// A model made for this run; removed with it unless it was to be kept.
pub struct MadeModel {
    /// The file.
    pub path: PathBuf,
    /// The shape's name.
    pub name: &'static str,
    keep: bool,
}

impl Drop for MadeModel {
    fn drop(&mut self) {
        if !self.keep {
            // A file that somebody else removed is as gone as it should be.
            let _ = std::fs::remove_file(&self.path);
            // What --cache-weights may have put beside it.
            let _ = std::fs::remove_file(panel_cache::beside(&self.path));
        }
    }
}

/// Writes the random model that `--shape` asks for.
///
/// # Errors
/// Flags that contradict each other, names that nothing has, a file that cannot be written.
pub fn make_model(args: &BenchArgs) -> Result<Option<MadeModel>, Failure> {
    let Some(name) = &args.shape else {
        let without = |flag: &str| Failure::Usage(format!("{flag} without --shape"), None);
        return match (&args.save, &args.r#type) {
            (Some(_), _) => Err(without("--save")),
            (_, Some(_)) => Err(without("--type")),
            _ => Ok(None),
        };
    };
    if args.model.model.is_some() {
        return Err(Failure::usage("both MODEL and --shape are given"));
    }
    let shape = shapes::named(name)?;
    let type_name = args.r#type.as_deref().unwrap_or("Q4_0");
    let dtype = shapes::dtype_named(type_name)?;
    let path = args.save.clone().unwrap_or_else(|| {
        let file = format!("puna-{}-{name}-{type_name}.gguf", std::process::id());
        std::env::temp_dir().join(file)
    });
    args.common
        .log()
        .remark(format!("writing {name} with random {type_name} weights: {}", path.display()));
    let made = MadeModel { path, name: shape.name, keep: args.save.is_some() };
    shape.save(&made.path, dtype, args.common.seed)?;
    Ok(Some(made))
}
