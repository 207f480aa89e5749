//! Learning-rate schedules: rates by step, equal to the curves of transformers' `get_scheduler`
//! under the same names.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::f64::consts::PI;

/// The names that [`Schedule::parse`] knows.
pub const NAMES: &[&str] = &[
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
];

/// A curve over the steps of a run. All but `Constant` rise linearly from 0 during the warm-up.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// Down to 0 at the last step, in a line.
    Linear,
    /// Down to 0 in half a wave, or in `num_cycles` waves.
    Cosine {
        /// Waves; 0.5 goes down once.
        num_cycles: f64,
    },
    /// One rate, without a warm-up.
    Constant,
    /// One rate after the warm-up.
    ConstantWithWarmup,
    /// As `Cosine`, but down to a smallest rate.
    CosineWithMinLr {
        /// Waves; 0.5 goes down once.
        num_cycles: f64,
        /// The smallest rate.
        min: MinLr,
    },
    /// Down to `lr_end` at the last step, along a power of what remains.
    Polynomial {
        /// Rate of the last step, and of any after it.
        lr_end: f64,
        /// 1 is a line.
        power: f64,
    },
    /// One over the root of the steps.
    InverseSqrt {
        /// Steps over which the rate falls to 0.71 of the base rate; the length of the warm-up by
        /// default, or 10000 without one.
        timescale: Option<f64>,
    },
}

/// The smallest rate of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MinLr {
    /// Itself.
    Rate(f64),
    /// As a part of the base rate.
    Part(f64),
}

impl Schedule {
    /// The schedule of this name. `kwargs` is a JSON object with the numbers it takes:
    /// `num_cycles` (cosine, cosine_with_min_lr), `min_lr` or `min_lr_rate` (one of them for
    /// cosine_with_min_lr), `lr_end` and `power` (polynomial), `timescale` (inverse_sqrt).
    ///
    /// # Errors
    /// When the name is not one of [`NAMES`], or an argument is missing, unknown or no number that
    /// the schedule can take.
    pub fn parse(name: &str, kwargs: Option<&str>) -> Result<Schedule> {
        let mut kwargs = Kwargs::parse(name, kwargs)?;
        let schedule = match name {
            "linear" => Schedule::Linear,
            "cosine" => {
                Schedule::Cosine { num_cycles: kwargs.number("num_cycles")?.unwrap_or(0.5) }
            }
            "constant" => Schedule::Constant,
            "constant_with_warmup" => Schedule::ConstantWithWarmup,
            "cosine_with_min_lr" => Schedule::CosineWithMinLr {
                num_cycles: kwargs.number("num_cycles")?.unwrap_or(0.5),
                min: match (kwargs.number("min_lr")?, kwargs.number("min_lr_rate")?) {
                    (Some(rate), None) => MinLr::Rate(rate),
                    (None, Some(part)) => MinLr::Part(part),
                    _ => return Err(kwargs.wrong("cosine_with_min_lr wants min_lr or min_lr_rate")),
                },
            },
            "polynomial" => Schedule::Polynomial {
                lr_end: kwargs.number("lr_end")?.unwrap_or(1e-7),
                power: kwargs.number("power")?.unwrap_or(1.0),
            },
            "inverse_sqrt" => {
                let timescale = kwargs.number("timescale")?;
                if timescale.is_some_and(|steps| steps == 0.0) {
                    return Err(kwargs.wrong("wanted a timescale above 0"));
                }
                Schedule::InverseSqrt { timescale }
            }
            _ => {
                let why = format!("wanted one of {}", NAMES.join(", "));
                return Err(Error::config("lr_scheduler_type", name, why));
            }
        };
        kwargs.finish()?;
        Ok(schedule)
    }

    /// Refuses a base rate that the schedule cannot start from.
    ///
    /// # Errors
    /// When the rate is not above the last rate of a polynomial schedule.
    pub fn check(&self, base_lr: f64) -> Result<()> {
        match self {
            Schedule::Polynomial { lr_end, .. } if base_lr <= *lr_end => Err(Error::config(
                "learning_rate",
                base_lr,
                format!("wanted more than lr_end = {lr_end} of the polynomial schedule"),
            )),
            _ => Ok(()),
        }
    }

    /// The rate of the update with index `step` (from 0) in a run of `total` updates, the first
    /// `warmup` of which are the warm-up.
    pub fn rate(&self, base_lr: f64, step: usize, warmup: usize, total: usize) -> f64 {
        if *self == Schedule::Constant {
            return base_lr;
        }
        if step < warmup {
            return base_lr * (step as f64 / warmup as f64);
        }
        let decay_steps = total.saturating_sub(warmup).max(1) as f64;
        let progress = (step - warmup) as f64 / decay_steps;
        let cosine = |cycles: f64| 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos());
        match *self {
            Schedule::Linear => base_lr * (total.saturating_sub(step) as f64 / decay_steps),
            Schedule::Cosine { num_cycles } => base_lr * cosine(num_cycles).max(0.0),
            Schedule::Constant | Schedule::ConstantWithWarmup => base_lr,
            Schedule::CosineWithMinLr { num_cycles, min } => {
                let part = match min {
                    MinLr::Rate(rate) if base_lr == 0.0 => return rate,
                    MinLr::Rate(rate) => rate / base_lr,
                    MinLr::Part(part) => part,
                };
                base_lr * (cosine(num_cycles) * (1.0 - part) + part).max(0.0)
            }
            Schedule::Polynomial { lr_end, power } => {
                if step > total || total <= warmup {
                    return lr_end;
                }
                (base_lr - lr_end) * (1.0 - progress).powf(power) + lr_end
            }
            Schedule::InverseSqrt { timescale } => {
                let default = if warmup > 0 { warmup as f64 } else { 10_000.0 };
                let timescale = timescale.unwrap_or(default);
                base_lr / (((step - warmup) as f64 + timescale) / timescale).sqrt()
            }
        }
    }
}

/// The steps of a warm-up given as a part of all steps: `ceil(ratio * total)`.
pub fn warmup_steps(ratio: f64, total: usize) -> usize {
    (ratio * total as f64).ceil() as usize
}

/// Arguments of a schedule that are still to be asked for.
struct Kwargs {
    text: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Kwargs {
    fn parse(name: &str, text: Option<&str>) -> Result<Kwargs> {
        let text = text.unwrap_or("{}").to_owned();
        let map = serde_json::from_str(&text).map_err(|fault| {
            let why = format!("wanted a JSON object of the arguments of {name}: {fault}");
            Error::config("lr_scheduler_kwargs", &text, why)
        })?;
        Ok(Kwargs { text, map, known: vec![] })
    }

    fn wrong(&self, why: impl Into<String>) -> Error {
        Error::config("lr_scheduler_kwargs", &self.text, why)
    }

    /// The argument of this name, at least 0; `null` counts as absent.
    fn number(&mut self, name: &'static str) -> Result<Option<f64>> {
        self.known.push(name);
        match self.map.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number >= 0.0 => Ok(Some(number)),
                _ => Err(self.wrong(format!("{name} is {value}, wanted a number from 0 on"))),
            },
        }
    }

    /// Refuses what nobody asked for.
    fn finish(self) -> Result<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) if self.known.is_empty() => {
                Err(self.wrong(format!("{name}: this schedule takes no arguments")))
            }
            Some(name) => Err(self.wrong(format!("{name}: wanted {}", self.known.join(", ")))),
        }
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
