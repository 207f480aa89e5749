//! Zeroed memory with the alignment that vector loads and huge pages want, taken page by page as
//! it is written.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// From this size on a buffer is aligned to, and asked to be backed by, huge pages: fewer
/// TLB misses while weights stream through.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// From this size on a buffer is mapped by itself: the system hands out zero pages when they are
/// first written, where the allocator would write all of an aligned block at once.
#[cfg(unix)]
const MAP_BYTES: usize = 64 << 10;
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
    memory: Memory,
}

/// Where a buffer's memory came from, to give it back.
enum Memory {
    /// The allocator.
    Block(Layout),
    /// A mapping of its own: address and bytes.
    #[cfg(unix)]
    Mapping(NonNull<u8>, usize),
}

// SAFETY: owns its memory; T is Send.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: shared access is read-only; T is Sync.
unsafe impl<T: Plain> Sync for Buffer<T> {}

/// Maps `bytes` zeros aligned to `align`: address of the first, and the mapping.
#[cfg(unix)]
fn map_zeros(bytes: usize, align: usize) -> Option<(NonNull<u8>, Memory)> {
    // Mappings are aligned to pages; the rest of the alignment is cut off the front, whose pages
    // are never touched.
    let whole = bytes.checked_add(align)?;
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping touches no memory that exists.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), whole, access, kind, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    let base = NonNull::new(base.cast::<u8>())?;
    let front = base.as_ptr().align_offset(align);
    // SAFETY: front is below align, so it and `bytes` behind it lie inside the mapping.
    let first = unsafe { base.add(front) };
    #[cfg(target_os = "linux")]
    if align == HUGE_PAGE_BYTES {
        // Advice only: a failure changes nothing but speed.
        // SAFETY: the range lies inside the mapping made above.
        unsafe { libc::madvise(first.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    Some((first, Memory::Mapping(base, whole)))
}

impl<T: Plain> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Panics
    /// When the size overflows. Running out of memory aborts, as everywhere in Rust.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).expect("buffer size overflows");
        let layout = Layout::from_size_align(bytes, VECTOR_BYTES).expect("buffer size overflows");
        Self::try_zeroed(len).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// `len` zeros, or `None` where the system does not give as much.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let align = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { VECTOR_BYTES };
        let layout = Layout::from_size_align(bytes.max(1), align).ok()?;
        #[cfg(unix)]
        if bytes >= MAP_BYTES {
            let (ptr, memory) = map_zeros(bytes, align)?;
            return Some(Buffer { ptr: ptr.cast(), len, memory });
        }
        // SAFETY: the layout's size is at least 1.
        let raw = unsafe { alloc_zeroed(layout) };
        let ptr = NonNull::new(raw.cast::<T>())?;
        Some(Buffer { ptr, len, memory: Memory::Block(layout) })
    }

    /// A copy of `data`.
    pub fn from_slice(data: &[T]) -> Self {
        let mut buffer = Self::zeroed(data.len());
        buffer.copy_from_slice(data);
        buffer
    }
}

impl<T: Plain> Default for Buffer<T> {
    fn default() -> Self {
        Buffer::zeroed(0)
    }
}

/// The elements as bytes, in the machine's order.
pub fn as_bytes<T: Plain>(elements: &[T]) -> &[u8] {
    // SAFETY: T is plain data without padding, so each of its bytes is a value; a slice's bytes lie
    // in one piece.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// The elements as bytes, to write: any bytes are elements.
pub fn as_bytes_mut<T: Plain>(elements: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `as_bytes`, borrowed mutably; T has no invalid bit patterns.
    unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size_of_val(elements)) }
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
        match self.memory {
            // SAFETY: allocated in `zeroed` with this layout.
            Memory::Block(layout) => unsafe { dealloc(self.ptr.as_ptr().cast(), layout) },
            #[cfg(unix)]
            // SAFETY: mapped in `map_zeros` with this size; nothing refers to it any more.
            Memory::Mapping(base, bytes) => unsafe {
                libc::munmap(base.as_ptr().cast(), bytes);
            },
        }
    }
}

impl<T: Plain> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer[{} x {} bytes]", self.len, size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_zero_aligned_and_writable_to_its_end() {
        for bytes in [0, 1, 63, 4096, (64 << 10) - 1, 64 << 10, (2 << 20) - 1, 2 << 20, 5 << 20] {
            let mut buffer = Buffer::<u8>::zeroed(bytes);
            let align = if bytes >= 2 << 20 { 2 << 20 } else { 64 };
            assert_eq!(buffer.as_ptr().align_offset(align), 0, "{bytes}");
            assert!(buffer.iter().all(|&b| b == 0) && buffer.len() == bytes);
            buffer.fill(7);
            assert!(buffer.clone().iter().all(|&b| b == 7));
        }
    }
}
