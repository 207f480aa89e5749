//! Activations: blocks of rows that are counted and go back to their pool when the last holder
//! lets go, so a steady forward pass asks the system for nothing.

use super::values::Home;
use super::view::{Floats, FloatsMut};
use crate::error::Result;
use half::bf16;
use puna_cpu::buffer::Buffer;
use puna_cpu::floats as host;
use std::sync::{Arc, Mutex, Weak};

#[cfg(feature = "cuda")]
use crate::cuda::{self, DeviceBuffer, Gpu};

/// Element type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// Single precision.
    F32,
    /// Its upper half; computed with as f32.
    Bf16,
}

impl DType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 => 2,
        }
    }
}

enum Data {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
    #[cfg(feature = "cuda")]
    CudaF32(DeviceBuffer<f32>, Arc<Gpu>),
    #[cfg(feature = "cuda")]
    CudaBf16(DeviceBuffer<bf16>),
}

struct Slot {
    data: Data,
    class: usize,
    rows: usize,
    width: usize,
    pool: Weak<Mutex<Free>>,
}

impl Slot {
    fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::Bf16(_) => DType::Bf16,
            #[cfg(feature = "cuda")]
            Data::CudaF32(..) => DType::F32,
            #[cfg(feature = "cuda")]
            Data::CudaBf16(_) => DType::Bf16,
        }
    }
}

#[derive(Default)]
struct Free {
    /// Has room for every block there is, so that giving one back allocates nothing.
    slots: Vec<Arc<Slot>>,
    blocks: usize,
    bytes: usize,
    /// How often blocks were freed.
    generation: usize,
    /// Rows that new blocks have room for at least.
    least_rows: usize,
}

/// Memory for activations. Cloning shares it.
#[derive(Clone, Default)]
pub struct Pool {
    free: Arc<Mutex<Free>>,
    home: Home,
    /// Whether blocks of a GPU come back here too.
    #[cfg(feature = "cuda")]
    keeps: bool,
}

/// Elements to reserve for `len`: eight sizes a power of two, so that batches of similar length
/// share buffers. What is not touched takes no memory.
pub fn size_class(len: usize) -> usize {
    let len = len.max(64);
    let step = 1usize << (usize::BITS - 1 - len.leading_zeros()).saturating_sub(3);
    len.div_ceil(step) * step
}

impl Pool {
    /// One whose blocks lie there. What is given back of a GPU's is the next one's who asks it.
    pub fn at(home: Home) -> Pool {
        Pool { home, ..Pool::default() }
    }

    /// One that keeps its blocks wherever they lie: nobody else ever gets their memory, and a pass
    /// that repeats meets them at the same addresses.
    pub fn keeping(home: Home) -> Pool {
        Pool {
            home,
            #[cfg(feature = "cuda")]
            keeps: true,
            ..Pool::default()
        }
    }

    /// Changes whenever blocks were freed: addresses from before may be somebody else's now.
    pub fn generation(&self) -> usize {
        self.free.lock().unwrap_or_else(|poison| poison.into_inner()).generation
    }

    /// A block of `rows` rows of `width` elements with arbitrary contents, to be overwritten.
    ///
    /// # Errors
    /// When a GPU has no room for it.
    pub fn take(&self, dtype: DType, rows: usize, width: usize) -> Result<Rows> {
        match &self.home {
            Home::Host => self.take_kept(dtype, rows, width),
            #[cfg(feature = "cuda")]
            Home::Cuda(_) if self.keeps => self.take_kept(dtype, rows, width),
            #[cfg(feature = "cuda")]
            Home::Cuda(gpu) => {
                let len = rows * width;
                let data = match dtype {
                    DType::F32 => Data::CudaF32(gpu.alloc(len)?, Arc::clone(gpu)),
                    DType::Bf16 => Data::CudaBf16(gpu.alloc(len)?),
                };
                let slot = Slot { data, class: len, rows, width, pool: Weak::new() };
                Ok(Rows(Some(Arc::new(slot))))
            }
        }
    }

