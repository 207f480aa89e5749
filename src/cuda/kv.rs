//! The cache of keys and values of one layer of one sequence, in a device's memory: pages, page
//! numbers, copies, bytes to keep. What is in a page and who writes it: `cuda/include/attention.cuh`
//! and [`super::attention`]; twin of `puna_cpu::attention::KvLayer`.
//!
//! A page holds [`PAGE`] positions of all heads: `[n_kv_heads][64][pitch]`, of keys and of values
//! each; a row is padded to whole 16 bytes, which are none for the usual heads. `q8_0` has 64 f32
//! scales for each 32 numbers behind a head's rows. A cache is its own pages in order, or a list of
//! page numbers into pages that several caches share.

use std::sync::Arc;

use super::params;
use super::{DeviceBuffer, Gpu, u32_of};
use crate::{Error, Result};

pub use puna_cpu::attention::{KvShape, KvType};

/// Positions of a page.
pub const PAGE: usize = params::ATTENTION_PAGE as usize;

/// The widest heads that there are kernels for.
const MOST_HEAD_DIM: usize = 256;

/// How the rows of a shape lie in pages.
#[derive(Clone, Copy, Debug)]
struct Layout {
    n_kv_heads: usize,
    /// Elements from a row to the next.
    pitch: usize,
    row_bytes: usize,
    /// Bytes of a row's scales.
    scale_bytes: usize,
}

impl Layout {
    fn new(shape: KvShape) -> Self {
        let element = match shape.kv_type {
            KvType::F32 => 4,
            KvType::F16 | KvType::Bf16 => 2,
            KvType::Q8_0 => 1,
        };
        let align = params::ATTENTION_ALIGN as usize / element;
        let pitch = shape.head_dim.next_multiple_of(align);
        let groups = shape.head_dim.div_ceil(params::ATTENTION_GROUP as usize);
        let scale_bytes = if shape.kv_type == KvType::Q8_0 { 4 * groups } else { 0 };
        Layout { n_kv_heads: shape.n_kv_heads, pitch, row_bytes: pitch * element, scale_bytes }
    }

    fn head_bytes(&self) -> usize {
        PAGE * (self.row_bytes + self.scale_bytes)
    }

    /// Of keys, or of values.
    fn page_bytes(&self) -> usize {
        self.n_kv_heads * self.head_bytes()
    }
}

/// Pages of keys and values: memory that caches share.
#[derive(Debug)]
pub(super) struct Pages {
    pub keys: DeviceBuffer<u8>,
    pub values: DeviceBuffer<u8>,
    count: usize,
}

/// Page numbers of one sequence, each below the number of pages, none twice.
#[derive(Debug)]
struct Table {
    host: Vec<u32>,
    device: DeviceBuffer<u32>,
}

/// What of a cache has to live as long as an address of it is in use.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub pages: Arc<Pages>,
    table: Option<Arc<Table>>,
}

impl Memory {
    /// Address of the page numbers, 0 where pages are in order.
    pub fn table_address(&self) -> u64 {
        self.table.as_ref().map_or(0, |table| table.device.slice().address())
    }

    /// Number of the sequence's `index`th page.
    pub fn page(&self, index: usize) -> usize {
        self.table.as_ref().map_or(index, |table| table.host[index] as usize)
    }
}

/// The keys and values of one layer of one sequence.
#[derive(Debug)]
pub struct KvPages {
    shape: KvShape,
    layout: Layout,
    memory: Memory,
    /// Positions, whole pages.
    capacity: usize,
}

fn refuse<T>(expected: String, got: String) -> Result<T> {
    Err(Error::Shape { op: "cache of keys and values".into(), expected, got })
}

