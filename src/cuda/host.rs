//! The host harness (`cuda/host/`): kernels compiled by g++ that run in this process, a fiber for
//! every thread. Its memory is ordinary memory, so an address here is a pointer.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use super::device::Properties;
use super::module::Launch;
use super::tensor_map::{Boxes, TensorMap};
use crate::{Error, Result};

// cuda/host/schedule.cpp, memory.cpp and bulk.cpp
unsafe extern "C" {
    fn puna_host_sanitizer() -> *const c_char;
    fn puna_host_has_kernel(name: *const c_char, sm: c_int) -> c_int;
    fn puna_host_tensor_map(
        map: *mut u64,
        address: u64,
        rows: u64,
        cols: u64,
        stride: u64,
        box_rows: u64,
    );
    fn puna_host_alloc(bytes: usize) -> *mut c_void;
    fn puna_host_free(address: *mut c_void) -> c_int;
    fn puna_host_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: usize,
        args: *mut *mut c_void,
        n_args: usize,
        order: c_int,
        message: *mut c_char,
        room: usize,
    ) -> usize;
}

/// Longest error text that is kept.
const MESSAGE_BYTES: usize = 2048;

/// A device that is this process.
pub(super) struct Host {
    order: c_int,
    properties: Properties,
}

pub(super) fn sanitizer() -> &'static str {
    // SAFETY: it returns a literal of the library.
    let text = unsafe { CStr::from_ptr(puna_host_sanitizer()) };
    text.to_str().unwrap_or_default()
}

impl Host {
    /// `hopper`: as a device of compute capability 9.0.
    pub fn new(order: u32, hopper: bool) -> Result<Self> {
        let known = matches!(order, 0..=4 | 10..=14);
        let order = c_int::try_from(order).ok().filter(|_| known).ok_or_else(|| {
            Error::config("order of the harness", order, "wanted 0 to 4 or 10 to 14")
        })?;
        // What its kernels may use is what sm_80 or sm_90 has.
        let plain = Properties {
            name: "host harness".into(),
            capability: (8, 0),
            n_multiprocessors: 1,
            shared_bytes: 163 << 10,
            total_bytes: 1 << 40,
        };
        let properties = if hopper {
            let name = "host harness as Hopper".into();
            // So that kernels whose blocks take turns at their work have some that do.
            let n_multiprocessors = 2;
            let shared_bytes = 227 << 10;
            Properties { name, capability: (9, 0), n_multiprocessors, shared_bytes, ..plain }
        } else {
            plain
        };
        Ok(Host { order, properties })
    }

    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    pub fn alloc(&self, bytes: usize) -> Option<u64> {
        // SAFETY: it takes any size, and returns null where there is no room.
        let address = unsafe { puna_host_alloc(bytes) };
        (!address.is_null()).then(|| address.expose_provenance() as u64)
    }

    pub fn free(&self, address: u64) -> Result<()> {
        // SAFETY: it frees only what it allocated and not freed yet, and says whether.
        let known = unsafe { puna_host_free(pointer(address)) };
        if known == 1 {
            return Ok(());
        }
        Err(Error::Cuda { what: "freeing".into(), why: format!("{address:#x} is no buffer") })
    }

    /// # Safety
    /// As many elements lie behind `to`.
    pub unsafe fn upload<T>(&self, to: u64, from: &[T]) -> Result<()> {
        // SAFETY: the caller's promise; memory of the harness is none of Rust's, so no overlap.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), pointer(to).cast(), from.len()) };
        Ok(())
    }

    /// # Safety
    /// As many elements lie behind `from`, of any bytes that are a `T`.
    pub unsafe fn download<T>(&self, from: u64, to: &mut [T]) -> Result<()> {
        let from: *const T = pointer(from).cast();
        // SAFETY: as in `upload`.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// # Safety
    /// As many bytes lie behind both addresses.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { ptr::copy(pointer(from).cast::<u8>(), pointer(to).cast(), bytes) };
        Ok(())
    }

    /// # Safety
    /// As many bytes lie behind `to`.
    pub unsafe fn fill_zero(&self, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { ptr::write_bytes(pointer(to).cast::<u8>(), 0, bytes) };
        Ok(())
    }

    pub fn has_kernel(&self, name: &str) -> bool {
        let Ok(name) = CString::new(name) else { return false };
        let sm = if self.properties.capability == (9, 0) { 90 } else { 80 };
        // SAFETY: the name is a C string that outlives the call.
        unsafe { puna_host_has_kernel(name.as_ptr(), sm) == 1 }
    }

    pub fn tensor_map(&self, boxes: &Boxes) -> TensorMap {
        let &Boxes { address, rows, cols, stride, box_rows } = boxes;
        let mut map = TensorMap::default();
        let words = map.opaque.as_mut_ptr();
        // SAFETY: it writes at most the 16 words that a map has.
        unsafe { puna_host_tensor_map(words, address, rows, cols, stride, box_rows.into()) };
        map
    }

    /// Runs a kernel to its end.
    ///
    /// # Safety
    /// As of `Gpu::launch`.
    pub unsafe fn launch(&self, name: &str, shape: Launch, args: &mut [*mut c_void]) -> Result<()> {
        let refused = |why: String| Error::Cuda { what: name.to_owned(), why };
        let c_name = CString::new(name).map_err(|e| refused(e.to_string()))?;
        let block = [shape.block, 1, 1];
        let mut message = vec![0u8; MESSAGE_BYTES];
        // SAFETY: the three arrays have the lengths that the declaration says, `message` the one
        // given, and all outlive the call; the caller's promise for what `args` points to.
        let length = unsafe {
            puna_host_launch(
                c_name.as_ptr(),
                shape.grid.as_ptr(),
                block.as_ptr(),
                shape.shared_bytes as usize,
                args.as_mut_ptr(),
                args.len(),
                self.order,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if length == 0 {
            return Ok(());
        }
        message.truncate(length);
        Err(refused(String::from_utf8_lossy(&message).into_owned()))
    }
}

fn pointer(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}
