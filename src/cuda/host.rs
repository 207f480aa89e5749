//! The host harness (`cuda/host/`): kernels compiled by g++ that run in this process, a fiber for
//! every thread. Its memory is ordinary memory, so an address here is a pointer.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::Properties;
use super::module::Launch;
use super::tensor_map::{Boxes, TensorMap};
use crate::{Error, Result};

// cuda/host/schedule.cpp, memory.cpp and bulk.cpp
unsafe extern "C" {
    fn puna_host_sanitizer() -> *const c_char;
    fn puna_host_arg_sizes(name: *const c_char, sizes: *mut usize, room: usize) -> usize;
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

/// Most arguments of a kernel that can be recorded.
const MOST_ARGS: usize = 64;
/// Memory of a device that is not told how much it has.
const MEMORY: usize = 1 << 40;

/// A device that is this process.
pub(super) struct Host {
    order: c_int,
    properties: Properties,
    used_bytes: AtomicUsize,
    /// What is recorded, while something is.
    tape: Mutex<Option<Vec<Step>>>,
}

/// What a graph consists of.
pub(super) enum Step {
    Launch(LaunchStep),
    Copy { to: u64, from: u64, bytes: usize },
    Zero { to: u64, bytes: usize },
}

/// A launch with the arguments that it had when it was recorded, each in words of its own, which
/// are aligned for any of them.
pub(super) struct LaunchStep {
    name: String,
    shape: Launch,
    args: Vec<Vec<u128>>,
}

pub(super) fn sanitizer() -> &'static str {
    // SAFETY: it returns a literal of the library.
    let text = unsafe { CStr::from_ptr(puna_host_sanitizer()) };
    text.to_str().unwrap_or_default()
}

