//! The library as tests use it: load, logits of a sequence.

use puna::model::llama::{KvCache, LoadOptions, LogitsFor, Model, Segment, Workspace};
use std::path::Path;

/// Loads a model that must load.
pub fn load(path: &Path, threads: usize, exact: bool) -> Model {
    match Model::load(path, &LoadOptions { exact, ..LoadOptions::threads(threads) }) {
        Ok(model) => model,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// Appends `tokens` to the sequence of `cache`; logits [tokens, vocab].
pub fn append(model: &Model, ws: &mut Workspace, cache: &mut KvCache, tokens: &[u32]) -> Vec<f32> {
    let segment = Segment { tokens, cache, logits: LogitsFor::All, rope_len: None };
    model.forward(ws, &mut [segment]).expect("the sequence fits");
    (0..tokens.len()).flat_map(|row| ws.logits(row).expect("logits of a CPU").to_vec()).collect()
}
