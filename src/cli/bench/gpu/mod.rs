//! `--kernels` on a GPU: each kernel on the shapes of a model, timed by the device's own clock beside
//! the speed of copies or the peak of the data sheet.
//!
//! Every sample is one call on inputs that no cache holds, as a real call would find its weights; the
//! first call's result is looked at before any is timed. What is measured stands in `rows`.

mod attention;
mod layers;
mod numbers;
mod quantised;
mod rows;
#[cfg(test)]
mod tests;

use super::measure::stop_if_interrupted;
use super::report::{Report, column, rounded};
use super::stats::{deviation, median};
use super::{BenchArgs, SCHEMA};
use crate::cli::failure::Failure;
use crate::cli::machine::Machine;
use crate::cuda::{DeviceBuffer, Gpu};
use crate::error::Result;
use crate::kernels::Place;
use crate::model::shapes;
use numbers::Pool;
use rows::Sizes;
use serde_json::{Value, json};

/// Shape unless told otherwise.
const SHAPE: &str = "llama3-8b";
/// Repetitions unless told otherwise: a call is short.
const REPETITIONS: usize = 20;
/// Calls before the first that counts, at least; and milliseconds of them, so that clocks have risen.
const WARM_UP_CALLS: usize = 3;
const WARM_UP_MS: f32 = 20.0;
/// More than the second-level cache of any GPU holds.
const FLUSH_BYTES: usize = 256 << 20;

/// Peaks of bf16 products with f32 sums, dense, in operations a second, from the makers' data sheets:
/// by what a device's name contains, the first that fits.
const PEAKS: &[(&str, f64)] = &[
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
];

/// What bounds a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// Bytes read and written, as a copy on the device does.
    Copy,
    /// Operations of the tensor cores.
    Tensor,
}

/// What a row says of a call.
struct Job {
    name: String,
    /// Operation and sizes, for whoever measures the same with another program.
    op: String,
    /// Bytes or operations.
    amount: f64,
    bound: Bound,
}

/// Where the cases run and what they leave.
struct Bench<'a> {
    gpu: &'a Gpu,
    sizes: &'a Sizes,
    pool: Pool,
    flush: DeviceBuffer<u8>,
    samples: usize,
    warm_up_ms: f32,
    /// Bytes a second, once measured.
    copy_rate: Option<f64>,
    report: &'a mut Report,
}

