//! Alignment: training towards what is preferred, on the loops of `train` and the passes of `model`.

pub mod dpo;
pub mod pairs;
pub mod preference;
pub mod reward;
