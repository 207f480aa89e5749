//! Copies between the machine and the device, through pinned memory, which the device reads and writes
//! by itself while both go on.
//!
//! - Small uploads (ids, plans, angles) are copied into a ring of four parts, and queued in the
//!   stream. The caller waits only when the ring has gone round before the device has.
//! - Large ones, and pieces of files, go through pinned buffers in a stream of their own, which
//!   begins behind all that was queued before (the memory may have been another's until then), and
//!   which later work waits for (`fork_copies`, `join_copies`).
//! - Downloads go behind what was queued before, into a pinned buffer with a mark of its own.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys;

use super::{Driver, Mark, failed};
use crate::Result;

/// Parts of the ring, and bytes of each; an upload of at most so many goes through it.
const PARTS: usize = 4;
const PART_BYTES: usize = 1 << 20;
/// Bytes of a piece of a large upload.
const PIECE_BYTES: usize = 8 << 20;
/// The least that a pinned buffer has, and most that idle ones keep.
const LEAST_BYTES: usize = 4 << 10;
const IDLE_BYTES: usize = 128 << 20;
/// Where uploads begin in a part: as the driver likes its copies.
const ALIGNMENT: usize = 64;

/// Memory that the device reaches by itself, and a mark behind the last copy that uses it. None
/// outlives its driver.
pub(in crate::cuda) struct Pinned {
    address: *mut u8,
    bytes: usize,
    /// Whether a copy was queued that has not been seen to be done.
    busy: bool,
    done: Mark,
    context: sys::CUcontext,
}

// SAFETY: the memory belongs to no thread, and the handles are the driver's, which takes them from
// any.
unsafe impl Send for Pinned {}
// SAFETY: through a shared one nothing is reached but numbers.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Where it begins: at a page.
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the context is held by the driver, which lives longer.
        if unsafe { result::ctx::set_current(self.context) }.is_ok() {
            // SAFETY: allocated in `Driver::pinned`, freed here only; whoever drops one has waited
            // for its copies. A failure has nobody to be told.
            let _ = unsafe { result::free_host(self.address.cast()) };
        }
    }
}

/// What copies go through.
pub(super) struct Staging {
    /// The stream of pieces; null until it is made.
    stream: sys::CUstream,
    /// Behind what was queued before a copy in pieces, and behind its last piece.
    forked: Option<Mark>,
    joined: Option<Mark>,
    ring: Mutex<Ring>,
    idle: Mutex<Vec<Pinned>>,
}

/// Parts that are filled in turn.
#[derive(Default)]
struct Ring {
    parts: Vec<Pinned>,
    /// The one that is being filled, and how far.
    at: usize,
    used: usize,
}

impl Default for Staging {
    fn default() -> Staging {
        let (ring, idle) = (Mutex::default(), Mutex::default());
        Staging { stream: ptr::null_mut(), forked: None, joined: None, ring, idle }
    }
}

impl Staging {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Where its lines were left by an error or a panic, less room is used than there is.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Pinned>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
    /// Makes what copies go through; `stream` is theirs from now on.
    pub(super) fn open_staging(&mut self, stream: sys::CUstream) -> Result<()> {
        self.staging.stream = stream;
        self.staging.forked = Some(self.new_mark(false)?);
        self.staging.joined = Some(self.new_mark(false)?);
        Ok(())
    }

    /// Before the context goes. Everything that was handed out is back.
    pub(super) fn close_staging(&mut self) {
        let stream = self.staging.stream;
        for stream in [self.stream, stream].into_iter().filter(|stream| !stream.is_null()) {
            // SAFETY: both live until they are destroyed, the one below, the other in `drop`.
            let _ = unsafe { result::stream::synchronize(stream) };
        }
        // Dropping it frees pinned memory and marks, while there still is a context.
        self.staging = Staging::default();
        if !stream.is_null() {
            // SAFETY: given to `open_staging`, destroyed here only. A failure has nobody to be told.
            let _ = unsafe { result::stream::destroy(stream) };
        }
    }

