//! Graphs: the stream records what is queued in it instead of doing it.

use std::ptr;

use cudarc::driver::result::{self, stream};
use cudarc::driver::sys;

use super::{Driver, failed};
use crate::Result;

/// A recorded graph, ready to be launched.
pub(in crate::cuda) struct Executable(sys::CUgraphExec);

// SAFETY: a handle of the driver's; launches of it are ordered by the one stream that they go to, and
// what destroys it has it alone.
unsafe impl Send for Executable {}
// SAFETY: as above: nothing is changed through a shared one.
unsafe impl Sync for Executable {}

impl Driver {
    /// From now on the stream records. The caller sees to it that only the calling thread queues, and
    /// nothing that waits, copies from or to the host, or asks for memory.
    pub fn begin_capture(&self) -> Result<()> {
        self.enter()?;
        // Relaxed: the driver itself may have to load a kernel's code at its first launch, which the
        // other modes forbid; what they would forbid of ours is refused before it comes here.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives until `drop`.
        unsafe { stream::begin_capture(self.stream, mode) }
            .map_err(|e| failed("recording a graph", e))
    }

    /// The stream records no more; what it recorded.
    pub fn end_capture(&self) -> Result<Executable> {
        let graph = self.take_capture()?;
        let flags = sys::CUgraphInstantiate_flags_enum(0);
        // SAFETY: the graph was just made.
        let made = unsafe { result::graph::instantiate(graph, flags) };
        // SAFETY: made in `take_capture`, destroyed here only; what was made of it stands alone. A
        // failure has nobody to be told.
        let _ = unsafe { result::graph::destroy(graph) };
        made.map(Executable).map_err(|e| failed("making a graph ready", e))
    }

    /// The stream records no more; what it recorded is forgotten.
    pub fn abandon_capture(&self) {
        // A recording that went wrong is told of by the error that it is given up for.
        if let Ok(graph) = self.take_capture() {
            // SAFETY: made in `take_capture`, destroyed here only.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }

    fn take_capture(&self) -> Result<sys::CUgraph> {
        self.enter()?;
        let mut graph = ptr::null_mut();
        // SAFETY: the stream lives until `drop`, `graph` outlives the call. Also where it fails the
        // stream is back to what it was.
        unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) }
            .result()
            .map_err(|e| failed("ending the recording of a graph", e))?;
        if graph.is_null() {
            let why = "the driver gave none".to_owned();
            return Err(crate::Error::Cuda { what: "recording a graph".into(), why });
        }
        Ok(graph)
    }

    /// Queues it.
    ///
    /// # Safety
    /// It is this driver's; every address in it has what its kernels touch behind it.
    pub unsafe fn launch_executable(&self, executable: &Executable) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise; the stream lives until `drop`.
        unsafe { result::graph::launch(executable.0, self.stream) }
            .map_err(|e| failed("launching a graph", e))
    }

    /// A launch under way goes on to its end.
    pub fn destroy_executable(&self, executable: Executable) {
        if self.enter().is_ok() {
            // SAFETY: made in `end_capture`, destroyed here only, as it is given away. A failure has
            // nobody to be told.
            let _ = unsafe { result::graph::exec_destroy(executable.0) };
        }
    }
}
