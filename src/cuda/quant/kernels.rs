//! The kernels of quantised products, by format: their names, and which formats have which.

use super::super::{Function, Modules, params};
use super::encode::Encode;
use crate::Result;

/// What kernels there are of a format.
pub(super) struct Names {
    /// x wᵀ, dy w.
    small: [&'static str; 2],
    large: [&'static str; 2],
    /// Plain, gated.
    skinny: [&'static str; 2],
    /// Layers with an adapter, of ranks up to 16 and 64, and their backward.
    lora: [&'static str; 2],
    lora_bwd: [&'static str; 2],
    /// Whether most models that are quantised have it: then it has large tiles, and layers with
    /// adapters.
    pub common: bool,
    /// What a warp has of a stage in the skinny kernels' shared memory; none where rows begin inside
    /// blocks.
    pub skinny_bytes: Option<u32>,
}

macro_rules! names {
    ($($name:literal, $common:literal, $bytes:expr;)*) => {
        [$(Names {
            small: [concat!("quant_nt_", $name, "_small"), concat!("quant_nn_", $name, "_small")],
            large: [concat!("quant_nt_", $name, "_large"), concat!("quant_nn_", $name, "_large")],
            skinny: [concat!("quant_skinny_", $name), concat!("quant_skinny_gated_", $name)],
            lora: [concat!("lora_", $name, "_r16"), concat!("lora_", $name, "_r64")],
            lora_bwd: [concat!("lora_bwd_", $name, "_r16"), concat!("lora_bwd_", $name, "_r64")],
            common: $common,
            skinny_bytes: $bytes,
        }),*]
    };
}

/// By [`Format::id`](super::Format::id).
pub(super) const NAMES: [Names; params::QUANT_FORMATS as usize] = names! {
    "nf4", true, Some(params::QUANT_SKINNY_NF4);
    "nf4_double", true, Some(params::QUANT_SKINNY_NF4_DOUBLE);
    "nf4_ragged", false, None;
    "q4_0", true, Some(params::QUANT_SKINNY_Q4_0);
    "q4_1", false, Some(params::QUANT_SKINNY_Q4_1);
    "q5_0", false, Some(params::QUANT_SKINNY_Q5_0);
    "q5_1", false, Some(params::QUANT_SKINNY_Q5_1);
    "q8_0", true, Some(params::QUANT_SKINNY_Q8_0);
    "q2_k", false, Some(params::QUANT_SKINNY_Q2_K);
    "q3_k", false, Some(params::QUANT_SKINNY_Q3_K);
    "q4_k", true, Some(params::QUANT_SKINNY_Q4_K);
    "q5_k", false, Some(params::QUANT_SKINNY_Q5_K);
    "q6_k", true, Some(params::QUANT_SKINNY_Q6_K);
};

/// The kernels of a format, in the order of [`Names`].
pub(super) struct OfFormat {
    pub small: [Function; 2],
    pub large: Option<[Function; 2]>,
    pub skinny: Option<[Function; 2]>,
    /// Forward, backward.
    pub lora: Option<[[Function; 2]; 2]>,
}

/// The kernels.
pub(crate) struct Quant {
    /// By [`Format::id`](super::Format::id).
    pub(super) formats: Vec<OfFormat>,
    pub(super) f32: Function,
    /// To f32, bf16.
    pub(super) gather: [Function; 2],
    pub(super) round: Function,
    pub(super) encode: Encode,
}

impl Quant {
    pub fn load(modules: &Modules) -> Result<Self> {
        let pair = |[a, b]: [&'static str; 2]| -> Result<[Function; 2]> {
            Ok([modules.function(a)?, modules.function(b)?])
        };
        let of_format = |names: &Names| -> Result<OfFormat> {
            Ok(OfFormat {
                small: pair(names.small)?,
                large: names.common.then(|| pair(names.large)).transpose()?,
                lora: match names.common {
                    true => Some([pair(names.lora)?, pair(names.lora_bwd)?]),
                    false => None,
                },
                skinny: names.skinny_bytes.map(|_| pair(names.skinny)).transpose()?,
            })
        };
        Ok(Quant {
            formats: NAMES.iter().map(of_format).collect::<Result<_>>()?,
            f32: modules.function("quant_f32")?,
            gather: pair(["quant_gather_f32", "quant_gather_bf16"])?,
            round: modules.function("round_rows")?,
            encode: Encode::load(modules)?,
        })
    }
}
