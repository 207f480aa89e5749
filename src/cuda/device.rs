//! A device behind either of its two ways to run kernels: the driver, or the host harness. The only
//! file that knows both, but for recorded work (`graph.rs`) and pieces on their way (`staging.rs`).
//!
//! Locks are taken in this order: the turn, the memory, then whatever a backend has.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use super::arena::{Arena, MemoryUse};
use super::driver::Driver;
#[cfg(feature = "cuda-host")]
use super::host::Host;
use super::memory::Element;
use crate::{Error, Result};

/// What a device is.
#[derive(Clone, Debug)]
pub struct Properties {
    /// The maker's name.
    pub name: String,
    /// Compute capability: (9, 0) for Hopper.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub n_multiprocessors: u32,
    /// Most shared memory that a block may have.
    pub shared_bytes: u32,
    /// Memory in all.
    pub total_bytes: usize,
}

pub(super) enum Backend {
    Driver(Driver),
    #[cfg(feature = "cuda-host")]
    Host(Host),
}

/// Memory behind a buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Block {
    pub address: u64,
    pub bytes: usize,
    /// Which of all blocks ever handed out it is.
    pub serial: u64,
}

/// What decides whether a graph may still be launched.
#[derive(Debug)]
pub(super) struct Standing {
    /// Blocks up to this one may be among those that it works on.
    pub last_serial: AtomicU64,
    /// One of them has been given back since.
    pub stale: AtomicBool,
}

/// The memory that a device keeps for its buffers.
#[derive(Default)]
pub(super) struct Memory {
    pub arena: Arena,
    /// Blocks handed out so far.
    pub serial: u64,
    /// Changes when memory may have been handed back to the driver.
    pub generation: u64,
    /// Those of all recorded graphs.
    pub standings: Vec<Weak<Standing>>,
    /// While a graph is recorded: its own standing, and on the harness what it gave back.
    pub recording: Option<(Weak<Standing>, Vec<Block>)>,
}

/// A device and the memory that it keeps for its buffers.
pub(super) struct Device {
    pub backend: Backend,
    memory: Mutex<Memory>,
    /// Whoever queues work shares it; a recording has it alone, since all else that came into the
    /// stream would become part of the graph.
    turns: RwLock<()>,
    /// The thread that records a graph, as [`this_thread`] counts; 0 when none does.
    recorder: AtomicUsize,
}

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| ptr::from_ref(here).addr())
}

impl Device {
    pub fn new(backend: Backend) -> Self {
        Device {
            backend,
            memory: Mutex::default(),
            turns: RwLock::new(()),
            recorder: AtomicUsize::new(0),
        }
    }

    pub fn properties(&self) -> &Properties {
        match &self.backend {
            Backend::Driver(driver) => driver.properties(),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => host.properties(),
        }
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        // Its few lines panic only for blocks that are none, before anything is changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the calling thread is recording a graph.
    pub fn is_recording(&self) -> bool {
        // Only this thread ever stores its own number.
        self.recorder.load(Ordering::Relaxed) == this_thread()
    }

    /// Waits while another thread records a graph; what is queued until the guard is dropped comes
    /// into no graph but the calling thread's own.
    pub fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let shared = || self.turns.read().unwrap_or_else(PoisonError::into_inner);
        (!self.is_recording()).then(shared)
    }

    /// The turn of a recording, with which `set_recorder` says whose it is.
    pub fn turn_alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.turns.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the calling thread records from now on.
    pub fn set_recorder(&self, here: bool) {
        self.recorder.store(if here { this_thread() } else { 0 }, Ordering::Relaxed);
    }

    /// Refuses what a graph cannot hold.
    pub fn not_in_a_recording(&self, what: &str) -> Result<()> {
        if !self.is_recording() {
            return Ok(());
        }
        let why =
            "not while a graph is recorded, which holds kernels, copies on the device and zeroes";
        Err(Error::Cuda { what: what.to_owned(), why: why.to_owned() })
    }

    /// The size of the block that holds `bytes`. The harness gets exactly what was asked for: there
    /// the end of a buffer is where it seems to be.
    fn block_bytes(&self, bytes: usize) -> usize {
        match self.backend {
            Backend::Driver(_) => Arena::block_bytes(bytes),
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => bytes,
        }
    }

