//! The cache of keys and values of one layer: formats, layout, writing.
//!
//! Positions are stored in blocks of [`BLOCK`], head by head:
//!
//! - keys `[n_kv_heads, capacity / 16, head_dim, 16]`: a vector holds 16 positions of one
//!   dimension, so scores need no sum across lanes;
//! - values `[n_kv_heads, capacity, width]`, `width` being `head_dim` rounded up to 16;
//! - `q8_0` codes are signed bytes with one f32 scale per position and [`GROUP`] dimensions:
//!   x = scale * code, code = round(x / scale), scale = max |x| / 127; 9 bits a number. Key scales
//!   are `[n_kv_heads, capacity / 16, groups, 16]`, value scales `[n_kv_heads, capacity, groups]`.

use crate::buffer::{Buffer, Plain, as_bytes, as_bytes_mut};
use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector, get, put};
use half::{bf16, f16};
use std::fmt;

/// Positions in one block of keys.
pub(super) const BLOCK: usize = 16;
/// Dimensions that share a scale in `q8_0`.
pub(super) const GROUP: usize = 32;
/// Capacities are multiples of this: the most positions that one tile of scores reads.
const CAPACITY_STEP: usize = 4 * BLOCK;

/// The format of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE binary16: 11 significant bits, up to 65504; larger numbers become infinite.
    F16,
    /// bfloat16: 8 significant bits, the range of f32.
    Bf16,
    /// f32, exact.
    F32,
    /// Signed bytes with one scale per position and 32 dimensions.
    Q8_0,
}

impl KvType {
    /// Every format.
    pub const ALL: [KvType; 4] = [KvType::F16, KvType::Bf16, KvType::F32, KvType::Q8_0];

    /// The name that `--kv-type` takes.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::F32 => "f32",
            KvType::Q8_0 => "q8_0",
        }
    }

    /// The format with this name.
    pub fn named(name: &str) -> Option<KvType> {
        Self::ALL.into_iter().find(|kv_type| kv_type.name() == name)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one position of one layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Format of the numbers.
    pub kv_type: KvType,
}

impl KvShape {
    /// Elements of a stored value row.
    pub(super) fn width(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    fn groups(&self) -> usize {
        self.head_dim.div_ceil(GROUP)
    }

    /// Elements of keys, of values and of either's scales.
    fn elements(&self, capacity: usize) -> [usize; 3] {
        let positions = self.n_kv_heads * capacity;
        [self.head_dim, self.width(), self.groups()].map(|dims| positions * dims)
    }

    /// Bytes of a layer for `capacity` positions: [`KvLayer::bytes`] without making one.
    pub fn bytes(&self, capacity: usize) -> usize {
        let [k, v, scales] = self.elements(rounded(capacity));
        match self.kv_type {
            KvType::F16 | KvType::Bf16 => 2 * (k + v),
            KvType::F32 => 4 * (k + v),
            KvType::Q8_0 => k + v + 8 * scales,
        }
    }
}

/// The positions that a layer for `capacity` of them has room for.
fn rounded(capacity: usize) -> usize {
    capacity.max(1).next_multiple_of(CAPACITY_STEP)
}

/// Keys and values of one format.
pub(super) struct Pair<E: Plain> {
    pub(super) k: Buffer<E>,
    pub(super) v: Buffer<E>,
}

impl<E: Plain> Pair<E> {
    fn zeroed(k: usize, v: usize) -> Option<Self> {
        Some(Pair { k: Buffer::try_zeroed(k)?, v: Buffer::try_zeroed(v)? })
    }

    fn bytes(&self) -> usize {
        (self.k.len() + self.v.len()) * size_of::<E>()
    }

