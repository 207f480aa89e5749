//! `--kernels`: the kernels of a model's shape, each beside the limit that bounds it.
//!
//! Products with one row, and attention of one row, read their operands once: they are measured
//! on more memory than caches hold and compared with the read bandwidth. Products with many rows
//! are compared with the peak of the unit that multiplies. Row-wise kernels are compared with the
//! speed at which a block of as many bytes is read, which is that of a cache where one holds it;
//! as they also write, they stay below.

use super::limits::{self, Limits};
use super::measure::stop_if_interrupted;
use super::report::{Report, column, rounded};
use super::stats::{deviation, mean};
use super::work::unit;
use super::{BenchArgs, SCHEMA};
use crate::cli::failure::Failure;
use crate::cli::machine::Machine;
use crate::error::Result;
use crate::format::FileDType;
#[cfg(feature = "cuda")]
use crate::kernels::Place;
use crate::kernels::attention::{AttentionArgs, KvLayer, KvShape, KvType, attention};
use crate::kernels::matmul::{Factor, Precision, gemm};
use crate::kernels::rows::{Pairing, Rotations, rms_norm, rope, swiglu};
use crate::kernels::{Device, Floats, FloatsMut, Scratch};
use crate::model::shapes::{self, Shape};
use crate::rng::Rng;
use half::{bf16, f16};
use puna_cpu::floats as host;
use puna_cpu::limits::{Unit, read_bandwidth};
use puna_cpu::matmul::{Dense, DenseMatrix};
use puna_cpu::products::{self, Product, Weights};
use puna_cpu::qmatmul::PackedMatrix;
use puna_cpu::quant::{BlockType, encode_row};
use puna_cpu::softmax::softmax;
use serde_json::{Value, json};
use std::time::Instant;

/// Shape unless told otherwise.
const SHAPE: &str = "tinyllama-1.1b";
/// Rows of a prompt, of a training slice, and of the row-wise kernels.
const ROWS: usize = 512;
/// Positions that attention of one row sees.
const DEPTH: usize = 2048;
/// Memory that no cache holds, and the most that is taken for it.
const COLD_BYTES: usize = 256 << 20;
const MOST_COLD_BYTES: usize = 1 << 30;
/// Seconds of a sample at least: short kernels are called again and again.
const SAMPLE_S: f64 = 0.004;

/// What bounds a kernel.
#[derive(Clone, Copy)]
enum Bound {
    /// Bytes read from memory.
    Memory,
    /// Bytes of a block of this size, wherever it lies.
    Block(usize),
    /// Operations of a unit.
    Peak(Unit),
}

/// Where the cases run and what they leave.
struct Runner<'a> {
    device: &'a Device,
    shape: Shape,
    limits: Option<&'a Limits>,
    /// Read speeds of blocks measured so far.
    blocks: Vec<(usize, f64)>,
    cold_bytes: usize,
    samples: usize,
    rng: Rng,
    report: &'a mut Report,
}

/// Measures all kernels.
///
/// # Errors
/// Names that nothing has, interruption, and a closed standard output.
pub fn run(args: &BenchArgs) -> Result<Value, Failure> {
    #[cfg(feature = "cuda")]
    if args.common.device.place() != Place::Cpu {
        return super::gpu::run(args);
    }
    args.common.device.check()?;
    let shape = shapes::named(args.shape.as_deref().unwrap_or(SHAPE))?;
    let types = match &args.r#type {
        Some(name) => vec![shapes::dtype_named(name)?],
        None => BlockType::ALL
            .map(FileDType::Block)
            .into_iter()
            .chain([FileDType::BF16, FileDType::F16, FileDType::F32])
            .collect(),
    };
    let machine = Machine::detect()?;
    let mut columns = vec![
        column("kernel", "test", 0),
        column("threads", "threads", 0),
        column("rate", "rate", 1),
        column("±", "rate_stddev", 1),
        column("of", "rate_unit", 0),
        column("bound", "bound", 0),
        column("its rate", "bound_rate", 1),
        column("%", "percent", 1),
    ];
    columns.retain(|column| !args.no_limits || !matches!(column.key(), "bound_rate" | "percent"));
    let mut report = Report::new(args.format(), "bench_kernels", columns);
    let cpu_name = machine.cpu.as_deref().unwrap_or("unknown processor");
    let own = vec![
        ("model", json!(shape.name)),
        ("cpu", json!(machine.cpu)),
        ("isa", json!(machine.isa)),
    ];
    report.begin(&format!("{}; {cpu_name}, {}", shape.name, machine.isa), own)?;
    let largest_cache = machine.caches.iter().map(|cache| cache.bytes as usize).max().unwrap_or(0);
    let mut all_limits: Vec<Limits> = vec![];
    for threads in args.thread_counts() {
        if !args.no_limits && limits::with_threads(&all_limits, threads).is_none() {
            all_limits.push(Limits::measure(threads)?);
        }
        let device = Device::new(threads)?;
        let mut runner = Runner {
            device: &device,
            shape,
            limits: limits::with_threads(&all_limits, threads),
            blocks: vec![],
            cold_bytes: largest_cache.saturating_mul(4).clamp(COLD_BYTES, MOST_COLD_BYTES),
            samples: args.repetitions(),
            rng: Rng::new(args.common.seed, 0),
            report: &mut report,
        };
        for &dtype in &types {
            runner.products(dtype)?;
        }
        runner.attention()?;
        runner.rows()?;
        runner.training()?;
    }
    report.note(&limits::paragraph(&all_limits))?;
    Ok(json!({
        "program": concat!("puna ", env!("CARGO_PKG_VERSION")),
        "schema": SCHEMA,
        "model": shape.name,
        "repetitions": args.repetitions(),
        "machine": machine.json(),
        "limits": all_limits.iter().map(Limits::json).collect::<Vec<Value>>(),
        "results": report.into_rows(),
    }))
}

