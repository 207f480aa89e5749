//! Gradients of the losses that are functions of log-probabilities and values, through a model.

use super::advantage::Kl;
use super::clipped::{PolicyLoss, ValueLoss};
use super::grpo::{Grpo, GrpoSettings, Mean};
use super::kto::Kto;
use super::kto_tune::{DOCUMENTS, KtoTuned};
use super::online::{Method, Round, Sample};
use super::pairs::{PairRows, PairTrainee};
use super::ppo::{Ppo, PpoSettings};
use super::reference::Reference;
use super::slope::{assert_slope, shake};
use crate::autograd::Dropout;
use crate::data::{NOT_SCORED, Pairs, Prompt, Question, Row};
use crate::model::tune::{Precision, TuneMethod, TuneModel, TuneOptions};
use crate::train::{Packed, Rows, Trainee};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const DIR: &str = "tests/fixtures/mini-mha";

fn open(value: bool) -> TuneModel {
    let options = TuneOptions {
        threads: 2,
        precision: Precision::F32,
        method: TuneMethod::Full,
        gradient_checkpointing: false,
        seed: 0,
        score: false,
        value,
    };
    TuneModel::open(Path::new(DIR), &options).unwrap()
}

fn prompts() -> Vec<Prompt> {
    let prompt = |at: u32| Prompt {
        question: Question::Text(String::new()),
        ids: vec![1, 30 + at, 9 + 2 * at],
        text: String::new(),
        answer: None,
        place: format!("prompt {at}"),
    };
    (0..3).map(prompt).collect()
}

/// Two answers to each of three prompts, of different lengths.
fn samples() -> Vec<Sample> {
    let sample = |at: usize| Sample {
        prompt: at / 2,
        ids: (0..2 + at as u32).map(|i| 3 + (17 * i + 31 * at as u32) % 190).collect(),
        ended: at.is_multiple_of(2),
        reward: (at as f64 * 1.7).sin(),
        ..Sample::default()
    };
    (0..6).map(sample).collect()
}

/// Rows and what is known of them, once a method has made its lesson.
fn begin<M: Method>(method: &mut M) -> Vec<Row> {
    let (prompts, samples) = (prompts(), samples());
    let prompts: Vec<&Prompt> = prompts.iter().collect();
    let round = Round { iteration: 0, prompts: &prompts, samples: &samples, n_samples: 2 };
    let lesson = method.lesson(&round, &AtomicBool::new(false)).unwrap().unwrap();
    method.begin(&lesson).unwrap();
    lesson.rows
}

fn reference(model: &TuneModel) -> Reference {
    Reference::of(model, Path::new(DIR), None).unwrap()
}

#[test]
fn ppo_has_the_gradient_of_its_loss() {
    let constants = PpoSettings {
        policy: PolicyLoss { clip: 0.2, clip_high: None },
        value: ValueLoss { clip: Some(0.2), coef: 0.7 },
        gamma: 0.9,
        lambda: 0.95,
        kl_coef: 0.1,
        kl_target: None,
        kl: Kl::K3,
        whiten_rewards: false,
        missing_eos_penalty: 1.0,
    };
    let model = open(true);
    let reference = reference(&model);
    let mut ppo = Ppo::new(model, constants, reference, None).unwrap();
    shake(&mut ppo, 0.01, 1);
    let rows = begin(&mut ppo);
    assert_eq!(rows.len(), 6);
    let first = ppo.run(&Packed::new(&rows).slice(), None, Dropout::default()).unwrap();
    assert_eq!(first.correct, first.scored, "nothing is clipped at the policy that was asked");
    shake(&mut ppo, 0.005, 2);
    assert_slope(&mut ppo, &rows, 1e-3, 0.01);
    let measures = ppo.measures();
    assert!(measures["approx_kl"] > 0.0 && measures["ratio"] != 1.0, "{measures:?}");
}

