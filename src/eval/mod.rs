//! Scores of a model on text. For now: negative log-likelihood and perplexity.

pub mod compare;
pub mod perplexity;
pub mod reward;

pub use perplexity::{Perplexity, Window, perplexity, windows};
