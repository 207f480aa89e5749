//! A sequence's logits have the same bits for every number of threads, however its prompt is cut,
//! whoever shares the batch, after a fork of its cache, and after a part of it was taken back.

use crate::support::engine::{append, load};
use crate::support::gguf::Draft;
use puna::format::FileDType;
use puna::model::config::{Config, Head, RopeConfig, RopePairing, RopeScaling};
use puna::model::llama::{KvType, LogitsFor, Model, Segment};
use puna::model::names::{BlockWeight, Weight};
use puna::rng::Rng;
use puna_cpu::quant::BlockType;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Longer than an attention chunk is wide and no multiple of a tile.
const LONG: usize = 150;
const KV_TYPES: [KvType; 3] = [KvType::F16, KvType::F32, KvType::Q8_0];

/// A model file and how to name it.
struct Case {
    name: String,
    path: PathBuf,
    exact: bool,
}

/// Dense models, and one of every quantised format with either kind of activations.
fn cases(scratch: &Path) -> Vec<Case> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let case = |name: &str, path: PathBuf, exact| Case { name: name.into(), path, exact };
    let mut cases: Vec<Case> = ["mini-gqa", "mini-headdim-bias", "mini-bf16-sharded"]
        .map(|model| case(model, fixtures.join(model), false))
        .into();
    let draft = random_draft();
    for block in BlockType::ALL {
        let path = scratch.join(format!("{}.gguf", block.name()));
        draft.write(&path, FileDType::Block(block));
        cases.push(case(block.name(), path.clone(), false));
        if block == BlockType::Q4_0 || block == BlockType::Q6_K {
            cases.push(case(&format!("{} exact", block.name()), path, true));
        }
    }
    cases
}

/// Random weights in the smallest shape that every block format can hold.
pub fn random_draft() -> Draft {
    let config = Config {
        dim: 256,
        hidden_dim: 512,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        max_seq_len: 256,
        vocab_size: 150,
        norm_eps: 1e-5,
        tie_embeddings: true,
        head: Head::Tokens,
        attention_bias: false,
        mlp_bias: false,
        rope: RopeConfig {
            theta: 10000.0,
            dim: 64,
            pairing: RopePairing::Half,
            scaling: RopeScaling::None,
            freq_factors: None,
        },
        sliding_window: None,
        bos_id: None,
        eos_ids: vec![],
    };
    let Config { dim, hidden_dim, vocab_size, .. } = config;
    let kv_dim = config.n_kv_heads * config.head_dim;
    let mut rng = Rng::new(11, 0);
    let mut weights = vec![];
    let mut add = |weight: Weight, shape: Vec<usize>| {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|_| match shape.len() {
            1 => 1.0 + 0.1 * rng.normal() as f32,
            _ => 0.08 * rng.normal() as f32,
        });
        let values = values.collect();
        weights.push((weight, shape, values));
    };
    add(Weight::TokEmb, vec![vocab_size, dim]);
    for layer in 0..config.n_layers {
        use BlockWeight::*;
        let shapes = [
            (AttnNorm, vec![dim]),
            (Wq, vec![dim, dim]),
            (Wk, vec![kv_dim, dim]),
            (Wv, vec![kv_dim, dim]),
            (Wo, vec![dim, dim]),
            (FfnNorm, vec![dim]),
            (W1, vec![hidden_dim, dim]),
            (W2, vec![dim, hidden_dim]),
            (W3, vec![hidden_dim, dim]),
        ];
        shapes.into_iter().for_each(|(w, shape)| add(Weight::Block(layer, w), shape));
    }
    add(Weight::OutNorm, vec![dim]);
    Draft { config, weights, rope_freqs: None }
}

fn tokens(model: &Model, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, 0);
    (0..n).map(|_| rng.next_u32() % model.config.vocab_size as u32).collect()
}

