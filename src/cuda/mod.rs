//! CUDA: a device, its memory, and one launcher a kernel family. The kernels are the sources in
//! `cuda/`; what launches them stands here in a file of the same name, which checks lengths,
//! alignment and the grid before it hands out an address. Nothing above this room sees one.
//!
//! Not here: tensors, shapes, and which device an operation runs on (`kernels`).
//!
//! The driver is loaded when a device is opened, so a binary with this room starts and works
//! without one. With the feature "cuda-host" the same kernels run on the CPU ([`Gpu::host`]).
//!
//! Everything goes into one stream, in the order of the calls. So memory that is given back can be
//! handed out again at once, and only [`Gpu::download`], [`Download::wait`] and [`Gpu::sync`] wait.
//! Large copies from the host have a stream of their own, which begins behind all that was queued
//! before, and which all that comes later waits for.
//!
//! Memory is one arena (`arena.rs`): [`Gpu::reserve`] takes it from the driver in one piece before
//! the first step, blocks are carved from it, and repeated work sees the same addresses. So a step can
//! be recorded once ([`Gpu::record`]) and launched as a whole.
//!
//! # Unsafe
//! Calls of the driver and launches, each behind the checks that its comment names. The kernels
//! themselves are not checked by this compiler: the harness runs them under AddressSanitizer.

// Without the harness there is one kind of device, and nothing to tell apart.
#![cfg_attr(not(feature = "cuda-host"), allow(irrefutable_let_patterns))]

mod arena;
mod counts;
mod device;
mod driver;
mod elements;
mod floats;
mod graph;
#[cfg(feature = "cuda-host")]
mod host;
mod memory;
mod module;
#[cfg(feature = "cuda-host")]
pub mod planted;
mod staging;
mod tensor_map;
mod tune;

// The kernel families: one line each here, in `Gpu` and in `Gpu::with`, sorted.
pub mod attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod flash;
pub mod kv;
pub mod lora;
pub mod matmul;
pub mod optim;
pub mod quant;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod swiglu;

#[cfg(feature = "cuda-host")]
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

pub use arena::MemoryUse;
use counts::Counts;
pub use device::Properties;
use device::{Backend, Device};
use driver::Driver;
pub use floats::{Floats, FloatsMut};
pub use graph::Graph;
#[cfg(feature = "cuda-host")]
use host::Host;
pub use memory::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Element};
pub(crate) use module::{Function, Launch, Modules, aligned, arg, expect_len, u32_of};
pub use staging::Download;

use crate::{Error, Result};

/// Scalars and block sizes of the kernels, as bindgen reads them from `cuda/include/params.h`.
#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, dead_code)]
// bindgen writes no comments.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_code)]
pub(crate) mod params {
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}

/// An opened device with its memory, its stream and the kernels.
///
/// Buffers and slices belong to the `Gpu` that made them; an address does not say whose it is, so a
/// program that opens two keeps them apart.
pub struct Gpu {
    device: Arc<Device>,
    counts: Counts,
    // Looked up when the device is opened: a misspelt name fails there.
    attention: attention::Attention,
    cross_entropy: cross_entropy::CrossEntropy,
    elementwise: elementwise::Elementwise,
    embedding: embedding::Embedding,
    flash: flash::Flash,
    lora: lora::Lora,
    matmul: matmul::Matmul,
    optim: optim::Optim,
    quant: quant::Quant,
    rms_norm: rms_norm::RmsNorm,
    rope: rope::Rope,
    sample: sample::Sample,
    swiglu: swiglu::SwiGlu,
}

impl Gpu {
    /// Opens the driver's device of this number and loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`] with the reason: no driver, one that is too old, no such device, a device
    /// that is too old, or no kernels in this build.
    pub fn open(index: usize) -> Result<Gpu> {
        let wanted = || format!("cuda:{index}");
        if module::FATBINS.is_empty() {
            let why = format!("this build has no kernels for GPUs: {}", module::WHY_NONE);
            return Err(Error::Device { wanted: wanted(), why });
        }
        let driver = Driver::open(index)?;
        Gpu::with(Backend::Driver(driver))
    }

    /// A device whose kernels run in this process, on the CPU: for tests. `PUNA_HOST_ORDER` says in
    /// which order the threads of a block take turns (`cuda/host/schedule.cpp`), `PUNA_HOST_MEMORY`
    /// how many bytes it has.
    ///
    /// # Errors
    /// When `PUNA_HOST_ORDER` is no such order, or `PUNA_HOST_MEMORY` no number.
    #[cfg(feature = "cuda-host")]
    pub fn host() -> Result<Gpu> {
        Gpu::host_with(host_order()?, None, false)
    }

    /// [`Gpu::host`] as a device of compute capability 9.0: it has the kernels of warp groups and
    /// bulk copies too, as far as reading the manual gives their meaning (`cuda/host/hopper.h`).
    ///
    /// # Errors
    /// As [`Gpu::host`].
    #[cfg(feature = "cuda-host")]
    pub fn host_hopper() -> Result<Gpu> {
        Gpu::host_with(host_order()?, None, true)
    }

