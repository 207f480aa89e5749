//! `state.json` of a checkpoint: where a run stands, and what it was told. Weights and moments are
//! in files beside it.

use super::best::Best;
use super::exact;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// Name of the file in a checkpoint.
pub const STATE_NAME: &str = "state.json";
/// The only layout so far.
const VERSION: u32 = 1;

/// A setting that decides which numbers come out: its name and its value, in words.
pub type Setting = (String, String);

/// Where a run stands after a whole number of steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Layout of this file.
    pub version: u32,
    /// The Puna that wrote it.
    pub puna: String,
    /// What computed, an instruction set or a GPU: another one rounds otherwise.
    pub isa: String,
    /// Steps done.
    pub step: usize,
    /// Passes over the data.
    pub epoch: f64,
    /// Where the next step begins in the order of its epoch.
    pub cursor: Cursor,
    /// Everything random is drawn from the seed and a count, so this is all there is to keep.
    pub seed: u64,
    /// The step after which the evaluation set was run last.
    pub evaluated: Option<usize>,
    /// Best evaluation, and early stopping.
    pub best: Best,
    /// Sum of the losses of all steps.
    #[serde(with = "exact")]
    pub loss_sum: f64,
    /// Scored tokens so far.
    pub n_scored: u64,
    /// All tokens so far.
    pub n_tokens: u64,
    /// Bytes of `metrics.jsonl` that belong to these steps.
    pub metrics_bytes: u64,
    /// What decides the numbers; a resumed run must be told the same.
    pub settings: Vec<Setting>,
}

/// A place in the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Rows of it that were taken.
    pub row: usize,
}

impl State {
    /// Before the first step.
    pub fn new(seed: u64, isa: String, settings: Vec<Setting>) -> State {
        State {
            version: VERSION,
            puna: env!("CARGO_PKG_VERSION").to_owned(),
            isa,
            step: 0,
            epoch: 0.0,
            cursor: Cursor::default(),
            seed,
            evaluated: None,
            best: Best::default(),
            loss_sum: 0.0,
            n_scored: 0,
            n_tokens: 0,
            metrics_bytes: 0,
            settings,
        }
    }

    /// Writes the file into `dir`, which is sealed later.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE_NAME);
        let text =
            serde_json::to_string_pretty(self).map_err(|error| Error::io(&path, error.into()))?;
        fs::write(&path, text).map_err(|source| Error::io(&path, source))
    }

    /// Reads the file of `dir`.
    ///
    /// # Errors
    /// No such file, another layout, or something else in it.
    pub fn read(dir: &Path) -> Result<State> {
        let path = dir.join(STATE_NAME);
        let text = fs::read(&path).map_err(|source| Error::io(&path, source))?;
        let state: State = serde_json::from_slice(&text)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        if state.version != VERSION {
            let what = format!("version {}, wanted {VERSION}", state.version);
            return Err(Error::format(&path, what));
        }
        Ok(state)
    }
}

/// Refuses to go on with other settings than a run was begun with.
///
/// # Errors
/// The first that differs: its name, the value now, the value then.
pub fn check_same(then: &[Setting], now: &[Setting]) -> Result<()> {
    const NONE: &str = "(not set)";
    let value = |list: &'_ [Setting], name: &str| {
        list.iter().find(|(n, _)| n == name).map_or(NONE.to_owned(), |(_, value)| value.clone())
    };
    let names = then.iter().chain(now).map(|(name, _)| name);
    for name in names {
        let (old, new) = (value(then, name), value(now, name));
        if old != new {
            let why = format!("the run was begun with {old}; --resume goes on with the same only");
            return Err(Error::config(name, new, why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut best = Best::default();
        best.update(4, 0.1 + 0.2, 0.0);
        State {
            step: 5,
            epoch: 1.25,
            cursor: Cursor { epoch: 1, row: 8 },
            evaluated: Some(4),
            best,
            loss_sum: 1.0 / 3.0,
            n_scored: 100,
            n_tokens: 200,
            metrics_bytes: 1234,
            ..State::new(u64::MAX, "portable".into(), vec![("learning_rate".into(), "5e-5".into())])
        }
    }

    #[test]
    fn a_state_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        state().write(dir.path()).unwrap();
        assert_eq!(State::read(dir.path()).unwrap(), state());
        let path = dir.path().join(STATE_NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert!(State::read(dir.path()).unwrap_err().to_string().contains("version 2, wanted 1"));
        fs::write(&path, "{}").unwrap();
        assert!(State::read(dir.path()).unwrap_err().to_string().contains(STATE_NAME));
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        let list = |pairs: &[(&str, &str)]| -> Vec<Setting> {
            pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
        };
        let then = list(&[("batch_size", "8"), ("learning_rate", "5e-5")]);
        check_same(&then, &then).unwrap();
        let cases = [
            (list(&[("batch_size", "8"), ("learning_rate", "1e-4")]), "learning_rate = 1e-4"),
            (list(&[("batch_size", "8")]), "learning_rate = (not set)"),
            (list(&[("batch_size", "8"), ("learning_rate", "5e-5"), ("r", "4")]), "r = 4"),
        ];
        for (now, part) in cases {
            let error = check_same(&then, &now).unwrap_err().to_string();
            assert!(error.starts_with(part) && error.contains("begun with"), "{error}");
        }
    }
}
