//! LoRA adapters in PEFT's directory format: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! Holds the adapter as plain numbers, its reader and its writer. Rows are in Hugging Face's order
//! here; `model::adapter` puts those of Q and K into the order of the model. Source: Hu et al. 2021
//! (LoRA), Kalajdzievski 2023 (rsLoRA), and the files that PEFT writes.

mod read;
mod write;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};

pub use read::{read, read_spec};
pub use write::write;

/// Name of an adapter's settings.
pub const CONFIG_NAME: &str = "adapter_config.json";

/// Name of an adapter's weights.
pub const WEIGHTS_NAME: &str = "adapter_model.safetensors";

/// A linear layer of a block that can have an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Query projection.
    Wq,
    /// Key projection.
    Wk,
    /// Value projection.
    Wv,
    /// Output projection of attention.
    Wo,
    /// Gate projection.
    W1,
    /// Down projection.
    W2,
    /// Up projection.
    W3,
}

impl Target {
    /// All linear layers of a block, in the order in which an adapter lists them.
    pub const ALL: [Target; 7] =
        [Target::Wq, Target::Wk, Target::Wv, Target::Wo, Target::W1, Target::W2, Target::W3];

    /// Puna's name.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Wq => "wq",
            Target::Wk => "wk",
            Target::Wv => "wv",
            Target::Wo => "wo",
            Target::W1 => "w1",
            Target::W2 => "w2",
            Target::W3 => "w3",
        }
    }

    /// Hugging Face's name, as `target_modules` has it.
    pub const fn hf_name(self) -> &'static str {
        match self {
            Target::Wq => "q_proj",
            Target::Wk => "k_proj",
            Target::Wv => "v_proj",
            Target::Wo => "o_proj",
            Target::W1 => "gate_proj",
            Target::W2 => "down_proj",
            Target::W3 => "up_proj",
        }
    }

    /// The part of a block in Hugging Face's tree of modules.
    const fn hf_parent(self) -> &'static str {
        match self {
            Target::Wq | Target::Wk | Target::Wv | Target::Wo => "self_attn",
            Target::W1 | Target::W2 | Target::W3 => "mlp",
        }
    }

    /// The layer of this name, Hugging Face's or Puna's.
    pub fn from_name(name: &str) -> Option<Target> {
        Target::ALL.into_iter().find(|target| target.hf_name() == name || target.name() == name)
    }

    /// Reads `--lora-target-modules`: names with commas between, or `all-linear`. Each layer comes
    /// once, in the order of [`Target::ALL`].
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is none, and for no name.
    pub fn parse_list(text: &str) -> Result<Vec<Target>> {
        if text.trim() == "all-linear" {
            return Ok(Target::ALL.to_vec());
        }
        let targets = text.split(',').map(|name| {
            let name = name.trim();
            Target::from_name(name).ok_or_else(|| {
                let known = Target::ALL.map(Target::hf_name).join(", ");
                let why = format!("wanted all-linear, or some of {known} with commas between");
                Error::config("lora-target-modules", format!("{name:?}"), why)
            })
        });
        Ok(in_order(targets.collect::<Result<Vec<_>>>()?))
    }

    /// Key of one of the two matrices in an adapter file; `half` is `lora_A` or `lora_B`.
    pub fn key(self, layer: usize, half: &str) -> String {
        let (parent, name) = (self.hf_parent(), self.hf_name());
        format!("base_model.model.model.layers.{layer}.{parent}.{name}.{half}.weight")
    }
}

/// Each once, in the order of [`Target::ALL`].
fn in_order(mut targets: Vec<Target>) -> Vec<Target> {
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// Settings of an adapter: `y = x (W + scale B A)^T`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// Rank: rows of A, columns of B; at least 1.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Probability with which training drops an element of the input.
    pub dropout: f32,
    /// Layers with an adapter, in every block: each once, in the order of [`Target::ALL`].
    pub targets: Vec<Target>,
    /// Whether the scale is `alpha / sqrt(r)` in place of `alpha / r`.
    pub use_rslora: bool,
}

impl LoraSpec {
    /// Layers that get an adapter unless told otherwise, as in PEFT for LLaMA.
    pub const DEFAULT_TARGETS: [Target; 2] = [Target::Wq, Target::Wv];

    /// The factor on `B A`.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (f64::from(self.alpha) / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// Refuses settings that no adapter can have.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key under `place` (`"--lora-"` for flags).
    pub fn check(&self, place: &str) -> Result<()> {
        let bad = |key: &str, value: String, wanted: &str| {
            Err(Error::config(format!("{place}{key}"), value, format!("wanted {wanted}")))
        };
        if !(1..=MAX_RANK).contains(&self.r) {
            return bad("r", self.r.to_string(), &format!("a rank from 1 to {MAX_RANK}"));
        }
        if !self.alpha.is_finite() {
            return bad("alpha", self.alpha.to_string(), "a finite number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "a number from 0 to below 1");
        }
        if self.targets.is_empty() {
            return bad("target_modules", "[]".into(), "at least one linear layer");
        }
        Ok(())
    }
}

/// Largest rank accepted: wider than any layer.
const MAX_RANK: usize = 1 << 16;

/// Sizes of a model's linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShapes {
    /// Blocks.
    pub n_layers: usize,
    /// Residual width.
    pub dim: usize,
    /// Inner width of the feed-forward.
    pub hidden_dim: usize,
    /// Rows of the query projection.
    pub q_rows: usize,
    /// Rows of the key and value projections.
    pub kv_rows: usize,
}

impl LinearShapes {
    /// Rows and columns of a layer: `(out, in)`.
    pub fn of(&self, target: Target) -> (usize, usize) {
        match target {
            Target::Wq => (self.q_rows, self.dim),
            Target::Wk | Target::Wv => (self.kv_rows, self.dim),
            Target::Wo => (self.dim, self.q_rows),
            Target::W1 | Target::W3 => (self.hidden_dim, self.dim),
            Target::W2 => (self.dim, self.hidden_dim),
        }
    }
}

/// The two matrices of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// Block.
    pub layer: usize,
    /// Which of its layers.
    pub target: Target,
    /// [r, in].
    pub a: Vec<f32>,
    /// [out, r].
    pub b: Vec<f32>,
}

/// An adapter: settings and numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// Settings.
    pub spec: LoraSpec,
    /// One for every block and target, block by block, targets in their order.
    pub pairs: Vec<LoraPair>,
    /// Head of a reward model, `[dim]`.
    pub score: Option<Vec<f32>>,
}

/// Key of the head of a reward model in an adapter file.
pub const SCORE_KEY: &str = "base_model.model.score.weight";

impl AdapterFile {
    /// The matrices of a layer; `None` where it has no adapter.
    pub fn get(&self, layer: usize, target: Target) -> Option<&LoraPair> {
        let at = self.spec.targets.iter().position(|&t| t == target)?;
        let pair = self.pairs.get(layer * self.spec.targets.len() + at)?;
        (pair.layer == layer && pair.target == target).then_some(pair)
    }

    /// Number of trained values.
    pub fn n_parameters(&self) -> usize {
        self.pairs.iter().map(|pair| pair.a.len() + pair.b.len()).sum()
    }
}