impl Host {
    /// One of whose memory so many bytes can be used; `hopper`: as a device of compute capability 9.0.
    pub fn new(order: u32, memory: Option<usize>, hopper: bool) -> Result<Self> {
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
            total_bytes: memory.unwrap_or(MEMORY),
        };
        let (used_bytes, tape) = (AtomicUsize::new(0), Mutex::default());
        let properties = if hopper {
            let name = "host harness as Hopper".into();
            // So that kernels whose blocks take turns at their work have some that do.
            let n_multiprocessors = 2;
            let shared_bytes = 227 << 10;
            Properties { name, capability: (9, 0), n_multiprocessors, shared_bytes, ..plain }
        } else {
            plain
        };
        Ok(Host { order, properties, used_bytes, tape })
    }

    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// `None` where there is no such room.
    pub fn alloc(&self, bytes: usize) -> Option<u64> {
        let total = self.properties.total_bytes;
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= total);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        // SAFETY: it takes any size, and returns null where there is no room.
        let address = unsafe { puna_host_alloc(bytes) };
        if address.is_null() {
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(address.expose_provenance() as u64)
    }

    /// Frees what `alloc(bytes)` gave.
    pub fn free(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: it frees only what it allocated and not freed yet, and says whether.
        let known = unsafe { puna_host_free(pointer(address)) };
        if known == 1 {
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Ok(());
        }
        Err(Error::Cuda { what: "freeing".into(), why: format!("{address:#x} is no buffer") })
    }

    /// Free and total bytes.
    pub fn memory_free(&self) -> (usize, usize) {
        let total = self.properties.total_bytes;
        (total - self.used_bytes.load(Ordering::Relaxed), total)
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

    /// Copies, or records that.
    ///
    /// # Safety
    /// As many bytes lie behind both addresses.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if let Some(tape) = &mut *self.tape() {
            tape.push(Step::Copy { to, from, bytes });
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { copy_now(to, from, bytes) };
        Ok(())
    }

    /// Zeroes, or records that.
    ///
    /// # Safety
    /// As many bytes lie behind `to`.
    pub unsafe fn fill_zero(&self, to: u64, bytes: usize) -> Result<()> {
        if let Some(tape) = &mut *self.tape() {
            tape.push(Step::Zero { to, bytes });
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { zero_now(to, bytes) };
        Ok(())
    }

    fn tape(&self) -> MutexGuard<'_, Option<Vec<Step>>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on launches, copies and zeroes are recorded and not done.
    pub fn begin_tape(&self) {
        *self.tape() = Some(vec![]);
    }

    /// What was recorded.
    pub fn end_tape(&self) -> Vec<Step> {
        self.tape().take().unwrap_or_default()
    }

    /// Does what was recorded.
    ///
    /// # Safety
    /// What was promised when it was recorded still holds.
    pub unsafe fn replay(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            match step {
                Step::Launch(LaunchStep { name, shape, args }) => {
                    // Kernels take their arguments by value, so nothing is written there.
                    let address = |words: &Vec<u128>| words.as_ptr().cast_mut().cast();
                    let mut args: Vec<*mut c_void> = args.iter().map(address).collect();
                    // SAFETY: the caller's promise; the arguments have the sizes that they had.
                    unsafe { self.launch_now(name, *shape, &mut args)? };
                }
                // SAFETY: the caller's promise.
                Step::Copy { to, from, bytes } => unsafe { copy_now(*to, *from, *bytes) },
                // SAFETY: the caller's promise.
                Step::Zero { to, bytes } => unsafe { zero_now(*to, *bytes) },
            }
        }
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

    /// Sizes of a kernel's arguments.
    fn arg_sizes(&self, name: &str) -> Option<Vec<usize>> {
        let c_name = CString::new(name).ok()?;
        let mut sizes = vec![0; MOST_ARGS];
        // SAFETY: the name is a C string that outlives the call, `sizes` has the room it says.
        let n = unsafe { puna_host_arg_sizes(c_name.as_ptr(), sizes.as_mut_ptr(), sizes.len()) };
        // More than there is room for says that there is no such kernel, too.
        (n <= sizes.len()).then(|| {
            sizes.truncate(n);
            sizes
        })
    }

    /// Runs a kernel to its end, or records it.
    ///
    /// # Safety
    /// As of `Gpu::launch`.
    pub unsafe fn launch(&self, name: &str, shape: Launch, args: &mut [*mut c_void]) -> Result<()> {
        let mut tape = self.tape();
        let Some(tape) = &mut *tape else {
            drop(tape);
            // SAFETY: the caller's promise.
            return unsafe { self.launch_now(name, shape, args) };
        };
        let refused = |why: String| Error::Cuda { what: name.to_owned(), why };
        let sizes = self.arg_sizes(name).ok_or_else(|| refused("no such kernel".into()))?;
        if sizes.len() != args.len() {
            let (n, got) = (sizes.len(), args.len());
            return Err(refused(format!("the kernel takes {n} arguments, the launch has {got}")));
        }
        let kept = args.iter().zip(sizes).map(|(&arg, bytes)| {
            let mut words = vec![0u128; bytes.div_ceil(size_of::<u128>())];
            // SAFETY: the argument has as many bytes, by the caller's promise and the kernel's own
            // declaration; the words have at least as many and are new.
            unsafe { ptr::copy_nonoverlapping(arg.cast(), words.as_mut_ptr().cast::<u8>(), bytes) };
            words
        });
        let args = kept.collect();
        tape.push(Step::Launch(LaunchStep { name: name.to_owned(), shape, args }));
        Ok(())
    }

    /// Runs a kernel to its end.
    ///
    /// # Safety
    /// As of `Gpu::launch`.
    unsafe fn launch_now(&self, name: &str, shape: Launch, args: &mut [*mut c_void]) -> Result<()> {
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

/// # Safety
/// As many bytes lie behind both addresses.
unsafe fn copy_now(to: u64, from: u64, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { ptr::copy(pointer(from).cast::<u8>(), pointer(to).cast(), bytes) };
}

/// # Safety
/// As many bytes lie behind `to`.
unsafe fn zero_now(to: u64, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { ptr::write_bytes(pointer(to).cast::<u8>(), 0, bytes) };
}
