//! A model with Mistral's sliding window computes what plain loops in f64 compute: every position
//! sees itself and the `window - 1` positions before it.

use crate::support::engine::{append, load};
use crate::support::gguf::Draft;
use puna::format::FileDType;
use puna::format::gguf::keys;
use puna::model::config::{Config, Head, RopeConfig, RopePairing, RopeScaling};
use puna::model::llama::{KvType, Model};
use puna::model::names::{BlockWeight, Weight};
use puna::rng::Rng;
use std::path::Path;
use tempfile::TempDir;

/// Shorter than the sequence, no multiple of a tile, and crossed by chunks of the prompt.
const WINDOW: usize = 21;
const LENGTH: usize = 90;
/// f32 arithmetic, relative to the largest logit.
const BOUND: f64 = 1e-4;

fn draft(sliding_window: Option<usize>) -> Draft {
    let config = Config {
        dim: 24,
        hidden_dim: 40,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        max_seq_len: 128,
        vocab_size: 60,
        norm_eps: 1e-5,
        tie_embeddings: false,
        head: Head::Tokens,
        attention_bias: false,
        mlp_bias: false,
        rope: RopeConfig {
            theta: 10000.0,
            dim: 8,
            pairing: RopePairing::Half,
            scaling: RopeScaling::None,
            freq_factors: None,
        },
        sliding_window,
        bos_id: None,
        eos_ids: vec![],
    };
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let mut rng = Rng::new(3, 0);
    let weights = Weight::all(config.n_layers)
        .filter_map(|weight| {
            use BlockWeight::*;
            let shape = match weight {
                Weight::Score => return None,
                Weight::TokEmb | Weight::LmHead => vec![config.vocab_size, config.dim],
                Weight::OutNorm => vec![config.dim],
                Weight::Block(_, w) => match w {
                    AttnNorm | FfnNorm => vec![config.dim],
                    Wq => vec![q, config.dim],
                    Wk | Wv => vec![kv, config.dim],
                    Wo => vec![config.dim, q],
                    W1 | W3 => vec![config.hidden_dim, config.dim],
                    W2 => vec![config.dim, config.hidden_dim],
                    _ => return None,
                },
            };
            let n: usize = shape.iter().product();
            let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
            let values = (0..n).map(|_| centre + 0.3 * rng.normal() as f32).collect();
            Some((weight, shape, values))
        })
        .collect();
    Draft { config, weights, rope_freqs: None }
}

/// The forward pass in f64, without a cache; logits [tokens, vocab].
struct Plain<'a>(&'a Draft);

