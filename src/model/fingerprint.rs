//! Telling models apart: whose keys and values a saved session holds.

use crate::error::Result;
use crate::kernels::embedding::gather;
use crate::model::llama::Model;
#[cfg(feature = "cuda")]
use crate::tensor::MatrixData;
use crate::tensor::{DType, Matrix, Pool, Vector};
use sha2::{Digest, Sha256};

/// Rows of the embedding table that are looked at.
const TABLE_ROWS: usize = 16;

impl Model {
    /// SHA-256 of what tells this model from others: the configuration, how products are computed,
    /// every norm, the kind of device, the types of the matrices, the first rows of the embedding table, and adapters
    /// whole. Weights are not read whole: two models may share a fingerprint that differ in
    /// matrices alone.
    ///
    /// # Errors
    /// None for a model that loaded, unless a GPU failed.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} exact {}", self.config, self.exact));
        let numbers = |hash: &mut Sha256, values: &[f32]| {
            values.iter().for_each(|x| hash.update(x.to_le_bytes()));
        };
        let vector = |hash: &mut Sha256, v: &Vector| -> Result<()> {
            numbers(hash, &v.values(&self.params).read()?);
            Ok(())
        };
        let adapter = |hash: &mut Sha256, w: &Matrix| -> Result<()> {
            if let Some(dense) = w.dense(&self.params) {
                hash.update(dense.bytes);
            }
            #[cfg(feature = "cuda")]
            if let (Some(gpu), MatrixData::Cuda(there)) = (self.device.gpu(), &w.data) {
                hash.update(there.read(gpu)?);
            }
            Ok(())
        };
        if self.device.is_gpu() {
            // Its caches lie in another order.
            hash.update("on a GPU");
        }
        let weights = &self.weights;
        for block in &weights.blocks {
            vector(&mut hash, &block.attn_norm)?;
            vector(&mut hash, &block.ffn_norm)?;
            let linears =
                [&block.wq, &block.wk, &block.wv, &block.wo, &block.w1, &block.w2, &block.w3];
            for linear in linears {
                hash.update(linear.w.type_name());
                for lora in &linear.loras {
                    hash.update(lora.scale.to_le_bytes());
                    adapter(&mut hash, &lora.a)?;
                    adapter(&mut hash, &lora.b)?;
                }
            }
        }
        vector(&mut hash, &weights.out_norm)?;
        hash.update(weights.lm_head.w.type_name());
        let ids: Vec<u32> = (0..self.config.vocab_size.min(TABLE_ROWS) as u32).collect();
        let pool = Pool::at(self.device.home());
        let mut rows = pool.take(DType::F32, ids.len(), self.config.dim)?;
        gather(&self.device, rows.floats_mut(), &weights.tok_emb, &self.params, ids[..].into())?;
        numbers(&mut hash, rows.read(&mut vec![])?);
        Ok(hash.finalize().into())
    }
}
