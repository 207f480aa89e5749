//! Factors as the tiles read them: in place, or packed into panels `[unit][lane]` of a fixed
//! number of lanes, lanes being rows of the first or columns of the second factor.
//!
//! Here: how a factor lies, the plain packing (also of the AVX2 level, whose compiler vectorises
//! it), and the decoding of quantised weights. AVX-512 packs in `pack_avx512.rs`.

use super::{Factor, Precision, Source};
use crate::floats::Floats;
use crate::isa::{Isa, Level};
use crate::matmul::Dense;
use crate::qmatmul::{BLOCK, PackedMatrix, ROWS};
use crate::quant::nf4::{self, Nf4Matrix};
use half::{bf16, f16};
use std::ops::Range;

/// What a panel is made of: 32 bits a lane and step of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// One input in f32.
    F32,
    /// One input in f32, rounded to bf16.
    Rounded,
    /// Two inputs in bf16, the first in the lower half; an odd one is paired with zero.
    Pairs,
}

impl Unit {
    pub fn of(isa: Isa, precision: Precision) -> Unit {
        match precision {
            Precision::F32 => Unit::F32,
            Precision::Bf16 if isa.has_bf16() => Unit::Pairs,
            Precision::Bf16 => Unit::Rounded,
        }
    }

    /// Inputs of a unit.
    pub fn inputs(self) -> usize {
        if self == Unit::Pairs { 2 } else { 1 }
    }
}

/// Numbers of which either a lane's inputs or an input's lanes are neighbours.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    /// From the first lane's first input on.
    pub bytes: &'a [u8],
    pub dtype: Dense,
    /// Elements from a lane to the next if `k_inner`, else from an input to the next.
    pub stride: usize,
    /// Whether a lane's inputs are neighbours.
    pub k_inner: bool,
}

impl<'a> Strided<'a> {
    /// The same from another lane and input on.
    fn at(&self, lane: usize, k: usize) -> Strided<'a> {
        let at = if self.k_inner { lane * self.stride + k } else { k * self.stride + lane };
        Strided { bytes: &self.bytes[at * self.dtype.bytes()..], ..*self }
    }

    /// Panics unless `lanes` lanes of `len` inputs are there.
    fn check(&self, lanes: usize, len: usize) {
        let (outer, inner) = if self.k_inner { (lanes, len) } else { (len, lanes) };
        let last = outer.saturating_sub(1) * self.stride + inner;
        assert!(last * self.dtype.bytes() <= self.bytes.len(), "{lanes} lanes of {len} inputs");
    }
}

/// A factor as lanes of `k` inputs.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: Data<'a>,
    pub lanes: usize,
    pub k: usize,
}

#[derive(Clone, Copy)]
enum Data<'a> {
    Strided(Strided<'a>),
    /// And whether the weights' rows are the lanes.
    Packed(&'a PackedMatrix, bool),
    /// Likewise.
    Nf4(&'a Nf4Matrix, bool),
}

/// Where units lie that tiles read in place.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    bytes: &'a [u8],
    /// Bytes from a lane's unit to the next lane's.
    pub lane_bytes: usize,
    /// Bytes from a unit to the next.
    pub unit_bytes: usize,
    /// Bytes from an input to the next.
    input_bytes: usize,
}

impl Place<'_> {
    /// Address of a lane's unit that starts with input `k`.
    pub fn at(&self, lane: usize, k: usize) -> *const u8 {
        self.bytes[lane * self.lane_bytes + k * self.input_bytes..].as_ptr()
    }
}

impl<'a> View<'a> {
    /// Rows of a first factor are the lanes.
    pub fn of_rows(a: &Factor<'a>) -> Self {
        Self::new(a, !a.transposed)
    }

    /// Columns of a second factor are the lanes.
    pub fn of_columns(b: &Factor<'a>) -> Self {
        Self::new(b, b.transposed)
    }

