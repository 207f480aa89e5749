//! The CUDA driver: one context of one device, a stream for all work and one for copies from pinned
//! memory, through cudarc's raw calls.
//!
//! cudarc loads `libcuda` on its first call and panics where it is lacking, so [`Driver::open`] asks
//! first; every other call has a `Driver`, which proves that it was found.

mod capture;
mod copies;
mod mark;

use std::ffi::{CString, c_int, c_void};
use std::ptr;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use super::device::Properties;
use super::module::Launch;
use super::params::BOX_COLS;
use super::tensor_map::{Boxes, TensorMap};
use crate::{Error, Result};

pub(super) use capture::Executable;
pub(super) use copies::Pinned;
use copies::Staging;
use mark::Mark;

/// The oldest driver that loads what nvcc 13.0 compiled, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: c_int = 13000;

/// An opened device.
pub(super) struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    properties: Properties,
    staging: Staging,
}

// SAFETY: the driver's calls may come from any thread; each of ours makes the context current first
// (`Driver::enter`), and what they work on is ordered by the stream, which the copies' stream waits
// for and is waited for by.
unsafe impl Send for Driver {}
// SAFETY: as above; what changes after opening has a lock of its own (`Staging`).
unsafe impl Sync for Driver {}

/// Code of one file, loaded into the device's context.
pub(super) struct Module(sys::CUmodule);

// SAFETY: a handle of the driver's, which takes it from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a loaded module. Modules are never unloaded, so it is good as long as the context.
#[derive(Clone, Copy)]
pub(super) struct RawFunction(sys::CUfunction);

// SAFETY: a handle of the driver's, which takes it from any thread.
unsafe impl Send for RawFunction {}
// SAFETY: as above.
unsafe impl Sync for RawFunction {}

fn failed(what: &str, source: DriverError) -> Error {
    let text = source.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    Error::Cuda {
        what: what.to_owned(),
        why: format!("{} ({:?})", text.as_deref().unwrap_or("no text"), source.0),
    }
}

