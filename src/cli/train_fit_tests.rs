//! What is said to fit does, and is the first that does.

use super::*;

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mini-gqa")
}

fn options(method: TuneMethod) -> TuneOptions {
    TuneOptions {
        threads: 1,
        precision: Precision::F32,
        method,
        gradient_checkpointing: false,
        score: false,
        value: false,
        seed: 1,
    }
}

fn wanted() -> Wanted {
    let checkpoint = Checkpoint::open(&fixture()).expect("a fixture");
    Wanted {
        weights: WeightBytes::of(&checkpoint).ok(),
        config: checkpoint.config,
        options: options(TuneMethod::Full),
        batch: 8,
        accumulation: 2,
        longest: 256,
        told: Some(4096),
        even: true,
        state_bytes: 8,
        sampling: Sampling::default(),
    }
}

fn gpu(used: usize, free: usize) -> GpuMemory {
    GpuMemory { name: "a GPU".into(), used, free, total: used + free }
}

#[test]
fn the_first_setting_that_fits_is_named() {
    let asked = wanted();
    let total = |wanted: &Wanted| wanted.plan().total();
    let hint = |room: u64| asked.hint(room as usize, Wanted::total);
    let step = |n: usize| asked.steps()[n].clone();
    assert!(hint(total(&step(0))).starts_with("--gradient-checkpointing would fit, with "));
    let half = Wanted { batch: 4, ..step(0) };
    let text = hint(total(&half));
    let flags = "--gradient-checkpointing --batch-size 4 --gradient-accumulation-steps 4 would";
    assert!(text.starts_with(flags), "{text}");
    // Three rows at a time are no whole number of times in a step of sixteen.
    let three = hint(total(&Wanted { batch: 3, ..step(0) }));
    assert!(three.starts_with("--gradient-checkpointing --batch-size 3 would fit"), "{three}");
    let adapted = hint(total(&Wanted { batch: 1, ..step(2) }));
    assert!(adapted.contains("--dtype bf16 --method lora would fit"), "{adapted}");
    let shorter = Wanted { batch: 1, longest: 128, ..step(3) };
    assert!(hint(total(&shorter)).contains("--block-size 128 would fit"));
    assert!(hint(1000).contains("a larger device is needed"));
    // Answers that are sampled beside it: fewer at a time first, then all of the above.
    let sampling = Sampling { width: 8, max_new_tokens: 100, cache_bytes: 1 << 20, other_bytes: 9 };
    let asked_too = Wanted { sampling, ..asked.clone() };
    assert_eq!(asked_too.total(), asked.total() + (8 << 20) + 9);
    let hint = |room: u64| asked_too.hint(room as usize, Wanted::total);
    let three = hint(asked.total() + (3 << 20) + 9);
    assert!(three.starts_with("--inference-batch-size 3 would fit, with "), "{three}");
    let one = hint(asked_too.steps()[0].total());
    let flags = "--inference-batch-size 1 --gradient-checkpointing would fit";
    assert!(one.starts_with(flags), "{one}");
    let shorter = Wanted { batch: 1, longest: 192, ..asked_too.steps()[3].clone() };
    assert!(hint(shorter.total()).contains("--max-new-tokens 36 would fit"));
    // Prompts stay as they are.
    assert!(hint(shorter.total() - (1 << 20)).contains("a larger device is needed"));
    // Random weights have no adapter.
    let random = Wanted { weights: None, ..asked.clone() };
    assert_eq!(random.steps().len(), 2);
}

#[test]
fn what_is_said_to_fit_does_and_more_does_not() {
    let asked = wanted();
    let all = asked.plan().total();
    for part in 1..40 {
        let room = all * part / 40;
        let Some(found) = asked.first_that(|w| w.plan().total() <= room) else { continue };
        assert!(found.plan().total() <= room, "{part}");
        let more = Wanted { batch: found.batch + 1, ..found.clone() };
        if found.batch < asked.batch && found.longest == asked.longest {
            assert!(more.plan().total() > room, "{part}: {}", found.flags(&asked));
        }
    }
}

#[test]
fn a_refusal_has_the_numbers() {
    let asked = wanted();
    let plan = asked.plan();
    let (there, more) = (plan.weights() as usize, (plan.total() - plan.weights()) as usize);
    assert!(asked.refusal(&gpu(there, more)).is_none());
    let error = asked.refusal(&gpu(there, more - 1)).expect("a byte is missing").to_string();
    let numbers = format!("{more} bytes asked for beside {there} in use, {} free", more - 1);
    assert!(error.starts_with("a GPU: out of memory: ") && error.contains(&numbers), "{error}");
    assert!(error.contains("; --gradient-checkpointing"), "{error}");
}