#[test]
fn grpo_has_the_gradient_of_its_loss() {
    for mean in Mean::ALL {
        let constants = GrpoSettings {
            policy: PolicyLoss { clip: 0.2, clip_high: Some(0.28) },
            beta: 0.3,
            scale_rewards: true,
            mean,
        };
        let model = open(false);
        let reference = reference(&model);
        let mut grpo = Grpo::new(model, constants, Some(reference), None).unwrap();
        shake(&mut grpo, 0.01, 1);
        let rows = begin(&mut grpo);
        shake(&mut grpo, 0.005, 2);
        assert_slope(&mut grpo, &rows, 1e-3, 0.01);
        let slice = Packed::new(&rows);
        let loss = grpo.run(&slice.slice(), None, Dropout::default()).unwrap();
        assert_eq!(loss.scored, grpo.units(&slice.slice()));
    }
}

/// Pairs of a prompt and two answers, one document each.
fn pairs() -> PairRows {
    let mut pairs = Pairs::default();
    let samples = samples();
    for (at, prompt) in prompts().iter().enumerate() {
        let mut row = Row::default();
        for sample in &samples[2 * at..2 * at + 2] {
            row.ids.extend(prompt.ids.iter().chain(&sample.ids));
            row.labels.extend(prompt.ids.iter().map(|_| NOT_SCORED));
            row.labels.extend(sample.ids.iter().map(|&id| id as i32));
            row.spans.push((prompt.ids.len() + sample.ids.len()) as u32);
            row.source.push(at as u32);
        }
        pairs.rows.push(row);
        pairs.margins.push(0.0);
        pairs.places.push(prompt.place.clone());
    }
    PairRows(pairs)
}

#[test]
fn groups_hold_every_pair_with_the_answer_to_another() {
    let rows = pairs().grouped(2).unwrap();
    // The third pair would be alone.
    assert_eq!(rows.n_rows(), 1);
    let row = &rows.0.rows[0];
    assert_eq!(row.spans.len(), 3 * DOCUMENTS);
    assert_eq!(row.source, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    let (prompts, samples) = (prompts(), samples());
    let mut start = 0;
    for (at, &len) in row.spans.iter().enumerate() {
        let own = start..start + len as usize;
        let (pair, which) = (at / DOCUMENTS, at % DOCUMENTS);
        let answer = [2 * pair, 2 * pair + 1, 2 * ((pair + 1) % 3)][which];
        let wanted = [&prompts[pair].ids[..], &samples[answer].ids].concat();
        assert_eq!(row.ids[own.clone()], wanted, "document {at}");
        let scored = row.labels[own].iter().filter(|&&label| label != NOT_SCORED).count();
        assert_eq!(scored, samples[answer].ids.len());
        start += len as usize;
    }
    assert_eq!(rows.place(2), "prompt 0; prompt 1; prompt 2");
    let one = PairRows(Pairs { rows: pairs().0.rows[..1].to_vec(), ..Pairs::default() });
    let error = one.grouped(4).err().expect("one pair is too few").to_string();
    assert!(error.contains("wanted at least 2"), "{error}");
}

#[test]
fn kto_has_the_gradient_of_its_loss_with_the_baseline_held() {
    let rows = pairs().grouped(3).unwrap();
    let kto = Kto { beta: 0.5, desirable_weight: 1.0, undesirable_weight: 1.5 };
    let mut tuned = KtoTuned::new(open(false), kto, &[&rows]).unwrap();
    let stop = AtomicBool::new(false);
    assert!(tuned.prepare(&[&rows], None, &stop, &mut |_| ()).unwrap());
    let first = Packed::new(&rows.0.rows);
    let loss = tuned.run(&first.slice(), None, Dropout::default()).unwrap();
    // At the reference every ratio is 0: half the weights.
    assert!((loss.nll / 3.0 - 0.5 * 0.5 * 2.5).abs() < 1e-4, "{loss:?}");
    assert_eq!((loss.scored, tuned.units(&first.slice())), (3, 3));
    // The baseline has no derivative; here, where the policy has moved away from the mismatched
    // answers, it is 0 and stays it.
    let mut seed = 1;
    loop {
        shake(&mut tuned, 0.01, seed);
        tuned.measures();
        tuned.run(&first.slice(), None, Dropout::default()).unwrap();
        if tuned.measures()["kl_baseline"] == 0.0 {
            break;
        }
        seed += 1;
    }
    assert_slope(&mut tuned, &rows.0.rows, 1e-3, 0.01);
}
