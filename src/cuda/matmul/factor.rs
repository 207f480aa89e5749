//! Factors of products: numbers on the device and how they are stored.

use super::super::{DeviceSlice, Floats, aligned, params};
use half::{bf16, f16};

/// The numbers of a factor.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Single precision.
    F32(DeviceSlice<'a, f32>),
    /// Its upper half.
    Bf16(DeviceSlice<'a, bf16>),
    /// Half precision: weights of files.
    F16(DeviceSlice<'a, f16>),
}

impl<'a> From<Floats<'a>> for Source<'a> {
    fn from(x: Floats<'a>) -> Self {
        match x {
            Floats::F32(x) => Source::F32(x),
            Floats::Bf16(x) => Source::Bf16(x),
        }
    }
}

impl<'a> From<DeviceSlice<'a, f16>> for Source<'a> {
    fn from(x: DeviceSlice<'a, f16>) -> Self {
        Source::F16(x)
    }
}

impl Source<'_> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            Source::F32(x) => x.len(),
            Source::Bf16(x) => x.len(),
            Source::F16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(in super::super) fn address(&self) -> u64 {
        match self {
            Source::F32(x) => x.address(),
            Source::Bf16(x) => x.address(),
            Source::F16(x) => x.address(),
        }
    }

    /// The kernels' number of the type.
    pub(in super::super) fn tag(&self) -> u32 {
        match self {
            Source::F32(_) => params::MATMUL_F32,
            Source::Bf16(_) => params::MATMUL_BF16,
            Source::F16(_) => params::MATMUL_F16,
        }
    }
}

/// A factor of a product as it is stored: `rows` x `cols`, row-major.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// The numbers.
    pub source: Source<'a>,
    /// Stored rows.
    pub rows: usize,
    /// Stored columns.
    pub cols: usize,
    /// Whether the factor is the transpose of what is stored, [cols, rows].
    pub transposed: bool,
}

impl<'a> Factor<'a> {
    /// The block `x` [rows, cols].
    pub fn plain(x: impl Into<Source<'a>>, rows: usize, cols: usize) -> Self {
        Factor { source: x.into(), rows, cols, transposed: false }
    }

    /// The transpose.
    #[must_use]
    pub fn t(mut self) -> Self {
        self.transposed = !self.transposed;
        self
    }

    /// Rows and columns as the product sees them.
    pub fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    /// Whether 8 numbers of a row at a time lie in whole aligned words of 16 bytes.
    pub fn is_aligned(&self) -> bool {
        // Eight f32 are two words; a row of a multiple of 8 may not end in half a chunk.
        self.cols.is_multiple_of(8) && aligned(self.source.address(), 2 * self.cols)
    }

    /// Whether asynchronous copies can feed tensor cores from where it lies.
    pub fn is_aligned_bf16(&self) -> bool {
        matches!(self.source, Source::Bf16(_)) && self.is_aligned()
    }

    pub(super) fn address(&self) -> u64 {
        self.source.address()
    }
}