impl Runner<'_> {
    /// Times `call`, which does `amount` of work (bytes or operations), and reports it.
    fn measure(
        &mut self,
        name: String,
        amount: f64,
        bound: Bound,
        call: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        stop_if_interrupted()?;
        call()?;
        let start = Instant::now();
        call()?;
        let once_s = start.elapsed().as_secs_f64().max(1e-9);
        let calls = (SAMPLE_S / once_s).ceil().clamp(1.0, 1e6) as usize;
        let sample = |_| -> Result<f64> {
            let start = Instant::now();
            (0..calls).try_for_each(|_| call())?;
            Ok(calls as f64 * amount / start.elapsed().as_secs_f64().max(1e-9) / 1e9)
        };
        let rates = (0..self.samples).map(sample).collect::<Result<Vec<f64>>>()?;
        let (bound_name, rate_unit) = match bound {
            Bound::Memory => ("memory".to_owned(), "GB/s"),
            Bound::Block(bytes) => (format!("reading {:.1} MB", bytes as f64 / 1e6), "GB/s"),
            Bound::Peak(unit) => (unit.name().to_owned(), "GOP/s"),
        };
        let bound_rate = self.rate_of(bound).map(|rate| rate / 1e9);
        let rate = mean(&rates);
        let row = json!({
            "test": name,
            "threads": self.device.cpu.team.len(),
            "rate": rounded(Some(rate)),
            "rate_stddev": rounded(Some(deviation(&rates))),
            "rate_unit": rate_unit,
            // Rates, for --compare: more is faster, as with tokens.
            "samples_ts": rates,
            "bound": bound_name,
            "bound_rate": rounded(bound_rate),
            "percent": rounded(bound_rate.map(|bound| 100.0 * rate / bound)),
        });
        self.report.row(row)
    }

    /// The bound in bytes or operations a second; `None` where limits are not wanted, or the
    /// instruction set has no such unit.
    fn rate_of(&mut self, bound: Bound) -> Option<f64> {
        let limits = self.limits?;
        match bound {
            Bound::Memory => limits.read(),
            Bound::Peak(unit) => limits.peak(unit),
            Bound::Block(bytes) => {
                if let Some((_, rate)) = self.blocks.iter().find(|(known, _)| *known == bytes) {
                    return Some(*rate);
                }
                let cpu = &self.device.cpu;
                let rate = read_bandwidth(cpu.isa, &cpu.team, bytes);
                self.blocks.push((bytes, rate));
                Some(rate)
            }
        }
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.rng.uniform() as f32 - 0.5).collect()
    }

    /// Products with the feed-forward's first weight, one row and many.
    fn products(&mut self, dtype: FileDType) -> Result<()> {
        let (cpu, n, k) = (&self.device.cpu, self.shape.hidden_dim, self.shape.dim);
        let mut first = Matrix::new(dtype, n, k, &self.numbers(k));
        let copies = self.cold_bytes.div_ceil(first.bytes());
        let mut all: Vec<Matrix> = (1..copies).map(|_| first.copy(n, k)).collect();
        all.push(first);
        let bytes: usize = all.iter().map(Matrix::bytes).sum();
        let mut scratch = products::Scratch::default();
        let (x, mut out) = (self.numbers(ROWS * k), vec![0.0; ROWS * n]);
        let mut multiply = |w: &Matrix, m: usize| {
            let mut list = [Product { w: w.weights(n, k), out: &mut out[..m * n] }];
            products::products(cpu.isa, &cpu.team, &mut scratch, &x[..m * k], m, false, &mut list);
        };
        let type_name = dtype.name();
        let name = format!("product {type_name} 1 x {k} x {n}");
        self.measure(name, bytes as f64, Bound::Memory, &mut || {
            all.iter().for_each(|w| multiply(w, 1));
            Ok(())
        })?;
        all.truncate(1);
        let name = format!("product {type_name} {ROWS} x {k} x {n}");
        let ops = 2.0 * (ROWS * n) as f64 * k as f64;
        let bound = Bound::Peak(unit(cpu.isa, type_name, false));
        self.measure(name, ops, bound, &mut || {
            multiply(&all[0], ROWS);
            Ok(())
        })
    }

    /// Attention over the cache: one row, with every type of cache, and the rows of a prompt.
    fn attention(&mut self) -> Result<()> {
        let (device, shape) = (self.device, self.shape);
        let head_dim = shape.dim / shape.n_heads;
        let kv_width = shape.n_kv_heads * head_dim;
        let q = self.numbers(ROWS * shape.dim);
        let row = self.numbers(kv_width);
        let mut out = vec![0.0; ROWS * shape.dim];
        let mut scratch = Scratch::default();
        for kv_type in KvType::ALL {
            let kv_shape = KvShape { n_kv_heads: shape.n_kv_heads, head_dim, kv_type };
            let mut first = KvLayer::new(kv_shape, DEPTH);
            for pos in 0..DEPTH {
                first.append(device.cpu.isa, pos, &row, &row);
            }
            let copies = self.cold_bytes.div_ceil(first.bytes());
            let mut all: Vec<KvLayer> = (1..copies)
                .map(|_| {
                    let mut copy = KvLayer::new(kv_shape, DEPTH);
                    copy.copy_from(&first, DEPTH);
                    copy
                })
                .collect();
            all.push(first);
            let mut attend = |kv: &KvLayer, first_pos: usize, rows: usize| {
                let scale = 1.0 / (head_dim as f32).sqrt();
                let args =
                    AttentionArgs { kv, n_heads: shape.n_heads, scale, window: None, first_pos };
                let n = rows * shape.dim;
                attention(device, &mut scratch, &args, &mut out[..n], &q[..n]);
            };
            let bytes: usize = all.iter().map(|kv| kv.bytes() / kv.capacity() * DEPTH).sum();
            let name = format!("attention {kv_type} 1 row @ {DEPTH}");
            self.measure(name, bytes as f64, Bound::Memory, &mut || {
                all.iter().for_each(|kv| attend(kv, DEPTH - 1, 1));
                Ok(())
            })?;
            if kv_type == KvType::F16 {
                let visible = ROWS * (ROWS + 1) / 2;
                let ops = 4.0 * visible as f64 * shape.dim as f64;
                let name = format!("attention {kv_type} {ROWS} rows");
                self.measure(name, ops, Bound::Peak(Unit::F32), &mut || {
                    attend(&all[0], 0, ROWS);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Kernels that go over rows once.
    fn rows(&mut self) -> Result<()> {
        let (device, shape) = (self.device, self.shape);
        let Shape { dim, hidden_dim, .. } = shape;
        let head_dim = dim / shape.n_heads;
        let (x, w) = (self.numbers(ROWS * dim), self.numbers(dim));
        let mut out = vec![0.0; ROWS * dim];
        let bytes = 8 * ROWS * dim;
        self.measure(
            format!("rms_norm {ROWS} x {dim}"),
            bytes as f64,
            Bound::Block(bytes),
            &mut || {
                let (out, x) = (FloatsMut::from(&mut out[..]), Floats::from(&x[..]));
                rms_norm(device, out, x, Floats::from(&w[..]), 1e-5)
            },
        )?;
        let half = head_dim / 2;
        let angles: Vec<f32> = self.numbers(ROWS * half);
        let cos = angles.iter().map(|angle| angle.cos()).collect();
        let sin = angles.iter().map(|angle| angle.sin()).collect();
        let angles = Rotations::new(cos, sin, half);
        self.measure(
            format!("rope {ROWS} x {dim}"),
            bytes as f64,
            Bound::Block(bytes),
            &mut || {
                let x = FloatsMut::from(&mut out[..]);
                rope(device, x, dim, head_dim, &angles, Pairing::Half, false)
            },
        )?;
        let (gate, up) = (self.numbers(ROWS * hidden_dim), self.numbers(ROWS * hidden_dim));
        let mut act = vec![0.0; ROWS * hidden_dim];
        let bytes = 12 * ROWS * hidden_dim;
        let name = format!("swiglu {ROWS} x {hidden_dim}");
        self.measure(name, bytes as f64, Bound::Block(bytes), &mut || {
            let (gate, up) = (Floats::from(&gate[..]), Floats::from(&up[..]));
            swiglu(device, FloatsMut::from(&mut act[..]), gate, up, hidden_dim)
        })?;
        let bytes = 8 * ROWS * dim;
        self.measure(
            format!("softmax {ROWS} x {dim}"),
            bytes as f64,
            Bound::Block(bytes),
            &mut || {
                let cpu = &device.cpu;
                cpu.team.split_rows(&mut out, dim, 1, &|_, rows| {
                    rows.chunks_exact_mut(dim).for_each(|row| softmax(cpu.isa, row));
                });
                Ok(())
            },
        )
    }

    /// Products of training: forward, and the gradients of the input and of the weight.
    fn training(&mut self) -> Result<()> {
        let (device, n, k) = (self.device, self.shape.hidden_dim, self.shape.dim);
        let [x, w, dy] = [ROWS * k, n * k, ROWS * n].map(|len| self.numbers(len));
        let low = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<bf16>>();
        let [x_low, w_low, dy_low] = [&x, &w, &dy].map(|x| low(x));
        let mut out = vec![0.0f32; (ROWS * n).max(n * k)];
        let mut scratch = Scratch::default();
        for precision in [Precision::F32, Precision::Bf16] {
            let [x, w, dy] = match precision {
                Precision::F32 => [&x, &w, &dy].map(|x| Floats::from(&x[..])),
                Precision::Bf16 => {
                    [&x_low, &w_low, &dy_low].map(|x| Floats::Host(host::Floats::Bf16(x)))
                }
            };
            let (x, w, dy) =
                (Factor::plain(x, ROWS, k), Factor::plain(w, n, k), Factor::plain(dy, ROWS, n));
            let type_name = if precision == Precision::F32 { "F32" } else { "BF16" };
            let bound = Bound::Peak(unit(device.cpu.isa, type_name, false));
            let ops = 2.0 * (ROWS * n) as f64 * k as f64;
            for (what, a, b, len) in [
                ("forward", x, w.t(), ROWS * n),
                ("input gradient", dy, w, ROWS * k),
                ("weight gradient", dy.t(), x, n * k),
            ] {
                let name = format!("training {what} {type_name} {ROWS} x {k} x {n}");
                self.measure(name, ops, bound, &mut || {
                    let out = FloatsMut::from(&mut out[..len]);
                    gemm(device, &mut scratch, precision, out, false, 1.0, a, b)
                })?;
            }
        }
        Ok(())
    }
}

/// A weight matrix in memory.
enum Matrix {
    Packed(PackedMatrix),
    Dense(Vec<u8>, Dense),
}

impl Matrix {
    /// Of `n` rows that are all `row` `[k]`.
    fn new(dtype: FileDType, n: usize, k: usize, row: &[f32]) -> Matrix {
        let (dense, bytes): (Dense, Vec<u8>) = match dtype {
            FileDType::Block(block) => {
                let mut bytes = vec![0u8; block.row_bytes(k)];
                encode_row(block, &mut bytes, row);
                return Matrix::Packed(PackedMatrix::from_blocks(block, n, k, &bytes.repeat(n)));
            }
            FileDType::F16 => {
                (Dense::F16, row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect())
            }
            FileDType::BF16 => {
                (Dense::BF16, row.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect())
            }
            FileDType::F32 | FileDType::Other(_) => {
                (Dense::F32, row.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
        };
        Matrix::Dense(bytes.repeat(n), dense)
    }

    fn bytes(&self) -> usize {
        match self {
            Matrix::Packed(w) => w.bytes(),
            Matrix::Dense(bytes, _) => bytes.len(),
        }
    }

    /// The same weights at another place.
    fn copy(&mut self, n: usize, k: usize) -> Matrix {
        match self {
            Matrix::Packed(w) => {
                let mut copy = PackedMatrix::zeroed(w.block(), n, k);
                copy.panels_mut().copy_from_slice(w.panels_mut());
                Matrix::Packed(copy)
            }
            Matrix::Dense(bytes, dtype) => Matrix::Dense(bytes.clone(), *dtype),
        }
    }

    fn weights(&self, n: usize, k: usize) -> Weights<'_> {
        match self {
            Matrix::Packed(w) => Weights::Packed(w),
            Matrix::Dense(bytes, dtype) => {
                Weights::Dense(DenseMatrix { bytes, dtype: *dtype, n, k })
            }
        }
    }
}