impl KvPages {
    /// Room for at least `capacity` positions, of any content; pages in order.
    ///
    /// # Errors
    /// When a size is 0 or too large, heads are wider than 256, or the device's memory is full.
    pub fn new(gpu: &Gpu, shape: KvShape, capacity: usize) -> Result<KvPages> {
        if shape.n_kv_heads == 0 || shape.head_dim == 0 {
            return refuse("at least one head of one element".into(), format!("{shape:?}"));
        }
        if shape.head_dim > MOST_HEAD_DIM {
            let what = format!("heads of {} on a GPU: at most {MOST_HEAD_DIM}", shape.head_dim);
            return Err(Error::Unsupported(what));
        }
        // Positions are counted in 31 bits, with room for a tile behind the last.
        if capacity >= (1 << 31) - 1024 {
            return refuse("less than 2^31 positions".into(), capacity.to_string());
        }
        let layout = Layout::new(shape);
        let count = capacity.max(1).div_ceil(PAGE);
        let Some(bytes) = layout.page_bytes().checked_mul(count) else {
            return refuse("what memory can address".into(), format!("{capacity} of {shape:?}"));
        };
        let pages = Pages { keys: gpu.alloc(bytes)?, values: gpu.alloc(bytes)?, count };
        let memory = Memory { pages: Arc::new(pages), table: None };
        Ok(KvPages { shape, layout, memory, capacity: count * PAGE })
    }

    /// Bytes of a cache with room for `capacity` positions: [`KvPages::bytes`] without making one.
    pub fn bytes_of(shape: KvShape, capacity: usize) -> usize {
        2 * Layout::new(shape).page_bytes() * capacity.max(1).div_ceil(PAGE)
    }

    /// A cache of the same memory whose `i`th page is page `table[i]`. Caches that share pages may
    /// read the same ones; [`super::attention::Plan`] refuses that two write to one.
    ///
    /// # Errors
    /// When there is no such page, one is named twice, or the device failed.
    pub fn with_table(&self, gpu: &Gpu, table: &[u32]) -> Result<KvPages> {
        let count = self.memory.pages.count;
        let mut seen = vec![false; count];
        for &page in table {
            match seen.get_mut(page as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return refuse("every page once".into(), format!("page {page} twice")),
                None => return refuse(format!("pages below {count}"), format!("page {page}")),
            }
        }
        let table = Table { host: table.to_vec(), device: gpu.upload(table)? };
        let capacity = table.host.len() * PAGE;
        let memory = Memory { pages: Arc::clone(&self.memory.pages), table: Some(Arc::new(table)) };
        Ok(KvPages { memory, capacity, ..*self })
    }

