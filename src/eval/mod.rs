//! Scores of models on texts, questions and answers, and how sure they are.

pub mod accuracy;
pub mod answers;
pub mod bootstrap;
pub mod choice;
pub mod compare;
pub mod diversity;
pub mod likelihood;
pub mod perplexity;
pub mod reward;
pub mod words;

pub use perplexity::{Perplexity, Window, perplexity, windows};
