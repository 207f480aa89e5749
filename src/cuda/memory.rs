//! Buffers on a device, and borrowed parts of them.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::device::{Block, Device};
use crate::Result;

mod sealed {
    pub trait Sealed {}
}

/// What a buffer holds: plain numbers, any bytes of which are a value.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(f32, f64, bf16, f16, u8, i8, u16, i32, u32, u64, i64);

/// `len` elements on a device; given back to it when dropped.
pub struct DeviceBuffer<T: Element> {
    device: Arc<Device>,
    block: Block,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        // An empty one has no block, and no address that anything reads.
        let block = if bytes == 0 { Block::default() } else { device.alloc(bytes)? };
        Ok(DeviceBuffer { device: device.clone(), block, len, element: PhantomData })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, to read.
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { address: self.block.address, len: self.len, buffer: PhantomData }
    }

    /// All of it, to write although others know of it too: for memory that several owners share by
    /// parts. What they read and write is ordered by the stream, as all that a device does.
    pub(super) fn shared_mut(&self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.block.address, len: self.len, buffer: PhantomData }
    }

    /// All of it, to write.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.block.address, len: self.len, buffer: PhantomData }
    }
}

impl<T: Element> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            self.device.release(self.block);
        }
    }
}

impl<T: Element> std::fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Part of a buffer, to read.
#[derive(Debug)]
pub struct DeviceSlice<'a, T> {
    address: u64,
    len: usize,
    buffer: PhantomData<&'a [T]>,
}

// Not derived, as that would ask for `T: Clone`.
impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for DeviceSlice<'_, T> {}

impl<'a, T: Element> DeviceSlice<'a, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of its elements.
    ///
    /// # Panics
    /// When the range is not within it, as slices do.
    pub fn range(&self, range: Range<usize>) -> DeviceSlice<'a, T> {
        let (address, len) = part::<T>(self.address, self.len, range);
        DeviceSlice { address, len, buffer: PhantomData }
    }

    /// Where it begins on its device; no pointer for anything but the device's kernels.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// Part of a buffer, to write.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T> {
    address: u64,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> DeviceSliceMut<'a, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of its elements.
    ///
    /// # Panics
    /// When the range is not within it, as slices do.
    pub fn range_mut(self, range: Range<usize>) -> DeviceSliceMut<'a, T> {
        let (address, len) = part::<T>(self.address, self.len, range);
        DeviceSliceMut { address, len, buffer: PhantomData }
    }

    /// The same for a shorter while.
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, buffer: PhantomData }
    }

    /// To read, for a while.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { address: self.address, len: self.len, buffer: PhantomData }
    }

    /// Its first `at` elements and the others.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn split_at(self, at: usize) -> (DeviceSliceMut<'a, T>, DeviceSliceMut<'a, T>) {
        let first = part::<T>(self.address, self.len, 0..at);
        let second = part::<T>(self.address, self.len, at..self.len);
        let slice = |(address, len)| DeviceSliceMut { address, len, buffer: PhantomData };
        (slice(first), slice(second))
    }

    /// Where it begins on its device; no pointer for anything but the device's kernels.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// Address and length of a range of a slice.
fn part<T>(address: u64, len: usize, range: Range<usize>) -> (u64, usize) {
    assert!(
        range.start <= range.end && range.end <= len,
        "range {range:?} of a slice of {len} elements on the device"
    );
    // Within a buffer, whose size in bytes is an `usize`.
    (address + (range.start * size_of::<T>()) as u64, range.len())
}