    /// Copies the first `len` positions of every head; `k_dims` and `v_dims` are the elements of
    /// one position.
    fn copy_from(
        &mut self,
        other: &Self,
        n_heads: usize,
        len: usize,
        [k_dims, v_dims]: [usize; 2],
    ) {
        copy_heads(&mut self.k, &other.k, n_heads, len.next_multiple_of(BLOCK) * k_dims);
        copy_heads(&mut self.v, &other.v, n_heads, len * v_dims);
    }
}

/// Hands out the first elements of every head.
fn each_head<E: Plain, Fault>(
    plane: &[E],
    n_heads: usize,
    n: usize,
    f: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    plane.chunks_exact(plane.len() / n_heads).try_for_each(|head| f(as_bytes(&head[..n])))
}

/// The same, to write.
fn each_head_mut<E: Plain, Fault>(
    plane: &mut [E],
    n_heads: usize,
    n: usize,
    f: &mut impl FnMut(&mut [u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let head = plane.len() / n_heads;
    plane.chunks_exact_mut(head).try_for_each(|head| f(as_bytes_mut(&mut head[..n])))
}

fn copy_heads<E: Plain>(to: &mut [E], from: &[E], n_heads: usize, n: usize) {
    let (to_head, from_head) = (to.len() / n_heads, from.len() / n_heads);
    for (to, from) in to.chunks_exact_mut(to_head).zip(from.chunks_exact(from_head)) {
        to[..n].copy_from_slice(&from[..n]);
    }
}

impl<E: Plain> Pair<E> {
    /// Hands out the bytes of the first `len` positions: keys head by head in whole blocks, then
    /// values.
    fn parts<Fault>(
        &self,
        n_heads: usize,
        len: usize,
        [k_dims, v_dims]: [usize; 2],
        f: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        each_head(&self.k, n_heads, len.next_multiple_of(BLOCK) * k_dims, f)?;
        each_head(&self.v, n_heads, len * v_dims, f)
    }

    /// The same, to write.
    fn parts_mut<Fault>(
        &mut self,
        n_heads: usize,
        len: usize,
        [k_dims, v_dims]: [usize; 2],
        f: &mut impl FnMut(&mut [u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        each_head_mut(&mut self.k, n_heads, len.next_multiple_of(BLOCK) * k_dims, f)?;
        each_head_mut(&mut self.v, n_heads, len * v_dims, f)
    }
}

pub(super) enum Planes {
    F16(Pair<f16>),
    Bf16(Pair<bf16>),
    F32(Pair<f32>),
    Q8 { codes: Pair<i8>, scales: Pair<f32> },
}

/// The keys and values of one layer.
pub struct KvLayer {
    shape: KvShape,
    capacity: usize,
    pub(super) planes: Planes,
}

impl KvLayer {
    /// Room for at least `capacity` positions. Memory that is never written is never touched.
    ///
    /// # Panics
    /// When a size in `shape` is 0, or the system does not give the memory.
    pub fn new(shape: KvShape, capacity: usize) -> Self {
        let layer = Self::try_new(shape, capacity);
        layer.unwrap_or_else(|| panic!("no memory for {capacity} positions of {shape:?}"))
    }

    /// The same, or `None` where the system does not give the memory.
    ///
    /// # Panics
    /// When a size in `shape` is 0.
    pub fn try_new(shape: KvShape, capacity: usize) -> Option<Self> {
        assert!(shape.n_kv_heads > 0 && shape.head_dim > 0, "a cache without heads: {shape:?}");
        let capacity = rounded(capacity);
        let [k, v, scales] = shape.elements(capacity);
        let planes = match shape.kv_type {
            KvType::F16 => Planes::F16(Pair::zeroed(k, v)?),
            KvType::Bf16 => Planes::Bf16(Pair::zeroed(k, v)?),
            KvType::F32 => Planes::F32(Pair::zeroed(k, v)?),
            KvType::Q8_0 => {
                let (codes, scales) = (Pair::zeroed(k, v)?, Pair::zeroed(scales, scales)?);
                Planes::Q8 { codes, scales }
            }
        };
        Some(KvLayer { shape, capacity, planes })
    }

    /// What a position holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Positions there is room for: a multiple of 64.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Size of all buffers in bytes, touched or not.
    pub fn bytes(&self) -> usize {
        match &self.planes {
            Planes::F16(pair) => pair.bytes(),
            Planes::Bf16(pair) => pair.bytes(),
            Planes::F32(pair) => pair.bytes(),
            Planes::Q8 { codes, scales } => codes.bytes() + scales.bytes(),
        }
    }

    /// Writes the key (after RoPE) and the value of position `pos`, each `[n_kv_heads, head_dim]`,
    /// rounded to nearest even. Overwrites what was there.
    ///
    /// # Panics
    /// When `pos` is beyond the capacity or a length is wrong.
    pub fn append(&mut self, isa: Isa, pos: usize, k: &[f32], v: &[f32]) {
        let dim = self.shape.n_kv_heads * self.shape.head_dim;
        assert!(pos < self.capacity, "position {pos} of a cache of {}", self.capacity);
        assert_eq!(k.len(), dim, "append: length of k");
        assert_eq!(v.len(), dim, "append: length of v");
        simd::run(isa, Append { layer: self, pos, k, v });
    }

    /// Takes over the first `len` positions of `other`.
    ///
    /// # Panics
    /// When the shapes differ or `len` is beyond either capacity.
    pub fn copy_from(&mut self, other: &KvLayer, len: usize) {
        assert_eq!(self.shape, other.shape, "copy_from: shapes differ");
        let room = self.capacity.min(other.capacity);
        assert!(len <= room, "copy_from: {len} positions, room for {room}");
        let n_heads = self.shape.n_kv_heads;
        let dims = [self.shape.head_dim, self.shape.width()];
        let groups = [self.shape.groups(); 2];
        match (&mut self.planes, &other.planes) {
            (Planes::F16(a), Planes::F16(b)) => a.copy_from(b, n_heads, len, dims),
            (Planes::Bf16(a), Planes::Bf16(b)) => a.copy_from(b, n_heads, len, dims),
            (Planes::F32(a), Planes::F32(b)) => a.copy_from(b, n_heads, len, dims),
            (Planes::Q8 { codes, scales }, Planes::Q8 { codes: c, scales: s }) => {
                codes.copy_from(c, n_heads, len, dims);
                scales.copy_from(s, n_heads, len, groups);
            }
            _ => unreachable!("equal shapes have equal formats"),
        }
    }
}

impl KvLayer {
    /// Hands out the bytes of the first `len` positions in a fixed order, piece by piece, to be kept.
    /// They are of the machine's byte order, and mean something to a layer of the same shape only.
    ///
    /// # Errors
    /// The first that `f` returns; nothing comes after it.
    ///
    /// # Panics
    /// When `len` is beyond the capacity.
    pub fn save<Fault>(
        &self,
        len: usize,
        f: &mut impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        assert!(len <= self.capacity, "save: {len} positions of {}", self.capacity);
        let n_heads = self.shape.n_kv_heads;
        let dims = [self.shape.head_dim, self.shape.width()];
        let groups = [self.shape.groups(); 2];
        match &self.planes {
            Planes::F16(pair) => pair.parts(n_heads, len, dims, f),
            Planes::Bf16(pair) => pair.parts(n_heads, len, dims, f),
            Planes::F32(pair) => pair.parts(n_heads, len, dims, f),
            Planes::Q8 { codes, scales } => {
                codes.parts(n_heads, len, dims, f)?;
                scales.parts(n_heads, len, groups, f)
            }
        }
    }

    /// Has the first `len` positions filled with what [`KvLayer::save`] handed out. Any bytes will
    /// do: wrong ones give wrong numbers, nothing worse.
    ///
    /// # Errors
    /// The first that `f` returns; the positions then hold anything.
    ///
    /// # Panics
    /// When `len` is beyond the capacity.
    pub fn restore<Fault>(
        &mut self,
        len: usize,
        f: &mut impl FnMut(&mut [u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        assert!(len <= self.capacity, "restore: {len} positions of {}", self.capacity);
        let n_heads = self.shape.n_kv_heads;
        let dims = [self.shape.head_dim, self.shape.width()];
        let groups = [self.shape.groups(); 2];
        match &mut self.planes {
            Planes::F16(pair) => pair.parts_mut(n_heads, len, dims, f),
            Planes::Bf16(pair) => pair.parts_mut(n_heads, len, dims, f),
            Planes::F32(pair) => pair.parts_mut(n_heads, len, dims, f),
            Planes::Q8 { codes, scales } => {
                codes.parts_mut(n_heads, len, dims, f)?;
                scales.parts_mut(n_heads, len, groups, f)
            }
        }
    }
}

/// Where position `pos` of one head lies in planes of `dims` elements a position.
fn column(pos: usize, dims: usize) -> usize {
    pos / BLOCK * BLOCK * dims + pos % BLOCK
}

/// A 16-bit or f32 element that vectors are rounded to.
trait Narrow: Plain {
    const ZERO: Self;
    /// Rounds `V::LANES` numbers into the first elements of `out`.
    fn narrow<V: Vector>(v: V, out: &mut [Self; 16]);
}

impl Narrow for f16 {
    const ZERO: Self = f16::ZERO;
    #[inline(always)]
    fn narrow<V: Vector>(v: V, out: &mut [Self; 16]) {
        // SAFETY: LANES is at most 16.
        unsafe { v.store_f16(out.as_mut_ptr()) }
    }
}

impl Narrow for bf16 {
    const ZERO: Self = bf16::ZERO;
    #[inline(always)]
    fn narrow<V: Vector>(v: V, out: &mut [Self; 16]) {
        // SAFETY: LANES is at most 16.
        unsafe { v.store_bf16(out.as_mut_ptr()) }
    }
}

impl Narrow for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn narrow<V: Vector>(v: V, out: &mut [Self; 16]) {
        put(out, v);
    }
}

struct Append<'a> {
    layer: &'a mut KvLayer,
    pos: usize,
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for Append<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Append { layer, pos, k, v } = self;
        let shape = layer.shape;
        match &mut layer.planes {
            Planes::F16(pair) => append::<V, f16>(pair, &shape, pos, k, v),
            Planes::Bf16(pair) => append::<V, bf16>(pair, &shape, pos, k, v),
            Planes::F32(pair) => append::<V, f32>(pair, &shape, pos, k, v),
            Planes::Q8 { codes, scales } => append_q8::<V>(codes, scales, &shape, pos, k, v),
        }
    }
}

#[inline(always)]
fn append<V: Vector, E: Narrow>(
    pair: &mut Pair<E>,
    shape: &KvShape,
    pos: usize,
    k: &[f32],
    v: &[f32],
) {
    let (dims, width) = (shape.head_dim, shape.width());
    let (k_head, v_head) = (pair.k.len() / shape.n_kv_heads, pair.v.len() / shape.n_kv_heads);
    let mut lanes = [E::ZERO; 16];
    for (plane, row) in pair.k.chunks_exact_mut(k_head).zip(k.chunks_exact(dims)) {
        let column = &mut plane[column(pos, dims)..];
        for (i, x) in row.chunks(V::LANES).enumerate() {
            E::narrow::<V>(get(x), &mut lanes);
            let steps = column[i * V::LANES * BLOCK..].iter_mut().step_by(BLOCK);
            for (to, from) in steps.zip(&lanes[..x.len()]) {
                *to = *from;
            }
        }
    }
    for (plane, row) in pair.v.chunks_exact_mut(v_head).zip(v.chunks_exact(dims)) {
        let out = &mut plane[pos * width..][..dims];
        for (out, x) in out.chunks_mut(V::LANES).zip(row.chunks(V::LANES)) {
            E::narrow::<V>(get(x), &mut lanes);
            out.copy_from_slice(&lanes[..x.len()]);
        }
    }
}

#[inline(always)]
fn append_q8<V: Vector>(
    codes: &mut Pair<i8>,
    scales: &mut Pair<f32>,
    shape: &KvShape,
    pos: usize,
    k: &[f32],
    v: &[f32],
) {
    let (dims, width, groups) = (shape.head_dim, shape.width(), shape.groups());
    let [kc, vc] = [codes.k.len() / shape.n_kv_heads, codes.v.len() / shape.n_kv_heads];
    let per_head = scales.k.len() / shape.n_kv_heads;
    let mut group = [0i8; GROUP];
    for (head, row) in k.chunks_exact(dims).enumerate() {
        for (g, x) in row.chunks(GROUP).enumerate() {
            let scale = quantise::<V>(&mut group, x);
            scales.k[head * per_head + column(pos, groups) + g * BLOCK] = scale;
            let start = head * kc + column(pos, dims) + g * GROUP * BLOCK;
            for (to, code) in codes.k[start..].iter_mut().step_by(BLOCK).zip(&group[..x.len()]) {
                *to = *code;
            }
        }
    }
    for (head, row) in v.chunks_exact(dims).enumerate() {
        for (g, x) in row.chunks(GROUP).enumerate() {
            let scale = quantise::<V>(&mut group, x);
            scales.v[head * per_head + pos * groups + g] = scale;
            let start = head * vc + pos * width + g * GROUP;
            codes.v[start..][..x.len()].copy_from_slice(&group[..x.len()]);
        }
    }
}

/// Codes of up to 32 numbers; returns their scale. A group whose scale would not be a normal
/// number becomes zeros; one that holds NaN or an infinity gets that as its scale.
#[inline(always)]
fn quantise<V: Vector>(codes: &mut [i8; GROUP], x: &[f32]) -> f32 {
    let mut largest = V::splat(0.0);
    for x in x.chunks(V::LANES) {
        let x = get::<V>(x);
        largest = x.max(V::splat(0.0).sub(x)).max(largest);
    }
    let largest = largest.max_lane();
    codes.fill(0);
    if x.iter().any(|x| !x.is_finite()) {
        codes.fill(1);
        return if largest.is_infinite() { largest } else { f32::NAN };
    }
    let scale = largest / 127.0;
    if scale < f32::MIN_POSITIVE {
        return 0.0;
    }
    let inverse = V::splat(1.0 / scale);
    for (codes, x) in codes.chunks_mut(V::LANES).zip(x.chunks(V::LANES)) {
        let mut lanes = [0.0; 16];
        put(&mut lanes, get::<V>(x).mul(inverse).round());
        for (code, lane) in codes.iter_mut().zip(&lanes[..x.len()]) {
            // Within -127..=127: |x| / scale exceeds 127 by rounding only.
            *code = *lane as i8;
        }
    }
    scale
}