impl Plain<'_> {
    fn weight(&self, wanted: Weight) -> &[f32] {
        let found = self.0.weights.iter().find(|(weight, ..)| *weight == wanted);
        &found.expect("the draft has every weight").2
    }

    fn product(&self, weight: Weight, x: &[f64]) -> Vec<f64> {
        let row = |w: &[f32]| w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
        self.weight(weight).chunks(x.len()).map(row).collect()
    }

    fn norm(&self, weight: Weight, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(self.0.config.norm_eps)).sqrt();
        self.weight(weight).iter().zip(x).map(|(&w, x)| f64::from(w) * x * scale).collect()
    }

    fn rotate(&self, x: &mut [f64], position: usize) {
        let (hd, theta) = (self.0.config.head_dim, self.0.config.rope.theta);
        for head in x.chunks_mut(hd) {
            for i in 0..hd / 2 {
                let angle = position as f64 * theta.powf(-2.0 * i as f64 / hd as f64);
                let (a, b) = (head[i], head[i + hd / 2]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + hd / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    }

    /// Attention of one query row over the positions it sees.
    fn attend(&self, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let c = &self.0.config;
        let hd = c.head_dim;
        let mut out = vec![];
        for (h, q) in q.chunks(hd).enumerate() {
            let at = h / (c.n_heads / c.n_kv_heads) * hd;
            let score = |k: &Vec<f64>| {
                let dot: f64 = q.iter().zip(&k[at..at + hd]).map(|(q, k)| q * k).sum();
                (dot / (hd as f64).sqrt()).exp()
            };
            let weights: Vec<f64> = keys.iter().map(score).collect();
            let sum: f64 = weights.iter().sum();
            out.extend(
                (at..at + hd)
                    .map(|j| weights.iter().zip(values).map(|(w, v)| w * v[j]).sum::<f64>() / sum),
            );
        }
        out
    }

    fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        use BlockWeight::*;
        let c = &self.0.config;
        let table = self.weight(Weight::TokEmb);
        let row = |&id: &u32| table[id as usize * c.dim..][..c.dim].iter().map(|&x| x.into());
        let mut xs: Vec<Vec<f64>> = tokens.iter().map(|id| row(id).collect()).collect();
        let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        for layer in 0..c.n_layers {
            let block = |weight| Weight::Block(layer, weight);
            let (mut qs, mut ks, mut vs) = (vec![], vec![], vec![]);
            for (position, x) in xs.iter().enumerate() {
                let h = self.norm(block(AttnNorm), x);
                let (mut q, mut k) = (self.product(block(Wq), &h), self.product(block(Wk), &h));
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                qs.push(q);
                ks.push(k);
                vs.push(self.product(block(Wv), &h));
            }
            for (position, x) in xs.iter_mut().enumerate() {
                let end = position + 1;
                let begin = c.sliding_window.map_or(0, |window| end.saturating_sub(window));
                let att = self.attend(&qs[position], &ks[begin..end], &vs[begin..end]);
                add(x, self.product(block(Wo), &att));
                let h = self.norm(block(FfnNorm), x);
                let (gate, up) = (self.product(block(W1), &h), self.product(block(W3), &h));
                let act: Vec<f64> =
                    gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(x, self.product(block(W2), &act));
            }
        }
        let head = |x: &Vec<f64>| self.product(Weight::LmHead, &self.norm(Weight::OutNorm, x));
        xs.iter().flat_map(head).collect()
    }
}

/// Logits of a prompt that comes in pieces of `piece` tokens.
fn logits(model: &Model, tokens: &[u32], piece: usize) -> Vec<f32> {
    let mut ws = model.workspace();
    let mut cache = model.new_cache(tokens.len(), KvType::F32).unwrap();
    tokens.chunks(piece).flat_map(|part| append(model, &mut ws, &mut cache, part)).collect()
}

fn distance(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let off = got.iter().zip(wanted).map(|(&g, w)| (f64::from(g) - w).abs());
    // A NaN must not hide behind `max`.
    off.fold(0.0, |max: f64, d| if d > max || d.is_nan() { d } else { max }) / largest
}

fn loaded(draft: &Draft, dir: &Path) -> Model {
    let path = dir.join("model.gguf");
    draft.write(&path, FileDType::F32);
    load(&path, 2, true)
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let dir = TempDir::new().unwrap();
    let mut rng = Rng::new(4, 0);
    let tokens: Vec<u32> = (0..LENGTH).map(|_| rng.next_u32() % 60).collect();
    let mut of_windows = vec![];
    for window in [None, Some(WINDOW), Some(1), Some(LENGTH)] {
        let draft = draft(window);
        let model = loaded(&draft, dir.path());
        assert_eq!(model.config.sliding_window, window, "{}", keys::SLIDING_WINDOW);
        let wanted = Plain(&draft).logits(&tokens);
        for piece in [LENGTH, 32, 7, 1] {
            let off = distance(&logits(&model, &tokens, piece), &wanted);
            assert!(off < BOUND, "window {window:?}, pieces of {piece}: off by {off:.2e}");
        }
        of_windows.push(wanted);
    }
    // The window matters here, and one as long as the sequence is none.
    let as_f32 = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    assert!(distance(&as_f32(&of_windows[1]), &of_windows[0]) > 100.0 * BOUND);
    assert!(distance(&as_f32(&of_windows[3]), &of_windows[0]) < 1e-6);
}
