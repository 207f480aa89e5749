//! Double quantisation: the scales of 256 blocks as one byte each.
//!
//! ```text
//! offset  = mean of all scales of the matrix                                           f32
//! largest = largest magnitude of (scale - offset) of 256 scales                        f32
//! byte    = index of the code nearest to (scale - offset) (1 / largest)
//! scale   = NESTED_CODE[byte] largest + offset
//! ```
//!
//! All in f32 with a rounding an operation. The codes are the 8-bit "dynamic" ones (Dettmers, 2015,
//! arXiv:1511.04561): more of them near zero.

use super::reciprocal;
use crate::buffer::Buffer;

/// Scales of a block of scales.
pub const NESTED_BLOCK: usize = 256;

/// What a byte of a scale stands for, in ascending order: zero, one, and for each power of ten from
/// 1e-6 to 1 the midpoints of 1, 2, 4 .. 64 equal parts of [0.1, 1] times it, of both signs.
pub static NESTED_CODE: [f32; 256] = nested_code();

/// Index of zero.
const NESTED_ZERO: usize = 127;

const fn nested_code() -> [f32; 256] {
    const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut code = [0.0; 256];
    let (mut power, mut at) = (0, 1);
    while power < POWERS.len() {
        let parts = 1 << power;
        let mut i = 0;
        while i < parts {
            let midpoint = (boundary(i, parts) + boundary(i + 1, parts)) / 2.0;
            let value = POWERS[power] * midpoint;
            (code[NESTED_ZERO + at], code[NESTED_ZERO - at]) = (value, -value);
            (i, at) = (i + 1, at + 1);
        }
        power += 1;
    }
    code[255] = 1.0;
    code
}

/// Boundary `i` of `parts` equal parts of [0.1, 1], counted from the nearer end with one rounding,
/// as the `linspace` that bitsandbytes calls computes it.
const fn boundary(i: usize, parts: usize) -> f32 {
    let step = (1.0 - 0.1f32) / parts as f32;
    // Products and sums of so few bits are exact in f64: what remains is the rounding to f32.
    if i < parts.div_ceil(2) {
        (step as f64 * i as f64 + 0.1f32 as f64) as f32
    } else {
        (1.0 - step as f64 * (parts - i) as f64) as f32
    }
}

/// Scales as bytes.
#[derive(Clone, Debug)]
pub struct Nested {
    /// A code a scale.
    pub codes: Buffer<u8>,
    /// A number for every 256 of them.
    pub largest: Buffer<f32>,
    /// What is added to all of them.
    pub offset: f32,
}

impl Nested {
    /// Encodes scales; of two codes that are equally near it takes the smaller.
    pub fn encode(scales: &[f32]) -> Nested {
        let offset = mean(scales);
        let mut codes = Buffer::zeroed(scales.len());
        let mut largest = Buffer::zeroed(scales.len().div_ceil(NESTED_BLOCK));
        let blocks = codes.chunks_mut(NESTED_BLOCK).zip(scales.chunks(NESTED_BLOCK));
        for ((codes, scales), largest) in blocks.zip(largest.iter_mut()) {
            *largest = scales.iter().fold(0.0f32, |most, s| most.max((s - offset).abs()));
            let inverse = reciprocal(*largest);
            for (code, scale) in codes.iter_mut().zip(scales) {
                *code = nearest((scale - offset) * inverse);
            }
        }
        Nested { codes, largest, offset }
    }

    /// The scale of a block.
    #[inline(always)]
    pub fn scale(&self, block: usize) -> f32 {
        let code = NESTED_CODE[usize::from(self.codes[block])];
        code * self.largest[block / NESTED_BLOCK] + self.offset
    }

    /// Bytes of `n` scales.
    pub const fn bytes_of(n: usize) -> usize {
        n + 4 * n.div_ceil(NESTED_BLOCK) + 4
    }
}

/// Index of the code nearest to `y`.
fn nearest(y: f32) -> u8 {
    let above = NESTED_CODE.partition_point(|&code| code < y).min(255);
    let below = above.saturating_sub(1);
    let upper = NESTED_CODE[above] - y < y - NESTED_CODE[below];
    (if upper { above } else { below }) as u8
}

/// Lanes and rows of lanes of [`mean`], and how many partial sums of sums it keeps.
const LANES: usize = 8;
const ROWS: usize = 4;
const LEVELS: usize = 4;

/// The mean, summed in the order in which PyTorch sums a vector on one thread, as the last bit of
/// every scale depends on it:
///
/// ```text
/// sum = the rest below a whole vector, one by one, then eight lanes, left to right, of
///       row 0 (and what is left of vectors below four) + row 1 + row 2 + row 3 of
///           a cascade over groups of four vectors, each 2^k sums added to the level above
/// ```
fn mean(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let (groups, single) = vectors.as_chunks::<ROWS>();
    let power = groups.len().next_power_of_two().ilog2() as usize;
    let power = (power / LEVELS).max(4);
    let mut levels = [[[0.0f32; LANES]; ROWS]; LEVELS];
    for (i, group) in groups.iter().enumerate() {
        add_rows(&mut levels[0], group);
        // After group 2^power, 2^(2 power) .. the sums so far move up.
        let n_done = i + 1;
        for level in 1..LEVELS {
            if !n_done.is_multiple_of(1 << (level * power)) {
                break;
            }
            let lower = std::mem::take(&mut levels[level - 1]);
            add_rows(&mut levels[level], &lower);
        }
    }
    let [mut sums, upper @ ..] = levels;
    upper.iter().for_each(|level| add_rows(&mut sums, level));
    let [mut lanes, rows @ ..] = sums;
    single.iter().chain(&rows).for_each(|row| add(&mut lanes, row));
    let sum = rest.iter().fold(0.0, |sum, x| sum + x);
    lanes.iter().fold(sum, |sum, x| sum + x) / x.len() as f32
}

fn add(to: &mut [f32; LANES], x: &[f32; LANES]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += x);
}

fn add_rows(to: &mut [[f32; LANES]; ROWS], x: &[[f32; LANES]; ROWS]) {
    to.iter_mut().zip(x).for_each(|(to, x)| add(to, x));
}
