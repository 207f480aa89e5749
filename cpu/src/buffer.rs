//! Zeroed memory with the alignment that vector loads and huge pages want.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// From this size on a buffer is aligned to, and asked to be backed by, huge pages: fewer
/// TLB misses while weights stream through.
const HUGE_PAGE_BYTES: usize = 2 << 20;
const VECTOR_BYTES: usize = 64;

/// Element types for which all-zero bytes are a value.
///
/// # Safety
/// Implementors must be plain data without padding or invalid bit patterns.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: plain data.
unsafe impl Plain for u8 {}
// SAFETY: plain data.
unsafe impl Plain for i8 {}
// SAFETY: plain data.
unsafe impl Plain for u16 {}
// SAFETY: plain data.
unsafe impl Plain for u32 {}
// SAFETY: plain data.
unsafe impl Plain for i32 {}
// SAFETY: plain data.
unsafe impl Plain for f32 {}
// SAFETY: plain data, transparent over u16.
unsafe impl Plain for half::f16 {}
// SAFETY: plain data, transparent over u16.
unsafe impl Plain for half::bf16 {}

/// A fixed-size zeroed buffer, aligned to 64 bytes (2 MiB from 2 MiB on). Pages that are never
/// written take no memory.
pub struct Buffer<T: Plain> {
    ptr: NonNull<T>,
    len: usize,
    layout: Layout,
}

// SAFETY: owns its memory; T is Send.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: shared access is read-only; T is Sync.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the size overflows. Running out of memory aborts, as everywhere in Rust.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).expect("buffer size overflows");
        let align = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { VECTOR_BYTES };
        let layout = Layout::from_size_align(bytes.max(1), align).expect("buffer size overflows");
        // SAFETY: the layout's size is at least 1.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw.cast::<T>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE_BYTES {
            // Advice only: a failure changes nothing but speed.
            // SAFETY: the range is the allocation made above.
            unsafe { libc::madvise(raw.cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Buffer { ptr, len, layout }
    }

    /// A copy of `data`.
    pub fn from_slice(data: &[T]) -> Self {
        let mut buffer = Self::zeroed(data.len());
        buffer.copy_from_slice(data);
        buffer
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `ptr` holds `len` initialised (zeroed) elements for the life of self.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.ptr.as_ptr().cast(), self.layout) };
    }
}

impl<T: Plain> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer[{} x {} bytes]", self.len, size_of::<T>())
    }
}