    /// [`Gpu::host_hopper`] with this order.
    ///
    /// # Errors
    /// When there is no such order.
    #[cfg(feature = "cuda-host")]
    pub fn host_hopper_in_order(order: u32) -> Result<Gpu> {
        Gpu::host_with(Some(order), None, true)
    }

    /// [`Gpu::host`] with this order.
    ///
    /// # Errors
    /// When there is no such order.
    #[cfg(feature = "cuda-host")]
    pub fn host_in_order(order: u32) -> Result<Gpu> {
        Gpu::host_with(Some(order), None, false)
    }

    /// [`Gpu::host`] with so many bytes of memory.
    ///
    /// # Errors
    /// As [`Gpu::host`].
    #[cfg(feature = "cuda-host")]
    pub fn host_with_memory(bytes: usize) -> Result<Gpu> {
        Gpu::host_with(host_order()?, Some(bytes), false)
    }

    #[cfg(feature = "cuda-host")]
    fn host_with(order: Option<u32>, memory: Option<usize>, hopper: bool) -> Result<Gpu> {
        let memory = match memory {
            Some(bytes) => Some(bytes),
            None => host_number("PUNA_HOST_MEMORY", "wanted a number of bytes")?,
        };
        Gpu::with(Backend::Host(Host::new(order.unwrap_or(0), memory, hopper)?))
    }

    #[cfg(feature = "cuda-host")]
    fn is_host(&self) -> bool {
        matches!(self.device.backend, Backend::Host(_))
    }

    /// A kernel that no family has, of the harness.
    #[cfg(feature = "cuda-host")]
    fn host_function(&self, name: &'static str) -> Result<Function> {
        if !self.is_host() {
            return Err(Error::Unsupported(format!("{name} on a GPU")));
        }
        Modules::load(&self.device)?.function(name)
    }

    fn with(backend: Backend) -> Result<Gpu> {
        let device = Arc::new(Device::new(backend));
        let modules = Modules::load(&device)?;
        Ok(Gpu {
            attention: attention::Attention::load(&modules)?,
            cross_entropy: cross_entropy::CrossEntropy::load(&modules)?,
            elementwise: elementwise::Elementwise::load(&modules)?,
            embedding: embedding::Embedding::load(&modules)?,
            flash: flash::Flash::load(&modules)?,
            lora: lora::Lora::load(&modules)?,
            matmul: matmul::Matmul::load(&modules)?,
            optim: optim::Optim::load(&modules)?,
            quant: quant::Quant::load(&modules)?,
            rms_norm: rms_norm::RmsNorm::load(&modules)?,
            rope: rope::Rope::load(&modules)?,
            sample: sample::Sample::load(&modules)?,
            swiglu: swiglu::SwiGlu::load(&modules)?,
            counts: Counts::default(),
            device,
        })
    }

    /// Name and sizes of the device.
    pub fn properties(&self) -> &Properties {
        self.device.properties()
    }

    /// Compute capability times ten: 90 for Hopper.
    pub fn sm(&self) -> u32 {
        let (major, minor) = self.properties().capability;
        10 * major + minor
    }

