//! Against transformers and TRL on a model of the fixtures: scores, losses, gradients; then a run.

use super::*;
use crate::data::{Pairs, Row};
use crate::model::tune::{LoraSpec, LoraTarget, Precision, TuneMethod, TuneOptions};
use crate::train::{Holder, Packed};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const DIR: &str = "tests/fixtures/mini-mha";

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn reference() -> Value {
    json(&format!("{DIR}/reward.json"))
}

fn pair_rows() -> PairRows {
    let mut pairs = Pairs::default();
    for (at, pair) in reference()["pairs"].as_array().unwrap().iter().enumerate() {
        let mut row = Row::default();
        for side in ["chosen_ids", "rejected_ids"] {
            let ids = numbers(&pair[side]).into_iter().map(|id| id as u32);
            row.ids.extend(ids.clone());
            row.spans.push(ids.len() as u32);
            row.source.push(at as u32);
        }
        row.labels = vec![-100; row.ids.len()];
        pairs.rows.push(row);
        pairs.margins.push(pair["margin"].as_f64().unwrap());
        pairs.places.push(format!("pair {at}"));
    }
    PairRows(pairs)
}

fn options(method: TuneMethod) -> TuneOptions {
    TuneOptions {
        threads: 2,
        precision: Precision::F32,
        method,
        gradient_checkpointing: false,
        seed: 0,
        score: true,
        value: false,
    }
}

fn lora() -> TuneMethod {
    let targets = vec![LoraTarget::Wq, LoraTarget::Wv];
    let spec = LoraSpec { r: 4, alpha: 8.0, dropout: 0.0, targets, use_rslora: false };
    TuneMethod::Lora { spec, adapter: None }
}

fn open(dir: &str, method: TuneMethod) -> TuneModel {
    TuneModel::open(Path::new(dir), &options(method)).unwrap()
}

fn reward_model() -> TuneModel {
    open(&format!("{DIR}/reward-model"), TuneMethod::Full)
}

#[test]
fn losses_and_derivatives_equal_those_of_trl() {
    let file = json("tests/fixtures/pairloss.json");
    let input = |name: &str| numbers(&file["reward_inputs"][name]);
    let (chosen, rejected, margins) = (input("chosen"), input("rejected"), input("margin"));
    let cases = [
        ("plain", false, 0.0),
        ("margin", true, 0.0),
        ("center_0.01", false, 0.01),
        ("margin_center_0.01", true, 0.01),
    ];
    for (name, margin, centre) in cases {
        let wanted = &file["reward"][name];
        let loss = RewardLoss { margin, centre };
        let n = chosen.len() as f64;
        let mut sum = 0.0;
        for i in 0..chosen.len() {
            let (value, d) = loss.cost([chosen[i], rejected[i]], margins[i]);
            sum += value;
            for (side, key) in ["dloss_dchosen", "dloss_drejected"].into_iter().enumerate() {
                let theirs = n * numbers(&wanted[key])[i];
                assert!((d[side] - theirs).abs() < 1e-5, "{name} {key} {i}: {} {theirs}", d[side]);
            }
        }
        let theirs = wanted["loss"].as_f64().unwrap();
        assert!((sum / n - theirs).abs() < 1e-5 * theirs.abs().max(1.0), "{name}: {sum} {theirs}");
    }
}

