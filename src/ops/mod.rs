//! The differentiable operations, forward beside backward: few and coarse, each one kernel.
//!
//! Every operation is `name(cx, inputs..)`. With the tape off it is just its forward kernel; with
//! the tape on it leaves what its backward pass needs, and nothing if nothing upstream is trained.

mod add;
mod attention;
mod cross_entropy;
mod embedding;
mod linear;
mod lora;
mod rms_norm;
mod rope;
mod scale;
mod score;
mod select;
mod swiglu;

pub use add::add;
#[cfg(feature = "cuda")]
pub use attention::attention_prepared;
pub use attention::{CachedRows, Heads, attention, attention_cached};
pub use cross_entropy::{Loss, chunk_rows, cross_entropy, log_probs, log_probs_backward};
pub use embedding::embedding;
pub use linear::{Linear, gated, last_linear, last_linear_add, linear, linear_add, linears};
pub use lora::Lora;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use scale::scale;
pub use score::{score, score_backward};
pub use select::select;
pub use swiglu::swiglu;
