//! How the rows of a pass are cut into blocks, and the tables that tell the kernels where rows and
//! caches are: checked here, so that no address reaches a kernel that was not.

use std::collections::HashSet;
use std::sync::Arc;

use super::kernels::Form;
use crate::cuda::kv::{KvPages, KvShape, Memory, PAGE, Sizes};
use crate::cuda::params::{self, AttentionSegment, AttentionTile};
use crate::cuda::{DeviceBuffer, Gpu, u32_of};
use crate::{Error, Result};

/// Positions of a chunk.
const CHUNK: usize = params::ATTENTION_CHUNK as usize;

/// Packed rows up to which a segment is cut into narrow tiles: two of them read keys and values as
/// often as one wide tile does, half of which would be empty.
const NARROW_MOST: usize = 2 * params::ATTENTION_NARROW as usize;

/// Blocks a multiprocessor from which on chunks are not dealt to several blocks: there is work for
/// all, and no partial result has to be written.
const BLOCKS_EACH: usize = 2;

/// Most f32 numbers of partial results that are taken to keep more multiprocessors at work: 64 MiB.
const MOST_PARTIALS: usize = 1 << 24;

// Words of 64 bits on the device.
const SEGMENT_WORDS: usize = 5;
const _: () = assert!(size_of::<AttentionSegment>() == 8 * SEGMENT_WORDS);
const _: () = assert!(size_of::<AttentionTile>() == 8);

/// Consecutive rows of a batch that belong to one sequence. Segments cover the batch's rows in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Position of the first row.
    pub first_pos: usize,
    /// How many rows.
    pub n_rows: usize,
}

impl Segment {
    fn end(&self) -> usize {
        self.first_pos + self.n_rows
    }
}

/// Whether the chunks of a row are computed by several blocks. It changes no bit of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// Where there are few blocks and memory allows.
    #[default]
    Auto,
    /// Nowhere: takes no workspace.
    Never,
    /// Wherever there may be more than one chunk.
    Always,
}

/// What a [`Plan`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Query heads: a multiple of the KV heads.
    pub n_heads: usize,
    /// Positions that [`Plan::update`] is to have room for at least, whatever the segments have now.
    pub room: usize,
    /// Whether chunks are dealt to several blocks.
    pub split: Split,
}

/// The tiles of one form.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub form: Form,
    /// Segment and first packed row.
    tiles: Vec<(u32, u32)>,
    /// Packed rows that the partial results have room for.
    pub tile_rows: usize,
    /// Chunks of the grid; 0: a block goes over all.
    pub chunks: usize,
}

impl Group {
    pub fn n_tiles(&self) -> usize {
        self.tiles.len()
    }

    /// f32 numbers of partial results.
    fn partials(&self, n_kv_heads: usize, width: usize) -> usize {
        let slots = (self.tiles.len() * n_kv_heads).saturating_mul(self.chunks);
        slots.saturating_mul(self.tile_rows * (width + params::ATTENTION_STATS as usize))
    }
}

/// The rows of a pass, the caches that they see in every layer, and how the work is cut; made once a
/// pass and used by every layer. Results do not depend on it: a row has the same bits in any batch.
///
/// Everything that changes from one step of decoding to the next is in device memory whose address
/// stays ([`Plan::update`]), so that recorded launches can be repeated.
#[derive(Debug)]
pub struct Plan {
    pub(super) shape: KvShape,
    pub(super) sizes: Sizes,
    pub(super) n_heads: usize,
    /// Rows of all segments, and of each.
    m: usize,
    n_rows: Vec<usize>,
    /// Chunks that there is room for.
    chunks: usize,
    /// Columns of partial results.
    pub(super) width: usize,
    pub(super) groups: Vec<Group>,
    /// Of each layer its segments; then the tiles of each group.
    words: DeviceBuffer<u64>,
    /// Keeps what the words point to.
    memory: Vec<Memory>,
}

fn refuse<T>(expected: impl Into<String>, got: impl Into<String>) -> Result<T> {
    Err(Error::Shape { op: "attention".into(), expected: expected.into(), got: got.into() })
}

/// Rows in all, after a look at positions and caches.
fn check(segments: &[Segment], caches: &[&KvPages]) -> Result<usize> {
    if segments.is_empty() || caches.is_empty() || !caches.len().is_multiple_of(segments.len()) {
        let got = format!("{} caches of {} segments", caches.len(), segments.len());
        return refuse("a cache for each segment in each layer", got);
    }
    let shape = caches[0].shape();
    if let Some(other) = caches.iter().find(|cache| cache.shape() != shape) {
        return refuse(format!("{shape:?} in every cache"), format!("{:?}", other.shape()));
    }
    for of_layer in caches.chunks(segments.len()) {
        let mut written = HashSet::new();
        for (segment, cache) in segments.iter().zip(of_layer) {
            let end = segment.first_pos.checked_add(segment.n_rows);
            if end.is_none_or(|end| end > cache.capacity()) {
                let room = format!("positions below {}", cache.capacity());
                return refuse(room, format!("{segment:?}"));
            }
            if segment.n_rows == 0 {
                continue;
            }
            let memory = cache.memory();
            for index in segment.first_pos / PAGE..=(segment.end() - 1) / PAGE {
                let page = memory.page(index);
                if !written.insert((Arc::as_ptr(&memory.pages), page)) {
                    let got = format!("page {page}, to which two segments write");
                    return refuse("pages of one segment's own", got);
                }
            }
        }
    }
    let m = segments.iter().try_fold(0usize, |sum, segment| sum.checked_add(segment.n_rows));
    match m.filter(|&m| m < 1 << 31) {
        Some(m) => Ok(m),
        None => refuse("less than 2^31 rows", format!("{m:?}")),
    }
}

