//! RoPE frequencies: one angle per position and pair of dimensions, `position * inv_freq[i]`.
//!
//! Pair `i` of `dim / 2` turns with `theta^(-2 i / dim)`; the scaling types stretch the context by
//! slowing some or all pairs down. Powers are rounded to f32 where transformers rounds, so the
//! values agree with its buffers to the last bits. Sources: Su et al. 2021 (RoPE); Peng et al. 2023
//! (YaRN, sections 3.2 and 3.4); `modeling_rope_utils.py` of transformers for defaults; GGUF's
//! `rope_freqs.weight` for per-pair divisors.

use std::f64::consts::PI;
use std::ops::Range;

use super::config::{RopeConfig, RopeScaling};
use crate::kernels::rows::Rotations;

/// Inverse frequencies `[dim / 2]` and the factor on cosine and sine (1 except for YaRN) for a
/// sequence of `seq_len` tokens. Only `Dynamic` looks at the length.
pub fn inv_freq(cfg: &RopeConfig, head_dim: usize, seq_len: usize) -> (Vec<f32>, f32) {
    let mut freqs = Vec::new();
    let attention_scale = fill_inv_freq(&mut freqs, cfg, head_dim, seq_len);
    (freqs, attention_scale)
}

/// [`inv_freq`] in the memory of `freqs`, which are overwritten; returns the factor.
fn fill_inv_freq(freqs: &mut Vec<f32>, cfg: &RopeConfig, head_dim: usize, seq_len: usize) -> f32 {
    // A validated configuration has `cfg.dim == head_dim`; the smaller one is what exists of both.
    let dim = cfg.dim.min(head_dim);
    let mut attention_scale = 1.0;
    freqs.clear();
    match &cfg.scaling {
        RopeScaling::None => freqs.extend(plain(cfg.theta, dim)),
        RopeScaling::Linear { factor } => {
            freqs.extend(plain(cfg.theta, dim).map(|f| f / *factor as f32));
        }
        RopeScaling::Dynamic { factor, max_seq_len } => {
            let theta = grown_theta(cfg.theta, dim, *factor, *max_seq_len, seq_len);
            freqs.extend(plain(theta, dim));
        }
        RopeScaling::Yarn(yarn) => {
            yarn.inv_freq(freqs, cfg.theta, dim);
            attention_scale = yarn.attention_scale() as f32;
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => {
            let context = *original_max_seq_len as f64;
            let slow = |f: f32| llama3(f, *factor, *low_freq_factor, *high_freq_factor, context);
            freqs.extend(plain(cfg.theta, dim).map(slow));
        }
    }
    if let Some(factors) = &cfg.freq_factors {
        freqs.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
    }
    attention_scale
}

/// The frequencies of one model, computed again only where the length of a sequence changes them.
#[derive(Clone, Debug, Default)]
pub struct Frequencies {
    freqs: Vec<f32>,
    scale: f32,
    /// The length that they hold for.
    seq_len: Option<usize>,
}

impl Frequencies {
    /// Those of [`inv_freq`]; always of the same model.
    fn at(&mut self, cfg: &RopeConfig, head_dim: usize, seq_len: usize) -> (&[f32], f32) {
        // All lengths that give the same frequencies count as one.
        let seq_len = match cfg.scaling {
            RopeScaling::Dynamic { max_seq_len, .. } => seq_len.max(max_seq_len),
            _ => 0,
        };
        if self.seq_len != Some(seq_len) {
            self.scale = fill_inv_freq(&mut self.freqs, cfg, head_dim, seq_len);
            self.seq_len = Some(seq_len);
        }
        (&self.freqs, self.scale)
    }
}

/// Empties `angles` for rows of a model like `cfg`.
pub fn clear_angles(angles: &mut Rotations, cfg: &RopeConfig, head_dim: usize) {
    angles.clear(cfg.dim.min(head_dim) / 2);
}

/// Appends the angles of some positions of a sequence of `seq_len` tokens, rounded as transformers
/// rounds them: the angle to f32 before, cosine and sine after. Allocates only where `angles` grow.
pub fn append_angles(
    angles: &mut Rotations,
    frequencies: &mut Frequencies,
    cfg: &RopeConfig,
    head_dim: usize,
    positions: Range<usize>,
    seq_len: usize,
) {
    let (freqs, scale) = frequencies.at(cfg, head_dim, seq_len);
    for pos in positions {
        for freq in freqs {
            let (sin, cos) = f64::from(pos as f32 * freq).sin_cos();
            angles.cos.push(cos as f32 * scale);
            angles.sin.push(sin as f32 * scale);
        }
    }
}

/// `1 / theta^(2 i / dim)`.
fn plain(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    powers(theta, dim).map(|p| 1.0 / p)
}

/// `theta^(2 i / dim)`, exponent and result rounded to f32.
fn powers(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    let base = f64::from(theta as f32);
    (0..dim / 2).map(move |i| base.powf(f64::from((2 * i) as f32 / dim as f32)) as f32)
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

/// The Llama 3 scaling whose divisors of the frequencies these are: the inverse of what a GGUF file
/// stores for it. The factors 1 and 4 of low and high frequencies are those of every Llama 3; only
/// the ratio of both to the context matters. `None` for divisors that are no such scaling's.
pub fn llama3_of_factors(rope: &RopeConfig, factors: &[f32]) -> Option<RopeScaling> {
    let (low, high) = (1.0, 4.0);
    let factor = factors.iter().copied().fold(1.0f32, f32::max);
    let factor = nearest_round(f64::from(factor));
    let freqs: Vec<f32> = plain(rope.theta, rope.dim).collect();
    let blended = |&(_, &g): &(&f32, &f32)| g > 1.0 && f64::from(g) < factor * (1.0 - 1e-6);
    let (f, g) = freqs.iter().zip(factors).find(blended)?;
    // 1 / g = (1 - s) / factor + s, and s = (context / wavelength - low) / (high - low).
    let s = (1.0 / f64::from(*g) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let context = (s * (high - low) + low) * 2.0 * PI / f64::from(*f);
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_seq_len: context.round() as usize,
    };
    let same = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
    (freqs.len() == factors.len() && freq_factors(rope, &scaling).iter().zip(factors).all(same))
        .then_some(scaling)
}

/// A number with a few digits where it is one up to the rounding of f32.
fn nearest_round(x: f64) -> f64 {
    let rounded = (x * 1e3).round() / 1e3;
    if (rounded - x).abs() <= 1e-6 * x.abs() { rounded } else { x }
}

/// By what a scaling divides each frequency, `[dim / 2]`: what GGUF stores as `rope_freqs.weight`.
pub fn freq_factors(rope: &RopeConfig, scaling: &RopeScaling) -> Vec<f32> {
    let of = |scaling: RopeScaling| {
        let rope = RopeConfig { scaling, freq_factors: None, ..rope.clone() };
        inv_freq(&rope, rope.dim, 1).0
    };
    let pairs = of(RopeScaling::None).into_iter().zip(of(scaling.clone()));
    pairs.map(|(plain, scaled)| (f64::from(plain) / f64::from(scaled)) as f32).collect()
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
    /// Appends the frequencies.
    fn inv_freq(&self, freqs: &mut Vec<f32>, theta: f64, dim: usize) {
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
        freqs.extend(powers(theta, dim).enumerate().map(|(i, power)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            // Written as transformers does, for equal rounding.
            let keep = 1.0 - ramp;
            1.0 / (factor * power) * (1.0 - keep) + 1.0 / power * keep
        }));
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

#[cfg(test)]
mod tests {
    use super::super::config::{Config, RopePairing};
    use super::*;
    use crate::format::hf_config::HfConfig;
    use crate::format::mmap::Access;
    use crate::format::safetensors;
    use std::path::Path;

    fn rope(theta: f64, dim: usize, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, dim, pairing: RopePairing::Half, scaling, freq_factors: None }
    }

    /// Three roundings to f32, each within half an ulp of 2^-23, in the power, its inverse and the scaling.
    const ROUNDING: f64 = 3.0 / (1u32 << 23) as f64;

    fn close(got: &[f32], wanted: &[f64]) {
        assert_eq!(got.len(), wanted.len());
        for (i, (&g, &w)) in got.iter().zip(wanted).enumerate() {
            assert!((f64::from(g) - w).abs() <= ROUNDING * w.abs(), "pair {i}: {g} is not {w}");
        }
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        for model in [
            "mini-bf16-sharded",
            "mini-dynamic",
            "mini-gqa",
            "mini-headdim-bias",
            "mini-linear",
            "mini-llama3rope",
            "mini-mha",
        ] {
            let dir = Path::new("tests/fixtures").join(model);
            let hf = HfConfig::read(&dir.join("config.json")).unwrap();
            let config = Config::from_hf(&hf).unwrap();
            let files = safetensors::open(&dir.join("logits.safetensors"), Access::Map).unwrap();
            let bytes = files.bytes(files.get("rope.inv_freq").unwrap()).unwrap();
            let wanted: Vec<f64> = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
                .collect();
            let (got, attention_scale) = inv_freq(&config.rope, config.head_dim, 1);
            close(&got, &wanted);
            assert_eq!(attention_scale, 1.0, "{model}");
        }
    }

    #[test]
    fn dynamic_grows_only_past_the_context() {
        let config = rope(1e4, 24, RopeScaling::Dynamic { factor: 2.0, max_seq_len: 24 });
        let base = inv_freq(&config, 24, 24).0;
        assert_eq!(base, inv_freq(&config, 24, 1).0);
        // 36 tokens: the base grows by (2 * 36 / 24 - 1)^(24 / 22) = 2^(12 / 11).
        let theta = 1e4 * 2f64.powf(12.0 / 11.0);
        let wanted: Vec<f64> = (0..12).map(|i| theta.powf(f64::from(-i) / 12.0)).collect();
        let grown = inv_freq(&config, 24, 36).0;
        assert!(grown[11] < base[11]);
        for (&g, &w) in grown.iter().zip(&wanted) {
            // The exponent's own rounding is magnified by ln(theta).
            assert!((f64::from(g) - w).abs() <= ROUNDING * 10.0 * w, "{g} is not {w}");
        }
    }

    #[test]
    fn freq_factors_divide() {
        let mut config = rope(1e4, 4, RopeScaling::None);
        config.freq_factors = Some(vec![1.0, 8.0]);
        assert_eq!(inv_freq(&config, 4, 1).0, [1.0, 0.01 / 8.0]);
    }

    fn yarn(factor: f64, original_max_seq_len: usize) -> Yarn {
        Yarn {
            factor,
            original_max_seq_len,
            attention_factor: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        }
    }

    /// Values of the published formula, worked out in double precision outside this program.
    #[test]
    #[allow(clippy::excessive_precision)]
    fn yarn_blends_between_the_ends_of_its_ramp() {
        let whole = yarn(4.0, 2048);
        let fractional = Yarn { truncate: false, ..whole };
        let betas = Yarn { beta_fast: 16.0, beta_slow: 2.0, ..yarn(8.0, 512) };
        let cases: [(f64, usize, Yarn, &[f64]); 3] = [
            (
                1e4,
                16,
                whole,
                &[
                    1.0,
                    0.316227766,
                    0.1,
                    0.025693506,
                    0.00625,
                    0.00138349648,
                    0.00025,
                    7.90569415e-5,
                ],
            ),
            (
                1e4,
                16,
                fractional,
                &[
                    1.0,
                    0.316227766,
                    0.1,
                    0.0238701923,
                    0.00505697152,
                    0.000811290382,
                    0.00025,
                    7.90569415e-5,
                ],
            ),
            (
                5e5,
                12,
                betas,
                &[1.0, 0.0631384902, 0.00157490131, 0.000176776695, 1.98425131e-5, 2.2272468e-6],
            ),
        ];
        for (theta, dim, settings, wanted) in cases {
            let got = inv_freq(&rope(theta, dim, RopeScaling::Yarn(settings)), dim, 1).0;
            for (i, (&g, &w)) in got.iter().zip(wanted).enumerate() {
                // The exponent's own rounding is magnified by ln(theta) < 14.
                assert!(
                    (f64::from(g) - w).abs() <= ROUNDING * 14.0 * w,
                    "{settings:?} {i}: {g}, {w}"
                );
            }
        }
    }

    #[test]
    fn yarn_attention_scale_follows_its_settings() {
        let near = |yarn: Yarn, wanted: f64| {
            let got = yarn.attention_scale();
            assert!((got - wanted).abs() < 1e-12, "{yarn:?}: {got} is not {wanted}");
        };
        near(yarn(4.0, 64), 1.138629436111989);
        near(yarn(0.5, 64), 1.0);
        near(Yarn { attention_factor: Some(0.7), ..yarn(4.0, 64) }, 0.7);
        let both = Yarn { mscale: Some(0.707), mscale_all_dim: Some(1.2), ..yarn(40.0, 64) };
        near(both, 0.8739404576185121);
        near(Yarn { mscale_all_dim: Some(0.0), ..both }, 0.1 * 40f64.ln() + 1.0);
    }
}
