//! The numbers that an optimiser keeps for each weight, and how they go to a checkpoint and back.

use super::StateEntry;
use crate::error::{Error, Result};
use crate::tensor::{Home, Param, Params, Values};

/// Name of the entry that counts steps.
pub(super) const STEP: &str = "step";

/// Numbers of one name, a list for each parameter.
pub(super) struct Moment {
    name: &'static str,
    /// By parameter.
    pub values: Vec<Values>,
}

/// Steps taken, and the moments.
pub(super) struct State {
    /// One whole number, on the host; f32 like all entries, which counts to 2^24.
    steps: Values,
    /// In the order of the names given to `new`.
    pub moments: Vec<Moment>,
}

impl State {
    /// Zeros under each name for all parameters, each at home where its parameter is.
    ///
    /// # Errors
    /// When a GPU has no room for them.
    pub fn new(names: &[&'static str], params: &Params) -> Result<State> {
        let zeros = |param: &Param| Values::zeros(&param.value.home(), param.value.len());
        let moment = |&name: &&'static str| -> Result<Moment> {
            Ok(Moment { name, values: params.0.iter().map(zeros).collect::<Result<_>>()? })
        };
        let moments = names.iter().map(moment).collect::<Result<_>>()?;
        Ok(State { steps: Values::zeros(&Home::Host, 1)?, moments })
    }

    /// Counts a step and gives its number, from 1 on.
    ///
    /// # Errors
    /// None, as the number is on the host.
    pub fn next_step(&mut self) -> Result<u32> {
        let mut step = 0.0;
        self.steps.change(|steps| {
            steps[0] += 1.0;
            step = steps[0];
            Ok(())
        })?;
        Ok(step as u32)
    }

    /// The names of the entries.
    pub fn names(&self) -> Vec<&'static str> {
        self.moments.iter().map(|moment| moment.name).chain([STEP]).collect()
    }

    /// All entries.
    pub fn entries(&self) -> Vec<StateEntry<&Values>> {
        let mut all = vec![];
        for Moment { name, values } in &self.moments {
            for (index, values) in values.iter().enumerate() {
                all.push(((*name).to_owned(), index, values));
            }
        }
        all.push((STEP.to_owned(), 0, &self.steps));
        all
    }

    /// Replaces all numbers.
    ///
    /// # Errors
    /// When an entry is missing, unknown, doubled or of the wrong length; then nothing changes. When
    /// a GPU failed; then anything may have changed.
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
        self.steps.write(&steps)?;
        for (moment, found) in self.moments.iter_mut().zip(found) {
            for (values, found) in moment.values.iter_mut().zip(found.into_iter().flatten()) {
                values.write(&found)?;
            }
        }
        Ok(())
    }
}
