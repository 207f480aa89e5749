//! From a prompt to text: sampling, stop strings, sequences and the generation loop.
//!
//! The model only turns tokens into logits. What is chosen, shown and when it ends is decided
//! here. Nothing in this room prints: text goes to the caller's sink, piece by piece.

pub mod batch;
pub mod generate;
pub mod sampler;
pub mod sequence;
pub mod session;
pub mod speculative;
pub mod stop;
pub mod timing;

pub use batch::{Prompts, generate_batch};
pub use generate::{Context, GenerateOptions, Generated, Generation, generate};
pub use sampler::{Sampler, SamplerConfig};
pub use sequence::{FinishReason, Sequence, TokenLogprobs};
pub use session::{CancelHandle, Session, SessionOptions, step_all};
pub use speculative::{Draft, DraftModel, PromptLookup, Speculation, generate_speculative};
pub use stop::StopMatcher;
pub use timing::{Percentiles, Timings};
