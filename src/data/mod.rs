//! Records on disk, and records to rows of token ids.
//!
//! [`container::read`] takes a directory or one file and returns a [`DataSet`] of one [`Kind`];
//! [`Source`] hands out the same records one at a time. [`prepare()`] renders them to ids with a loss
//! mask, lays these out as rows and keeps the rows in a file; [`order`] tells in which order an
//! epoch takes them. Nothing is guessed, and nothing invalid is skipped in silence.

mod cache;
pub mod container;
mod layout;
pub mod order;
pub mod pairs;
mod parse;
pub mod prepare;
pub mod prompts;
pub mod record;
mod render;
mod rows;
mod show;
mod source;
mod tokenize;

pub use container::{
    DataSet, read, write_atomically, write_conversation, write_floats, write_scored, write_textlist,
};
pub use layout::{Layout, TruncationSide};
pub use order::Epochs;
pub use pairs::{Answered, Choice, PairOptions, Pairs, answered, pairs};
pub use prepare::{DataOptions, Holdout, Prepared, Progress, Report, RowSet, Stage, prepare};
pub use prompts::{Asking, Prompt, PromptOptions, PromptSet, Question, prompts};
pub use record::{Conversation, Kind, Record, TextList};
pub use render::Rules;
pub use rows::{NOT_SCORED, Row};
pub use show::show;
pub use source::{Instance, Place, Source};
