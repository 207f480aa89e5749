//! Kernels: the embedded code, functions by name, and launches within the device's limits.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::device::{Backend, Device};
use super::driver::{Module, RawFunction};
use crate::{Error, Result};

// `FATBINS` and `WHY_NONE`, from build.rs.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Dynamic shared memory that every launch may have without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// Every kernel that the device can run, by name.
pub(crate) struct Modules {
    device: Arc<Device>,
    loaded: Vec<Module>,
}

/// A kernel.
pub(crate) struct Function {
    name: &'static str,
    /// `None` on the harness, which knows kernels by name.
    raw: Option<RawFunction>,
    /// How much dynamic shared memory the driver was told of.
    shared_allowed: AtomicU32,
}

/// How many threads a kernel gets, and what they share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Modules {
    /// Loads all files' code. A file that has nothing for this device (for another kind of GPU) is
    /// left out; its kernels are then not to be had.
    pub(super) fn load(device: &Arc<Device>) -> Result<Self> {
        let mut loaded = vec![];
        match &device.backend {
            Backend::Driver(driver) => {
                for (name, image) in FATBINS {
                    loaded.extend(driver.load_module(name, image)?);
                }
            }
            #[cfg(feature = "cuda-host")]
            Backend::Host(_) => {}
        }
        Ok(Modules { device: device.clone(), loaded })
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// When no file has it.
    pub fn function(&self, name: &'static str) -> Result<Function> {
        let why = "no such kernel in this build".to_owned();
        self.find(name)?.ok_or(Error::Cuda { what: name.to_owned(), why })
    }

    /// The kernel of this name, if it is one for this device.
    pub fn find(&self, name: &'static str) -> Result<Option<Function>> {
        let found = |raw| Function { name, raw, shared_allowed: SHARED_WITHOUT_ASKING.into() };
        match &self.device.backend {
            Backend::Driver(driver) => {
                for module in &self.loaded {
                    if let Some(raw) = driver.function(module, name)? {
                        return Ok(Some(found(Some(raw))));
                    }
                }
                Ok(None)
            }
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => Ok(host.has_kernel(name).then(|| found(None))),
        }
    }
}

impl Function {
    /// Its name.
    #[cfg(feature = "cuda-host")]
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Queues it.
    ///
    /// # Safety
    /// As of `Gpu::launch`.
    pub(super) unsafe fn launch(
        &self,
        device: &Device,
        shape: Launch,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        self.check(device, shape)?;
        let _turn = device.turn();
        match (&device.backend, self.raw) {
            (Backend::Driver(driver), Some(raw)) => {
                if shape.shared_bytes > self.shared_allowed.load(Ordering::Relaxed) {
                    driver.allow_shared(self.name, raw, shape.shared_bytes)?;
                    self.shared_allowed.fetch_max(shape.shared_bytes, Ordering::Relaxed);
                }
                // SAFETY: the caller's promise.
                unsafe { driver.launch(self.name, raw, shape, args) }
            }
            #[cfg(feature = "cuda-host")]
            // SAFETY: the caller's promise.
            (Backend::Host(host), _) => unsafe { host.launch(self.name, shape, args) },
            (Backend::Driver(_), None) => {
                let why = "it was looked up on another device".to_owned();
                Err(Error::Cuda { what: self.name.to_owned(), why })
            }
        }
    }

    /// Limits of every GPU from compute capability 8.0 on, and this one's shared memory.
    fn check(&self, device: &Device, shape: Launch) -> Result<()> {
        let [x, y, z] = shape.grid;
        let most_shared = device.properties().shared_bytes;
        let fits = (1..=0x7fff_ffff).contains(&x)
            && (1..=0xffff).contains(&y)
            && (1..=0xffff).contains(&z)
            && (1..=1024).contains(&shape.block)
            && shape.shared_bytes <= most_shared;
        if fits {
            return Ok(());
        }
        Err(Error::Shape {
            op: self.name.to_owned(),
            expected: format!(
                "a grid of 1 to [2147483647, 65535, 65535] blocks of 1 to 1024 threads and at most \
                 {most_shared} bytes of shared memory"
            ),
            got: format!("{shape:?}"),
        })
    }
}

/// A pointer to a kernel's argument, for [`super::Gpu::launch`].
pub(crate) fn arg<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

/// `n` as a kernel counts it.
///
/// # Errors
/// When it takes more than 32 bits; `what` says what is counted.
pub(crate) fn u32_of(what: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Shape {
        op: what.to_owned(),
        expected: format!("at most {}", u32::MAX),
        got: n.to_string(),
    })
}

/// Refuses a buffer of another length than its operation wants.
///
/// # Errors
/// When the two differ.
pub(crate) fn expect_len(op: &str, name: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::Shape {
        op: format!("{op}, {name}"),
        expected: format!("{wanted} elements"),
        got: format!("{got} elements"),
    })
}

/// Whether an address is a multiple of 16, and rows of so many bytes from there on all begin at one.
pub(crate) fn aligned(address: u64, row_bytes: usize) -> bool {
    address.is_multiple_of(16) && row_bytes.is_multiple_of(16)
}