    /// Queues a copy; `from` may change as soon as this returns.
    ///
    /// # Safety
    /// As many elements lie behind `to`.
    pub unsafe fn upload<T: Copy>(&self, to: u64, from: &[T]) -> Result<()> {
        let bytes = size_of_val(from);
        // SAFETY: as many bytes lie there, of plain numbers without padding (`Element`).
        let from = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<u8>(), bytes) };
        if bytes <= PART_BYTES {
            // SAFETY: the caller's promise.
            return unsafe { self.upload_small(to, from) };
        }
        self.fork_copies()?;
        // Two pieces: copying memory is no slower than the device's link, so one is always ready.
        let mut pieces: Vec<Pinned> = vec![];
        let mut queue = |index: usize, first: usize, chunk: &[u8]| -> Result<()> {
            if index < 2 {
                pieces.push(self.pinned(PIECE_BYTES)?);
            }
            let piece = &mut pieces[index % 2];
            self.wait_for(piece)?;
            // SAFETY: a piece has `PIECE_BYTES`, a chunk at most as many, and nothing reads it now.
            unsafe { ptr::copy_nonoverlapping(chunk.as_ptr(), piece.address, chunk.len()) };
            // SAFETY: the caller's promise: the chunk lies within `from`.
            unsafe { self.send(to + first as u64, piece, chunk.len()) }
        };
        let mut chunks = from.chunks(PIECE_BYTES).enumerate();
        let sent = chunks.try_for_each(|(index, chunk)| queue(index, index * PIECE_BYTES, chunk));
        // Also after an error: later work must not meet copies that are still under way.
        let joined = self.join_copies();
        pieces.into_iter().for_each(|piece| self.put_back(piece));
        sent.and(joined)
    }

    /// # Safety
    /// As many bytes lie behind `to`.
    unsafe fn upload_small(&self, to: u64, from: &[u8]) -> Result<()> {
        let mut ring = self.staging.ring();
        let address = self.room(&mut ring, from.len())?;
        // SAFETY: `room` gave as many bytes, that no copy reads.
        let staged = unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), address, from.len());
            std::slice::from_raw_parts(address, from.len())
        };
        self.enter()?;
        // SAFETY: the caller's promise for `to`; the ring's memory lives as long as the driver, and
        // is written again only after its part's mark was reached.
        unsafe { result::memcpy_htod_async(to, staged, self.stream) }
            .map_err(|e| failed("copying to the device", e))
    }

    /// So many bytes of the ring, at most a part.
    fn room(&self, ring: &mut Ring, bytes: usize) -> Result<*mut u8> {
        if ring.parts.is_empty() {
            ring.parts.push(self.new_pinned(PART_BYTES)?);
        } else if ring.used + bytes > PART_BYTES {
            let full = &mut ring.parts[ring.at];
            // Set once, when it is full: behind all of its copies.
            self.set_mark(&full.done, self.stream)?;
            full.busy = true;
            let next = (ring.at + 1) % PARTS;
            if next == ring.parts.len() {
                ring.parts.push(self.new_pinned(PART_BYTES)?);
            }
            self.wait_for(&mut ring.parts[next])?;
            (ring.at, ring.used) = (next, 0);
        }
        let offset = ring.used;
        ring.used += bytes.next_multiple_of(ALIGNMENT);
        // SAFETY: `offset + bytes` is at most the part's length, as was looked at above.
        Ok(unsafe { ring.parts[ring.at].address.add(offset) })
    }

    /// Copies in pieces begin: behind all that was queued before.
    pub fn fork_copies(&self) -> Result<()> {
        let Some(mark) = &self.staging.forked else { return Ok(()) };
        // Should another thread set it again in between, that is a later place of the same stream.
        self.set_mark(mark, self.stream)?;
        self.follow(self.staging.stream, mark)
    }

    /// Work that is queued from now on waits for the pieces.
    pub fn join_copies(&self) -> Result<()> {
        let Some(mark) = &self.staging.joined else { return Ok(()) };
        self.set_mark(mark, self.staging.stream)?;
        self.follow(self.stream, mark)
    }

    /// Queues a piece's first `bytes`.
    ///
    /// # Safety
    /// As many bytes lie behind `to`, and `fork_copies` came before.
    pub unsafe fn send(&self, to: u64, piece: &mut Pinned, bytes: usize) -> Result<()> {
        assert!(bytes <= piece.bytes, "{bytes} bytes of a piece of {}", piece.bytes);
        self.enter()?;
        // SAFETY: the piece has as many bytes, all written by the system or by whoever filled it.
        let staged = unsafe { std::slice::from_raw_parts(piece.address, bytes) };
        // SAFETY: the caller's promise for `to`; whoever writes, frees or hands on the piece waits
        // for its mark first.
        unsafe { result::memcpy_htod_async(to, staged, self.staging.stream) }
            .map_err(|e| failed("copying to the device", e))?;
        piece.busy = true;
        self.set_mark(&piece.done, self.staging.stream)
    }

    /// Begins to copy from the device, into a buffer that is to be waited for.
    ///
    /// # Safety
    /// As many bytes lie behind `from`.
    pub unsafe fn fetch(&self, from: u64, bytes: usize) -> Result<Pinned> {
        let mut pinned = self.pinned(bytes)?;
        if bytes > 0 {
            self.enter()?;
            // SAFETY: it has as many bytes, and nobody else reaches them.
            let to = unsafe { std::slice::from_raw_parts_mut(pinned.address, bytes) };
            // SAFETY: the caller's promise for `from`; whoever reads, frees or hands on the buffer
            // waits for its mark first.
            unsafe { result::memcpy_dtoh_async(to, from, self.stream) }
                .map_err(|e| failed("copying from the device", e))?;
        }
        pinned.busy = true;
        match self.set_mark(&pinned.done, self.stream) {
            Ok(()) => Ok(pinned),
            Err(e) => {
                // Without a mark only the stream itself says when the copy is done.
                let _ = self.sync();
                Err(e)
            }
        }
    }

    /// Waits until no copy uses it.
    pub fn wait_for(&self, pinned: &mut Pinned) -> Result<()> {
        if pinned.busy {
            self.reach(&pinned.done)?;
            pinned.busy = false;
        }
        Ok(())
    }

    /// A buffer of at least so many bytes, of any content, that no copy uses.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned> {
        let wanted = bytes.max(LEAST_BYTES).checked_next_power_of_two().unwrap_or(bytes);
        let mut idle = self.staging.idle();
        for at in 0..idle.len() {
            // A much larger one would be missing where it is needed.
            if idle[at].bytes != wanted {
                continue;
            }
            if !idle[at].busy || self.is_reached(&idle[at].done)? {
                let mut found = idle.swap_remove(at);
                found.busy = false;
                return Ok(found);
            }
        }
        while idle.iter().map(|one| one.bytes).sum::<usize>() > IDLE_BYTES {
            let mut oldest = idle.remove(0);
            self.wait_for(&mut oldest)?;
        }
        drop(idle);
        self.new_pinned(wanted)
    }

    fn new_pinned(&self, bytes: usize) -> Result<Pinned> {
        let done = self.new_mark(false)?;
        self.enter()?;
        // Not write-combined: the host reads what comes from the device.
        // SAFETY: the driver's memory is bytes that the system has written, zeroes or others.
        let address: *mut c_void = unsafe { result::malloc_host(bytes, 0) }
            .map_err(|e| failed(&format!("{bytes} bytes of pinned memory"), e))?;
        Ok(Pinned { address: address.cast(), bytes, busy: false, done, context: self.context })
    }

    /// Keeps it for the next copy.
    pub fn put_back(&self, pinned: Pinned) {
        self.staging.idle().push(pinned);
    }
}