impl Driver {
    pub fn open(index: usize) -> Result<Self> {
        let refuse = |why: String| Error::Device { wanted: format!("cuda:{index}"), why };
        let cannot = |what: &'static str| move |e: DriverError| refuse_with(index, what, e);
        // SAFETY: it tries to load libraries of certain names; that runs their initialisers, as any
        // program does that is linked to them.
        if !unsafe { sys::is_culib_present() } {
            return Err(refuse("no CUDA driver: libcuda.so.1 was not found".into()));
        }
        let mut version = 0;
        // SAFETY: `version` outlives the call, which may come before everything else.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(cannot("its version"))?;
        if version < OLDEST_DRIVER {
            return Err(refuse(format!(
                "the driver is for CUDA {}.{}, wanted 13.0 or later (driver 580)",
                version / 1000,
                version % 1000 / 10
            )));
        }
        result::init().map_err(cannot("starting the driver"))?;
        let count = result::device::get_count().map_err(cannot("counting devices"))?;
        let ordinal = c_int::try_from(index).ok().filter(|index| *index < count);
        let Some(ordinal) = ordinal else {
            return Err(refuse(format!("the driver has {count} devices, numbered from 0")));
        };
        let device = result::device::get(ordinal).map_err(cannot("the device"))?;
        let attribute = |which: Attribute| -> Result<u32> {
            // SAFETY: the device came from `device::get`.
            let value = unsafe { result::device::get_attribute(device, which) };
            let value = value.map_err(cannot("its properties"))?;
            u32::try_from(value).map_err(|_| refuse(format!("its property {which:?} is {value}")))
        };
        let properties = Properties {
            name: result::device::get_name(device).map_err(cannot("its name"))?,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            n_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            // SAFETY: the device came from `device::get`.
            total_bytes: unsafe { result::device::total_mem(device) }
                .map_err(cannot("its memory"))?,
        };
        if properties.capability < (8, 0) {
            let (major, minor) = properties.capability;
            let name = &properties.name;
            return Err(refuse(format!(
                "{name} has compute capability {major}.{minor}, wanted 8.0 (Ampere) or later"
            )));
        }
        // SAFETY: the device came from `device::get`.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(cannot("its context"))?;
        // Now dropping it gives the context back.
        let (stream, staging) = (ptr::null_mut(), Staging::default());
        let mut driver = Driver { device, context, stream, properties, staging };
        driver.enter()?;
        let new_stream = || {
            let kind = result::stream::StreamKind::NonBlocking;
            result::stream::create(kind).map_err(cannot("its stream"))
        };
        driver.stream = new_stream()?;
        driver.open_staging(new_stream()?)?;
        Ok(driver)
    }

    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Makes the context the calling thread's.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is held until `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("the device", e))
    }

    /// `None` when the memory is full.
    pub fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.enter()?;
        // SAFETY: the memory's content is written before it is read as anything: `Element`.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Some(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(failed("allocating on the device", e)),
        }
    }

    /// Waits for the stream, then frees.
    ///
    /// # Safety
    /// `address` came from [`Driver::alloc`], and nothing uses it later.
    pub unsafe fn free(&self, address: u64) -> Result<()> {
        self.sync()?;
        // SAFETY: the caller's promise; the stream was waited for.
        unsafe { result::free_sync(address) }.map_err(|e| failed("freeing on the device", e))
    }

    /// Free and total bytes.
    pub fn memory_free(&self) -> Result<(usize, usize)> {
        self.enter()?;
        result::mem_get_info().map_err(|e| failed("the device's memory", e))
    }

    /// # Safety
    /// As many elements lie behind `from`, of any bytes that are a `T`.
    pub unsafe fn download<T>(&self, from: u64, to: &mut [T]) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise for `from`; `to` is borrowed until the wait below.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }
            .map_err(|e| failed("copying from the device", e))?;
        self.sync()
    }

    /// # Safety
    /// As many bytes lie behind both addresses, and the two do not overlap.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(|e| failed("copying on the device", e))
    }

    /// # Safety
    /// As many bytes lie behind `to`, and zeroes are a value of what they hold.
    pub unsafe fn fill_zero(&self, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(to, 0, bytes, self.stream) }
            .map_err(|e| failed("zeroing on the device", e))
    }

    pub fn sync(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives until `drop`.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|e| failed("waiting for the device (a kernel before may have failed)", e))
    }

    /// A clock that runs from here on in the stream.
    pub fn start_clock(&self) -> Result<[Mark; 2]> {
        let marks = [self.new_mark(true)?, self.new_mark(true)?];
        self.set_mark(&marks[0], self.stream)?;
        Ok(marks)
    }

    /// Milliseconds of the stream since the clock was started. Waits.
    pub fn stop_clock(&self, clock: &[Mark; 2]) -> Result<f32> {
        let [start, end] = clock;
        self.set_mark(end, self.stream)?;
        self.sync()?;
        self.between(start, end)
    }

    /// `None` when the image has nothing for this device.
    pub fn load_module(&self, name: &str, image: &[u8]) -> Result<Option<Module>> {
        self.enter()?;
        // The driver reads the image's header in words; a copy in words is aligned for it.
        let mut aligned = vec![0u64; image.len().div_ceil(8)];
        for (word, bytes) in aligned.iter_mut().zip(image.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        // SAFETY: the image is a whole fatbin that nvcc wrote (build.rs), and its header has its
        // length; the driver copies what it keeps.
        match unsafe { result::module::load_data(aligned.as_ptr().cast()) } {
            Ok(module) => Ok(Some(Module(module))),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)) => Ok(None),
            Err(e) => Err(failed(&format!("loading the kernels of {name}"), e)),
        }
    }

    /// `None` when the module has no such kernel.
    pub fn function(&self, module: &Module, name: &str) -> Result<Option<RawFunction>> {
        self.enter()?;
        let Ok(c_name) = CString::new(name) else { return Ok(None) };
        // SAFETY: the module was loaded and is never unloaded.
        match unsafe { result::module::get_function(module.0, c_name) } {
            Ok(function) => Ok(Some(RawFunction(function))),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => Ok(None),
            Err(e) => Err(failed(name, e)),
        }
    }

    /// A map for bulk copies: chunks permuted within 128 bytes on their way to shared memory, zeroes
    /// for what is outside of the matrix.
    pub fn tensor_map(&self, boxes: &Boxes) -> Result<TensorMap> {
        use sys::{
            CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as Fill,
            CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
            CUtensorMapSwizzle_enum as Swizzle,
        };
        self.enter()?;
        // Sides as the driver counts them: the one along memory first.
        let sizes = [boxes.cols, boxes.rows];
        let strides = [2 * boxes.stride];
        let box_sizes = [BOX_COLS, boxes.box_rows];
        let element_strides = [1u32, 1];
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the four arrays have an element a side, or one less for the strides, and outlive
        // the call, which keeps the address and reads nothing of it.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                ptr::with_exposed_provenance_mut(boxes.address as usize),
                sizes.as_ptr(),
                strides.as_ptr(),
                box_sizes.as_ptr(),
                element_strides.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| failed("a map for bulk copies", e))?;
        Ok(TensorMap { opaque: map.opaque })
    }

    /// Lets launches of a kernel have this much dynamic shared memory, beyond the 48 KiB that need
    /// no asking.
    pub fn allow_shared(&self, name: &str, function: RawFunction, bytes: u32) -> Result<()> {
        self.enter()?;
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is of a loaded module.
        unsafe { result::function::set_function_attribute(function.0, which, bytes) }
            .map_err(|e| failed(&format!("{name}: {bytes} bytes of shared memory"), e))
    }

    /// # Safety
    /// As of `Gpu::launch`.
    pub unsafe fn launch(
        &self,
        name: &str,
        function: RawFunction,
        shape: Launch,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        self.enter()?;
        let [x, y, z] = shape.grid;
        let block = (shape.block, 1, 1);
        // SAFETY: the function is of a loaded module; the caller's promise for the arguments.
        unsafe {
            result::launch_kernel(
                function.0,
                (x, y, z),
                block,
                shape.shared_bytes,
                self.stream,
                args,
            )
        }
        .map_err(|e| failed(name, e))
    }
}

fn refuse_with(index: usize, what: &str, source: DriverError) -> Error {
    Error::Device { wanted: format!("cuda:{index}"), why: failed(what, source).to_string() }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        self.close_staging();
        if !self.stream.is_null() {
            // SAFETY: made in `open`, destroyed here only. A failure has nobody to be told.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: retained once in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