    fn new(factor: &Factor<'a>, k_inner: bool) -> Self {
        let stride = factor.cols;
        let strided = |bytes, dtype| Data::Strided(Strided { bytes, dtype, stride, k_inner });
        let data = match factor.source {
            Source::Floats(Floats::F32(x)) => strided(bytes_of(x), Dense::F32),
            Source::Floats(Floats::Bf16(x)) => strided(bytes_of(x), Dense::BF16),
            Source::Dense(w) => strided(w.bytes, w.dtype),
            Source::Packed(w) => Data::Packed(w, k_inner),
            Source::Nf4(w) => Data::Nf4(w, k_inner),
        };
        let (rows, cols) = (factor.rows, factor.cols);
        let (lanes, k) = if k_inner { (rows, cols) } else { (cols, rows) };
        View { data, lanes, k }
    }

    /// Whether a lane's inputs are neighbours.
    pub fn k_inner(&self) -> bool {
        match self.data {
            Data::Strided(s) => s.k_inner,
            Data::Packed(_, k_inner) | Data::Nf4(_, k_inner) => k_inner,
        }
    }

    /// Where tiles find their rows, if they need no packing: a lane's units are neighbours.
    pub fn rows_in_place(&self, unit: Unit) -> Option<Place<'a>> {
        let Data::Strided(s) = self.data else { return None };
        let fits = match (unit, s.dtype) {
            (Unit::F32, Dense::F32) => true,
            (Unit::Pairs, Dense::BF16) => self.k.is_multiple_of(2),
            _ => false,
        };
        let size = s.dtype.bytes();
        (s.k_inner && fits).then_some(Place {
            bytes: s.bytes,
            lane_bytes: s.stride * size,
            unit_bytes: 4,
            input_bytes: size,
        })
    }

    /// Where tiles find their columns, if they need no packing: a unit's lanes are neighbours.
    pub fn columns_in_place(&self, unit: Unit) -> Option<Place<'a>> {
        let Data::Strided(s) = self.data else { return None };
        let step = 4 * s.stride;
        (!s.k_inner && unit == Unit::F32 && s.dtype == Dense::F32).then_some(Place {
            bytes: s.bytes,
            lane_bytes: 4,
            unit_bytes: step,
            input_bytes: step,
        })
    }
}

