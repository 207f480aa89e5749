//! What the tests of kernels share: lengths and offsets to sweep, seeded numbers, tolerances.

use crate::floats::{Floats, FloatsMut};
use half::bf16;

/// Lengths that meet every tail of a vector of `lanes`: empty, one, around one and two vectors,
/// and primes.
pub fn lengths(lanes: usize) -> Vec<usize> {
    let mut all = vec![0, 1, 2, 3, 5, 7, 13, 31, 61, 127, 257, 1021];
    for n in [lanes, 2 * lanes, 4 * lanes, 64 * lanes] {
        all.extend([n.saturating_sub(1), n, n + 1]);
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Offsets in elements that break the alignment of vector loads.
pub const OFFSETS: [usize; 3] = [0, 1, 3];

/// A tiny seeded generator (xorshift with a multiplication), for test data only.
#[derive(Clone, Debug)]
pub struct Gen(u64);

impl Gen {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Gen(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 32 random bits.
    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Roughly normal with mean 0 and variance 1 (a sum of uniforms).
    pub fn normal(&mut self) -> f32 {
        (0..3).map(|_| self.unit()).sum()
    }

    /// `n` numbers of `normal`.
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A type that training stores, for sweeps over both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

impl Storage {
    /// Both.
    pub const ALL: [Storage; 2] = [Storage::F32, Storage::Bf16];

    /// How far a number of size `x` moves when it is rounded to this type from f32: half a unit
    /// of the last of 8 bits, or of the last subnormal's.
    pub fn rounding(self, x: f64) -> f64 {
        match self {
            Storage::F32 => 0.0,
            Storage::Bf16 => (x.abs() / 256.0).max(1e-40),
        }
    }
}

/// Numbers in one of the types that training stores.
#[derive(Clone, Debug)]
pub enum Stored {
    /// f32.
    F32(Vec<f32>),
    /// bf16.
    Bf16(Vec<bf16>),
}

impl Stored {
    /// The numbers, rounded to the type.
    pub fn new(storage: Storage, x: &[f32]) -> Stored {
        match storage {
            Storage::F32 => Stored::F32(x.to_vec()),
            Storage::Bf16 => Stored::Bf16(x.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// To read, from element `first` on.
    pub fn floats(&self, first: usize) -> Floats<'_> {
        match self {
            Stored::F32(x) => Floats::F32(&x[first..]),
            Stored::Bf16(x) => Floats::Bf16(&x[first..]),
        }
    }

    /// To write: `len` elements from element `first` on.
    pub fn floats_mut(&mut self, first: usize, len: usize) -> FloatsMut<'_> {
        match self {
            Stored::F32(x) => FloatsMut::F32(&mut x[first..first + len]),
            Stored::Bf16(x) => FloatsMut::Bf16(&mut x[first..first + len]),
        }
    }

    /// The numbers as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Stored::F32(x) => x.clone(),
            Stored::Bf16(x) => x.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// Distance of `got` from `want` in units of the last place of `want` as an f32 (of the smallest
/// normal number below that). 0 where both are NaN or the same infinity.
pub fn ulps(got: f32, want: f64) -> f64 {
    if (got.is_nan() && want.is_nan()) || f64::from(got) == want || got == want as f32 {
        return 0.0;
    }
    if !got.is_finite() || !want.is_finite() {
        return f64::INFINITY;
    }
    let size = (want.abs() as f32).max(f32::MIN_POSITIVE);
    let ulp = f64::from(f32::from_bits(size.to_bits() + 1)) - f64::from(size);
    (f64::from(got) - want).abs() / ulp
}

/// All rows of `got` that are farther than `tol(i)` from `want`, as a message.
///
/// # Errors
/// The list of failures, at most ten of them in words.
pub fn compare(got: &[f32], want: &[f64], tol: impl Fn(usize) -> f64) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} elements, wanted {}", got.len(), want.len()));
    }
    let mut failures = 0;
    let mut message = String::new();
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let far = (f64::from(g) - w).abs();
        if far.is_nan() || far > tol(i) {
            failures += 1;
            if failures <= 10 {
                message += &format!("\n  [{i}] got {g:e}, want {w:e}, tolerance {:e}", tol(i));
            }
        }
    }
    if failures == 0 {
        Ok(())
    } else {
        Err(format!("{failures} of {} differ:{message}", got.len()))
    }
}

/// The machine epsilon of f32 in f64.
pub const EPS: f64 = f32::EPSILON as f64;
