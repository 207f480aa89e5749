//! The numbers that an optimiser keeps for each weight, and how they go to a checkpoint and back.

use super::StateEntry;
use crate::error::{Error, Result};
use crate::tensor::Params;

/// Name of the entry that counts steps.
pub(super) const STEP: &str = "step";

/// Numbers of one name, a list for each parameter.
pub(super) struct Moment {
    name: &'static str,
    /// By parameter.
    pub values: Vec<Vec<f32>>,
}

/// Steps taken, and the moments.
pub(super) struct State {
    /// A whole number; f32 like all entries, which counts to 2^24.
    steps: [f32; 1],
    /// In the order of the names given to `new`.
    pub moments: Vec<Moment>,
}

impl State {
    /// Zeros under each name for all parameters.
    pub fn new(names: &[&'static str], params: &Params) -> State {
        let zeros = || params.0.iter().map(|p| vec![0.0; p.value.len()]).collect();
        let moment = |&name: &&'static str| Moment { name, values: zeros() };
        State { steps: [0.0], moments: names.iter().map(moment).collect() }
    }

    /// Counts a step and gives its number, from 1 on.
    pub fn next_step(&mut self) -> u32 {
        self.steps[0] += 1.0;
        self.steps[0] as u32
    }

    /// The names of the entries.
    pub fn names(&self) -> Vec<&'static str> {
        self.moments.iter().map(|moment| moment.name).chain([STEP]).collect()
    }

    /// All entries.
    pub fn entries(&self) -> Vec<StateEntry<&[f32]>> {
        let mut all = vec![];
        for Moment { name, values } in &self.moments {
            for (index, values) in values.iter().enumerate() {
                all.push(((*name).to_owned(), index, values.as_slice()));
            }
        }
        all.push((STEP.to_owned(), 0, &self.steps[..]));
        all
    }

    /// Replaces all numbers.
    ///
    /// # Errors
    /// When an entry is missing, unknown, doubled or of the wrong length; then nothing changes.
    pub fn load(&mut self, entries: Vec<StateEntry<Vec<f32>>>) -> Result<()> {
        let wrong = |name: &str, index: usize, what: String| Error::Data {
            place: format!("optimizer state {name} of parameter {index}"),
            what,
        };
        // Where each entry goes: moment and parameter, or the step.
        let mut found: Vec<Vec<Option<Vec<f32>>>> =
            self.moments.iter().map(|moment| vec![None; moment.values.len()]).collect();
        let mut steps = None;
        for (name, index, values) in entries {
            let moment = self.moments.iter().position(|moment| moment.name == name);
            let (place, len) = match moment {
                Some(m) if index < self.moments[m].values.len() => {
                    (&mut found[m][index], self.moments[m].values[index].len())
                }
                None if name == STEP && index == 0 => (&mut steps, 1),
                _ => return Err(wrong(&name, index, "this optimizer has no such entry".into())),
            };
            if values.len() != len {
                let what = format!("{} numbers, wanted {len}", values.len());
                return Err(wrong(&name, index, what));
            }
            if place.replace(values).is_some() {
                return Err(wrong(&name, index, "found twice".into()));
            }
        }
        let Some(steps) = steps else {
            return Err(wrong(STEP, 0, "missing".into()));
        };
        for (moment, found) in self.moments.iter().zip(&found) {
            if let Some(index) = found.iter().position(Option::is_none) {
                return Err(wrong(moment.name, index, "missing".into()));
            }
        }
        if !(steps[0] >= 0.0 && steps[0].fract() == 0.0) {
            return Err(wrong(STEP, 0, format!("{} is no number of steps", steps[0])));
        }
        self.steps = [steps[0]];
        for (moment, found) in self.moments.iter_mut().zip(found) {
            moment.values = found.into_iter().flatten().collect();
        }
        Ok(())
    }
}
