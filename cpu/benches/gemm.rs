//! How near the products of training come to the arithmetic peak of this machine.
//!
//! `cargo bench -p puna-cpu --bench gemm [-- THREADS [NAME]]` prints, for each shape, GFLOP/s and
//! the share of the peak, which is the speed of a loop that touches registers only. Each shape is
//! run several times; the median and the best are shown. One thread is timed by its processor
//! time, which other work disturbs little; several by the clock.

use half::bf16;
use puna_cpu::buffer::Buffer;
use puna_cpu::floats::{Floats, FloatsMut};
use puna_cpu::gemm::{Factor, Precision, Scratch, gemm};
use puna_cpu::isa::Isa;
use puna_cpu::limits::{Unit, peak};
use puna_cpu::qmatmul::PackedMatrix;
use puna_cpu::quant::{BlockType, encode_row};
use puna_cpu::team::Team;
use puna_cpu::testing::Gen;

/// How a shape's factors lie: `[m, k] [n, k]ᵀ`, `[m, k] [k, n]`, or `[k, m]ᵀ [k, n]` added.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Forward,
    Dx,
    Dw,
}

use Form::{Dw, Dx, Forward};

const SHAPES: &[(&str, Form, usize, usize, usize)] = &[
    ("smol q", Forward, 512, 576, 576),
    ("smol kv", Forward, 512, 192, 576),
    ("smol up", Forward, 512, 1536, 576),
    ("smol down", Forward, 512, 576, 1536),
    ("smol dx q", Dx, 512, 576, 576),
    ("smol dx kv", Dx, 512, 576, 192),
    ("smol dx up", Dx, 512, 576, 1536),
    ("smol dx down", Dx, 512, 1536, 576),
    ("smol dw q", Dw, 576, 576, 512),
    ("smol dw kv", Dw, 192, 576, 512),
    ("smol dw up", Dw, 1536, 576, 512),
    ("smol dw down", Dw, 576, 1536, 512),
    ("head", Forward, 128, 49152, 576),
    ("head dx", Dx, 128, 576, 49152),
    ("head dw", Dw, 49152, 576, 128),
    ("lora down", Forward, 512, 8, 576),
    ("lora up", Forward, 512, 576, 8),
    ("lora dw up", Dw, 576, 8, 512),
    ("lora dw down", Dw, 8, 576, 512),
    ("tiny q", Forward, 512, 2048, 2048),
    ("tiny up", Forward, 512, 5632, 2048),
    ("tiny down", Forward, 512, 2048, 5632),
    ("tiny dx", Dx, 512, 2048, 2048),
    ("tiny dw", Dw, 2048, 2048, 512),
];

/// Numbers in the type of a precision, page-aligned.
enum Block {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl Block {
    fn new(rng: &mut Gen, precision: Precision, len: usize) -> Block {
        match precision {
            Precision::F32 => {
                let mut x = Buffer::zeroed(len);
                x.iter_mut().for_each(|x: &mut f32| *x = rng.unit());
                Block::F32(x)
            }
            Precision::Bf16 => {
                let mut x = Buffer::zeroed(len);
                x.iter_mut().for_each(|x: &mut bf16| *x = bf16::from_f32(rng.unit()));
                Block::Bf16(x)
            }
        }
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Block::F32(x) => Floats::F32(x),
            Block::Bf16(x) => Floats::Bf16(x),
        }
    }
}

