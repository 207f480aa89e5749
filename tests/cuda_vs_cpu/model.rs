//! Whole models on a GPU against the CPU: losses, gradients and the first training steps of the
//! models of the fixtures. (That the CPU's are right is shown beside transformers', in the suite.)

use puna::autograd::Dropout;
use puna::kernels::Device;
use puna::model::tune::{
    LoraSpec, LoraTarget, Precision, Slice, TuneMethod, TuneModel, TuneOptions,
};
use puna::rng::Rng;
use puna::tensor::Grads;
use puna::train::optimizer::{self, OptimArgs};
use std::sync::Arc;

use crate::support::{fixture, gpu};

const MODELS: [&str; 6] =
    ["mini-dynamic", "mini-gqa", "mini-headdim-bias", "mini-linear", "mini-llama3rope", "mini-mha"];
/// Smaller than any of their vocabularies.
const VOCAB: f64 = 149.0;
/// Two sequences that end inside tiles.
const SPANS: [usize; 2] = [21, 12];

pub fn full() -> TuneMethod {
    TuneMethod::Full
}

/// An adapter of every layer.
pub fn spec() -> LoraSpec {
    LoraSpec {
        r: 4,
        alpha: 8.0,
        dropout: 0.25,
        targets: LoraTarget::ALL.to_vec(),
        use_rslora: false,
    }
}

pub fn lora() -> TuneMethod {
    adapters(4, 0.25)
}

fn adapters(r: usize, dropout: f32) -> TuneMethod {
    TuneMethod::Lora { spec: LoraSpec { r, dropout, ..spec() }, adapter: None }
}

pub fn options(method: TuneMethod, precision: Precision, checkpointing: bool) -> TuneOptions {
    TuneOptions {
        threads: 1,
        precision,
        method,
        gradient_checkpointing: checkpointing,
        seed: 3,
        score: false,
        value: false,
    }
}

/// The same model, a fixture or a path, on the CPU and on the GPU; `None` without one.
pub fn both(model: &str, options: &TuneOptions) -> Option<[TuneModel; 2]> {
    let mut device = Device::new(1).unwrap();
    device.gpu = Some(Arc::new(gpu()?));
    let path = fixture(model);
    let on_gpu = TuneModel::open_on(&path, options, device).unwrap();
    Some([TuneModel::open(&path, options).unwrap(), on_gpu])
}

pub struct Batch {
    ids: Vec<u32>,
    labels: Vec<Option<u32>>,
}

impl Batch {
    /// Any tokens; some are not scored.
    pub fn new(seed: u64) -> Batch {
        let mut rng = Rng::new(seed, 0);
        let n: usize = SPANS.iter().sum();
        let ids: Vec<u32> = (0..n).map(|_| (rng.uniform() * VOCAB) as u32).collect();
        let label = |at: usize| (at % 5 != 3 && at + 1 < n).then(|| ids[at + 1]);
        let mut labels: Vec<Option<u32>> = (0..n).map(label).collect();
        labels[SPANS[0] - 1] = None;
        Batch { ids, labels }
    }

    pub fn slice(&self) -> Slice<'_> {
        Slice { ids: &self.ids, labels: &self.labels, spans: &SPANS, sources: &[] }
    }
}

/// Norm of the difference over the norm.
fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(wanted);
    let off: f64 = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = wanted.iter().map(|b| square(f64::from(*b))).sum();
    off.sqrt() / all.sqrt().max(1e-12)
}

/// Loss of one batch, and the gradient of every parameter, by name.
type Gradients = (f64, Vec<(String, Vec<f32>)>);

/// Runs one batch, with every parameter moved a little: an adapter's B starts at zero, and with it
/// the gradient of A.
fn gradients(model: &mut TuneModel) -> Gradients {
    for param in &mut model.params_mut().0 {
        let mut values = param.value.read().unwrap().into_owned();
        values.iter_mut().enumerate().for_each(|(i, x)| *x += 0.01 * (i % 7) as f32);
        param.value.write(&values).unwrap();
    }
    let batch = Batch::new(7);
    let dropout = Dropout { key: 11, first_row: 64, first_kept: 32 };
    let mut grads = Grads::zeros(model.params()).unwrap();
    let loss = model.run(&batch.slice(), Some((&mut grads, 0.125)), dropout).unwrap();
    assert_eq!(loss.scored, batch.labels.iter().flatten().count());
    let names = model.params().0.iter().map(|p| p.name.clone());
    let read = grads.0.iter().map(|g| g.read().unwrap().into_owned());
    (loss.nll, names.zip(read).collect())
}

