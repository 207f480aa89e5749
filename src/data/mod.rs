//! Records on disk: LMFlow's container, JSON lines, tokenised rows.
//!
//! [`container::read`] takes a directory or one file and returns a [`DataSet`] of one
//! [`Kind`]; nothing is guessed and nothing invalid is skipped. Rendering records into prompts
//! and batches happens above.

pub mod container;
mod parse;
pub mod record;

pub use container::{DataSet, read, write_atomically, write_conversation, write_textlist};
pub use record::{Conversation, Kind, Record, TextList};
