//! Numbers between the machine's memory and the device, piece by piece through memory that the
//! device reads by itself, so that the next piece is made while the last one is on its way.
//!
//! ```text
//! host    fill 0 | fill 1 | fill 2 | fill 3 ...          three pieces of pinned memory, in turn
//! copies         | copy 0 | copy 1 | copy 2 ...          behind all that was queued before
//! kernels  ......................................| next  behind the last copy
//! ```

use std::marker::PhantomData;
use std::sync::Arc;

use super::device::{Backend, Device};
use super::driver::{Driver, Pinned};
use super::memory::Element;
use crate::{Error, Result};

/// Pieces that are filled or on their way at a time.
const PIECES: usize = 3;

/// Memory of the host that a copy goes through.
pub(super) enum Staged {
    Driver(Pinned),
    #[cfg(feature = "cuda-host")]
    Host(Vec<u64>),
}

impl Device {
    /// Fills the `len` elements behind `to`, as `Gpu::upload_pieces` says.
    pub fn upload_pieces<T: Element>(
        &self,
        to: u64,
        len: usize,
        piece_len: usize,
        mut fill: impl FnMut(usize, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        self.not_in_a_recording("copying to the device")?;
        if len == 0 {
            return Ok(());
        }
        if piece_len == 0 {
            let why = "a piece has at least one element".to_owned();
            return Err(Error::Cuda { what: "copying to the device in pieces".into(), why });
        }
        let piece_len = piece_len.min(len);
        let mut way = Way::begin(self, size_of::<T>() * piece_len)?;
        for (index, first) in (0..len).step_by(piece_len).enumerate() {
            let n = piece_len.min(len - first);
            let piece = way.next(index)?;
            fill(index, piece.elements_mut(n))?;
            let bytes = size_of::<T>() * n;
            way.send(index, to + (size_of::<T>() * first) as u64, bytes)?;
        }
        way.end()
    }

    /// Begins to copy `len` elements from behind `from`.
    pub fn fetch<T: Element>(self: &Arc<Device>, from: u64, len: usize) -> Result<Download<T>> {
        self.not_in_a_recording("copying from the device")?;
        let bytes = size_of::<T>() * len;
        let _turn = self.turn();
        let staged = match &self.backend {
            // SAFETY: address and length are those of one slice.
            Backend::Driver(driver) => Staged::Driver(unsafe { driver.fetch(from, bytes)? }),
            #[cfg(feature = "cuda-host")]
            Backend::Host(host) => {
                let mut staged = Staged::Host(vec![0; bytes.div_ceil(8)]);
                if len > 0 {
                    // SAFETY: as above.
                    unsafe { host.download(from, staged.elements_mut::<T>(len))? };
                }
                staged
            }
        };
        let device = Arc::clone(self);
        Ok(Download { device, staged: Some(staged), len, element: PhantomData })
    }
}

impl Staged {
    /// Its first `len` elements: whatever bytes are there, which are a value of any `Element`.
    fn elements_mut<T: Element>(&mut self, len: usize) -> &mut [T] {
        let (address, bytes): (*mut u8, usize) = match self {
            Staged::Driver(pinned) => (pinned.address(), pinned.bytes()),
            #[cfg(feature = "cuda-host")]
            Staged::Host(words) => (words.as_mut_ptr().cast(), 8 * words.len()),
        };
        assert!(len * size_of::<T>() <= bytes, "{len} elements of a piece of {bytes} bytes");
        let first: *mut T = address.cast();
        assert!(first.is_aligned(), "pinned memory begins at pages, words at multiples of 8");
        // SAFETY: the memory is the piece's alone for as long as it is borrowed, the device having
        // been waited for; it has as many bytes, aligned, of which any are a `T`.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }
}

/// Pieces under way; whatever ends it, later work waits for the copies that were begun.
struct Way<'d> {
    device: &'d Device,
    piece_bytes: usize,
    pieces: Vec<Staged>,
    joined: bool,
}

impl<'d> Way<'d> {
    fn begin(device: &'d Device, piece_bytes: usize) -> Result<Way<'d>> {
        if let Backend::Driver(driver) = &device.backend {
            let _turn = device.turn();
            driver.fork_copies()?;
        }
        Ok(Way { device, piece_bytes, pieces: vec![], joined: false })
    }

    /// The piece that this index goes through, free to be written.
    fn next(&mut self, index: usize) -> Result<&mut Staged> {
        let at = index % PIECES;
        if at == self.pieces.len() {
            self.pieces.push(match &self.device.backend {
                Backend::Driver(driver) => Staged::Driver(driver.pinned(self.piece_bytes)?),
                // As pinned memory has it, what was there before is still there.
                #[cfg(feature = "cuda-host")]
                Backend::Host(_) => {
                    let word = 0xa5a5_a5a5_a5a5_a5a5;
                    Staged::Host(vec![word; self.piece_bytes.div_ceil(8)])
                }
            });
        }
        let piece = &mut self.pieces[at];
        if let (Backend::Driver(driver), Staged::Driver(pinned)) =
            (&self.device.backend, &mut *piece)
        {
            driver.wait_for(pinned)?;
        }
        Ok(piece)
    }

    /// Queues the copy of the piece of this index.
    fn send(&mut self, index: usize, to: u64, bytes: usize) -> Result<()> {
        let _turn = self.device.turn();
        match (&self.device.backend, &mut self.pieces[index % PIECES]) {
            // SAFETY: `to` is within a slice of the device, with as many bytes behind it.
            (Backend::Driver(driver), Staged::Driver(pinned)) => unsafe {
                driver.send(to, pinned, bytes)
            },
            #[cfg(feature = "cuda-host")]
            (Backend::Host(host), piece) => {
                // SAFETY: as above.
                unsafe { host.upload(to, piece.elements_mut::<u8>(bytes)) }
            }
            #[cfg(feature = "cuda-host")]
            (Backend::Driver(_), Staged::Host(_)) => Ok(()),
        }
    }

    fn end(mut self) -> Result<()> {
        self.joined = true;
        let Backend::Driver(driver) = &self.device.backend else { return Ok(()) };
        let _turn = self.device.turn();
        driver.join_copies()
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        let Backend::Driver(driver) = &self.device.backend else { return };
        if !self.joined {
            let _turn = self.device.turn();
            // The error that ended the copy is the one to be told.
            let _ = driver.join_copies();
        }
        put_back(driver, self.pieces.drain(..));
    }
}

fn put_back(driver: &Driver, pieces: impl Iterator<Item = Staged>) {
    for piece in pieces {
        match piece {
            Staged::Driver(pinned) => driver.put_back(pinned),
            #[cfg(feature = "cuda-host")]
            Staged::Host(_) => {}
        }
    }
}

/// Numbers on their way from the device: [`super::Gpu::download_async`] makes it.
pub struct Download<T: Element> {
    device: Arc<Device>,
    /// `None` only while it is dropped.
    staged: Option<Staged>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Download<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Waits for them, and for what was queued before them, but for nothing that was queued later.
    ///
    /// # Errors
    /// When the lengths differ, or the device failed, also if in an earlier kernel; while a graph is
    /// recorded.
    pub fn wait(mut self, to: &mut [T]) -> Result<()> {
        super::expect_len("download from the device", "to", to.len(), self.len)?;
        self.device.not_in_a_recording("waiting for numbers of the device")?;
        let Some(staged) = &mut self.staged else { return Ok(()) };
        if let (Backend::Driver(driver), Staged::Driver(pinned)) =
            (&self.device.backend, &mut *staged)
        {
            driver.wait_for(pinned)?;
        }
        to.copy_from_slice(staged.elements_mut(self.len));
        Ok(())
    }
}

impl<T: Element> Drop for Download<T> {
    fn drop(&mut self) {
        if let Backend::Driver(driver) = &self.device.backend {
            put_back(driver, self.staged.take().into_iter());
        }
    }
}

impl<T: Element> std::fmt::Debug for Download<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download").field("len", &self.len).finish_non_exhaustive()
    }
}
