//! Loss and all gradients of the reference models against those that transformers computed.
//!
//! Bound: a relative norm of 1e-4 for every tensor. Between two of the reference library's own
//! attention kernels the largest element differs by 3e-6 of a tensor's largest.

use puna::autograd::Dropout;
use puna::model::tune::{
    LoraSpec, LoraTarget, Precision, Slice, TuneMethod, TuneModel, TuneOptions,
};
use puna::tensor::Grads;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

const MODELS: [&str; 6] =
    ["mini-dynamic", "mini-gqa", "mini-headdim-bias", "mini-linear", "mini-llama3rope", "mini-mha"];

/// The folder of a reference model.
fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

fn options(precision: Precision, method: TuneMethod, checkpointing: bool) -> TuneOptions {
    TuneOptions {
        threads: 2,
        precision,
        method,
        gradient_checkpointing: checkpointing,
        seed: 1,
        score: false,
        value: false,
    }
}

fn open(path: &Path, options: &TuneOptions) -> TuneModel {
    match TuneModel::open(path, options) {
        Ok(model) => model,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn integers(tensors: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::I64);
    tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The fixture's batch without its padding: ids, next tokens, lengths.
struct Batch {
    ids: Vec<u32>,
    labels: Vec<Option<u32>>,
    spans: Vec<usize>,
}

impl Batch {
    fn of(tensors: &SafeTensors<'_>) -> Batch {
        let [ids, labels, mask] =
            ["input_ids", "labels", "attention_mask"].map(|name| integers(tensors, name));
        let width = tensors.tensor("input_ids").unwrap().shape()[1];
        let mut batch = Batch { ids: vec![], labels: vec![], spans: vec![] };
        for row in 0..ids.len() / width {
            let at = row * width..(row + 1) * width;
            let len = mask[at.clone()].iter().filter(|&&m| m == 1).count();
            batch.spans.push(len);
            batch.ids.extend(ids[at.clone()][..len].iter().map(|&id| id as u32));
            let next = |i: usize| labels[at.start + i + 1];
            batch
                .labels
                .extend((0..len).map(|i| (i + 1 < len && next(i) != -100).then(|| next(i) as u32)));
        }
        batch
    }

    fn slice(&self) -> Slice<'_> {
        Slice { ids: &self.ids, labels: &self.labels, spans: &self.spans, sources: &[] }
    }

    fn scored(&self) -> usize {
        self.labels.iter().flatten().count()
    }
}

fn relative(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(wanted);
    let error: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = wanted.iter().map(|&b| square(f64::from(b))).sum();
    (error / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// Mean loss and gradients of one batch.
fn gradients(model: &mut TuneModel, batch: &Batch) -> (f64, Grads) {
    let mut grads = Grads::zeros(model.params()).unwrap();
    let scale = 1.0 / batch.scored() as f32;
    let loss = model.run(&batch.slice(), Some((&mut grads, scale)), Dropout::default()).unwrap();
    assert_eq!(loss.scored, batch.scored());
    (loss.nll / loss.scored as f64, grads)
}

fn bits(grads: &Grads) -> Vec<u32> {
    grads.0.iter().flat_map(|grad| grad.host().unwrap()).map(|x| x.to_bits()).collect()
}

#[test]
fn loss_and_every_gradient_of_the_reference_models() {
    for name in MODELS {
        let dir = fixture(name);
        let bytes = std::fs::read(dir.join("grads.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let batch = Batch::of(&tensors);
        let mut model = open(&dir, &options(Precision::F32, TuneMethod::Full, false));
        let (loss, grads) = gradients(&mut model, &batch);
        let wanted = f64::from(floats(&tensors, "loss")[0]);
        assert!((loss - wanted).abs() < 1e-5, "{name}: loss {loss}, wanted {wanted}");
        for (param, grad) in model.params().0.iter().zip(&grads.0) {
            let wanted = floats(&tensors, &format!("grad.{}", param.name));
            let error = relative(grad.host().unwrap(), &wanted);
            assert!(error < 1e-4, "{name}: {}: {error:.2e}", param.name);
        }
        // As many gradients as the reference has: none is forgotten.
        let n = tensors.names().iter().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(model.params().0.len(), n, "{name}");
    }
}

#[test]
fn checkpointing_and_the_number_of_threads_change_no_bit() {
    for name in ["mini-gqa", "mini-headdim-bias"] {
        let dir = fixture(name);
        let bytes = std::fs::read(dir.join("grads.safetensors")).unwrap();
        let batch = Batch::of(&SafeTensors::deserialize(&bytes).unwrap());
        for precision in [Precision::F32, Precision::Bf16] {
            let mut first = None;
            for (threads, checkpointing) in [(1, false), (2, true), (3, false)] {
                let mut options = options(precision, TuneMethod::Full, checkpointing);
                options.threads = threads;
                let (loss, grads) = gradients(&mut open(&dir, &options), &batch);
                let found = (loss.to_bits(), bits(&grads));
                let first = first.get_or_insert_with(|| found.clone());
                assert!(*first == found, "{name}, {threads} threads, {checkpointing}");
            }
        }
    }
}

#[test]
fn bf16_gradients_are_near_those_of_f32() {
    // Eight bits of mantissa in every activation: relative 2^-9 each, adding up over some dozen
    // operations in a row; 5 % of a tensor's norm is about ten times one rounding.
    let dir = fixture("mini-mha");
    let bytes = std::fs::read(dir.join("grads.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let batch = Batch::of(&tensors);
    let mut model = open(&dir, &options(Precision::Bf16, TuneMethod::Full, false));
    let (_, grads) = gradients(&mut model, &batch);
    for (param, grad) in model.params().0.iter().zip(&grads.0) {
        let wanted = floats(&tensors, &format!("grad.{}", param.name));
        let error = relative(grad.host().unwrap(), &wanted);
        assert!(error < 0.05, "{}: {error:.2e}", param.name);
    }
}

#[test]
fn packed_sequences_give_the_sum_of_their_own_gradients() {
    let dir = fixture("mini-gqa");
    let bytes = std::fs::read(dir.join("grads.safetensors")).unwrap();
    let batch = Batch::of(&SafeTensors::deserialize(&bytes).unwrap());
    let spec = LoraSpec {
        r: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: LoraTarget::ALL.to_vec(),
        use_rslora: false,
    };
    let method = TuneMethod::Lora { spec, adapter: None };
    let mut model = open(&dir, &options(Precision::F32, method, false));
    // B starts at zero, and with it the gradient of A: move both.
    for param in &mut model.params_mut().0 {
        let value = param.value.host_mut().unwrap();
        value.iter_mut().enumerate().for_each(|(i, x)| *x += 0.01 * (i % 7) as f32);
    }
    let mut together = Grads::zeros(model.params()).unwrap();
    let all = model.run(&batch.slice(), Some((&mut together, 0.1)), Dropout::default()).unwrap();
    let mut apart = Grads::zeros(model.params()).unwrap();
    let (mut first, mut nll) = (0, 0.0);
    for &len in &batch.spans {
        let at = first..first + len;
        let slice = Slice {
            ids: &batch.ids[at.clone()],
            labels: &batch.labels[at],
            spans: &[len],
            sources: &[],
        };
        nll += model.run(&slice, Some((&mut apart, 0.1)), Dropout::default()).unwrap().nll;
        first += len;
    }
    assert!((all.nll - nll).abs() < 1e-4 * nll);
    for ((together, apart), param) in together.0.iter().zip(&apart.0).zip(&model.params().0) {
        let (together, apart) = (together.host().unwrap(), apart.host().unwrap());
        assert!(together.iter().any(|&x| x != 0.0), "{} has no gradient", param.name);
        let error = relative(together, apart);
        assert!(error < 1e-5, "{}: {error:.2e}", param.name);
    }
}