    fn take_kept(&self, dtype: DType, rows: usize, width: usize) -> Result<Rows> {
        let mut free = self.free.lock().unwrap_or_else(|poison| poison.into_inner());
        let class = size_class(rows.max(free.least_rows) * width);
        let fits = |slot: &Arc<Slot>| slot.class == class && slot.dtype() == dtype;
        // The last one given back is the likeliest to lie in the caches.
        if let Some(at) = free.slots.iter().rposition(fits) {
            let mut slot = free.slots.remove(at);
            if let Some(unique) = Arc::get_mut(&mut slot) {
                (unique.rows, unique.width) = (rows, width);
                return Ok(Rows(Some(slot)));
            }
        }
        drop(free);
        let data = match (&self.home, dtype) {
            (Home::Host, DType::F32) => Data::F32(Buffer::zeroed(class)),
            (Home::Host, DType::Bf16) => Data::Bf16(Buffer::zeroed(class)),
            #[cfg(feature = "cuda")]
            (Home::Cuda(gpu), DType::F32) => Data::CudaF32(gpu.alloc(class)?, Arc::clone(gpu)),
            #[cfg(feature = "cuda")]
            (Home::Cuda(gpu), DType::Bf16) => Data::CudaBf16(gpu.alloc(class)?),
        };
        let mut free = self.free.lock().unwrap_or_else(|poison| poison.into_inner());
        free.bytes += class * dtype.bytes();
        free.blocks += 1;
        let missing = free.blocks - free.slots.len();
        free.slots.reserve(missing);
        drop(free);
        let pool = Arc::downgrade(&self.free);
        Ok(Rows(Some(Arc::new(Slot { data, class, rows, width, pool }))))
    }

    /// Says that passes have up to so many rows: blocks get room for them, so that shorter passes
    /// use the blocks of the longest instead of adding their own. Room that is not written takes
    /// no memory. Where there were longer passes, nothing changes; otherwise idle blocks are freed.
    pub fn expect_rows(&self, rows: usize) {
        let mut free = self.free.lock().unwrap_or_else(|poison| poison.into_inner());
        if rows > free.least_rows {
            free.least_rows = rows;
            drop(free);
            self.shrink();
        }
    }

    /// Bytes reserved so far, in use or not, written or not.
    pub fn bytes(&self) -> usize {
        self.free.lock().unwrap_or_else(|poison| poison.into_inner()).bytes
    }

    /// Frees what nobody holds.
    pub fn shrink(&self) {
        let mut free = self.free.lock().unwrap_or_else(|poison| poison.into_inner());
        free.generation += usize::from(!free.slots.is_empty());
        let idle: usize = free.slots.iter().map(|s| s.class * s.dtype().bytes()).sum();
        free.bytes -= idle;
        free.blocks -= free.slots.len();
        let room = Vec::with_capacity(free.blocks);
        let slots = std::mem::replace(&mut free.slots, room);
        drop(free);
        drop(slots);
    }
}

/// A block of rows [rows, width]. Clones share the memory.
pub struct Rows(Option<Arc<Slot>>);

impl Clone for Rows {
    fn clone(&self) -> Rows {
        Rows(self.0.clone())
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let Some(mut slot) = self.0.take() else { return };
        // Of holders that let go at the same time none may see itself as the last; the memory is
        // then freed instead of kept, which harms nothing.
        if Arc::get_mut(&mut slot).is_none() {
            return;
        }
        if let Some(pool) = slot.pool.upgrade() {
            pool.lock().unwrap_or_else(|poison| poison.into_inner()).slots.push(slot);
        }
    }
}

impl Rows {
    fn slot(&self) -> &Arc<Slot> {
        self.0.as_ref().expect("taken only by drop")
    }

    /// [rows, width].
    pub fn dims2(&self) -> [usize; 2] {
        let slot = self.slot();
        [slot.rows, slot.width]
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.slot().rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.slot().width
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.slot().dtype()
    }

    /// Whether the elements are in the machine's memory.
    pub fn is_host(&self) -> bool {
        matches!(self.slot().data, Data::F32(_) | Data::Bf16(_))
    }

    /// Whether nobody else holds this block.
    pub fn is_unique(&mut self) -> bool {
        self.0.as_mut().is_some_and(|slot| Arc::get_mut(slot).is_some())
    }