/// Measures all kernels.
///
/// # Errors
/// Flags that mean nothing here, no such device, a wrong result, interruption, and a closed standard
/// output.
pub fn run(args: &BenchArgs) -> Result<Value, Failure> {
    for (flag, given) in [
        ("--type", args.r#type.is_some()),
        ("-t", !args.threads.is_empty()),
        ("--no-limits", args.no_limits),
    ] {
        if given {
            let device = args.common.device;
            return Err(Failure::usage(format!("{flag} with --kernels on {device}")));
        }
    }
    let shape = shapes::named(args.shape.as_deref().unwrap_or(SHAPE))?;
    let device = args.common.device.open(1)?;
    let Some(gpu) = device.gpu() else {
        return Err(Failure::usage(format!("{} is no GPU", args.common.device)));
    };
    // The harness needs a second for what a GPU does in a microsecond.
    let simulated = !matches!(args.common.device.place(), Place::Cuda(_));
    let sizes = if simulated { Sizes::tiny() } else { Sizes::of(&shape) };
    let model = if simulated { "tiny" } else { shape.name };
    let repetitions = args.repetitions.unwrap_or(if simulated { 2 } else { REPETITIONS });
    let columns = vec![
        column("kernel", "test", 0),
        column("ms", "ms", 4),
        column("rate", "rate", 1),
        column("±", "rate_stddev", 1),
        column("of", "rate_unit", 0),
        column("bound", "bound", 0),
        column("its rate", "bound_rate", 1),
        column("%", "percent", 1),
    ];
    let mut report = Report::new(args.format(), "bench_kernels", columns);
    let name = &gpu.properties().name;
    let own = vec![("model", json!(model)), ("device", json!(name))];
    report.begin(&format!("{model}; {name}"), own)?;
    let mut bench = Bench::new(gpu, &sizes, args.common.seed, repetitions, &mut report)?;
    if simulated {
        bench.warm_up_ms = 0.0;
    }
    rows::measure(&mut bench)?;
    let copy_rate = bench.copy_rate;
    report.note("Inputs are in no cache. Peaks are those of the data sheet.")?;
    Ok(json!({
        "program": concat!("puna ", env!("CARGO_PKG_VERSION")),
        "schema": SCHEMA,
        "model": model,
        "device": name,
        "repetitions": repetitions,
        "machine": Machine::detect()?.json(),
        "limits": [{
            "copy_gb_per_s": rounded(copy_rate.map(|rate| rate / 1e9)),
            "tensor_gop_per_s": rounded(peak(name).map(|rate| rate / 1e9)),
        }],
        "results": report.into_rows(),
    }))
}

/// The peak of a device of this name, if its data sheet is known.
fn peak(name: &str) -> Option<f64> {
    PEAKS.iter().find(|(part, _)| name.contains(part)).map(|(_, peak)| *peak)
}

impl<'a> Bench<'a> {
    fn new(
        gpu: &'a Gpu,
        sizes: &'a Sizes,
        seed: u64,
        samples: usize,
        report: &'a mut Report,
    ) -> Result<Bench<'a>> {
        Ok(Bench {
            gpu,
            sizes,
            pool: Pool::new(gpu, seed, sizes.pool)?,
            flush: gpu.alloc(FLUSH_BYTES.min(sizes.flush_bytes))?,
            samples,
            warm_up_ms: WARM_UP_MS,
            copy_rate: None,
            report,
        })
    }

    /// Times `call` and reports it. The caller has seen that its result is right.
    fn measure(&mut self, job: Job, call: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        stop_if_interrupted()?;
        let (mut calls, mut spent_ms) = (0, 0.0);
        while calls < WARM_UP_CALLS || spent_ms < self.warm_up_ms {
            spent_ms += self.gpu.time(&mut *call)?.max(1e-3);
            calls += 1;
        }
        let mut samples_s = vec![];
        for _ in 0..self.samples {
            // Queued without a wait, so the device is busy until `call` is queued behind it.
            self.gpu.fill_zero(&mut self.flush.slice_mut())?;
            let ms = self.gpu.time(&mut *call)?;
            samples_s.push(f64::from(ms).max(1e-6) / 1e3);
        }
        let rates: Vec<f64> = samples_s.iter().map(|seconds| job.amount / seconds).collect();
        let rate = median(&rates);
        let (bound, unit, scale, bound_rate) = match job.bound {
            Bound::Copy => {
                // The first row is the copy itself.
                self.copy_rate = self.copy_rate.or(rate);
                ("copy", "GB/s", 1e9, self.copy_rate)
            }
            Bound::Tensor => ("tensor cores", "TFLOP/s", 1e12, peak(&self.gpu.properties().name)),
        };
        let scaled: Vec<f64> = rates.iter().map(|rate| rate / scale).collect();
        let share = rate.zip(bound_rate).map(|(rate, bound)| 100.0 * rate / bound);
        self.report.row(json!({
            "test": job.name,
            "op": job.op,
            // Of the CPU, which only launches.
            "threads": 1,
            "ms": rounded(median(&samples_s).map(|seconds| seconds * 1e3)),
            "rate": rounded(rate.map(|rate| rate / scale)),
            "rate_stddev": rounded(Some(deviation(&scaled))),
            "rate_unit": unit,
            "samples_ts": scaled,
            "bound": bound,
            "bound_rate": rounded(bound_rate.map(|rate| rate / scale)),
            "percent": rounded(share),
        }))
    }
}