    /// What a position holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Positions there is room for: a multiple of [`PAGE`].
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of its pages.
    pub fn bytes(&self) -> usize {
        2 * self.layout.page_bytes() * (self.capacity / PAGE)
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where the `index`th page begins in the keys, and in the values.
    fn offset(&self, index: usize) -> usize {
        self.memory.page(index) * self.layout.page_bytes()
    }

    fn check_len(&self, what: &str, len: usize) -> Result<()> {
        if len <= self.capacity {
            return Ok(());
        }
        refuse(format!("at most {} positions to {what}", self.capacity), len.to_string())
    }

    /// Takes over the first `len` positions of `other`; those behind them, up to the end of a page,
    /// then hold anything.
    ///
    /// # Errors
    /// When the shapes differ, `len` is beyond either capacity, or the device failed.
    pub fn copy_from(&mut self, gpu: &Gpu, other: &KvPages, len: usize) -> Result<()> {
        if self.shape != other.shape {
            return refuse(format!("{:?}", self.shape), format!("{:?}", other.shape));
        }
        self.check_len("copy to", len)?;
        other.check_len("copy from", len)?;
        let bytes = self.layout.page_bytes();
        let (to, from) = (&self.memory.pages, &other.memory.pages);
        let pages = len.div_ceil(PAGE);
        let mut index = 0;
        while index < pages {
            // Neighbours on both sides are one copy.
            let (at, source) = (self.memory.page(index), other.memory.page(index));
            let follows = |n: &usize| {
                self.memory.page(index + n) == at + n && other.memory.page(index + n) == source + n
            };
            let run = (1..pages - index).take_while(follows).count() + 1;
            if !Arc::ptr_eq(to, from) || at != source {
                let [at, source] = [at, source].map(|page| page * bytes..(page + run) * bytes);
                for (to, from) in [(&to.keys, &from.keys), (&to.values, &from.values)] {
                    let mut to = to.shared_mut().range_mut(at.clone());
                    gpu.copy(&mut to, &from.slice().range(source.clone()))?;
                }
            }
            index += run;
        }
        Ok(())
    }

    /// The bytes of the first `len` positions within what holds a page's keys, or its values: of
    /// each head its rows `[positions, pitch]`, then its scales `[positions, groups]`.
    fn pieces(&self, index: usize, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let layout = self.layout;
        let positions = (len - index * PAGE).min(PAGE);
        (0..layout.n_kv_heads).flat_map(move |head| {
            let rows = head * layout.head_bytes();
            let scales = rows + PAGE * layout.row_bytes;
            let scale_end = scales + positions * layout.scale_bytes;
            [rows..rows + positions * layout.row_bytes, scales..scale_end]
                .into_iter()
                .filter(|piece| !piece.is_empty())
        })
    }

    /// Hands out the bytes of the first `len` positions, to be kept: page by page, keys before
    /// values, head by head, a head's rows and then its scales. They depend neither on the capacity
    /// nor on where pages lie, and mean something to a cache of the same shape only.
    ///
    /// # Errors
    /// When `len` is beyond the capacity, the device failed, or the first that `f` returns.
    pub fn save<Fault: From<Error>>(
        &self,
        gpu: &Gpu,
        len: usize,
        f: &mut impl FnMut(&[u8]) -> std::result::Result<(), Fault>,
    ) -> std::result::Result<(), Fault> {
        self.check_len("save", len)?;
        let bytes = self.layout.page_bytes();
        let mut page = vec![0; bytes];
        for index in 0..len.div_ceil(PAGE) {
            let at = self.offset(index);
            for buffer in [&self.memory.pages.keys, &self.memory.pages.values] {
                gpu.download(&buffer.slice().range(at..at + bytes), &mut page)?;
                self.pieces(index, len).try_for_each(|piece| f(&page[piece]))?;
            }
        }
        Ok(())
    }

    /// Has the first `len` positions filled with what [`KvPages::save`] handed out. Any bytes will do:
    /// wrong ones give wrong numbers, nothing worse. Positions behind them, up to the end of a page,
    /// then hold zeroes.
    ///
    /// # Errors
    /// As [`KvPages::save`]; the positions then hold anything.
    pub fn restore<Fault: From<Error>>(
        &mut self,
        gpu: &Gpu,
        len: usize,
        f: &mut impl FnMut(&mut [u8]) -> std::result::Result<(), Fault>,
    ) -> std::result::Result<(), Fault> {
        self.check_len("restore", len)?;
        let bytes = self.layout.page_bytes();
        let mut page = vec![0; bytes];
        for index in 0..len.div_ceil(PAGE) {
            let at = self.offset(index);
            for buffer in [&self.memory.pages.keys, &self.memory.pages.values] {
                page.fill(0);
                self.pieces(index, len).try_for_each(|piece| f(&mut page[piece]))?;
                gpu.write(&mut buffer.shared_mut().range_mut(at..at + bytes), &page)?;
            }
        }
        Ok(())
    }
}

/// Sizes as kernels take them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub pitch: u32,
}

impl Sizes {
    pub fn of(cache: &KvPages) -> Result<Self> {
        let KvShape { n_kv_heads, head_dim, .. } = cache.shape;
        Ok(Sizes {
            n_kv_heads: u32_of("heads of attention", n_kv_heads)?,
            head_dim: u32_of("width of a head", head_dim)?,
            pitch: u32_of("width of a head", cache.layout.pitch)?,
        })
    }
}
