//! Recorded work: the kernels, copies on the device and zeroes that a closure queues, to be queued
//! again as one thing. A decode step of hundreds of small kernels costs the host one call.
//!
//! Recording does not execute, here as on the harness: what is recorded happens at each
//! [`Graph::launch`], with the arguments of the recording (scalars by value, buffers by address) and
//! whatever the buffers hold by then.
//!
//! Addresses stay good:
//!
//! - What the closure gives back (its own intermediate buffers) belongs to the graph from then on;
//!   nobody else gets that memory while the graph lives.
//! - Buffers that were there before, or outlive the closure, belong to whoever holds them. When any
//!   of them is dropped, the graph is *stale*: nobody keeps a list of what a kernel touches, so every
//!   buffer that was there counts. A stale graph is not launched; record it again.
//! - [`super::Gpu::trim`], and any other handing back of memory to the driver, makes graphs stale.
//!
//! A buffer that the closure makes and that outlives it holds after a launch what the closure's work
//! leaves in it; what anybody else wrote to it before that launch may be overwritten, since it can
//! lie where an intermediate buffer lay.

use std::sync::Arc;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::device::{Backend, Block, Device, Standing};
use super::driver::Executable;
#[cfg(feature = "cuda-host")]
use super::host::Step;
use crate::{Error, Result};

/// What a backend has recorded.
enum Recorded {
    Driver(Executable),
    #[cfg(feature = "cuda-host")]
    Host(Vec<Step>),
}

/// Recorded work of one [`super::Gpu`]; [`super::Gpu::record`] makes it.
pub struct Graph {
    device: Arc<Device>,
    /// `None` only while it is dropped.
    recorded: Option<Recorded>,
    standing: Arc<Standing>,
    generation: u64,
    /// Memory of the closure's intermediate buffers.
    held: Vec<Block>,
}

/// A recording under way: whatever ends it, the device is as before.
struct Recording<'d> {
    device: &'d Arc<Device>,
    standing: Arc<Standing>,
    ended: bool,
    _alone: RwLockWriteGuard<'d, ()>,
}

impl Device {
    /// Records what `work` queues.
    pub fn record(self: &Arc<Device>, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.not_in_a_recording("recording a graph")?;
        let recording = Recording::begin(self)?;
        // An error or a panic drops the recording, which ends it.
        work()?;
        recording.end()
    }

    pub fn launch_graph(self: &Arc<Device>, graph: &Graph) -> Result<()> {
        self.not_in_a_recording("launching a graph")?;
        let refuse =
            |why: &str| Err(Error::Cuda { what: "launching a graph".into(), why: why.to_owned() });
        if !Arc::ptr_eq(self, &graph.device) {
            return refuse("it was recorded on another device");
        }
        let _turn = self.turn();
        // Held until all is queued: a buffer that another thread drops meanwhile, and the work of
        // whoever gets its memory, come after it.
        let memory = self.memory();
        if graph.is_stale_in(memory.generation) {
            return refuse("memory that it works on was given back since: record it again");
        }
        match (&self.backend, &graph.recorded) {
            (Backend::Driver(driver), Some(Recorded::Driver(executable))) => {
                // SAFETY: it was recorded in this driver's stream; its arguments were promised to be
                // good when they were launched, and the memory behind them is not given back, as
                // was just looked at under the lock that giving back takes.
                unsafe { driver.launch_executable(executable) }
            }
            #[cfg(feature = "cuda-host")]
            (Backend::Host(host), Some(Recorded::Host(steps))) => {
                // SAFETY: as above.
                unsafe { host.replay(steps) }
            }
            _ => refuse("it was recorded on another kind of device"),
        }
    }
}

impl<'d> Recording<'d> {
    fn begin(device: &'d Arc<Device>) -> Result<Recording<'d>> {
        let alone = device.turn_alone();
        match &device.backend {
            Backend::Driver(driver) => driver.begin_capture()?,
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => host.begin_tape(),
        }
        device.set_recorder(true);
        // Other threads drop buffers meanwhile: any of them may be one that was used already.
        let last_serial = AtomicU64::new(u64::MAX);
        let standing = Arc::new(Standing { last_serial, stale: AtomicBool::new(false) });
        let mut memory = device.memory();
        memory.standings.push(Arc::downgrade(&standing));
        memory.recording = Some((Arc::downgrade(&standing), vec![]));
        memory.arena.set_apart();
        drop(memory);
        Ok(Recording { device, standing, ended: false, _alone: alone })
    }

    fn end(mut self) -> Result<Graph> {
        self.ended = true;
        let recorded = match &self.device.backend {
            Backend::Driver(driver) => driver.end_capture().map(Recorded::Driver),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => Ok(Recorded::Host(host.end_tape())),
        };
        let (held, generation) = self.leave();
        // From here on the graph gives back what is held, also where there is none.
        let mut graph = Graph {
            device: Arc::clone(self.device),
            recorded: None,
            standing: Arc::clone(&self.standing),
            generation,
            held,
        };
        graph.recorded = Some(recorded?);
        Ok(graph)
    }

    /// The thread does not record any more; gives what it gave back meanwhile.
    fn leave(&self) -> (Vec<Block>, u64) {
        self.device.set_recorder(false);
        let mut memory = self.device.memory();
        self.standing.last_serial.store(memory.serial, Ordering::Relaxed);
        let mut held = memory.recording.take().map(|(_, held)| held).unwrap_or_default();
        let extents = memory.arena.end_apart();
        held.extend(extents.into_iter().map(|(address, bytes)| Block {
            address,
            bytes,
            serial: 0,
        }));
        (held, memory.generation)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        match &self.device.backend {
            Backend::Driver(driver) => driver.abandon_capture(),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => drop(host.end_tape()),
        }
        let (held, _) = self.leave();
        self.device.release_held(&held);
    }
}

impl Graph {
    fn is_stale_in(&self, generation: u64) -> bool {
        self.standing.stale.load(Ordering::Relaxed) || self.generation != generation
    }

    /// Whether it cannot be launched any more on this device: a buffer that was there when it was
    /// recorded has been dropped, memory went back to the driver, or it is another device's.
    pub fn is_stale(&self, gpu: &super::Gpu) -> bool {
        !Arc::ptr_eq(&gpu.device, &self.device) || self.is_stale_in(self.device.generation())
    }

    /// Queues what was recorded, behind all that was queued before.
    ///
    /// # Errors
    /// When the graph is stale or another device's; while a graph is recorded; when the device
    /// failed; of the host harness also what it found wrong in a kernel.
    pub fn launch(&self, gpu: &super::Gpu) -> Result<()> {
        gpu.device.launch_graph(self)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let (Backend::Driver(driver), Some(Recorded::Driver(executable))) =
            (&self.device.backend, self.recorded.take())
        {
            driver.destroy_executable(executable);
        }
        // Later work of the stream may get it, after the launches that were queued before.
        self.device.release_held(&self.held);
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("generation", &self.generation).finish_non_exhaustive()
    }
}