impl View<'_> {
    /// Adds the addresses of the cache lines that `lanes` and `inputs` are packed from; of
    /// quantised weights, about these.
    pub fn lines(&self, lanes: Range<usize>, inputs: Range<usize>, to: &mut Vec<usize>) {
        self.runs(lanes, inputs, |lines| to.extend(lines.map(|line| line * LINE)));
    }

    /// Asks for these lines now, where that is of use.
    pub fn fetch(&self, lanes: Range<usize>, inputs: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        self.runs(lanes, inputs, |lines| {
            for line in lines {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                // SAFETY: a hint, never a fault.
                unsafe { _mm_prefetch::<_MM_HINT_T0>((line * LINE) as *const i8) };
            }
        });
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (lanes, inputs);
    }

    /// The numbers of the cache lines of each run of neighbours.
    #[inline(always)]
    fn runs(&self, lanes: Range<usize>, inputs: Range<usize>, mut take: impl FnMut(Range<usize>)) {
        let mut run = |bytes: &[u8]| {
            let first = bytes.as_ptr() as usize;
            take(first / LINE..(first + bytes.len()).div_ceil(LINE));
        };
        match self.data {
            Data::Strided(s) => {
                let (outer, inner) = if s.k_inner { (lanes, inputs) } else { (inputs, lanes) };
                let size = s.dtype.bytes();
                for i in outer {
                    let at = (i * s.stride + inner.start) * size;
                    run(&s.bytes[at..at + inner.len() * size]);
                }
            }
            Data::Packed(w, k_inner) => {
                let (rows, cols) = if k_inner { (lanes, inputs) } else { (inputs, lanes) };
                for panel in blocks_of(&rows, ROWS) {
                    run(w.panel_part(panel, &blocks_of(&cols, BLOCK)));
                }
            }
            Data::Nf4(w, k_inner) => {
                let (rows, cols) = if k_inner { (lanes, inputs) } else { (inputs, lanes) };
                rows.for_each(|row| run(w.row_part(row, &cols)));
            }
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// The bytes of plain numbers.
fn bytes_of<T: crate::buffer::Plain>(x: &[T]) -> &[u8] {
    // SAFETY: Plain data has no padding; the same memory for the same lifetime.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

/// Packs inputs `inputs` of the lanes `lanes`, at most `width` of them, into `to`
/// `[unit][width]`; lanes that are missing are zeros. `inputs` starts at a multiple of
/// [`BLOCK`].
pub fn pack(
    isa: Isa,
    unit: Unit,
    to: &mut [u32],
    width: usize,
    view: &View<'_>,
    lanes: Range<usize>,
    inputs: Range<usize>,
) {
    assert!(lanes.len() <= width && lanes.end <= view.lanes && inputs.end <= view.k);
    let to = &mut to[..inputs.len().div_ceil(unit.inputs()) * width];
    if lanes.len() < width {
        to.fill(0);
    }
    match view.data {
        Data::Strided(s) => {
            let from = s.at(lanes.start, inputs.start);
            strided(isa, unit, to, width, from, lanes.len(), inputs.len());
        }
        Data::Packed(w, true) => packed_rows(isa, unit, to, width, w, lanes, inputs),
        Data::Packed(w, false) => packed_inputs(isa, unit, to, width, w, lanes, inputs),
        Data::Nf4(w, true) => nf4_rows(isa, unit, to, width, w, lanes, inputs),
        Data::Nf4(w, false) => nf4_inputs(isa, unit, to, width, w, lanes, inputs),
    }
}

/// The part of `range` that lies in block `i` of `size`.
fn within(range: &Range<usize>, i: usize, size: usize) -> Range<usize> {
    range.start.max(i * size)..range.end.min((i + 1) * size)
}

/// Numbers of blocks of `size` that `range` meets.
fn blocks_of(range: &Range<usize>, size: usize) -> Range<usize> {
    range.start / size..range.end.div_ceil(size)
}

/// Lanes are rows of the weights.
fn packed_rows(
    isa: Isa,
    unit: Unit,
    to: &mut [u32],
    width: usize,
    w: &PackedMatrix,
    lanes: Range<usize>,
    inputs: Range<usize>,
) {
    let mut block = [[0.0f32; ROWS]; BLOCK];
    for panel in blocks_of(&lanes, ROWS) {
        let lane = within(&lanes, panel, ROWS);
        for b in blocks_of(&inputs, BLOCK) {
            w.decode_block(isa, &mut block, panel, b);
            let input = within(&inputs, b, BLOCK);
            let bytes = bytes_of(block.as_flattened());
            let from = Strided { bytes, dtype: Dense::F32, stride: ROWS, k_inner: false };
            let from = from.at(lane.start - panel * ROWS, input.start - b * BLOCK);
            let at = (input.start - inputs.start) / unit.inputs() * width;
            let to = &mut to[at + lane.start - lanes.start..];
            strided(isa, unit, to, width, from, lane.len(), input.len());
        }
    }
}

/// Lanes are inputs of the weights.
fn packed_inputs(
    isa: Isa,
    unit: Unit,
    to: &mut [u32],
    width: usize,
    w: &PackedMatrix,
    lanes: Range<usize>,
    inputs: Range<usize>,
) {
    let mut block = [[0.0f32; ROWS]; BLOCK];
    for b in blocks_of(&lanes, BLOCK) {
        let lane = within(&lanes, b, BLOCK);
        for panel in blocks_of(&inputs, ROWS) {
            w.decode_block(isa, &mut block, panel, b);
            let row = within(&inputs, panel, ROWS);
            let bytes = bytes_of(block.as_flattened());
            let from = Strided { bytes, dtype: Dense::F32, stride: ROWS, k_inner: true };
            let from = from.at(lane.start - b * BLOCK, row.start - panel * ROWS);
            let at = (row.start - inputs.start) / unit.inputs() * width;
            let to = &mut to[at + lane.start - lanes.start..];
            strided(isa, unit, to, width, from, lane.len(), row.len());
        }
    }
}

/// Rows of NF4 weights that are decoded side by side, some inputs of each.
type Nf4Rows = [[f32; nf4::BLOCK]; 16];

/// Lanes are rows of the weights.
fn nf4_rows(
    isa: Isa,
    unit: Unit,
    to: &mut [u32],
    width: usize,
    w: &Nf4Matrix,
    lanes: Range<usize>,
    inputs: Range<usize>,
) {
    let mut rows: Nf4Rows = [[0.0; nf4::BLOCK]; 16];
    for first in lanes.clone().step_by(rows.len()) {
        let lane = first..(first + rows.len()).min(lanes.end);
        for from in inputs.clone().step_by(nf4::BLOCK) {
            let len = nf4::BLOCK.min(inputs.end - from);
            for (out, row) in rows.iter_mut().zip(lane.clone()) {
                w.decode(isa, &mut out[..len], row * w.k() + from);
            }
            let from_rows = decoded(&rows, true);
            let at = (from - inputs.start) / unit.inputs() * width;
            let to = &mut to[at + lane.start - lanes.start..];
            strided(isa, unit, to, width, from_rows, lane.len(), len);
        }
    }
}

/// Lanes are inputs of the weights.
fn nf4_inputs(
    isa: Isa,
    unit: Unit,
    to: &mut [u32],
    width: usize,
    w: &Nf4Matrix,
    lanes: Range<usize>,
    inputs: Range<usize>,
) {
    let mut rows: Nf4Rows = [[0.0; nf4::BLOCK]; 16];
    for from in lanes.clone().step_by(nf4::BLOCK) {
        let len = nf4::BLOCK.min(lanes.end - from);
        for first in inputs.clone().step_by(rows.len()) {
            let row = first..(first + rows.len()).min(inputs.end);
            for (out, row) in rows.iter_mut().zip(row.clone()) {
                w.decode(isa, &mut out[..len], row * w.k() + from);
            }
            let at = (row.start - inputs.start) / unit.inputs() * width;
            let to = &mut to[at + from - lanes.start..];
            strided(isa, unit, to, width, decoded(&rows, false), len, row.len());
        }
    }
}

/// Decoded rows as what a panel is packed from.
fn decoded(rows: &Nf4Rows, k_inner: bool) -> Strided<'_> {
    let bytes = bytes_of(rows.as_flattened());
    Strided { bytes, dtype: Dense::F32, stride: nf4::BLOCK, k_inner }
}

/// `to[j, i] = from[i, j]` for `rows` by `cols` of `from`; rows of each are `to_row` and
/// `from_row` apart.
pub fn transpose(
    isa: Isa,
    to: &mut [f32],
    to_row: usize,
    from: &[f32],
    from_row: usize,
    rows: usize,
    cols: usize,
) {
    let from =
        Strided { bytes: bytes_of(from), dtype: Dense::F32, stride: from_row, k_inner: true };
    // SAFETY: f32 and u32 have one size and alignment, and any bits are a value of both.
    let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u32>(), to.len()) };
    strided(isa, Unit::F32, to, to_row, from, rows, cols);
}

