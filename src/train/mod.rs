//! Training: one loop over rows, whatever is trained and however. Holds optimisers, schedules,
//! checkpoints, metrics and the report; which weights there are and how their gradients come about
//! is `model`'s, where rows come from `data`'s.

mod batch;
pub mod best;
pub mod checkpoint;
pub mod clip;
pub mod evaluate;
mod exact;
pub mod identity;
pub mod job;
mod manifest;
pub mod metrics;
mod moments;
pub mod optimizer;
pub mod output;
pub mod plan;
pub mod probe;
pub mod report;
pub mod saving;
pub mod schedule;
pub mod settings;
pub mod state;
pub mod step;
mod svg;
mod tensors;
pub mod trainee;
pub mod trainer;
pub mod watch;

pub use batch::{Packed, budget};
pub use job::{End, Job, Outcome, Rows};
pub use plan::{Length, Plan, slices};
pub use settings::Settings;
pub use trainee::{Holder, Trainee, Tuned};
pub use trainer::train;
pub use watch::{Silent, Watch};
