//! Puna for C: `include/puna.h` says what each function does, and from which threads.
//!
//! Here pointers become references and results become numbers, nothing else. Every entry catches
//! panics (`status::enter`); what went wrong is kept for the thread that asked.

mod model;
mod session;
mod status;

pub use model::*;
pub use session::*;
pub use status::*;