/// Packs `len` inputs of `lanes` lanes; other lanes of `to` stay.
fn strided(
    isa: Isa,
    unit: Unit,
    to: &mut [u32],
    width: usize,
    from: Strided<'_>,
    lanes: usize,
    len: usize,
) {
    from.check(lanes, len);
    if lanes == 0 || len == 0 {
        return;
    }
    assert!((len.div_ceil(unit.inputs()) - 1) * width + lanes <= to.len(), "room of a panel");
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an Isa of this level exists only where its features were detected, pairs only
        // with has_bf16; lengths were checked above.
        Level::Avx512 => unsafe {
            super::pack_avx512::strided(isa.has_bf16(), unit, to, width, from, lanes, len);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx2 => unsafe { strided_avx2(unit, to, width, from, lanes, len) },
        _ => plain(unit, to, width, from, lanes, len),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn strided_avx2(
    unit: Unit,
    to: &mut [u32],
    width: usize,
    from: Strided<'_>,
    lanes: usize,
    len: usize,
) {
    plain(unit, to, width, from, lanes, len);
}

/// As [`strided`], in plain Rust.
#[inline(always)]
pub fn plain(
    unit: Unit,
    to: &mut [u32],
    width: usize,
    from: Strided<'_>,
    lanes: usize,
    len: usize,
) {
    match (unit, from.dtype) {
        (Unit::F32, Dense::F32) => singles(to, width, &from, lanes, len, f32_at, |x| x),
        (Unit::F32, Dense::F16) => singles(to, width, &from, lanes, len, f16_at, |x| x),
        (Unit::F32, Dense::BF16) => singles(to, width, &from, lanes, len, bf16_at, |x| x),
        (Unit::Rounded, Dense::F32) => singles(to, width, &from, lanes, len, f32_at, rounded),
        (Unit::Rounded, Dense::F16) => singles(to, width, &from, lanes, len, f16_at, rounded),
        (Unit::Rounded, Dense::BF16) => singles(to, width, &from, lanes, len, bf16_at, |x| x),
        (Unit::Pairs, Dense::F32) => pairs(to, width, &from, lanes, len, f32_at),
        (Unit::Pairs, Dense::F16) => pairs(to, width, &from, lanes, len, f16_at),
        (Unit::Pairs, Dense::BF16) => pairs(to, width, &from, lanes, len, bf16_at),
    }
}

#[inline(always)]
fn f32_at(bytes: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

#[inline(always)]
fn f16_at(bytes: &[u8], i: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
}

#[inline(always)]
fn bf16_at(bytes: &[u8], i: usize) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])) << 16)
}

