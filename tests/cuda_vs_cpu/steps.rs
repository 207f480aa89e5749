//! Steps of training on a GPU: the same bits every time and after a resume, and no more copies and
//! launches than a step needs.

use puna::autograd::Dropout;
use puna::data::Row;
use puna::kernels::Device;
use puna::model::tune::{LoraSpec, LoraTarget, Precision, TuneMethod, TuneModel};
use puna::model::tune_plan::SliceSize;
use puna::tensor::Grads;
use puna::train::optimizer::{self, OptimArgs, Optimizer};
use puna::train::schedule::Schedule;
use puna::train::watch::Silent;
use puna::train::{End, Job, Length, Rows, Settings, clip, train};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::model::{Batch, full, options};
use crate::support::{fixture, gpu};

/// Its widths are multiples of 8: all that the fused kernels ask for.
const MODEL: &str = "mini-mha";
#[cfg(feature = "cuda-host")]
const LAYERS: usize = 2;

fn lora(r: usize, dropout: f32) -> TuneMethod {
    let targets = LoraTarget::ALL.to_vec();
    let spec = LoraSpec { r, alpha: 16.0, dropout, targets, use_rslora: false };
    TuneMethod::Lora { spec, adapter: None }
}

fn open(method: TuneMethod, checkpointing: bool) -> Option<TuneModel> {
    open_of(MODEL, method, checkpointing)
}

fn open_of(model: &str, method: TuneMethod, checkpointing: bool) -> Option<TuneModel> {
    let mut device = Device::new(1).unwrap();
    device.gpu = Some(Arc::new(gpu()?));
    let options = options(method, Precision::Bf16, checkpointing);
    Some(TuneModel::open_on(&fixture(model), &options, device).unwrap())
}

/// A model with what its steps need.
struct Trained {
    model: TuneModel,
    grads: Grads,
    optim: Box<dyn Optimizer>,
}

impl Trained {
    fn new(model: TuneModel) -> Trained {
        let args = OptimArgs { weight_decay: 0.1, ..OptimArgs::default() };
        let optim = optimizer::make("adamw", &args, model.params()).unwrap();
        let grads = Grads::zeros(model.params()).unwrap();
        Trained { model, grads, optim }
    }

    /// A whole step, as `puna train` takes it.
    fn step(&mut self, batch: &Batch, key: u64) {
        let Trained { model, grads, optim } = self;
        grads.clear().unwrap();
        let dropout = Dropout { key, first_row: 0, first_kept: 0 };
        model.run(&batch.slice(), Some((grads, 0.05)), dropout).unwrap();
        let norm = clip::global_norm(model.device(), grads).unwrap();
        let mut params = std::mem::take(model.params_mut());
        let factor = clip::clip_factor(norm, 1.0);
        optim.step(model.device(), &mut params, grads, 1e-2, factor).unwrap();
        *model.params_mut() = params;
    }

    fn bits(&self) -> Vec<u32> {
        let read = |value: &puna::tensor::Values| value.read().unwrap().into_owned();
        let values = self.model.params().0.iter().flat_map(|param| read(&param.value));
        values.map(f32::to_bits).collect()
    }
}

/// Launches of a step by kernel, but for the first step's.
#[cfg(feature = "cuda-host")]
fn launches(model: &str, method: TuneMethod) -> std::collections::BTreeMap<&'static str, usize> {
    let Some(model) = open_of(model, method, false) else { return Default::default() };
    let (mut trained, batch) = (Trained::new(model), Batch::new(3));
    trained.step(&batch, 1);
    let count = |trained: &Trained| trained.model.device().gpu().unwrap().take_launches();
    count(&trained);
    trained.step(&batch, 2);
    count(&trained)
}

#[test]
#[cfg(feature = "cuda-host")]
fn adapters_train_by_the_fused_kernels() {
    for r in [8, 16] {
        let found = launches(MODEL, lora(r, 0.0));
        println!("r = {r}: {found:#?}, {} in all", found.values().sum::<usize>());
        let of = |name: &str| {
            let named = found.iter().filter(|(kernel, _)| kernel.starts_with(name));
            named.map(|(_, count)| *count).sum::<usize>()
        };
        // Every linear layer forward; nothing reads the derivatives of the first block's input.
        assert_eq!(of("lora_bf16_r16"), 7 * LAYERS, "{found:?}");
        assert_eq!(of("lora_bwd_bf16_r16"), 7 * LAYERS - 3, "{found:?}");
        assert_eq!(of("lora_grads_r16"), 7 * LAYERS, "{found:?}");
        assert_eq!(of("lora_grads_sum"), 7 * LAYERS, "{found:?}");
        // No product reads numbers that are not bf16.
        assert!(!found.keys().any(|name| name.ends_with("_any")), "{found:?}");
        // The derivatives of gate and up come in bf16; those of logits and of five layers a block
        // are rounded, and the embedding.
        assert_eq!(of("convert_bf16_f32"), 5 * LAYERS + 2, "{found:?}");
        // One for all tensors, whose settings are the same.
        let optim = ["sum_of_squares_f32", "total_f64", "adamw_f32"].map(of);
        assert_eq!(optim, [1; 3], "{found:?}");
    }
}