/// Chunks that hold the positions of the longest segment.
fn chunks_of(segments: &[Segment]) -> usize {
    segments.iter().map(Segment::end).max().unwrap_or(0).div_ceil(CHUNK)
}

/// The words of [`Plan::words`].
fn words(segments: &[Segment], caches: &[&KvPages], groups: &[Group]) -> Vec<u64> {
    let mut words = vec![];
    for of_layer in caches.chunks(segments.len()) {
        let mut first_row = 0;
        for (segment, cache) in segments.iter().zip(of_layer) {
            let memory = cache.memory();
            // Below 2^31, as `check` found: two fields of 32 bits a word, the first one lower.
            let pair = |low: usize, high: usize| low as u64 | (high as u64) << 32;
            words.extend([
                memory.pages.keys.slice().address(),
                memory.pages.values.slice().address(),
                memory.table_address(),
                pair(segment.first_pos, segment.n_rows),
                pair(first_row, 0),
            ]);
            first_row += segment.n_rows;
        }
    }
    for (segment, first) in groups.iter().flat_map(|group| &group.tiles) {
        words.push(u64::from(*segment) | u64::from(*first) << 32);
    }
    words
}

/// Cuts segments into tiles: narrow ones of few packed rows, wide ones of many. The last tiles of
/// long prompts come first, so that none of these begins when all others have ended.
fn cut(segments: &[Segment], group: usize, rows: [usize; 2]) -> Result<[Vec<(u32, u32)>; 2]> {
    let [mut narrow, mut wide] = [vec![], vec![]];
    for (i, segment) in segments.iter().enumerate() {
        let packed = segment.n_rows.saturating_mul(group);
        u32_of("rows of attention", packed.saturating_mul(2))?;
        let few = packed <= NARROW_MOST;
        let (tiles, rows) = if few { (&mut narrow, rows[0]) } else { (&mut wide, rows[1]) };
        // Both fit, as twice the packed rows do and segments are no more than rows or caches.
        let firsts = (0..packed).step_by(rows);
        tiles.extend(firsts.map(|first| (i, first, segment.first_pos + first / group)));
    }
    wide.sort_by_key(|&(_, _, last)| std::cmp::Reverse(last));
    let fields = |tiles: Vec<(usize, usize, usize)>| -> Result<Vec<(u32, u32)>> {
        let field = |n| u32_of("tiles of attention", n);
        tiles.into_iter().map(|(segment, first, _)| Ok((field(segment)?, field(first)?))).collect()
    };
    Ok([fields(narrow)?, fields(wide)?])
}

impl Plan {
    /// For these rows; `caches` are those of the first layer's segments in order, then the next
    /// layer's, all of one shape.
    ///
    /// # Errors
    /// When heads do not divide, caches do not fit the segments, positions lie beyond a capacity, two
    /// segments write to one page, or the device failed.
    pub fn new(
        gpu: &Gpu,
        settings: Settings,
        segments: &[Segment],
        caches: &[&KvPages],
    ) -> Result<Plan> {
        let m = check(segments, caches)?;
        let shape = caches[0].shape();
        let Settings { n_heads, room, split } = settings;
        if n_heads == 0 || !n_heads.is_multiple_of(shape.n_kv_heads) {
            return refuse(
                "query heads that are a multiple of the KV heads",
                format!("{n_heads} heads over {} KV heads", shape.n_kv_heads),
            );
        }
        let chunks = chunks_of(segments).max(room.div_ceil(CHUNK)).max(1).next_power_of_two();
        let instance = gpu.attention.instance(shape)?;
        let width = instance.width as usize;
        let per_kv_head = n_heads / shape.n_kv_heads;
        let forms = [Form::Narrow, Form::Wide];
        let rows = forms.map(|form| instance.kernel(form).rows as usize);
        let tiles = cut(segments, per_kv_head, rows)?;
        let enough = BLOCKS_EACH * gpu.properties().n_multiprocessors as usize;
        let mut groups = vec![];
        for ((form, rows), tiles) in forms.into_iter().zip(rows).zip(tiles) {
            if tiles.is_empty() {
                continue;
            }
            let most = |(segment, first): &(u32, u32)| {
                segments[*segment as usize].n_rows * per_kv_head - *first as usize
            };
            let tile_rows = tiles.iter().map(most).max().unwrap_or(0).min(rows);
            let whole = Group { form, tiles, tile_rows, chunks: 0 };
            let dealt = Group { chunks, ..whole.clone() };
            let fits = dealt.partials(shape.n_kv_heads, width) <= MOST_PARTIALS;
            let few = whole.tiles.len() * shape.n_kv_heads < enough;
            let deal = match split {
                Split::Auto => few && fits,
                Split::Never => false,
                Split::Always => true,
            };
            groups.push(if deal && chunks > 1 { dealt } else { whole });
        }
        Ok(Plan {
            shape,
            sizes: Sizes::of(caches[0])?,
            n_heads,
            m,
            n_rows: segments.iter().map(|segment| segment.n_rows).collect(),
            chunks,
            width,
            words: gpu.upload(&words(segments, caches, &groups))?,
            groups,
            memory: caches.iter().map(|cache| cache.memory().clone()).collect(),
        })
    }