#[inline(always)]
fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// Lanes of a row are read and written together, or else eight inputs of each lane in turn.
#[inline(always)]
fn singles(
    to: &mut [u32],
    width: usize,
    from: &Strided<'_>,
    lanes: usize,
    len: usize,
    get: impl Fn(&[u8], usize) -> f32,
    round: impl Fn(f32) -> f32,
) {
    if from.k_inner {
        for block in (0..len).step_by(8) {
            let some = (len - block).min(8);
            for lane in 0..lanes {
                let at = (lane * from.stride + block) * from.dtype.bytes();
                let bytes = &from.bytes[at..at + some * from.dtype.bytes()];
                for i in 0..some {
                    to[(block + i) * width + lane] = round(get(bytes, i)).to_bits();
                }
            }
        }
        return;
    }
    for i in 0..len {
        let at = i * from.stride * from.dtype.bytes();
        let bytes = &from.bytes[at..at + lanes * from.dtype.bytes()];
        for (lane, to) in to[i * width..][..lanes].iter_mut().enumerate() {
            *to = round(get(bytes, lane)).to_bits();
        }
    }
}

#[inline(always)]
fn pairs(
    to: &mut [u32],
    width: usize,
    from: &Strided<'_>,
    lanes: usize,
    len: usize,
    get: impl Fn(&[u8], usize) -> f32,
) {
    let (lane_stride, stride) = if from.k_inner { (from.stride, 1) } else { (1, from.stride) };
    let bits = |lane: usize, i: usize| {
        let x = if i < len { get(from.bytes, lane * lane_stride + i * stride) } else { 0.0 };
        u32::from(bf16::from_f32(x).to_bits())
    };
    for u in 0..len.div_ceil(2) {
        for lane in 0..lanes {
            to[u * width + lane] = bits(lane, 2 * u) | bits(lane, 2 * u + 1) << 16;
        }
    }
}