#[test]
#[cfg(feature = "cuda-host")]
fn adapters_of_quantised_weights_train_by_the_fused_kernels() {
    let layers = 4;
    for (double_quant, name) in [(false, "nf4"), (true, "nf4_double")] {
        let TuneMethod::Lora { spec, adapter } = lora(8, 0.0) else { unreachable!() };
        // Its rows are whole blocks of NF4.
        let found = launches("mini-gqa", TuneMethod::QLora { spec, adapter, double_quant });
        println!("{name}: {found:#?}, {} in all", found.values().sum::<usize>());
        assert_eq!(found[format!("lora_{name}_r16").as_str()], 7 * layers, "{found:?}");
        // The derivatives of inputs, with the adapter's part in the same sums.
        assert_eq!(found[format!("lora_bwd_{name}_r16").as_str()], 7 * layers - 3, "{found:?}");
        assert!(!found.keys().any(|name| name.starts_with("quant_n")), "{found:?}");
    }
}

#[test]
#[cfg(feature = "cuda-host")]
fn all_weights_train_by_products_of_bf16_copies() {
    let found = launches(MODEL, full());
    println!("{found:#?}, {} in all", found.values().sum::<usize>());
    let any: Vec<_> = found.keys().filter(|name| name.ends_with("_any")).collect();
    assert!(any.is_empty(), "numbers rounded in every product: {any:?}");
    // Matrices decay and norms do not.
    assert_eq!(found["adamw_f32"], 2);
}

#[test]
fn a_second_step_of_the_same_shape_uploads_tokens_and_labels() {
    // With all weights trained, the embedding's gradient takes the tokens in three lists more.
    for (method, uploads) in [(lora(8, 0.0), 3), (lora(8, 0.25), 3), (full(), 6)] {
        for checkpointing in [false, true] {
            let Some(model) = open(method.clone(), checkpointing) else { return };
            let (mut trained, batches) = (Trained::new(model), [3, 4].map(Batch::new));
            let count = |trained: &Trained| trained.model.device().gpu().unwrap().uploads();
            trained.step(&batches[0], 1);
            let before = count(&trained);
            trained.step(&batches[1], 2);
            // Ids; labels, and the factors of their losses. Angles, tiles of attention, and the list
            // of tensors are those of the first step; which rows are scored is a fourth where they
            // are not all.
            assert_eq!(count(&trained) - before, uploads + 1, "checkpointing {checkpointing}");
        }
    }
}

#[test]
fn steps_have_the_same_bits_every_time() {
    for method in [lora(8, 0.0), lora(16, 0.25), full()] {
        let run = || {
            let mut trained = Trained::new(open(method.clone(), false)?);
            (0..3).for_each(|step| trained.step(&Batch::new(step), step));
            Some(trained.bits())
        };
        let (Some(first), Some(second)) = (run(), run()) else { return };
        assert!(first == second, "{method:?}");
    }
}

#[test]
fn copies_in_bf16_follow_their_weights() {
    let Some(model) = open(lora(8, 0.0), false) else { return };
    let mut trained = Trained::new(model);
    let check = |trained: &Trained| {
        for param in &trained.model.params().0 {
            let low = param.low().expect("a copy of the weights as they are").read().unwrap();
            let value = param.value.read().unwrap();
            let mut pairs = low.iter().zip(value.iter());
            assert!(pairs.all(|(low, x)| *low == half::bf16::from_f32(*x)), "{}", param.name);
        }
    };
    trained.step(&Batch::new(0), 0);
    check(&trained);
    for param in &mut trained.model.params_mut().0 {
        let doubled: Vec<f32> = param.value.read().unwrap().iter().map(|x| 2.0 * x).collect();
        param.value.write(&doubled).unwrap();
        assert!(param.low().is_none(), "{}: a copy of other weights", param.name);
    }
    trained.model.run(&Batch::new(1).slice(), None, Dropout::default()).unwrap();
    check(&trained);
}