    /// The elements.
    pub fn floats(&self) -> Floats<'_> {
        let slot = self.slot();
        let len = slot.rows * slot.width;
        match &slot.data {
            Data::F32(x) => Floats::Host(host::Floats::F32(&x[..len])),
            Data::Bf16(x) => Floats::Host(host::Floats::Bf16(&x[..len])),
            #[cfg(feature = "cuda")]
            Data::CudaF32(x, _) => Floats::Cuda(cuda::Floats::F32(x.slice().range(0..len))),
            #[cfg(feature = "cuda")]
            Data::CudaBf16(x) => Floats::Cuda(cuda::Floats::Bf16(x.slice().range(0..len))),
        }
    }

    /// The elements, to write.
    ///
    /// # Panics
    /// When somebody else holds the block.
    pub fn floats_mut(&mut self) -> FloatsMut<'_> {
        let slot = self.0.as_mut().and_then(Arc::get_mut).expect("rows to write are held once");
        let len = slot.rows * slot.width;
        match &mut slot.data {
            Data::F32(x) => FloatsMut::Host(host::FloatsMut::F32(&mut x[..len])),
            Data::Bf16(x) => FloatsMut::Host(host::FloatsMut::Bf16(&mut x[..len])),
            #[cfg(feature = "cuda")]
            Data::CudaF32(x, _) => {
                FloatsMut::Cuda(cuda::FloatsMut::F32(x.slice_mut().range_mut(0..len)))
            }
            #[cfg(feature = "cuda")]
            Data::CudaBf16(x) => {
                FloatsMut::Cuda(cuda::FloatsMut::Bf16(x.slice_mut().range_mut(0..len)))
            }
        }
    }

    /// The elements of an f32 block in the machine's memory.
    ///
    /// # Panics
    /// When the block is another one.
    pub fn f32(&self) -> &[f32] {
        match self.floats() {
            Floats::Host(host::Floats::F32(x)) => x,
            _ => panic!("rows of bf16 or of another device, wanted f32 of the host"),
        }
    }

    /// The elements of an f32 block in the machine's memory, to write.
    ///
    /// # Panics
    /// When the block is another one, or somebody else holds it.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        match self.floats_mut() {
            FloatsMut::Host(host::FloatsMut::F32(x)) => x,
            _ => panic!("rows of bf16 or of another device, wanted f32 of the host"),
        }
    }

    /// Overwrites an f32 block with numbers of the host.
    ///
    /// # Errors
    /// When a GPU failed.
    ///
    /// # Panics
    /// When the block is not f32, has another length, or somebody else holds it.
    pub fn write(&mut self, from: &[f32]) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(Slot { data: Data::CudaF32(x, gpu), rows, width, .. }) =
            self.0.as_mut().and_then(Arc::get_mut)
        {
            return gpu.write(&mut x.slice_mut().range_mut(0..*rows * *width), from);
        }
        self.f32_mut().copy_from_slice(from);
        Ok(())
    }

    /// The elements of an f32 block as the host reads them: those of a GPU are copied into `copy`.
    ///
    /// # Errors
    /// When a GPU failed.
    ///
    /// # Panics
    /// When the block is not f32.
    pub fn read<'a>(&'a self, copy: &'a mut Vec<f32>) -> Result<&'a [f32]> {
        #[cfg(feature = "cuda")]
        if let Slot { data: Data::CudaF32(x, gpu), rows, width, .. } = &**self.slot() {
            copy.resize(rows * width, 0.0);
            gpu.download(&x.slice().range(0..copy.len()), copy)?;
            return Ok(copy);
        }
        let _ = copy;
        Ok(self.f32())
    }
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [rows, width] = self.dims2();
        write!(f, "Rows[{rows}, {width}] {:?}", self.dtype())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_the_last_holder_lets_go() {
        let pool = Pool::default();
        let mut a = pool.take(DType::F32, 3, 100).unwrap();
        a.f32_mut().fill(1.0);
        let b = a.clone();
        assert!(!a.is_unique());
        let reserved = pool.bytes();
        drop(a);
        let c = pool.take(DType::F32, 3, 100).unwrap();
        assert!(pool.bytes() > reserved, "b is still held, so c is new memory");
        assert!(b.f32().iter().all(|&x| x == 1.0));
        drop((b, c));
        let full = pool.bytes();
        let (d, e) = (pool.take(DType::F32, 3, 99).unwrap(), pool.take(DType::F32, 4, 74).unwrap());
        assert_eq!(pool.bytes(), full, "both fit into what came back");
        assert_eq!((d.dims2(), e.dims2()), ([3, 99], [4, 74]));
        drop((d, e));
        pool.shrink();
        assert_eq!(pool.bytes(), 0);
    }

    #[test]
    fn shorter_passes_use_the_blocks_of_the_longest() {
        let pool = Pool::default();
        let pass = |rows: usize| {
            pool.expect_rows(rows);
            let blocks = [(rows, 100), (rows - rows / 3, 100), (1, 100), (rows, 7)];
            let held = blocks.map(|(rows, width)| pool.take(DType::F32, rows, width).unwrap());
            assert_eq!(held.map(|rows| rows.dims2()), blocks.map(|(m, width)| [m, width]));
        };
        pass(300);
        let reserved = pool.bytes();
        for rows in [299, 200, 33, 1] {
            pass(rows);
            assert_eq!(pool.bytes(), reserved, "{rows}");
        }
        pass(400);
        assert!(pool.bytes() > reserved && pool.bytes() < 2 * reserved);
    }

    #[test]
    fn classes_waste_an_eighth_at_most() {
        for len in [1, 63, 64, 65, 100, 1000, 4097, 294_912, 1 << 20] {
            let class = size_class(len);
            assert!(class >= len && (len < 64 || class <= len + len / 8 + 1), "{len} -> {class}");
        }
    }
}
