//! Keys and values of one sequence, for every block of the model.

use crate::error::{Error, Result};
use crate::kernels::attention::{KvLayer, KvShape};
use crate::model::config::Config;

pub use crate::kernels::attention::KvType;

/// The key/value cache of one sequence. Its memory is reserved whole and taken page by page as
/// the sequence grows.
pub struct KvCache {
    pub(super) layers: Vec<KvLayer>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// A cache for `capacity` positions of a model like `config`.
    ///
    /// # Errors
    /// When the capacity is 0 or its size overflows.
    pub fn new(config: &Config, capacity: usize, kv_type: KvType) -> Result<KvCache> {
        let refuse = |why: &str| Err(Error::config("ctx", capacity, why));
        if capacity == 0 {
            return refuse("a context has at least one position");
        }
        // 16 bytes a value bound every type with its scales, 512 every rounding up.
        let values = config.n_kv_heads.checked_mul(config.head_dim);
        let bytes = values.and_then(|v| v.checked_mul(16)?.checked_mul(capacity.checked_add(512)?));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize / 4) {
            return refuse("more than memory can address");
        }
        let shape = KvShape { n_kv_heads: config.n_kv_heads, head_dim: config.head_dim, kv_type };
        let layers = (0..config.n_layers).map(|_| KvLayer::new(shape, capacity)).collect();
        Ok(KvCache { layers, len: 0, capacity })
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
        self.layers.iter().map(KvLayer::bytes).sum()
    }

    /// Bytes that attention reads of each position it sees.
    pub fn position_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes() / layer.capacity()).sum()
    }

    /// Forgets everything from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A copy that goes on independently.
    pub fn fork(&self) -> KvCache {
        let layers = self
            .layers
            .iter()
            .map(|layer| {
                let mut copy = KvLayer::new(layer.shape(), self.capacity);
                copy.copy_from(layer, self.len);
                copy
            })
            .collect();
        KvCache { layers, len: self.len, capacity: self.capacity }
    }

    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}
