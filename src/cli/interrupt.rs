//! Ctrl-C (and the signals that end a process) as a flag that the work looks at.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static CANCEL: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<bool> = OnceLock::new();
/// Whether a second signal ends the process at once.
static IMPATIENT: AtomicBool = AtomicBool::new(false);
/// Exit status of an interrupted process.
const STATUS: i32 = 130;

/// The flag, set from the next signal on. Until the first call a signal ends the process at once,
/// which is right while nothing is there to be saved. Where no handler can be installed it stays
/// like that.
pub fn flag() -> &'static AtomicBool {
    INSTALLED.get_or_init(|| {
        let handle = || {
            if CANCEL.swap(true, Ordering::Relaxed) && IMPATIENT.load(Ordering::Relaxed) {
                std::process::exit(STATUS);
            }
        };
        ctrlc::set_handler(handle).is_ok()
    });
    &CANCEL
}

/// As [`flag`], for work that takes its time to stop: the second signal ends the process at once.
pub fn flag_or_exit() -> &'static AtomicBool {
    IMPATIENT.store(true, Ordering::Relaxed);
    flag()
}

/// Whether a signal came since the last call; takes it back.
pub fn take() -> bool {
    CANCEL.swap(false, Ordering::Relaxed)
}
