//! A device behind either of its two ways to run kernels: the driver, or the host harness. The only
//! file that knows both.

use std::sync::{Mutex, MutexGuard};

use super::driver::Driver;
#[cfg(feature = "cuda-host")]
use super::host::Host;
use super::memory::{Arena, Element, MemoryUse};
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

/// A device and the memory that it keeps for its buffers.
pub(super) struct Device {
    pub backend: Backend,
    arena: Mutex<Arena>,
}

impl Device {
    pub fn new(backend: Backend) -> Self {
        Device { backend, arena: Mutex::default() }
    }

    pub fn properties(&self) -> &Properties {
        match &self.backend {
            Backend::Driver(driver) => driver.properties(),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => host.properties(),
        }
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        // A panic inside of the arena's own few lines leaves it consistent: blocks are moved whole.
        self.arena.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The size of the block that holds `bytes`. The harness gets exactly what was asked for: there
    /// the end of a buffer is where it seems to be.
    fn block_bytes(&self, bytes: usize) -> usize {
        match self.backend {
            Backend::Driver(_) => Arena::size_class(bytes),
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => bytes,
        }
    }

    /// An address with `bytes` behind it, a multiple of 256; for [`Device::release`].
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        let block = self.block_bytes(bytes);
        let mut arena = self.arena();
        if let Some(address) = arena.take(block) {
            return Ok(address);
        }
        let mut found = self.raw_alloc(block)?;
        if found.is_none() {
            // Blocks of other sizes may be lying unused.
            for unused in arena.drain() {
                self.raw_free(unused)?;
            }
            found = self.raw_alloc(block)?;
        }
        let Some(address) = found else {
            let (free, total) = self.memory_free()?;
            let device = self.properties().name.clone();
            let used = arena.usage().used_bytes;
            return Err(Error::DeviceMemory { device, asked: block, used, free, total });
        };
        arena.add(block);
        Ok(address)
    }

    /// Takes back what `alloc(bytes)` gave. Later work of the stream may get it, after all that was
    /// queued before.
    pub fn release(&self, address: u64, bytes: usize) {
        let block = self.block_bytes(bytes);
        match self.backend {
            Backend::Driver(_) => self.arena().give_back(block, address),
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => {
                self.arena().forget(block);
                // A drop has nobody to tell; the harness knows every address that it gave out.
                let _ = self.raw_free(address);
            }
        }
    }

    pub fn trim(&self) -> Result<()> {
        self.arena().drain().into_iter().try_for_each(|address| self.raw_free(address))
    }

    pub fn memory_use(&self) -> MemoryUse {
        self.arena().usage()
    }

    /// `None` when there is no such room.
    fn raw_alloc(&self, bytes: usize) -> Result<Option<u64>> {
        match &self.backend {
            Backend::Driver(driver) => driver.alloc(bytes),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => Ok(host.alloc(bytes)),
        }
    }

    fn raw_free(&self, address: u64) -> Result<()> {
        match &self.backend {
            // SAFETY: the address came from `raw_alloc`, and the arena hands each out once.
            Backend::Driver(driver) => unsafe { driver.free(address) },
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => host.free(address),
        }
    }

    /// Free and total bytes.
    fn memory_free(&self) -> Result<(usize, usize)> {
        match &self.backend {
            Backend::Driver(driver) => driver.memory_free(),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => Ok((0, host.properties().total_bytes)),
        }
    }

    /// Copies to an address behind which `from.len()` elements lie: that of a slice of this length.
    pub fn upload<T: Element>(&self, to: u64, from: &[T]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
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
        match &self.backend {
            // SAFETY: both slices have this length, which `Gpu::copy` compared; one of them is
            // borrowed mutably, so they do not overlap.
            Backend::Driver(driver) => unsafe { driver.copy(to, from, bytes) },
            #[cfg(feature = "cuda-host")]
            // SAFETY: as above.
            Backend::Host(host) => unsafe { host.copy(to, from, bytes) },
        }
    }

    /// Zeroes the bytes of a slice.
    pub fn fill_zero(&self, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
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
        match &self.backend {
            Backend::Driver(driver) => driver.sync(),
            // Its launches return when they are done.
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => Ok(()),
        }
    }

    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        match &self.backend {
            Backend::Driver(driver) => driver.time(work),
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => {
                let start = std::time::Instant::now();
                work()?;
                Ok(start.elapsed().as_secs_f32() * 1e3)
            }
        }
    }
}
