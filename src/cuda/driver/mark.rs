//! Marks in a stream (the driver's events): what the host, or another stream, waits for.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUevent_flags_enum as Flags};

use super::{Driver, failed};
use crate::Result;

/// A mark. It may be set again and again; who waits for it waits for where it was set last, and not
/// at all where it never was. None outlives its driver.
pub(in crate::cuda) struct Mark {
    raw: sys::CUevent,
    context: sys::CUcontext,
}

// SAFETY: handles of the driver's, which takes them from any thread.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Driver {
    /// A mark; a timed one says when it was reached, which makes waiting for it slower.
    pub fn new_mark(&self, timed: bool) -> Result<Mark> {
        self.enter()?;
        let flags = if timed { Flags::CU_EVENT_DEFAULT } else { Flags::CU_EVENT_DISABLE_TIMING };
        let raw = result::event::create(flags).map_err(|e| failed("making an event", e))?;
        Ok(Mark { raw, context: self.context })
    }

    /// Sets it behind all that was queued in the stream, one of this driver's.
    pub(super) fn set_mark(&self, mark: &Mark, stream: sys::CUstream) -> Result<()> {
        self.enter()?;
        // SAFETY: the event lives as long as `mark`, the stream as long as the driver.
        unsafe { result::event::record(mark.raw, stream) }.map_err(|e| failed("an event", e))
    }

    /// Lets what is queued in the stream from now on wait for the mark.
    pub(super) fn follow(&self, stream: sys::CUstream, mark: &Mark) -> Result<()> {
        self.enter()?;
        let flags = sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `set_mark`.
        unsafe { result::stream::wait_event(stream, mark.raw, flags) }
            .map_err(|e| failed("waiting in a stream", e))
    }

    /// Waits for the mark.
    pub(super) fn reach(&self, mark: &Mark) -> Result<()> {
        self.enter()?;
        // SAFETY: the event lives as long as `mark`.
        unsafe { result::event::synchronize(mark.raw) }
            .map_err(|e| failed("waiting for the device (a kernel before may have failed)", e))
    }

    /// Whether the mark was reached.
    pub(super) fn is_reached(&self, mark: &Mark) -> Result<bool> {
        self.enter()?;
        // SAFETY: the event lives as long as `mark`.
        match unsafe { result::event::query(mark.raw) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(failed("looking at the device (a kernel before may have failed)", e)),
        }
    }

    /// Milliseconds from one timed mark to another; both have been reached.
    pub(super) fn between(&self, start: &Mark, end: &Mark) -> Result<f32> {
        self.enter()?;
        // SAFETY: both were set in one stream, which was waited for.
        unsafe { result::event::elapsed(start.raw, end.raw) }.map_err(|e| failed("timing", e))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: the context is held by the driver, which lives longer.
        if unsafe { result::ctx::set_current(self.context) }.is_ok() {
            // SAFETY: created in `new_mark`, destroyed here only; what waits for it in a stream
            // goes on to. A failure has nobody to be told.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
