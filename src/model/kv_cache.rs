//! Keys and values of one sequence, for every block of the model.

use crate::error::{Error, Result};
use crate::kernels::attention::{Cache, KvShape};
use crate::model::config::Config;
use crate::tensor::Home;

pub use crate::kernels::attention::KvType;

/// The key/value cache of one sequence. Its memory is reserved whole and taken page by page as
/// the sequence grows.
pub struct KvCache {
    pub(super) layers: Vec<Cache>,
    len: usize,
    capacity: usize,
    kv_type: KvType,
}

/// What a position of each layer holds.
fn shape(config: &Config, capacity: usize, kv_type: KvType) -> Result<KvShape> {
    let refuse = |why: &str| Err(Error::config("ctx", capacity, why));
    if capacity == 0 {
        return refuse("a context has at least one position");
    }
    // 16 bytes a value bound every type with its scales, 512 every rounding up.
    let values = config.n_kv_heads.checked_mul(config.head_dim);
    let bytes = values.and_then(|v| {
        v.checked_mul(16)?.checked_mul(capacity.checked_add(512)?)?.checked_mul(config.n_layers)
    });
    if bytes.is_none_or(|bytes| bytes > isize::MAX as usize / 4) {
        return refuse("more than memory can address");
    }
    Ok(KvShape { n_kv_heads: config.n_kv_heads, head_dim: config.head_dim, kv_type })
}

fn no_memory(capacity: usize, bytes: usize) -> Error {
    let why = format!("the system does not give the {bytes} bytes that this takes");
    Error::config("ctx", capacity, why)
}

impl KvCache {
    /// A cache for `capacity` positions of a model like `config`, where the model computes.
    ///
    /// # Errors
    /// When the capacity is 0, its size overflows, or the system or a GPU does not give the memory.
    pub fn new(config: &Config, capacity: usize, kv_type: KvType, home: &Home) -> Result<KvCache> {
        let shape = shape(config, capacity, kv_type)?;
        let layers = (0..config.n_layers).map(|_| {
            let layer = Cache::new(home, shape, capacity)?;
            layer.ok_or_else(|| no_memory(capacity, config.n_layers * shape.bytes(capacity)))
        });
        Ok(KvCache { layers: layers.collect::<Result<_>>()?, len: 0, capacity, kv_type })
    }

    /// [`KvCache::bytes`] without making one.
    ///
    /// # Errors
    /// As [`KvCache::new`].
    pub fn bytes_of(
        config: &Config,
        capacity: usize,
        kv_type: KvType,
        home: &Home,
    ) -> Result<usize> {
        let shape = shape(config, capacity, kv_type)?;
        Ok(config.n_layers * Cache::bytes_of(home, shape, capacity))
    }

    /// Format of the numbers.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Positions filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is cached yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Cache::bytes).sum()
    }

    /// Bytes that attention reads of each position it sees.
    pub fn position_bytes(&self) -> usize {
        self.layers.iter().map(Cache::position_bytes).sum()
    }

    /// Forgets everything from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A copy that goes on independently.
    ///
    /// # Errors
    /// When the system or a GPU does not give the memory.
    pub fn fork(&self) -> Result<KvCache> {
        let copied = |layer: &Cache| {
            let copy = layer.fork(self.capacity, self.len)?;
            copy.ok_or_else(|| no_memory(self.capacity, self.bytes()))
        };
        let layers = self.layers.iter().map(copied).collect::<Result<_>>()?;
        Ok(KvCache { layers, ..*self })
    }

    /// Hands out the bytes of everything cached, piece by piece, as [`Cache::save`] does.
    ///
    /// # Errors
    /// The first that `f` returns; when a GPU failed.
    pub fn save(&self, f: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.layers.iter().try_for_each(|layer| layer.save(self.len, f))
    }

    /// Replaces everything by `len` positions, to be filled with what [`KvCache::save`] of a cache
    /// of the same model, type and kind of device handed out.
    ///
    /// # Errors
    /// The first that `f` returns, or when a GPU failed; the cache is then empty.
    ///
    /// # Panics
    /// When `len` is beyond the capacity.
    pub fn restore(
        &mut self,
        len: usize,
        f: &mut impl FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        assert!(len <= self.capacity, "{len} positions into a cache of {}", self.capacity);
        self.len = 0;
        self.layers.iter_mut().try_for_each(|layer| layer.restore(len, f))?;
        self.len = len;
        Ok(())
    }

    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}