    /// A block with `bytes` behind its address, a multiple of 256; for [`Device::release`].
    pub fn alloc(&self, bytes: usize) -> Result<Block> {
        let _turn = self.turn();
        let bytes = self.block_bytes(bytes);
        let mut memory = self.memory();
        let address = match &self.backend {
            Backend::Driver(driver) => self.carve(driver, &mut memory, bytes)?,
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => {
                let Some(address) = host.alloc(bytes) else {
                    return Err(self.full(&memory, bytes)?);
                };
                memory.arena.count_single(bytes);
                address
            }
        };
        memory.serial += 1;
        Ok(Block { address, bytes, serial: memory.serial })
    }

    fn carve(&self, driver: &Driver, memory: &mut Memory, block: usize) -> Result<u64> {
        let recording = self.is_recording();
        if let Some(address) = memory.arena.take(block, recording) {
            return Ok(address);
        }
        if recording {
            let what = format!("{block} bytes beside {} in use", memory.arena.usage().used_bytes);
            let why = "more than was reserved, and the driver gives none while a graph is recorded: \
                       run the same work once before, or reserve more";
            return Err(Error::Cuda { what, why: why.to_owned() });
        }
        let enough = Arena::region_of(block);
        let sensible = memory.arena.growth(block);
        let given =
            self.region(driver, memory, sensible)? || self.region(driver, memory, enough)?;
        if !given && self.hand_back(driver, memory)? {
            self.region(driver, memory, enough)?;
        }
        match memory.arena.take(block, false) {
            Some(address) => Ok(address),
            None => Err(self.full(memory, block)?),
        }
    }

    /// Whether the driver gave a region of this size.
    fn region(&self, driver: &Driver, memory: &mut Memory, bytes: usize) -> Result<bool> {
        let start = driver.alloc(bytes)?;
        if let Some(start) = start {
            memory.arena.add_region(start, bytes);
        }
        Ok(start.is_some())
    }

    /// Whether any region that nothing uses went back to the driver.
    fn hand_back(&self, driver: &Driver, memory: &mut Memory) -> Result<bool> {
        let unused = memory.arena.drain();
        if unused.is_empty() {
            return Ok(false);
        }
        memory.generation += 1;
        for start in unused {
            // SAFETY: the region came from `driver.alloc`, no block lies in it any more, and the
            // arena hands each out once.
            unsafe { driver.free(start)? };
        }
        Ok(true)
    }

    /// The error of a device without room for so many bytes.
    fn full(&self, memory: &Memory, asked: usize) -> Result<Error> {
        let usage = memory.arena.usage();
        let (free, total) = self.driver_memory()?;
        Ok(Error::DeviceMemory {
            device: self.properties().name.clone(),
            asked,
            used: usage.used_bytes,
            free: free + usage.kept_bytes,
            total,
            hint: None,
        })
    }

