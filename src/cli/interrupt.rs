//! Ctrl-C (and the signals that end a process) as a flag that the work looks at.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static CANCEL: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<bool> = OnceLock::new();

/// The flag, set from the next signal on. Until the first call a signal ends the process at once,
/// which is right while nothing is there to be saved. Where no handler can be installed it stays
/// like that.
pub fn flag() -> &'static AtomicBool {
    INSTALLED.get_or_init(|| ctrlc::set_handler(|| CANCEL.store(true, Ordering::Relaxed)).is_ok());
    &CANCEL
}

/// Whether a signal came since the last call; takes it back.
pub fn take() -> bool {
    CANCEL.swap(false, Ordering::Relaxed)
}