    /// Whether [`Plan::update`] takes these segments: as many as before, each of as many rows, at
    /// positions that there is room for.
    pub fn fits(&self, segments: &[Segment]) -> bool {
        segments.len() == self.n_rows.len()
            && segments.iter().zip(&self.n_rows).all(|(segment, &n_rows)| segment.n_rows == n_rows)
            && chunks_of(segments) <= self.chunks
    }

    /// Other positions or caches for the same rows: what was launched with this plan can be launched
    /// again as it was, and reads the new ones.
    ///
    /// # Errors
    /// As [`Plan::new`], or when the plan does not fit.
    pub fn update(&mut self, gpu: &Gpu, segments: &[Segment], caches: &[&KvPages]) -> Result<()> {
        check(segments, caches)?;
        if !self.fits(segments) || caches.len() != self.memory.len() {
            let expected =
                format!("segments of {:?} rows within {} positions", self.n_rows, self.room());
            return refuse(expected, format!("{segments:?}"));
        }
        if caches[0].shape() != self.shape {
            return refuse(format!("{:?}", self.shape), format!("{:?}", caches[0].shape()));
        }
        gpu.write(&mut self.words.slice_mut(), &words(segments, caches, &self.groups))?;
        // Only now: what is queued before the write may still use the former ones.
        self.memory = caches.iter().map(|cache| cache.memory().clone()).collect();
        Ok(())
    }

    /// Rows of all segments.
    pub fn rows(&self) -> usize {
        self.m
    }

    /// What a position of its caches holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.memory.len() / self.n_rows.len()
    }

    /// Positions that [`Plan::update`] has room for.
    pub fn room(&self) -> usize {
        self.chunks * CHUNK
    }

    /// f32 numbers of partial results of each group, one after the other in a workspace.
    pub(super) fn partials(&self, group: &Group) -> usize {
        group.partials(self.shape.n_kv_heads, self.width)
    }

    /// f32 numbers that a workspace for it has.
    pub fn workspace(&self) -> usize {
        self.groups.iter().map(|group| self.partials(group)).fold(0, usize::saturating_add)
    }

    /// Most rows of a segment, and how many segments there are.
    pub(super) fn extent(&self) -> (usize, usize) {
        (self.n_rows.iter().copied().max().unwrap_or(0), self.n_rows.len())
    }

    /// Address of a layer's segments.
    ///
    /// # Errors
    /// When there is no such layer.
    pub(super) fn segments(&self, layer: usize) -> Result<u64> {
        if layer >= self.layers() {
            return refuse(format!("a layer below {}", self.layers()), layer.to_string());
        }
        let words = self.n_rows.len() * SEGMENT_WORDS;
        Ok(self.words.slice().range(layer * words..(layer + 1) * words).address())
    }

    /// Address of the tiles of the `index`th group.
    pub(super) fn tiles(&self, index: usize) -> u64 {
        let before: usize = self.groups[..index].iter().map(Group::n_tiles).sum();
        let start = self.memory.len() * SEGMENT_WORDS + before;
        self.words.slice().range(start..start + self.groups[index].n_tiles()).address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_packed_row_once() {
        let part = |first_pos, n_rows| Segment { first_pos, n_rows };
        let segments = [part(9, 1), part(0, 40), part(700, 3), part(5, 0), part(2, 17), part(0, 8)];
        let [narrow, wide] = cut(&segments, 4, [16, 64]).unwrap();
        let mut seen: Vec<Vec<u32>> = segments.map(|s| vec![0; 4 * s.n_rows]).to_vec();
        for (tiles, rows) in [(&narrow, 16), (&wide, 64)] {
            for &(segment, first) in tiles {
                let packed = &mut seen[segment as usize];
                let end = packed.len().min(first as usize + rows);
                packed[first as usize..end].iter_mut().for_each(|n| *n += 1);
            }
        }
        assert!(seen.iter().flatten().all(|&n| n == 1), "{narrow:?} {wide:?}");
        assert_eq!(narrow, [(0, 0), (2, 0), (5, 0), (5, 16)]);
        // 40 and 17 rows of 4 heads; the tile of the last positions first.
        assert_eq!(wide, [(1, 128), (4, 64), (1, 64), (4, 0), (1, 0)]);
    }

    #[test]
    fn a_segment_of_too_many_packed_rows_is_refused() {
        assert!(cut(&[Segment { first_pos: 0, n_rows: 1 << 30 }], 8, [16, 64]).is_err());
    }
}