/// Seconds: of this thread's work if it works alone, else of the clock.
fn now(threads: usize) -> f64 {
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which lives here.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds of `runs` calls: the least and the median.
fn times(threads: usize, runs: usize, mut f: impl FnMut()) -> (f64, f64) {
    f();
    let mut all = vec![];
    for _ in 0..runs {
        let start = now(threads);
        f();
        all.push(now(threads) - start);
    }
    all.sort_by(f64::total_cmp);
    (all[0], all[runs / 2])
}

/// GFLOP/s of the team on registers.
fn peak_of(isa: Isa, team: &Team, precision: Precision) -> f64 {
    let unit = match precision {
        Precision::Bf16 if isa.has_bf16() => Unit::Bf16,
        _ => Unit::F32,
    };
    peak(isa, team, unit).map_or(f64::NAN, |ops| ops / 1e9)
}

fn line(name: &str, shape: [usize; 3], (least, median): (f64, f64), peak: f64) {
    let [m, n, k] = shape;
    let gflop = 2.0 * (m * n * k) as f64 / 1e9;
    println!(
        "{name:16} {m:6} x {n:6} x {k:6}  median {:7.1} GFLOP/s ({:3.0} %)  best {:7.1} ({:3.0} %)",
        gflop / median,
        100.0 * gflop / median / peak,
        gflop / least,
        100.0 * gflop / least / peak,
    );
}

/// The named shapes, in one precision.
fn shapes(isa: Isa, team: &Team, precision: Precision, only: &str) {
    let mut rng = Gen::new(1);
    let mut scratch = Scratch::default();
    let all = peak_of(isa, team, precision);
    println!("\n{isa}, {precision:?}, {} threads; peak {all:.0} GFLOP/s", team.len());
    for &(name, form, m, n, k) in SHAPES.iter().filter(|shape| shape.0.contains(only)) {
        let (a, b) =
            (Block::new(&mut rng, precision, m * k), Block::new(&mut rng, precision, n * k));
        let mut out =
            Block::new(&mut rng, if form == Dw { Precision::F32 } else { precision }, m * n);
        let runs = (20e9 / (2.0 * (m * n * k) as f64)).clamp(5.0, 60.0) as usize;
        let time = times(team.len(), runs, || {
            let (a, b) = match form {
                Forward => (Factor::plain(a.floats(), m, k), Factor::plain(b.floats(), n, k).t()),
                Dx => (Factor::plain(a.floats(), m, k), Factor::plain(b.floats(), k, n)),
                Dw => (Factor::plain(a.floats(), k, m).t(), Factor::plain(b.floats(), k, n)),
            };
            let to = match &mut out {
                Block::F32(x) => FloatsMut::F32(x),
                Block::Bf16(x) => FloatsMut::Bf16(x),
            };
            gemm(isa, team, &mut scratch, precision, to, form == Dw, 1.0, a, b);
        });
        line(name, [m, n, k], time, all);
    }
}

/// Products with a quantised weight.
fn quantised(isa: Isa, team: &Team) {
    let mut rng = Gen::new(2);
    let mut scratch = Scratch::default();
    let (m, n, k) = (512, 2048, 2048);
    let precision = Precision::Bf16;
    let all = peak_of(isa, team, precision);
    let (x, dy) = (Block::new(&mut rng, precision, m * k), Block::new(&mut rng, precision, m * n));
    let mut out = vec![0.0f32; m * n.max(k)];
    for block in [BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4_K, BlockType::Q6_K] {
        let row: Vec<f32> = (0..k).map(|_| rng.unit()).collect();
        let mut one = vec![0u8; block.row_bytes(k)];
        encode_row(block, &mut one, &row);
        let w = PackedMatrix::from_blocks(block, n, k, &one.repeat(n));
        let time = times(team.len(), 9, || {
            let (a, b) = (Factor::plain(x.floats(), m, k), Factor::packed(&w).t());
            let to = FloatsMut::F32(&mut out[..m * n]);
            gemm(isa, team, &mut scratch, precision, to, false, 1.0, a, b);
        });
        line(&format!("{} forward", block.name()), [m, n, k], time, all);
        let time = times(team.len(), 9, || {
            let (a, b) = (Factor::plain(dy.floats(), m, n), Factor::packed(&w));
            let to = FloatsMut::F32(&mut out[..m * k]);
            gemm(isa, team, &mut scratch, precision, to, false, 1.0, a, b);
        });
        line(&format!("{} dx", block.name()), [m, k, n], time, all);
    }
}

fn main() {
    // Cargo itself passes `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let threads = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(1);
    let only = args.get(1).map_or("", String::as_str);
    let team = Team::new(threads).expect("threads");
    let isa = Isa::best();
    for precision in [Precision::F32, Precision::Bf16] {
        shapes(isa, &team, precision, only);
    }
    if only.is_empty() || only == "quantised" {
        println!();
        quantised(isa, &team);
    }
}