    /// Makes sure that one region has room for so many bytes.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        self.not_in_a_recording("reserving memory")?;
        let _turn = self.turn();
        let mut memory = self.memory();
        match &self.backend {
            Backend::Driver(driver) => {
                let region = Arena::region_of(bytes);
                if bytes <= memory.arena.largest() || self.region(driver, &mut memory, region)? {
                    return Ok(());
                }
                self.hand_back(driver, &mut memory)?;
                match self.region(driver, &mut memory, region)? {
                    true => Ok(()),
                    false => Err(self.full(&memory, region)?),
                }
            }
            // Its buffers lie where they want; only whether they all fit is known before.
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => match bytes <= host.memory_free().0 {
                true => Ok(()),
                false => Err(self.full(&memory, bytes)?),
            },
        }
    }

    /// Takes back a block. Later work of the stream may get it, after all that was queued before.
    pub fn release(&self, block: Block) {
        let recording = self.is_recording();
        let mut memory = self.memory();
        memory.gone(block.serial);
        if !recording {
            return self.free_block(&mut memory, block);
        }
        match &self.backend {
            Backend::Driver(_) => memory.arena.give_back(block.address, block.bytes, true),
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => match &mut memory.recording {
                Some((_, held)) => held.push(block),
                None => self.free_block(&mut memory, block),
            },
        }
    }

    /// Takes back what a recording held.
    pub fn release_held(&self, held: &[Block]) {
        let mut memory = self.memory();
        held.iter().for_each(|block| self.free_block(&mut memory, *block));
    }

    fn free_block(&self, memory: &mut Memory, block: Block) {
        match &self.backend {
            Backend::Driver(_) => memory.arena.give_back(block.address, block.bytes, false),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => {
                memory.arena.forget(block.bytes);
                // A drop has nobody to tell; the harness knows every address that it gave out.
                let _ = host.free(block.address, block.bytes);
            }
        }
    }

    pub fn trim(&self) -> Result<()> {
        self.not_in_a_recording("giving memory back")?;
        let _turn = self.turn();
        let mut memory = self.memory();
        // Also where nothing was kept: then as if there had been.
        memory.generation += 1;
        match &self.backend {
            Backend::Driver(driver) => self.hand_back(driver, &mut memory).map(|_| ()),
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => Ok(()),
        }
    }

    pub fn memory_use(&self) -> MemoryUse {
        self.memory().arena.usage()
    }

    pub fn generation(&self) -> u64 {
        self.memory().generation
    }

    /// Free and total bytes, as the driver sees them.
    pub fn driver_memory(&self) -> Result<(usize, usize)> {
        match &self.backend {
            Backend::Driver(driver) => driver.memory_free(),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => Ok(host.memory_free()),
        }
    }

    /// Copies to an address behind which `from.len()` elements lie: that of a slice of this length.
    pub fn upload<T: Element>(&self, to: u64, from: &[T]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.not_in_a_recording("copying to the device")?;
        let _turn = self.turn();
        match &self.backend {
            // SAFETY: the address is a slice's whose length was compared with `from`'s.
            Backend::Driver(driver) => unsafe { driver.upload(to, from) },
            #[cfg(feature = "cuda-host")]
            // SAFETY: as above.
            Backend::Host(host) => unsafe { host.upload(to, from) },
        }
    }

    /// Copies from an address behind which `to.len()` elements lie: that of a slice of this length.
    pub fn download<T: Element>(&self, from: u64, to: &mut [T]) -> Result<()> {
        if to.is_empty() {
            return self.sync();
        }
        self.not_in_a_recording("copying from the device")?;
        let _turn = self.turn();
        match &self.backend {
            // SAFETY: the address is a slice's whose length was compared with `to`'s, and any bytes
            // are a `T`, which `Element` promises.
            Backend::Driver(driver) => unsafe { driver.download(from, to) },
            #[cfg(feature = "cuda-host")]
            // SAFETY: as above.
            Backend::Host(host) => unsafe { host.download(from, to) },
        }
    }

    /// Copies between the addresses of two slices of this many bytes.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _turn = self.turn();
        match &self.backend {
            // SAFETY: both slices have this length, which `Gpu::copy` compared; one of them is
            // borrowed mutably, so they do not overlap.
            Backend::Driver(driver) => unsafe { driver.copy(to, from, bytes) },
            #[cfg(feature = "cuda-host")]
            // SAFETY: as above; what is recorded stays in place as `Graph` has it.
            Backend::Host(host) => unsafe { host.copy(to, from, bytes) },
        }
    }

    /// Zeroes the bytes of a slice.
    pub fn fill_zero(&self, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _turn = self.turn();
        match &self.backend {
            // SAFETY: address and length are those of one slice, and zeroes are a value of any
            // `Element`.
            Backend::Driver(driver) => unsafe { driver.fill_zero(to, bytes) },
            #[cfg(feature = "cuda-host")]
            // SAFETY: as above.
            Backend::Host(host) => unsafe { host.fill_zero(to, bytes) },
        }
    }

    pub fn sync(&self) -> Result<()> {
        self.not_in_a_recording("waiting for the device")?;
        let _turn = self.turn();
        match &self.backend {
            Backend::Driver(driver) => driver.sync(),
            // Its launches return when they are done.
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => Ok(()),
        }
    }

    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        self.not_in_a_recording("timing")?;
        match &self.backend {
            Backend::Driver(driver) => {
                let clock = {
                    let _turn = self.turn();
                    driver.start_clock()?
                };
                work()?;
                let _turn = self.turn();
                driver.stop_clock(&clock)
            }
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => {
                let start = std::time::Instant::now();
                work()?;
                Ok(start.elapsed().as_secs_f32() * 1e3)
            }
        }
    }
}

impl Memory {
    /// A block of this number is given back: graphs that may work on it are launched no more, but
    /// for the one that is being recorded, which keeps it.
    fn gone(&mut self, serial: u64) {
        let own = self.recording.as_ref().map(|(standing, _)| standing.as_ptr());
        self.standings.retain(|standing| {
            let Some(known) = standing.upgrade() else { return false };
            let may_use = serial <= known.last_serial.load(Ordering::Relaxed);
            if may_use && own != Some(standing.as_ptr()) {
                known.stale.store(true, Ordering::Relaxed);
            }
            true
        });
    }
}
