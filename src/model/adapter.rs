//! LoRA adapters of a model: read, written and started with the rows of Q and K in the model's own
//! order.

use std::path::Path;

use crate::error::Result;
use crate::format::peft::{self, AdapterFile, LinearShapes, LoraPair, LoraSpec, Target};
use crate::model::config::{Config, RopePairing};
use crate::model::names::{BlockWeight, Weight};
use crate::model::row_order::{convert_rows, turned_heads};
use crate::rng::Rng;

/// Stream of a seed that [`init_lora`] draws from, apart from those of sequences.
const LORA_STREAM: u64 = 1 << 40;

impl From<Target> for BlockWeight {
    fn from(target: Target) -> BlockWeight {
        match target {
            Target::Wq => BlockWeight::Wq,
            Target::Wk => BlockWeight::Wk,
            Target::Wv => BlockWeight::Wv,
            Target::Wo => BlockWeight::Wo,
            Target::W1 => BlockWeight::W1,
            Target::W2 => BlockWeight::W2,
            Target::W3 => BlockWeight::W3,
        }
    }
}

/// The linear layer that a weight is; `None` for every other weight.
pub fn target_of(weight: Weight) -> Option<(usize, Target)> {
    let Weight::Block(layer, weight) = weight else { return None };
    let target = Target::ALL.into_iter().find(|&target| BlockWeight::from(target) == weight)?;
    Some((layer, target))
}

/// Sizes of a model's linear layers.
pub fn linear_shapes(config: &Config) -> LinearShapes {
    LinearShapes {
        n_layers: config.n_layers,
        dim: config.dim,
        hidden_dim: config.hidden_dim,
        q_rows: config.n_heads * config.head_dim,
        kv_rows: config.n_kv_heads * config.head_dim,
    }
}

/// Reads an adapter for a model; B of Q and K gets the order of the model's rows.
///
/// # Errors
/// As [`peft::read`].
pub fn read_adapter(dir: &Path, config: &Config) -> Result<AdapterFile> {
    let adapter = peft::read(dir, &linear_shapes(config))?;
    Ok(in_order(adapter, config, RopePairing::Half, config.rope.pairing))
}

/// Writes an adapter of a model, in Hugging Face's order of rows whatever the model's is. `base` is
/// the model's name or path.
///
/// # Errors
/// As [`peft::write`].
pub fn write_adapter(dir: &Path, adapter: &AdapterFile, config: &Config, base: &str) -> Result<()> {
    if config.rope.pairing == RopePairing::Half {
        return peft::write(dir, adapter, base);
    }
    let adapter = in_order(adapter.clone(), config, config.rope.pairing, RopePairing::Half);
    peft::write(dir, &adapter, base)
}

fn in_order(
    mut adapter: AdapterFile,
    config: &Config,
    from: RopePairing,
    to: RopePairing,
) -> AdapterFile {
    for pair in &mut adapter.pairs {
        let weight = Weight::Block(pair.layer, pair.target.into());
        if let Some(n_heads) = turned_heads(config, weight) {
            let b = std::mem::take(&mut pair.b);
            pair.b = convert_rows(b, n_heads, config.head_dim, from, to);
        }
    }
    adapter
}

/// A new adapter as PEFT starts it: A uniform in `[-1 / sqrt(in), 1 / sqrt(in))` (Kaiming's rule
/// with a = sqrt(5)), B zero. The same seed gives the same adapter.
///
/// # Errors
/// [`crate::Error::Config`] for settings that no adapter can have.
pub fn init_lora(spec: &LoraSpec, config: &Config, seed: u64) -> Result<AdapterFile> {
    spec.check("--lora-")?;
    let shapes = linear_shapes(config);
    let mut rng = Rng::new(seed, LORA_STREAM);
    let mut pairs = Vec::with_capacity(shapes.n_layers * spec.targets.len());
    for layer in 0..shapes.n_layers {
        for &target in &spec.targets {
            let (out, inner) = shapes.of(target);
            let bound = 1.0 / (inner as f64).sqrt();
            let draw = |_| ((2.0 * rng.uniform() - 1.0) * bound) as f32;
            let a = (0..spec.r * inner).map(draw).collect();
            pairs.push(LoraPair { layer, target, a, b: vec![0.0; out * spec.r] });
        }
    }
    Ok(AdapterFile { spec: spec.clone(), pairs, score: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::hf_config::HfConfig;

    fn mini_gqa() -> Config {
        let path = Path::new("tests/fixtures/mini-gqa/config.json");
        Config::from_hf(&HfConfig::read(path).unwrap()).unwrap()
    }

    #[test]
    fn an_adapter_of_a_gguf_model_is_stored_in_the_order_of_hugging_face() {
        let half = mini_gqa();
        let mut interleaved = half.clone();
        interleaved.rope.pairing = RopePairing::Interleaved;
        let fixture = Path::new("tests/fixtures/mini-gqa/lora-all-init");
        let (ours, theirs) =
            (read_adapter(fixture, &interleaved).unwrap(), read_adapter(fixture, &half).unwrap());
        let b = |adapter: &AdapterFile, target| adapter.get(1, target).unwrap().b.clone();
        assert_ne!(b(&ours, Target::Wq), b(&theirs, Target::Wq));
        // Heads of 8 rows, rank 4: row 1 of the model is row 4 of the file.
        assert_eq!(b(&ours, Target::Wk)[4..8], b(&theirs, Target::Wk)[16..20]);
        assert_eq!(b(&ours, Target::Wv), b(&theirs, Target::Wv));

        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("adapter");
        write_adapter(&out, &ours, &interleaved, "").unwrap();
        let name = peft::WEIGHTS_NAME;
        assert!(
            std::fs::read(out.join(name)).unwrap() == std::fs::read(fixture.join(name)).unwrap()
        );
    }

    #[test]
    fn a_new_adapter_changes_nothing_and_fills_its_range() {
        let config = mini_gqa();
        let spec = LoraSpec {
            r: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: Target::ALL.to_vec(),
            use_rslora: false,
        };
        let adapter = init_lora(&spec, &config, 3).unwrap();
        assert_eq!(adapter, init_lora(&spec, &config, 3).unwrap());
        assert_ne!(adapter, init_lora(&spec, &config, 4).unwrap());
        assert_eq!(adapter.pairs.len(), 28);
        for pair in &adapter.pairs {
            let (out, inner) = linear_shapes(&config).of(pair.target);
            assert_eq!((pair.a.len(), pair.b.len()), (8 * inner, out * 8));
            assert!(pair.b.iter().all(|&x| x == 0.0));
            let bound = 1.0 / (inner as f32).sqrt();
            assert!(pair.a.iter().all(|x| x.abs() <= bound));
            // A uniform variable over [-1, 1] has variance 1/3; of n draws the mean of squares has
            // standard error sqrt(4 / 45 / n), of which six are allowed.
            let n = pair.a.len() as f32;
            let squares = pair.a.iter().map(|x| (x / bound).powi(2)).sum::<f32>() / n;
            assert!((squares - 1.0 / 3.0).abs() < 6.0 * (4.0 / 45.0 / n).sqrt(), "{squares}");
        }
        assert!(init_lora(&LoraSpec { r: 0, ..spec }, &config, 0).is_err());
    }
}
