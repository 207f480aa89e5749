//! Buffers on a device, borrowed parts of them, and the arena that keeps what they give back.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::device::Device;
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

/// What a device's buffers take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of the buffers that there are.
    pub used_bytes: usize,
    /// The most that it was.
    pub peak_bytes: usize,
    /// Bytes that are kept for buffers to come.
    pub kept_bytes: usize,
    /// How often the driver was asked for more.
    pub n_allocations: usize,
}

/// Blocks of a device's memory by size. A freed block is kept and given to the next buffer of its
/// size, the last freed first: so steps that repeat allocate nothing after the first, and each of
/// their buffers comes back to the address it had.
#[derive(Default)]
pub(super) struct Arena {
    free: BTreeMap<usize, Vec<u64>>,
    usage: MemoryUse,
}

impl Arena {
    /// Size of the block for a buffer of `bytes`: a multiple of 512 bytes, and for large ones of an
    /// eighth of the power of two below; so at most an eighth (or 511 bytes) is lost, and buffers of
    /// nearly one size share blocks.
    pub fn size_class(bytes: usize) -> usize {
        let below = 1usize << bytes.max(1).ilog2();
        let step = (below / 8).max(512);
        bytes.max(1).checked_next_multiple_of(step).unwrap_or(usize::MAX)
    }

    /// A free block of exactly this size.
    pub fn take(&mut self, block: usize) -> Option<u64> {
        let address = self.free.get_mut(&block)?.pop()?;
        self.usage.kept_bytes -= block;
        self.count(block);
        Some(address)
    }

    /// A block that the driver has just given.
    pub fn add(&mut self, block: usize) {
        self.usage.n_allocations += 1;
        self.count(block);
    }

    fn count(&mut self, block: usize) {
        self.usage.used_bytes += block;
        self.usage.peak_bytes = self.usage.peak_bytes.max(self.usage.used_bytes);
    }

    pub fn give_back(&mut self, block: usize, address: u64) {
        self.forget(block);
        self.usage.kept_bytes += block;
        self.free.entry(block).or_default().push(address);
    }

    /// A block goes back to where it came from.
    pub fn forget(&mut self, block: usize) {
        self.usage.used_bytes -= block;
    }

    /// All free blocks, to be freed for good.
    pub fn drain(&mut self) -> Vec<u64> {
        self.usage.kept_bytes = 0;
        std::mem::take(&mut self.free).into_values().flatten().collect()
    }

    pub fn usage(&self) -> MemoryUse {
        self.usage
    }
}

/// `len` elements on a device; given back to it when dropped.
pub struct DeviceBuffer<T: Element> {
    device: Arc<Device>,
    address: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        // An empty one has no block, and no address that anything reads.
        let address = if bytes == 0 { 0 } else { device.alloc(bytes)? };
        Ok(DeviceBuffer { device: device.clone(), address, len, element: PhantomData })
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
        DeviceSlice { address: self.address, len: self.len, buffer: PhantomData }
    }

    /// All of it, to write although others know of it too: for memory that several owners share by
    /// parts. What they read and write is ordered by the stream, as all that a device does.
    pub(super) fn shared_mut(&self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, buffer: PhantomData }
    }

    /// All of it, to write.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { address: self.address, len: self.len, buffer: PhantomData }
    }
}

impl<T: Element> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            self.device.release(self.address, bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_wastes_at_most_an_eighth() {
        assert_eq!(Arena::size_class(0), 512);
        assert_eq!(Arena::size_class(512), 512);
        assert_eq!(Arena::size_class(513), 1024);
        assert_eq!(Arena::size_class(usize::MAX), usize::MAX);
        for bytes in [1, 511, 4096, 4097, 65_537, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let block = Arena::size_class(bytes);
            assert!(block >= bytes && block - bytes < (bytes / 8).max(512), "{bytes}: {block}");
            assert_eq!(Arena::size_class(block), block, "{bytes}");
        }
    }

    #[test]
    fn what_is_given_back_comes_out_again_last_first() {
        let mut arena = Arena::default();
        assert_eq!(arena.take(512), None);
        for address in [1, 2] {
            arena.add(512);
            arena.give_back(512, address);
        }
        assert_eq!(arena.take(1024), None);
        assert_eq!(arena.take(512), Some(2));
        let wanted =
            MemoryUse { used_bytes: 512, peak_bytes: 512, kept_bytes: 512, n_allocations: 2 };
        assert_eq!(arena.usage(), wanted);
        assert_eq!(arena.drain(), [1]);
        assert_eq!(arena.take(512), None);
    }
}
