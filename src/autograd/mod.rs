//! The tape: which operations ran, what they kept, and how gradients flow back.
//!
//! A [`Cx`] carries the device, its memory and, when gradients are wanted, a tape. An operation
//! takes and returns [`Var`]s; it leaves a [`Backward`] on the tape only if one of its inputs is
//! tracked or one of its weights is trained, so frozen parts cost nothing. [`sweep`] walks a tape
//! back. [`checkpoint`] trades memory for time: it keeps the input of a part and runs it again.
//!
//! The operations themselves are in `ops`.

mod adjoint;
mod checkpoint;
mod cx;
mod saved;
mod var;

pub use adjoint::{Adjoints, Backward, sweep};
pub use checkpoint::checkpoint;
pub use cx::{Cx, Dropout, Mode, NodeId};
pub use saved::Saved;
pub use var::Var;