/// How far each gradient is off, the loss first.
fn distances(found: &Gradients, wanted: &Gradients) -> Vec<(String, f64)> {
    let mut all = vec![("loss".to_owned(), (found.0 - wanted.0).abs() / wanted.0)];
    for ((name, found), (_, wanted)) in found.1.iter().zip(&wanted.1) {
        assert!(wanted.iter().any(|&x| x != 0.0), "{name} is all zero");
        all.push((name.clone(), distance(found, wanted)));
    }
    all
}

/// Loss and gradients of one batch on both; every tensor within `bound`.
pub fn compare(model: &str, options: &TuneOptions, bound: f64) {
    let Some([mut cpu, mut gpu]) = both(model, options) else { return };
    let (wanted, found) = (gradients(&mut cpu), gradients(&mut gpu));
    let off = distances(&found, &wanted);
    let faults: Vec<_> = off.iter().filter(|(_, off)| off.is_nan() || *off > bound).collect();
    assert!(faults.is_empty(), "{model}: {faults:?}");
}

/// The same in bf16, where both are off from f32's: the GPU by at most `times` what the CPU is, or by
/// a rounding of each of some tens of operations.
pub fn compare_low(model: &str, method: TuneMethod, times: f64) {
    let exact = options(method.clone(), Precision::F32, false);
    let truth = gradients(&mut TuneModel::open(&fixture(model), &exact).unwrap());
    let Some([mut cpu, mut gpu]) = both(model, &options(method, Precision::Bf16, true)) else {
        return;
    };
    let (by_cpu, by_gpu) = (gradients(&mut cpu), gradients(&mut gpu));
    let (by_cpu, by_gpu) = (distances(&by_cpu, &truth), distances(&by_gpu, &truth));
    let mut faults = vec![];
    for ((name, cpu), (_, gpu)) in by_cpu.iter().zip(&by_gpu) {
        if gpu.is_nan() || *gpu > (times * cpu).max(0.02) {
            faults.push(format!("{model}: {name} is {gpu:.4} off, on the CPU {cpu:.4}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn gradients_of_all_weights_are_those_of_the_cpu() {
    // Both sum in f32, in other orders: the suite's bound beside transformers.
    for model in MODELS {
        compare(model, &options(full(), Precision::F32, false), 1e-4);
    }
}

#[test]
fn gradients_of_adapters_are_those_of_the_cpu() {
    compare("mini-gqa", &options(lora(), Precision::F32, false), 1e-4);
    compare("mini-headdim-bias", &options(lora(), Precision::F32, true), 1e-4);
}

#[test]
fn gradients_in_bf16_are_as_near_to_those_in_f32_as_the_cpu_s() {
    compare_low("mini-gqa", full(), 2.0);
    compare_low("mini-mha", lora(), 2.0);
    // Of ranks that the fused kernels take (tests/cuda_vs_cpu/steps.rs sees that they do).
    compare_low("mini-mha", adapters(8, 0.0), 2.0);
    compare_low("mini-mha", adapters(16, 0.0), 2.0);
}

#[test]
fn ten_steps_follow_those_of_the_cpu() {
    let options = options(full(), Precision::F32, false);
    let Some(models) = both("mini-gqa", &options) else { return };
    let [cpu, gpu] = models.map(|mut model| {
        let args = OptimArgs { weight_decay: 0.1, ..OptimArgs::default() };
        let mut optim = optimizer::make("adamw", &args, model.params()).unwrap();
        let mut grads = Grads::zeros(model.params()).unwrap();
        let mut losses = vec![];
        for step in 0..10 {
            let batch = Batch::new(step % 2);
            grads.clear().unwrap();
            let run = Some((&mut grads, 0.05));
            losses.push(model.run(&batch.slice(), run, Dropout::default()).unwrap().nll);
            let mut params = std::mem::take(model.params_mut());
            optim.step(model.device(), &mut params, &grads, 1e-3, 1.0).unwrap();
            *model.params_mut() = params;
        }
        losses
    });
    for (step, (found, wanted)) in gpu.iter().zip(&cpu).enumerate() {
        // Adam divides by small numbers: differences of 1e-6 grow a little from step to step.
        assert!((found - wanted).abs() < 1e-3 * wanted, "step {step}: {gpu:?} {cpu:?}");
    }
    assert!(cpu[9] < 0.8 * cpu[1], "{cpu:?}");
}
