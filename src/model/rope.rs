//! RoPE frequencies: one angle per position and pair of dimensions, `position * inv_freq[i]`.
//!
//! Pair `i` of `dim / 2` turns with `theta^(-2 i / dim)`; the scaling types stretch the context by
//! slowing some or all pairs down. Powers are rounded to f32 where transformers rounds, so the
//! values agree with its buffers to the last bits. Sources: Su et al. 2021 (RoPE); Peng et al. 2023
//! (YaRN, sections 3.2 and 3.4); `modeling_rope_utils.py` of transformers for defaults; GGUF's
//! `rope_freqs.weight` for per-pair divisors.

use std::f64::consts::PI;

use super::config::{RopeConfig, RopeScaling};

/// Inverse frequencies `[dim / 2]` and the factor on cosine and sine (1 except for YaRN) for a
/// sequence of `seq_len` tokens. Only `Dynamic` looks at the length.
pub fn inv_freq(cfg: &RopeConfig, head_dim: usize, seq_len: usize) -> (Vec<f32>, f32) {
    // A validated configuration has `cfg.dim == head_dim`; the smaller one is what exists of both.
    let dim = cfg.dim.min(head_dim);
    let (mut freqs, attention_scale) = match &cfg.scaling {
        RopeScaling::None => (plain(cfg.theta, dim), 1.0),
        RopeScaling::Linear { factor } => {
            (plain(cfg.theta, dim).iter().map(|f| f / *factor as f32).collect(), 1.0)
        }
        RopeScaling::Dynamic { factor, max_seq_len } => {
            (plain(grown_theta(cfg.theta, dim, *factor, *max_seq_len, seq_len), dim), 1.0)
        }
        RopeScaling::Yarn(yarn) => (yarn.inv_freq(cfg.theta, dim), yarn.attention_scale() as f32),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => {
            let context = *original_max_seq_len as f64;
            let slow = |f: f32| llama3(f, *factor, *low_freq_factor, *high_freq_factor, context);
            (plain(cfg.theta, dim).into_iter().map(slow).collect(), 1.0)
        }
    };
    if let Some(factors) = &cfg.freq_factors {
        freqs.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
    }
    (freqs, attention_scale)
}

/// `1 / theta^(2 i / dim)`.
fn plain(theta: f64, dim: usize) -> Vec<f32> {
    powers(theta, dim).into_iter().map(|p| 1.0 / p).collect()
}

/// `theta^(2 i / dim)`, exponent and result rounded to f32.
fn powers(theta: f64, dim: usize) -> Vec<f32> {
    let base = f64::from(theta as f32);
    (0..dim / 2).map(|i| base.powf(f64::from((2 * i) as f32 / dim as f32)) as f32).collect()
}

/// The base of dynamic NTK scaling: it grows once the sequence is longer than the model's context.
fn grown_theta(theta: f64, dim: usize, factor: f64, max_seq_len: usize, seq_len: usize) -> f64 {
    if seq_len <= max_seq_len || dim <= 2 {
        return theta;
    }
    let stretch = factor * seq_len as f64 / max_seq_len as f64 - (factor - 1.0);
    theta * stretch.powf(dim as f64 / (dim as f64 - 2.0))
}

/// Llama 3.1: long waves are slowed by `factor`, short ones kept, those between blended.
fn llama3(f: f32, factor: f64, low: f64, high: f64, context: f64) -> f32 {
    let wavelength = (2.0 * PI) as f32 / f;
    if f64::from(wavelength) < context / high {
        return f;
    }
    if f64::from(wavelength) > context / low {
        return f / factor as f32;
    }
    let blend = (context as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - blend) * f / factor as f32 + blend * f
}

/// Settings of YaRN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// By how much the context was stretched.
    pub factor: f64,
    /// Context before stretching.
    pub original_max_seq_len: usize,
    /// Factor on cosine and sine, where the file states it.
    pub attention_factor: Option<f64>,
    /// Pairs that turn more often than this over the original context keep their frequency.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are slowed by the whole factor.
    pub beta_slow: f64,
    /// Weight of the stretch in the attention scale's numerator.
    pub mscale: Option<f64>,
    /// The same in its denominator.
    pub mscale_all_dim: Option<f64>,
    /// Whether the ends of the ramp are rounded outward to whole pairs.
    pub truncate: bool,
}

impl Yarn {
    fn inv_freq(&self, theta: f64, dim: usize) -> Vec<f32> {
        // The (fractional) pair that turns `rotations` times over the original context.
        let pair = |rotations: f64| {
            let turns = self.original_max_seq_len as f64 / (rotations * 2.0 * PI);
            dim as f64 * turns.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            // The ramp would divide by zero; a steep one is what the limit means.
            high += 0.001;
        }
        let factor = self.factor as f32;
        powers(theta, dim)
            .into_iter()
            .enumerate()
            .map(|(i, power)| {
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                // Written as transformers does, for equal rounding.
                let keep = 1.0 - ramp;
                1.0 / (factor * power) * (1.0 - keep) + 1.0 / power * keep
            })
            .collect()
    }

    /// The factor on cosine and sine; squared it scales the attention scores.
    pub fn attention_scale(&self) -> f64 {
        let stretch = |weight: f64| match self.factor <= 1.0 {
            true => 1.0,
            false => 0.1 * weight * self.factor.ln() + 1.0,
        };
        // A weight of zero counts as absent, as in transformers.
        let given = |weight: Option<f64>| weight.filter(|&w| w != 0.0);
        self.attention_factor.unwrap_or_else(|| {
            match (given(self.mscale), given(self.mscale_all_dim)) {
                (Some(mscale), Some(all)) => stretch(mscale) / stretch(all),
                _ => stretch(1.0),
            }
        })
    }
}
