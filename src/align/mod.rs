//! Alignment: training towards what is preferred, on the loops of `train` and the passes of `model`.

pub mod advantage;
pub mod clipped;
pub mod dpo;
pub mod dpo_rounds;
pub mod grpo;
pub mod kto;
pub mod kto_tune;
pub mod online;
pub mod pairs;
pub mod ppo;
pub mod preference;
pub mod raft;
pub mod reference;
pub mod reward;
pub mod rewards;
pub mod select;

#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod slope;