/// Logits [n, vocab] of a sequence whose prompt comes in pieces of these lengths, over and over.
fn in_pieces(model: &Model, tokens: &[u32], kv: KvType, pieces: &[usize]) -> Vec<f32> {
    let mut ws = model.workspace();
    let mut cache = model.new_cache(tokens.len(), kv).unwrap();
    let mut rest = tokens;
    let mut out = vec![];
    for &n in pieces.iter().cycle() {
        let (piece, after) = rest.split_at(n.min(rest.len()));
        out.extend(append(model, &mut ws, &mut cache, piece));
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    out
}

/// Where two lists first differ in a bit.
pub fn first_difference(got: &[f32], wanted: &[f32]) -> Option<String> {
    if got.len() != wanted.len() {
        return Some(format!("{} values, wanted {}", got.len(), wanted.len()));
    }
    let at = got.iter().zip(wanted).position(|(g, w)| g.to_bits() != w.to_bits())?;
    Some(format!("value {at}: {:e}, wanted {:e}", got[at], wanted[at]))
}

/// Failing rows of a test, all reported together.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn compare(&mut self, row: String, got: &[f32], wanted: &[f32]) {
        if let Some(difference) = first_difference(got, wanted) {
            self.0.push(format!("{row}: {difference}"));
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let scratch = TempDir::new().unwrap();
    let mut report = Report::default();
    for case in cases(scratch.path()) {
        let one = load(&case.path, 1, case.exact);
        let prompt = tokens(&one, LONG, 1);
        for kv in KV_TYPES {
            let wanted = in_pieces(&one, &prompt, kv, &[LONG - 5, 1]);
            assert!(wanted.iter().all(|x| x.is_finite()), "{}", case.name);
            for threads in [2, 3] {
                let many = load(&case.path, threads, case.exact);
                let got = in_pieces(&many, &prompt, kv, &[LONG - 5, 1]);
                report.compare(format!("{} {kv:?} {threads} threads", case.name), &got, &wanted);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_how_a_prompt_is_cut() {
    let scratch = TempDir::new().unwrap();
    let mut report = Report::default();
    for case in cases(scratch.path()) {
        let model = load(&case.path, 2, case.exact);
        let prompt = tokens(&model, LONG, 2);
        for kv in KV_TYPES {
            let wanted = in_pieces(&model, &prompt, kv, &[LONG]);
            for pieces in [&[1][..], &[7, 2, 64, 1, 33], &[16], &[LONG - 1, 1]] {
                let got = in_pieces(&model, &prompt, kv, pieces);
                report.compare(format!("{} {kv:?} pieces {pieces:?}", case.name), &got, &wanted);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_who_shares_the_batch() {
    let scratch = TempDir::new().unwrap();
    let mut report = Report::default();
    for case in cases(scratch.path()) {
        let model = load(&case.path, 2, case.exact);
        // Lengths of what each sequence has before, and of what it gets in the common batch.
        let shares = [(40, 1), (0, 23), (97, 4), (3, 1), (0, 1)];
        let all: Vec<Vec<u32>> =
            (0..).zip(shares).map(|(i, (a, b))| tokens(&model, a + b, 3 + i)).collect();
        let kv = KvType::F16;
        let alone: Vec<Vec<f32>> = all
            .iter()
            .zip(shares)
            .map(|(tokens, (before, now))| {
                let logits = in_pieces(&model, tokens, kv, &[tokens.len()]);
                assert_eq!(logits.len(), (before + now) * model.config.vocab_size);
                logits[before * model.config.vocab_size..].to_vec()
            })
            .collect();
        let mut ws = model.workspace();
        let mut caches: Vec<_> = all
            .iter()
            .zip(shares)
            .map(|(tokens, (before, _))| {
                let mut cache = model.new_cache(LONG, kv).unwrap();
                if before > 0 {
                    append(&model, &mut ws, &mut cache, &tokens[..before]);
                }
                cache
            })
            .collect();
        let mut segments: Vec<Segment<'_>> = all
            .iter()
            .zip(shares)
            .zip(&mut caches)
            .map(|((tokens, (before, _)), cache)| Segment {
                tokens: &tokens[before..],
                cache,
                logits: LogitsFor::All,
                rope_len: None,
            })
            .collect();
        model.forward(&mut ws, &mut segments).unwrap();
        let mut row = 0;
        for (i, wanted) in alone.iter().enumerate() {
            let now = shares[i].1;
            let got: Vec<f32> =
                (row..row + now).flat_map(|r| ws.logits(r).unwrap().to_vec()).collect();
            report.compare(format!("{} sequence {i}", case.name), &got, wanted);
            row += now;
        }
    }
}

#[test]
fn asking_for_fewer_logits_does_not_change_those() {
    let scratch = TempDir::new().unwrap();
    let mut report = Report::default();
    for case in cases(scratch.path()) {
        let model = load(&case.path, 2, case.exact);
        let prompt = tokens(&model, 50, 9);
        let all = in_pieces(&model, &prompt, KvType::F16, &[50]);
        let vocab = model.config.vocab_size;
        let mut ws = model.workspace();
        let mut cache = model.new_cache(50, KvType::F16).unwrap();
        for (range, logits) in [(0..20, LogitsFor::None), (20..50, LogitsFor::Last)] {
            let segment =
                Segment { tokens: &prompt[range], cache: &mut cache, logits, rope_len: None };
            model.forward(&mut ws, &mut [segment]).unwrap();
        }
        report.compare(
            format!("{} last row", case.name),
            ws.logits(0).unwrap(),
            &all[49 * vocab..],
        );
    }
}

#[test]
fn forks_and_second_thoughts_leave_no_trace() {
    let scratch = TempDir::new().unwrap();
    let mut report = Report::default();
    for case in cases(scratch.path()) {
        let model = load(&case.path, 2, case.exact);
        let vocab = model.config.vocab_size;
        let (first, second) = (tokens(&model, LONG, 20), tokens(&model, LONG, 21));
        let shared = 70;
        let other: Vec<u32> = first[..shared].iter().chain(&second[shared..]).copied().collect();
        for kv in KV_TYPES {
            let wanted = in_pieces(&model, &first, kv, &[LONG]);
            let wanted_other = in_pieces(&model, &other, kv, &[LONG]);
            let mut ws = model.workspace();
            let mut cache = model.new_cache(LONG, kv).unwrap();
            append(&model, &mut ws, &mut cache, &first[..shared]);

            let mut fork = cache.fork().expect("there is memory");
            let from_fork = append(&model, &mut ws, &mut fork, &other[shared..]);
            let from_own = append(&model, &mut ws, &mut cache, &first[shared..]);
            let row = |what: &str| format!("{} {kv:?} {what}", case.name);
            report.compare(row("fork"), &from_fork, &wanted_other[shared * vocab..]);
            report.compare(row("original after fork"), &from_own, &wanted[shared * vocab..]);

            cache.truncate(shared);
            let redone = append(&model, &mut ws, &mut cache, &other[shared..]);
            report.compare(row("taken back"), &redone, &wanted_other[shared * vocab..]);
            cache.truncate(0);
            let anew = append(&model, &mut ws, &mut cache, &first);
            report.compare(row("begun anew"), &anew, &wanted);
        }
    }
}

/// The same bits at every instruction set, each in a process of its own. What the sets compute
/// may differ from one to the next.
#[test]
fn every_instruction_set_keeps_its_bits() {
    let me = std::env::current_exe().unwrap();
    let mut n_run = 0;
    for isa in ["portable", "avx2"] {
        let mut available = puna_cpu::isa::Isa::available().into_iter();
        if !available.any(|have| have.level().name() == isa) {
            println!("SKIPPED {isa}: this machine lacks it");
            continue;
        }
        let tests = [
            "decode_parity::bits_do_not_depend_on_threads",
            "decode_parity::bits_do_not_depend_on_who_shares_the_batch",
        ];
        for test in tests {
            let run = std::process::Command::new(&me)
                .args(["--exact", test])
                .env("PUNA_ISA", isa)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success(), "{isa} {test}: {text}");
            assert!(text.contains("1 passed"), "{isa} {test}: {text}");
            n_run += 1;
        }
    }
    assert!(n_run >= 2, "the portable level is always there");
}