#[test]
fn scores_losses_and_gradients_equal_those_of_transformers() {
    let rows = pair_rows();
    let packed = Packed::new(&rows.0.rows);
    let file = reference();
    let scores = reward_model().scores(&packed.slice()).unwrap();
    let (chosen, rejected) = (numbers(&file["scores_chosen"]), numbers(&file["scores_rejected"]));
    for (i, both) in scores.chunks_exact(2).enumerate() {
        for (ours, theirs) in both.iter().zip([chosen[i], rejected[i]]) {
            assert!((f64::from(*ours) - theirs).abs() < 1e-5, "pair {i}: {ours} {theirs}");
        }
    }
    // Many rows at a time or one: the same scores, so padding and company do not count.
    for (i, row) in rows.0.rows.iter().enumerate() {
        let alone = reward_model().scores(&Packed::new(std::slice::from_ref(row)).slice()).unwrap();
        assert!(alone.iter().zip(&scores[2 * i..]).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    let bytes = std::fs::read(format!("{DIR}/reward-grads.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let loss = RewardLoss { margin: true, centre: 0.0 };
    let mut reward = Reward::new(reward_model(), loss, &[&rows]).unwrap();
    let mut grads = Grads::zeros(reward.params()).unwrap();
    let scale = 1.0 / reward.units(&packed.slice()) as f32;
    let total = reward.run(&packed.slice(), Some((&mut grads, scale)), Dropout::default()).unwrap();
    let wanted = file["losses"]["margin"]["loss"].as_f64().unwrap();
    let mean = total.nll / total.scored as f64;
    assert!((mean - wanted).abs() < 1e-5, "{mean} {wanted}");
    for (param, grad) in reward.params().0.iter().zip(&grads.0) {
        let theirs = tensors.tensor(&format!("grad.{}", param.name)).unwrap();
        let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let theirs: Vec<f32> = theirs.data().chunks_exact(4).map(number).collect();
        let square = |x: f32| f64::from(x) * f64::from(x);
        let grad = grad.host().unwrap();
        let error: f64 = grad.iter().zip(&theirs).map(|(&a, &b)| square(a - b)).sum();
        let norm: f64 = theirs.iter().map(|&b| square(b)).sum();
        assert!((error / norm).sqrt() < 1e-4, "{}: {}", param.name, (error / norm).sqrt());
    }
    let n = tensors.names().iter().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(reward.params().0.len(), n);
}

/// Scores of a model as it is loaded for inference.
fn served(dir: &str, adapters: &[&Path], rows: &PairRows) -> Vec<f32> {
    use crate::model::llama::{KvType, LoadOptions, Model};
    let options = LoadOptions {
        adapters: adapters.iter().map(|dir| dir.to_path_buf()).collect(),
        ..LoadOptions::threads(1)
    };
    let model = Model::load(Path::new(dir), &options).unwrap();
    assert!(model.check_speaks().is_err());
    let texts: Vec<&[u32]> = rows
        .0
        .rows
        .iter()
        .flat_map(|row| {
            let (a, b) = row.ids.split_at(row.spans[0] as usize);
            [a, b]
        })
        .collect();
    let (ws, go) = (&mut model.workspace(), AtomicBool::new(false));
    crate::eval::reward::scores(&model, ws, &texts, KvType::F32, &go, &mut |_| Ok(())).unwrap()
}

#[test]
fn what_is_saved_scores_as_what_was_trained() {
    let rows = pair_rows();
    let packed = Packed::new(&rows.0.rows);
    let near = |a: &[f32], b: &[f32], what: &str| {
        assert_eq!(a.len(), b.len());
        let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "{what}: {off} {a:?} {b:?}");
    };
    // A model for tokens gets a head; an adapter brings it along.
    for (name, method) in [("full", TuneMethod::Full), ("lora", lora())] {
        let mut model = open(DIR, method);
        let mut grads = Grads::zeros(model.params()).unwrap();
        model
            .run_scores(&packed.slice(), &mut grads, Dropout::default(), &mut |scores| {
                scores
                    .iter()
                    .enumerate()
                    .map(|(i, _)| if i % 2 == 0 { -1.0 } else { 1.0 })
                    .collect()
            })
            .unwrap();
        for (param, grad) in model.params_mut().0.iter_mut().zip(&grads.0) {
            let (value, grad) = (param.value.host_mut().unwrap(), grad.host().unwrap());
            value.iter_mut().zip(grad).for_each(|(x, g)| *x -= 0.01 * g);
        }
        let trained = model.scores(&packed.slice()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path()).unwrap();
        let path = dir.path().to_str().unwrap();
        match name {
            "full" => {
                near(&served(path, &[], &rows), &trained, "served");
                let again = open(path, TuneMethod::Full).scores(&packed.slice()).unwrap();
                near(&again, &trained, "opened again");
            }
            _ => {
                near(&served(DIR, &[dir.path()], &rows), &trained, "served");
                let spec = crate::format::peft::read_spec(dir.path()).unwrap();
                let method = TuneMethod::Lora { spec, adapter: Some(dir.path().to_owned()) };
                let again = open(DIR, method).scores(&packed.slice()).unwrap();
                near(&again, &trained, "opened again");
                let settings = json(&format!("{path}/adapter_config.json"));
                assert_eq!(settings["task_type"], "SEQ_CLS");
                assert_eq!(settings["modules_to_save"][0], "score");
            }
        }
    }
    near(
        &served(&format!("{DIR}/reward-model"), &[], &rows),
        &reward_model().scores(&packed.slice()).unwrap(),
        "the fixture",
    );
}

#[test]
fn heads_are_not_mixed_up() {
    let rows = pair_rows();
    let packed = Packed::new(&rows.0.rows);
    assert!(reward_model().log_probs(&packed.slice(), true).is_err());
    let tokens = TuneOptions { score: false, ..options(TuneMethod::Full) };
    let path = format!("{DIR}/reward-model");
    assert!(TuneModel::open(Path::new(&path), &tokens).is_err());
    assert!(TuneModel::open(Path::new(DIR), &tokens).unwrap().scores(&packed.slice()).is_err());
    assert!(RewardLoss { margin: false, centre: -1.0 }.check().is_err());
}
