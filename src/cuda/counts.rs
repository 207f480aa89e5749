//! What a device was asked for: copies to it, and with the harness launches by kernel. For tests that
//! hold the engine to how much of both a step takes.

use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(feature = "cuda-host")]
use std::collections::BTreeMap;
#[cfg(feature = "cuda-host")]
use std::sync::Mutex;

/// Counts since the device was opened.
#[derive(Default)]
pub(super) struct Counts {
    uploads: AtomicUsize,
    #[cfg(feature = "cuda-host")]
    launches: Mutex<BTreeMap<&'static str, usize>>,
}

impl Counts {
    pub fn upload(&self) {
        self.uploads.fetch_add(1, Ordering::Relaxed);
    }

    pub fn uploads(&self) -> usize {
        self.uploads.load(Ordering::Relaxed)
    }

    #[cfg(feature = "cuda-host")]
    pub fn launch(&self, kernel: &'static str) {
        // A panic while it was held left a whole map.
        let mut launches = self.launches.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *launches.entry(kernel).or_default() += 1;
    }

    #[cfg(feature = "cuda-host")]
    pub fn take_launches(&self) -> BTreeMap<&'static str, usize> {
        let mut launches = self.launches.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::take(&mut launches)
    }
}
