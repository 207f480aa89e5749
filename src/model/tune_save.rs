//! What a training run leaves: a Hugging Face directory, or an adapter in PEFT's format.

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::format::peft::{AdapterFile, LoraPair, SCORE_KEY};
use crate::model::adapter::write_adapter;
use crate::model::builtin::is_builtin;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{Config, Head};
use crate::model::export::{Extras, TextSource, WriteOptions, write_hf_files};
use crate::model::names::{Layout, Weight};
use crate::model::source::WeightSource;
use crate::model::tune::{LoraSpec, Precision, TuneModel};
use crate::tensor::Param;
use std::ops::Range;
use std::path::Path;

impl TuneModel {
    /// Writes the trained model or adapter into an existing directory. Weights are written in the
    /// run's precision.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn save(&self, dir: &Path) -> Result<()> {
        if let Some(spec) = &self.adapter {
            let base = self.base.to_string_lossy();
            return write_adapter(dir, &self.adapter_file(spec)?, self.config(), &base);
        }
        let dtype = match self.options.precision {
            Precision::F32 => FileDType::F32,
            Precision::Bf16 => FileDType::BF16,
        };
        let is_gguf = is_builtin(&self.base) || self.base.extension().is_some_and(|e| e == "gguf");
        let checkpoint = match is_gguf {
            true => Some(Checkpoint::open(&self.base)?),
            false => None,
        };
        let text = match &checkpoint {
            Some(checkpoint) => TextSource::Gguf(checkpoint),
            None => TextSource::Dir(&self.base),
        };
        let extras = Extras { name: &self.base, generation: &self.model.generation, text };
        write_hf_files(dir, self, extras, dtype, &WriteOptions::default()).map(|_| ())
    }

    /// The adapter as it is now.
    fn adapter_file(&self, spec: &LoraSpec) -> Result<AdapterFile> {
        let numbers = |param: &Param| -> Result<Vec<f32>> { Ok(param.value.read()?.into_owned()) };
        let mut pairs = Vec::new();
        for (place, params) in self.adapter_places.iter().zip(self.params().0.chunks_exact(2)) {
            let &(layer, target) = place;
            let (a, b) = (numbers(&params[0])?, numbers(&params[1])?);
            pairs.push(LoraPair { layer, target, a, b });
        }
        let score = self.params().0.iter().find(|param| param.name == SCORE_KEY);
        let score = score.map(numbers).transpose()?;
        Ok(AdapterFile { spec: spec.clone(), pairs, score })
    }

    fn param_of(&self, weight: Weight) -> Result<&Param> {
        let name = weight.file_name(Layout::Hf);
        let found = self.params().0.iter().find(|param| param.name == name);
        found.ok_or_else(|| Error::Unsupported(format!("writing {weight}, which is not trained")))
    }
}

impl WeightSource for TuneModel {
    fn config(&self) -> &Config {
        TuneModel::config(self)
    }

    fn dtype(&self, weight: Weight) -> Result<Option<FileDType>> {
        let absent = match weight {
            Weight::Block(_, w) if w.is_attention_bias() || w.is_mlp_bias() => {
                self.param_of(weight).is_err()
            }
            Weight::LmHead => self.config().tie_embeddings || self.config().head != Head::Tokens,
            Weight::Score => self.config().head != Head::Score,
            _ => false,
        };
        Ok((!absent).then_some(FileDType::F32))
    }

    fn rows(&self, weight: Weight, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let param = self.param_of(weight)?;
        let width: usize = param.shape[1..].iter().product();
        param.value.read_range(rows.start * width..rows.end * width, out)
    }

    fn raw_rows(&self, _: Weight, _: Range<usize>, _: &mut [u8]) -> Result<bool> {
        Ok(false)
    }
}
