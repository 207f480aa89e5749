//! How fast are the two passes of training's attention, beside the machine's multiply-adds?
//!
//! `cargo bench -p puna-cpu --bench flash [-- THREADS [LEVEL [SHAPE]]]`. Forward counts 2 products of
//! `2 * keys * head_dim` operations for each row that sees `keys` keys, backward 5. One thread is
//! measured in its own CPU time, so that it can be measured on a busy machine.

use half::bf16;
use puna_cpu::flash::{Scratch, Shape, backward, forward};
use puna_cpu::floats::{Floats, FloatsMut};
use puna_cpu::isa::Isa;
use puna_cpu::limits::{Unit, peak};
use puna_cpu::team::Team;
use puna_cpu::testing::Gen;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let threads = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(2);
    let isa = args.get(1).and_then(|name| Isa::named(name)).unwrap_or_else(Isa::best);
    let team = Team::new(threads).expect("threads");
    let peak = peak(isa, &team, Unit::F32).map_or(f64::NAN, |ops| ops / 1e9);
    println!("{threads} threads, {isa}; multiply-adds alone: {peak:.0} GFLOP/s");
    let many = |n: usize| vec![512 / n; n];
    for (name, heads, spans) in [
        ("SmolLM2 512", [9, 3], vec![512]),
        ("SmolLM2 8 x 64", [9, 3], many(8)),
        ("SmolLM2 32 x 16", [9, 3], many(32)),
        ("SmolLM2 uneven", [9, 3], vec![300, 12, 1, 90, 109]),
        ("SmolLM2 2048", [9, 3], vec![2048]),
        ("TinyLlama 512", [32, 4], vec![512]),
        ("TinyLlama 8 x 64", [32, 4], many(8)),
    ] {
        if args.get(2).is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        for low in [false, true] {
            measure(isa, &team, peak, name, heads, &spans, low);
        }
    }
}

/// Numbers in either type.
enum Block {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Block {
    fn new(x: Vec<f32>, low: bool) -> Self {
        if low { Block::Bf16(x.into_iter().map(bf16::from_f32).collect()) } else { Block::F32(x) }
    }
    fn get(&self) -> Floats<'_> {
        match self {
            Block::F32(x) => Floats::F32(x),
            Block::Bf16(x) => Floats::Bf16(x),
        }
    }
    fn get_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Block::F32(x) => FloatsMut::F32(x),
            Block::Bf16(x) => FloatsMut::Bf16(x),
        }
    }
}

fn measure(
    isa: Isa,
    team: &Team,
    peak: f64,
    name: &str,
    heads: [usize; 2],
    spans: &[usize],
    low: bool,
) {
    let head_dim = 64;
    let t: usize = spans.iter().sum();
    let [n, m] = heads.map(|heads| t * heads * head_dim);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let shape =
        Shape { n_heads: heads[0], n_kv_heads: heads[1], head_dim, scale, window: None, spans };
    let mut data = Gen::new(1);
    let [q, dout, k, v] = [n, n, m, m].map(|n| Block::new(data.normals(n), low));
    let [mut out, mut dq, mut dk, mut dv] = [n, n, m, m].map(|n| Block::new(vec![0.0; n], low));
    let mut lse = vec![0.0; t * heads[0]];
    let mut scratch = Scratch::new();
    let keys: usize = spans.iter().map(|n| n * n / 2).sum();
    let flops = (4 * keys * heads[0] * head_dim) as f64;

    let (mut ahead, mut back) = (vec![], vec![]);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(400) || ahead.len() < 5 {
        let start = clock(team);
        let (out_mut, q, k, v) = (out.get_mut(), q.get(), k.get(), v.get());
        forward(isa, team, &shape, out_mut, &mut lse, q, k, v, &mut scratch);
        ahead.push(clock(team) - start);
        let start = clock(team);
        let (dq, dk, dv) = (dq.get_mut(), dk.get_mut(), dv.get_mut());
        let (dout, out) = (dout.get(), out.get());
        backward(isa, team, &shape, dq, dk, dv, dout, q, k, v, out, &lse, &mut scratch);
        back.push(clock(team) - start);
    }
    let (ahead, back) = (quartiles(ahead), quartiles(back));
    let rate = |flops: f64, time: f64| flops / time / 1e9;
    println!(
        "{name:17} {}  forward {:6.2} ms ({:.2}-{:.2}) {:4.0}  backward {:6.2} ms ({:.2}-{:.2}) \
         {:4.0}  both {:4.0} GFLOP/s, {:.0} %; scratch {:.1} MiB",
        if low { "bf16" } else { "f32 " },
        ahead[1] * 1e3,
        ahead[0] * 1e3,
        ahead[2] * 1e3,
        rate(flops, ahead[1]),
        back[1] * 1e3,
        back[0] * 1e3,
        back[2] * 1e3,
        rate(2.5 * flops, back[1]),
        rate(3.5 * flops, ahead[1] + back[1]),
        rate(3.5 * flops, ahead[1] + back[1]) / peak * 100.0,
        scratch.bytes() as f64 / (1 << 20) as f64,
    );
}

/// Seconds: of this thread's CPU time if the team is this thread alone.
fn clock(team: &Team) -> f64 {
    #[cfg(unix)]
    if team.len() == 1 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes to the struct alone.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        return time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    }
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Least, median and third quartile.
fn quartiles(mut times: Vec<f64>) -> [f64; 3] {
    times.sort_by(f64::total_cmp);
    [0, times.len() / 2, times.len() * 3 / 4].map(|i| times[i])
}