    /// Makes room for `bytes` more in one piece, before the first step: what is allocated later lies
    /// there and costs no call of the driver. Beyond it more is taken as it is needed.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] when the device has no such room.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        self.device.reserve(bytes)
    }

    /// Room for `len` elements, of any content, beginning at a multiple of 256 bytes. Memory that was
    /// given back is handed out again, so steady work allocates nothing and sees the same addresses.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] when it is full; while a graph is recorded also when it would have to
    /// come from the driver.
    pub fn alloc<T: Element>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        DeviceBuffer::new(&self.device, len)
    }

    /// A buffer with these elements.
    ///
    /// # Errors
    /// As [`Gpu::alloc`]; or when the device failed.
    pub fn upload<T: Element>(&self, host: &[T]) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.alloc(host.len())?;
        self.write(&mut buffer.slice_mut(), host)?;
        Ok(buffer)
    }

    /// Copies `from` into a buffer of the same length; `from` may change as soon as this returns. What
    /// is queued later sees it; nothing waits for the device.
    ///
    /// # Errors
    /// When the lengths differ, or the device failed; while a graph is recorded.
    pub fn write<T: Element>(&self, to: &mut DeviceSliceMut<'_, T>, from: &[T]) -> Result<()> {
        expect_len("write to the device", "from", from.len(), to.len())?;
        self.counts.upload();
        self.device.upload(to.address(), from)
    }

    /// Writes a buffer in pieces of `piece_len` elements, the last one of what is left: `fill` is
    /// given the number of a piece, from 0, and the piece to be filled, whole, in memory of any
    /// content from which the device copies it while the next one is made. So a file becomes a buffer
    /// without a second copy of it here, at the speed of the slower of disk and device.
    ///
    /// # Errors
    /// The first of `fill`'s, the buffer then being partly written; a `piece_len` of 0; when the
    /// device failed; while a graph is recorded.
    pub fn upload_pieces<T: Element>(
        &self,
        to: &mut DeviceSliceMut<'_, T>,
        piece_len: usize,
        fill: impl FnMut(usize, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        self.device.upload_pieces(to.address(), to.len(), piece_len, fill)
    }

    /// Copies from the device; waits for everything before.
    ///
    /// # Errors
    /// When the lengths differ, or the device failed, also if in an earlier kernel; while a graph is
    /// recorded.
    pub fn download<T: Element>(&self, from: &DeviceSlice<'_, T>, to: &mut [T]) -> Result<()> {
        expect_len("download from the device", "to", to.len(), from.len())?;
        self.device.download(from.address(), to)
    }

    /// Begins to copy from the device, behind what is queued; [`Download::wait`] waits for that and
    /// not for what is queued later, which may already overwrite `from`.
    ///
    /// # Errors
    /// When the device failed; while a graph is recorded.
    pub fn download_async<T: Element>(&self, from: &DeviceSlice<'_, T>) -> Result<Download<T>> {
        self.device.fetch(from.address(), from.len())
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// When the lengths differ, or the device failed.
    pub fn copy<T: Element>(
        &self,
        to: &mut DeviceSliceMut<'_, T>,
        from: &DeviceSlice<'_, T>,
    ) -> Result<()> {
        expect_len("copy on the device", "from", from.len(), to.len())?;
        self.device.copy(to.address(), from.address(), size_of::<T>() * to.len())
    }

    /// Makes every byte zero.
    ///
    /// # Errors
    /// When the device failed.
    pub fn fill_zero<T: Element>(&self, to: &mut DeviceSliceMut<'_, T>) -> Result<()> {
        self.device.fill_zero(to.address(), size_of::<T>() * to.len())
    }

    /// Records the kernels, copies on the device and zeroes that `work` queues, instead of doing them;
    /// [`Graph::launch`] does them. Buffers that `work` makes come from memory that is there already
    /// (run the same work once before, or [`Gpu::reserve`] it). What other threads ask of the device
    /// waits until the recording has ended, so `work` must not wait for them.
    ///
    /// # Errors
    /// `work`'s own, the recording then being given up; what a graph cannot hold, by its name: copies
    /// from and to the host, waiting, timing, memory from the driver, another graph.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.device.record(work)
    }

    /// Waits until everything is done.
    ///
    /// # Errors
    /// When the device failed, also if in an earlier kernel; while a graph is recorded.
    pub fn sync(&self) -> Result<()> {
        self.device.sync()
    }

    /// Milliseconds that the device spends on what `work` asks of it. Waits.
    ///
    /// # Errors
    /// `work`'s own, or when the device failed.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        self.device.time(work)
    }

    /// What the buffers take, and what is kept for the next ones.
    pub fn memory_use(&self) -> MemoryUse {
        self.device.memory_use()
    }

    /// How often something was copied from the host so far.
    pub fn uploads(&self) -> usize {
        self.counts.uploads()
    }

    /// How often each kernel was launched since the last such call.
    #[cfg(feature = "cuda-host")]
    pub fn take_launches(&self) -> BTreeMap<&'static str, usize> {
        self.counts.take_launches()
    }

    /// Free and total bytes of the device. What is kept for buffers to come is not free.
    ///
    /// # Errors
    /// When the device failed.
    pub fn memory_free(&self) -> Result<(usize, usize)> {
        self.device.driver_memory()
    }

    /// Changes whenever memory went back to the driver: addresses from before are good no more.
    pub fn generation(&self) -> u64 {
        self.device.generation()
    }

    /// Gives memory that no buffer uses back to the driver. Graphs are stale afterwards.
    ///
    /// # Errors
    /// When the device failed; while a graph is recorded.
    pub fn trim(&self) -> Result<()> {
        self.device.trim()
    }

    /// Queues one kernel.
    ///
    /// # Errors
    /// When the shape is beyond the device's limits, or the device failed; of the host harness also
    /// what it found wrong in the kernel.
    ///
    /// # Safety
    /// `args` points to one value for each of the kernel's parameters, of its type, in order. Every
    /// address among them belongs to this device and has as many elements behind it as the kernel
    /// touches, aligned as it wants them; what it writes is borrowed mutably until the call returns.
    pub(crate) unsafe fn launch(
        &self,
        function: &Function,
        shape: Launch,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        #[cfg(feature = "cuda-host")]
        self.counts.launch(function.name());
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { function.launch(&self.device, shape, args) }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("properties", self.properties()).finish()
    }
}

/// A setting of the harness, where there is one.
#[cfg(feature = "cuda-host")]
fn host_number<T: std::str::FromStr>(
    name: &'static str,
    wanted: &'static str,
) -> Result<Option<T>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Error::config(name, &text, wanted))
}

#[cfg(feature = "cuda-host")]
fn host_order() -> Result<Option<u32>> {
    host_number("PUNA_HOST_ORDER", "wanted a number, 0 to 4 or 10 to 14")
}

/// What the harness was compiled with: `address`, `race` or nothing.
#[cfg(feature = "cuda-host")]
pub fn host_sanitizer() -> &'static str {
    host::sanitizer()
}
