//! Answers for the report: the same few prompts before the first iteration and after each.

use super::{Method, Run, capacity};
use crate::data::write_atomically;
use crate::error::{Error, Result};
use crate::infer::{Context, GenerateOptions, Generation, Prompts, generate_batch};
use crate::train::report::{Shown, ShownAnswer};
use serde_json::json;
use std::fs;
use std::path::Path;

const ANSWERS_NAME: &str = "answers.json";
/// First of the numbers of prompts that are shown: their random streams are nobody else's.
const FIRST_NUMBER: usize = 1 << 32;

impl<M: Method> Run<'_, '_, M> {
    /// Answers the shown prompts; `false` when told to stop meanwhile.
    pub(super) fn answers(&mut self) -> Result<bool> {
        let (job, settings) = (&self.job, self.job.settings);
        let asked = &job.prompts[..settings.n_shown.min(job.prompts.len())];
        if asked.is_empty() {
            return Ok(true);
        }
        let iteration = self.at.iteration;
        let mut shown = if iteration == 0 { vec![] } else { read(job.output)? };
        shown.resize_with(asked.len(), Shown::default);
        let ids: Vec<&[u32]> = asked.iter().map(|prompt| &prompt.ids[..]).collect();
        let numbers: Vec<usize> = (0..asked.len()).map(|at| FIRST_NUMBER + at).collect();
        let options = GenerateOptions { n: 1, ..settings.generate.clone() };
        let model = job.model.tuned().model();
        let capacity = capacity(&ids, options.max_new_tokens);
        let mut context = Context::new(model, capacity, settings.kv)?;
        let prompts =
            Prompts { ids: &ids, width: settings.width, numbers: &numbers, ..Prompts::default() };
        let mut done = |at: usize, generation: Generation| {
            let Shown { prompt, answers } = &mut shown[at];
            *prompt = asked[at].text.clone();
            // What a run that was killed wrote of iterations that it does again.
            answers.retain(|one| one.iteration < iteration);
            let texts = generation.sequences.into_iter().map(|one| one.text);
            answers.extend(texts.map(|text| ShownAnswer { iteration, text, reward: None }));
            Ok(())
        };
        let mut ws = model.workspace();
        match generate_batch(model, &mut ws, &mut context, &prompts, &options, job.stop, &mut done)
        {
            Ok(()) => {}
            Err(Error::Cancelled) => return Ok(false),
            Err(other) => return Err(other),
        }
        let text = format!("{:#}\n", json!(shown));
        write_atomically(&job.output.join(ANSWERS_NAME), text.as_bytes())?;
        Ok(true)
    }
}

/// The answers in `output`; none where there is no such file.
pub(super) fn read(output: &Path) -> Result<Vec<Shown>> {
    let path = output.join(ANSWERS_NAME);
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| Error::format(&path, error.to_string()))
        }
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(source) => Err(Error::io(path, source)),
    }
}