#[cfg(feature = "cuda-host")]
mod on_the_harness {
    use super::*;
    use crate::autograd::Dropout;
    use crate::cuda::Gpu;
    use crate::kernels::Device;
    use crate::model::tune::Slice;
    use crate::tensor::Grads;
    use std::sync::Arc;

    fn device(bytes: usize) -> Device {
        let mut device = Device::new(1).expect("a thread");
        device.gpu = Some(Arc::new(Gpu::host_with_memory(bytes).expect("the harness")));
        device
    }

    fn methods() -> [TuneMethod; 3] {
        let targets = crate::model::tune::LoraTarget::ALL.to_vec();
        let spec = LoraSpec { r: 4, alpha: 8.0, dropout: 0.1, targets, use_rslora: false };
        [
            TuneMethod::Full,
            TuneMethod::Lora { spec: spec.clone(), adapter: None },
            TuneMethod::QLora { spec, adapter: None, double_quant: true },
        ]
    }

    /// A pass over rows of 48 tokens; the most bytes that the device had in use, and the plan's.
    fn peak(options: TuneOptions, rows: usize) -> (usize, usize) {
        let longest = 48;
        let memory = 1 << 30;
        let mut model =
            TuneModel::open_on(&fixture(), &options, device(memory)).expect("a fixture");
        let mut grads = Grads::zeros(model.params()).expect("room");
        let n = rows * longest;
        let ids: Vec<u32> = (0..n as u32).map(|i| i * 7 % 100 + 3).collect();
        let labels: Vec<Option<u32>> =
            (0..n).map(|i| ((i + 1) % longest != 0).then(|| ids[i + 1])).collect();
        let spans = vec![longest; rows];
        let slice = Slice { ids: &ids, labels: &labels, spans: &spans, sources: &[] };
        model.run(&slice, Some((&mut grads, 1.0)), Dropout::default()).expect("a pass");
        let gpu = model.device().gpu().expect("the harness").memory_use();
        let plan =
            Wanted { options, batch: rows, longest, told: Some(n), state_bytes: 0, ..wanted() };
        (gpu.peak_bytes, plan.plan().total() as usize)
    }

    #[test]
    fn the_plan_covers_a_pass_and_is_no_guess() {
        for method in methods() {
            for precision in [Precision::F32, Precision::Bf16] {
                for gradient_checkpointing in [false, true] {
                    let base = options(method.clone());
                    let options = TuneOptions { precision, gradient_checkpointing, ..base };
                    let (peak, planned) = peak(options.clone(), 4);
                    // Blocks of small models are rounded up by much, and kernels are told of at
                    // their largest.
                    let most = peak + peak / 4 + (512 << 10);
                    assert!(peak <= planned && planned <= most, "{peak} of {planned}: {options:?}");
                }
            }
        }
    }

    #[test]
    fn weights_that_do_not_fit_say_what_would() {
        let (all, half) = (wanted().plan().weights(), wanted().steps()[2].plan().weights());
        assert!(half < all);
        let memory = (half + (all - half) / 2) as usize;
        let asked = options(TuneMethod::Full);
        let error = TuneModel::open_on(&fixture(), &asked, device(memory)).map(|_| ());
        let error = explain(error.unwrap_err(), &fixture(), &asked);
        let Error::DeviceMemory { total, .. } = error else { panic!("{error}") };
        assert_eq!(total, memory);
        let text = error.to_string();
        assert!(
            text.contains("the weights alone take ") && text.contains("--method lora"),
            "{text}"
        );
    }

    #[test]
    fn a_device_is_asked_for_what_is_planned() {
        let open = |memory| {
            TuneModel::open_on(&fixture(), &options(TuneMethod::Full), device(memory)).unwrap()
        };
        let model = open(1 << 30);
        let memory = model.device().memory().unwrap().expect("the harness");
        assert_eq!(memory.total, 1 << 30);
        let used = model.device().gpu().unwrap().memory_use().used_bytes;
        assert_eq!((memory.used, memory.free), (used, (1 << 30) - used - (1 << 24)));
        model.device().reserve(usize::MAX).unwrap();
        assert_eq!(
            TuneModel::open(&fixture(), &options(TuneMethod::Full))
                .unwrap()
                .device()
                .memory()
                .unwrap(),
            None
        );
    }
}
