//! Numbers as training stores them: f32, or bf16 that is computed with as f32.

use half::bf16;

/// A read-only row-major block of numbers.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Its upper half.
    Bf16(&'a [bf16]),
}

/// A block of numbers to write. Results are computed in f32 and rounded once, to nearest even,
/// when they are stored as bf16.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Its upper half.
    Bf16(&'a mut [bf16]),
}

impl<'a> Floats<'a> {
    /// Some of them.
    ///
    /// # Panics
    /// When the range is not inside.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Floats<'a> {
        match self {
            Floats::F32(x) => Floats::F32(&x[range]),
            Floats::Bf16(x) => Floats::Bf16(&x[range]),
        }
    }
}

impl Floats<'_> {
    /// How many numbers.
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
}

impl FloatsMut<'_> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::F32(x) => x.len(),
            FloatsMut::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same numbers, borrowed anew.
    pub fn reborrow(&mut self) -> FloatsMut<'_> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(x),
            FloatsMut::Bf16(x) => FloatsMut::Bf16(x),
        }
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range is not inside.
    pub fn slice_mut(&mut self, range: std::ops::Range<usize>) -> FloatsMut<'_> {
        match self {
            FloatsMut::F32(x) => FloatsMut::F32(&mut x[range]),
            FloatsMut::Bf16(x) => FloatsMut::Bf16(&mut x[range]),
        }
    }

    /// A view to read.
    pub fn as_floats(&self) -> Floats<'_> {
        match self {
            FloatsMut::F32(x) => Floats::F32(x),
            FloatsMut::Bf16(x) => Floats::Bf16(x),
        }
    }
}
