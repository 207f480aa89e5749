//! Numbers on the device in either of the two types that activations and weights are stored in. The
//! device's side of `puna_cpu::floats`.

use std::ops::Range;

use half::bf16;

use super::memory::{DeviceSlice, DeviceSliceMut};
use crate::{Error, Result};

/// Numbers to read.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Single precision.
    F32(DeviceSlice<'a, f32>),
    /// Its upper half.
    Bf16(DeviceSlice<'a, bf16>),
}

/// Numbers to write.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// Single precision.
    F32(DeviceSliceMut<'a, f32>),
    /// Its upper half.
    Bf16(DeviceSliceMut<'a, bf16>),
}

impl<'a> Floats<'a> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Floats::F32(x) => x.len(),
            Floats::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of an element.
    pub fn element_bytes(&self) -> usize {
        match self {
            Floats::F32(_) => 4,
            Floats::Bf16(_) => 2,
        }
    }

    /// Name of the element type.
    pub fn dtype(&self) -> &'static str {
        match self {
            Floats::F32(_) => "f32",
            Floats::Bf16(_) => "bf16",
        }
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// When the range is not within them, as slices do.
    pub fn range(&self, range: Range<usize>) -> Floats<'a> {
        match self {
            Floats::F32(x) => Floats::F32(x.range(range)),
            Floats::Bf16(x) => Floats::Bf16(x.range(range)),
        }
    }

    /// Where they begin on their device.
    pub fn address(&self) -> u64 {
        match self {
            Floats::F32(x) => x.address(),
            Floats::Bf16(x) => x.address(),
        }
    }
}

impl<'a> FloatsMut<'a> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.as_floats().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of an element.
    pub fn element_bytes(&self) -> usize {
        self.as_floats().element_bytes()
    }

    /// Name of the element type.
    pub fn dtype(&self) -> &'static str {
        self.as_floats().dtype()
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// When the range is not within them, as slices do.
    pub fn range_mut(self, range: Range<usize>) -> FloatsMut<'a> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(x.range_mut(range)),
            FloatsMut::Bf16(x) => FloatsMut::Bf16(x.range_mut(range)),
        }
    }

    /// The same for a shorter while.
    pub fn reborrow(&mut self) -> FloatsMut<'_> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(x.reborrow()),
            FloatsMut::Bf16(x) => FloatsMut::Bf16(x.reborrow()),
        }
    }

    /// To read, for a while.
    pub fn as_floats(&self) -> Floats<'_> {
        match self {
            FloatsMut::F32(x) => Floats::F32(x.as_slice()),
            FloatsMut::Bf16(x) => Floats::Bf16(x.as_slice()),
        }
    }

    /// Where they begin on their device.
    pub fn address(&self) -> u64 {
        self.as_floats().address()
    }
}

impl<'a> From<DeviceSlice<'a, f32>> for Floats<'a> {
    fn from(x: DeviceSlice<'a, f32>) -> Self {
        Floats::F32(x)
    }
}

impl<'a> From<DeviceSlice<'a, bf16>> for Floats<'a> {
    fn from(x: DeviceSlice<'a, bf16>) -> Self {
        Floats::Bf16(x)
    }
}

impl<'a> From<DeviceSliceMut<'a, f32>> for FloatsMut<'a> {
    fn from(x: DeviceSliceMut<'a, f32>) -> Self {
        FloatsMut::F32(x)
    }
}

impl<'a> From<DeviceSliceMut<'a, bf16>> for FloatsMut<'a> {
    fn from(x: DeviceSliceMut<'a, bf16>) -> Self {
        FloatsMut::Bf16(x)
    }
}

/// Refuses operands of two types, for kernels that have one instance a type.
///
/// # Errors
/// When the two differ.
pub(crate) fn expect_dtype(op: &str, name: &str, got: &'static str, wanted: &str) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    let (expected, got) = (wanted.to_owned(), got.to_owned());
    Err(Error::DType { op: format!("{op}, {name}"), expected, got })
}