#[test]
fn the_plan_covers_what_the_device_holds() {
    for method in [lora(8, 0.0), lora(16, 0.25), full()] {
        for checkpointing in [false, true] {
            let Some(model) = open(method.clone(), checkpointing) else { return };
            let mut trained = Trained::new(model);
            let batch = Batch::new(3);
            (0..2).for_each(|step| trained.step(&batch, step));
            let tokens = batch.slice().ids.len();
            let slice = SliceSize { tokens, longest: tokens };
            let plan = trained.model.memory_plan(8, slice).unwrap();
            // What the host holds: code, and its kernels' tiles.
            let on_host = ["program", "kernels"];
            let items = plan.items.iter().filter(|(name, _)| !on_host.contains(name));
            let planned: u64 = items.map(|(_, bytes)| bytes).sum();
            let held = trained.model.device().gpu().unwrap().memory_use().peak_bytes as u64;
            // Angles, tiles, labels, shares of sums: a few numbers a row and a tensor.
            let small = 64 * (tokens + trained.model.params().0.len()) as u64 + (16 << 10);
            let copies = plan.items.iter().find(|(name, _)| *name == "bf16 copies");
            assert!(copies.is_some(), "{plan:?}");
            assert!(held <= planned + small, "{held} of {planned}: {method:?} {plan:?}");
        }
    }
}

/// Rows that set the flag when so many were read.
struct Stopping<'a> {
    rows: Vec<Row>,
    left: AtomicUsize,
    stop: &'a AtomicBool,
}

impl<'a> Stopping<'a> {
    fn new(left: usize, stop: &'a AtomicBool) -> Self {
        let row = |i: u32| {
            let ids: Vec<u32> = (0..6 + i % 5).map(|j| (i * 31 + j * j * 17 + j) % 149).collect();
            let labels = ids.iter().map(|&id| id as i32).collect();
            Row { spans: vec![ids.len() as u32], source: vec![i], ids, labels }
        };
        Stopping { rows: (0..12).map(row).collect(), left: left.into(), stop }
    }
}

impl Rows for Stopping<'_> {
    fn n_rows(&self) -> usize {
        self.rows.len()
    }

    fn longest(&self) -> usize {
        self.rows.iter().map(|row| row.ids.len()).max().unwrap_or(0)
    }

    fn row(&self, index: usize) -> puna::Result<Row> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(self.rows[index].clone())
    }

    fn place(&self, instance: u32) -> String {
        format!("row {instance}")
    }
}

fn settings() -> Settings {
    Settings {
        batch_size: 2,
        accumulation: 1,
        length: Length::Steps(5),
        optim: "adamw".into(),
        optim_args: OptimArgs::default(),
        learning_rate: 0.01,
        schedule: Schedule::Linear,
        warmup_steps: 0,
        warmup_ratio: 0.0,
        max_grad_norm: 1.0,
        seed: 5,
        shuffle: true,
        slice_tokens: None,
        eval_steps: None,
        eval_on_start: false,
        keep_best: false,
        patience: None,
        threshold: 0.0,
        save_steps: 0,
        save_total_limit: None,
    }
}

/// Runs, or goes on, until the end or until so many rows were read; the adapter of the end.
fn run(output: &Path, resume: bool, rows: usize) -> Option<(End, Option<Vec<u8>>)> {
    let (mut model, stop) = (open(lora(8, 0.25), true)?, AtomicBool::new(false));
    let rows = Stopping::new(rows, &stop);
    let job = Job {
        model: &mut model,
        train: &rows,
        eval: None,
        settings: &settings(),
        identity: vec![],
        title: "a test".into(),
        shown: vec![],
        output,
        stop: &stop,
    };
    let outcome = train(job, resume, &mut Silent).unwrap();
    Some((outcome.end, std::fs::read(output.join("adapter_model.safetensors")).ok()))
}

#[test]
fn a_run_that_was_stopped_goes_on_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    let Some((end, wanted)) = run(&whole, false, usize::MAX) else { return };
    assert_eq!(end, End::Complete);
    let (end, none) = run(&parts, false, 5).expect("the device is there");
    assert_eq!((end, none.is_some()), (End::Interrupted, false));
    let (end, found) = run(&parts, true, usize::MAX).expect("the device is there");
    assert_eq!(end, End::Complete);
    assert!(wanted.is_some() && found == wanted);
}
