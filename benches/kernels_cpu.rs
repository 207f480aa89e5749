//! How far is each kernel of inference from its bound? Criterion keeps earlier runs, so this is what
//! to run before and after touching a kernel; `puna bench --kernels` measures all types and shares.
//!
//! `cargo bench --features criterion --bench kernels_cpu [-- FILTER]`. Bytes a second where memory
//! bounds the kernel, operations a second (elem/s) where arithmetic does; the bound is printed first.
//! `PUNA_BENCH_THREADS` sets the threads (1 unless given).

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use puna_cpu::attention::{AttentionArgs, AttentionScratch, KvLayer, KvShape, KvType, attention};
use puna_cpu::isa::Isa;
use puna_cpu::limits::{Unit, peak, read_bandwidth};
use puna_cpu::products::{Product, Scratch, Weights, products};
use puna_cpu::qmatmul::PackedMatrix;
use puna_cpu::quant::{BlockType, decode_row, encode_row};
use puna_cpu::team::Team;
use std::hint::black_box;

/// Feed-forward of TinyLlama-1.1B, first weight.
const SHAPE: (&str, usize, usize) = ("tinyllama up", 5632, 2048);
const PROMPT: usize = 512;
const TYPES: [BlockType; 4] = [BlockType::Q4_0, BlockType::Q4_K, BlockType::Q6_K, BlockType::Q8_0];
/// Weights of one row at a time come from memory: more than the caches hold.
const COLD_BYTES: usize = 256 << 20;

struct Bench {
    isa: Isa,
    team: Team,
}

/// Pseudo-random numbers in -0.5..0.5.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

fn matrix(block: BlockType, n: usize, k: usize) -> (PackedMatrix, Vec<u8>) {
    let mut row = vec![0u8; block.row_bytes(k)];
    encode_row(block, &mut row, &numbers(k));
    (PackedMatrix::from_blocks(block, n, k, &row.repeat(n)), row)
}

/// The product of one row, to within the rounding of activations, or this bench measures nonsense.
fn assert_right(bench: &Bench, w: &PackedMatrix, row: &[u8], block: BlockType) {
    let (_, n, k) = SHAPE;
    let (x, mut out) = (numbers(k), vec![0.0; n]);
    let mut list = [Product { w: Weights::Packed(w), out: &mut out }];
    products(bench.isa, &bench.team, &mut Scratch::default(), &x, 1, false, &mut list);
    let mut weights = vec![0.0; k];
    decode_row(block, &mut weights, row);
    let wanted: f64 = weights.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
    let size: f64 = weights.iter().zip(&x).map(|(&w, &x)| f64::from((w * x).abs())).sum();
    let off = (f64::from(out[n - 1]) - wanted).abs();
    assert!(off <= 0.01 * size, "{block:?}: {} for {wanted}", out[n - 1]);
}

fn weights(bench: &Bench, c: &mut Criterion) {
    let (shape, n, k) = SHAPE;
    let mut one = c.benchmark_group(format!("{shape} 1 row"));
    for block in TYPES {
        let (w, row) = matrix(block, n, k);
        assert_right(bench, &w, &row, block);
        let mut all = vec![w];
        while all.iter().map(PackedMatrix::bytes).sum::<usize>() < COLD_BYTES {
            all.push(matrix(block, n, k).0);
        }
        let (x, mut out, mut scratch) = (numbers(k), vec![0.0; n], Scratch::default());
        one.throughput(Throughput::Bytes(all.iter().map(|w| w.bytes() as u64).sum()));
        one.bench_function(block.name(), |b| {
            b.iter(|| {
                for w in &all {
                    let mut list = [Product { w: Weights::Packed(w), out: &mut out }];
                    products(bench.isa, &bench.team, &mut scratch, &x, 1, false, &mut list);
                }
                black_box(&out);
            });
        });
    }
    one.finish();
    let mut many = c.benchmark_group(format!("{shape} {PROMPT} rows"));
    for block in TYPES {
        let (w, _) = matrix(block, n, k);
        let (x, mut out) = (numbers(PROMPT * k), vec![0.0; PROMPT * n]);
        let mut scratch = Scratch::default();
        many.throughput(Throughput::Elements(2 * (PROMPT * n * k) as u64));
        many.bench_function(block.name(), |b| {
            b.iter(|| {
                let mut list = [Product { w: Weights::Packed(&w), out: &mut out }];
                products(bench.isa, &bench.team, &mut scratch, &x, PROMPT, false, &mut list);
                black_box(&out);
            });
        });
    }
    many.finish();
}

fn cache(bench: &Bench, c: &mut Criterion) {
    // TinyLlama's heads.
    let (n_heads, n_kv_heads, head_dim, depth) = (32, 4, 64, 2048);
    let mut group: BenchmarkGroup<'_, WallTime> =
        c.benchmark_group(format!("tinyllama attention 1 row @ {depth}"));
    let row = numbers(n_kv_heads * head_dim);
    let q = numbers(n_heads * head_dim);
    for kv_type in KvType::ALL {
        let shape = KvShape { n_kv_heads, head_dim, kv_type };
        let mut kv = KvLayer::new(shape, depth);
        for pos in 0..depth {
            kv.append(bench.isa, pos, &row, &row);
        }
        let mut out = vec![0.0; n_heads * head_dim];
        let mut scratch = AttentionScratch::default();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let args = AttentionArgs { kv: &kv, n_heads, scale, window: None, first_pos: depth - 1 };
        attention(bench.isa, &bench.team, &args, &mut out, &q, &mut scratch);
        // Every position holds the same value, which is then the mean as well.
        let wanted = row[head_dim - 1];
        assert!((out[head_dim - 1] - wanted).abs() < 0.02, "{kv_type}: {}", out[head_dim - 1]);
        group.throughput(Throughput::Bytes(kv.bytes() as u64));
        group.bench_function(kv_type.name(), |b| {
            b.iter(|| attention(bench.isa, &bench.team, &args, &mut out, &q, &mut scratch));
        });
    }
    group.finish();
}

fn main() {
    let threads = std::env::var("PUNA_BENCH_THREADS").ok().and_then(|n| n.parse().ok());
    let team = Team::new(threads.unwrap_or(1)).expect("threads");
    let bench = Bench { isa: Isa::best(), team };
    let read = read_bandwidth(bench.isa, &bench.team, 1 << 30) / 1e9;
    let int8 = peak(bench.isa, &bench.team, Unit::Int8).map_or(f64::NAN, |ops| ops / 1e9);
    println!("{}: bounds: read {read:.1} GB/s, int8 {int8:.0} GOP/s", bench.isa);
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    weights(&bench, &mut criterion);
    cache(&bench, &mut criterion);
    criterion.final_summary();
}
