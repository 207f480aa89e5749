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
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::gpu;

const MODELS: [&str; 6] =
    ["mini-dynamic", "mini-gqa", "mini-headdim-bias", "mini-linear", "mini-llama3rope", "mini-mha"];
/// Smaller than any of their vocabularies.
const VOCAB: f64 = 149.0;
/// Two sequences that end inside tiles.
const SPANS: [usize; 2] = [21, 12];

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

fn full() -> TuneMethod {
    TuneMethod::Full
}

fn lora() -> TuneMethod {
    let spec = LoraSpec {
        r: 4,
        alpha: 8.0,
        dropout: 0.25,
        targets: LoraTarget::ALL.to_vec(),
        use_rslora: false,
    };
    TuneMethod::Lora { spec, adapter: None }
}

fn options(method: TuneMethod, precision: Precision, checkpointing: bool) -> TuneOptions {
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

/// The same model on the CPU and on the GPU; `None` without one.
fn both(model: &str, options: &TuneOptions) -> Option<[TuneModel; 2]> {
    let mut device = Device::new(1).unwrap();
    device.gpu = Some(Arc::new(gpu()?));
    let path = fixture(model);
    let on_gpu = TuneModel::open_on(&path, options, device).unwrap();
    Some([TuneModel::open(&path, options).unwrap(), on_gpu])
}

struct Batch {
    ids: Vec<u32>,
    labels: Vec<Option<u32>>,
}

impl Batch {
    /// Any tokens; some are not scored.
    fn new(seed: u64) -> Batch {
        let mut rng = Rng::new(seed, 0);
        let n: usize = SPANS.iter().sum();
        let ids: Vec<u32> = (0..n).map(|_| (rng.uniform() * VOCAB) as u32).collect();
        let label = |at: usize| (at % 5 != 3 && at + 1 < n).then(|| ids[at + 1]);
        let mut labels: Vec<Option<u32>> = (0..n).map(label).collect();
        labels[SPANS[0] - 1] = None;
        Batch { ids, labels }
    }

    fn slice(&self) -> Slice<'_> {
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

/// Loss and gradients of one batch on both; every tensor within `bound`.
fn compare(model: &str, options: &TuneOptions, bound: f64) {
    let Some([mut cpu, mut gpu]) = both(model, options) else { return };
    // An adapter's B starts at zero, and with it the gradient of A: move both.
    for model in [&mut cpu, &mut gpu] {
        for param in &mut model.params_mut().0 {
            let mut values = param.value.read().unwrap().into_owned();
            values.iter_mut().enumerate().for_each(|(i, x)| *x += 0.01 * (i % 7) as f32);
            param.value.write(&values).unwrap();
        }
    }
    let batch = Batch::new(7);
    let dropout = Dropout { key: 11, first_row: 64, first_kept: 32 };
    let run = |model: &mut TuneModel| {
        let mut grads = Grads::zeros(model.params()).unwrap();
        let loss = model.run(&batch.slice(), Some((&mut grads, 0.125)), dropout);
        let names: Vec<String> = model.params().0.iter().map(|p| p.name.clone()).collect();
        let read = grads.0.iter().map(|g| g.read().unwrap().into_owned());
        (loss.unwrap(), names.into_iter().zip(read).collect::<Vec<_>>())
    };
    let ((loss, wanted), (found_loss, found)) = (run(&mut cpu), run(&mut gpu));
    let off = (found_loss.nll - loss.nll).abs() / loss.nll;
    assert!(off < bound && found_loss.scored == loss.scored, "{model}: {found_loss:?}, {loss:?}");
    let mut faults = vec![];
    for ((name, found), (_, wanted)) in found.iter().zip(&wanted) {
        let off = distance(found, wanted);
        if off.is_nan() || off > bound {
            faults.push(format!("{model}: {name} is {off:e} off"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(wanted.iter().any(|(_, g)| g.iter().any(|&x| x != 0.0)), "{model}: all zero");
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
fn gradients_in_bf16_are_near_those_of_the_cpu() {
    // Roundings to 8 bits at every step of some tens of operations, in other orders.
    compare("mini-gqa", &options(full(), Precision::Bf16, false), 0.05);
    compare("mini-mha", &options(lora(), Precision::Bf16, true), 0.05);
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
