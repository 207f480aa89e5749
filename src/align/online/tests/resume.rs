//! A run that was cut short anywhere, and gone on with, is the run that was not.

use super::*;
use crate::align::advantage::Kl;
use crate::align::clipped::{PolicyLoss, ValueLoss};
use crate::align::grpo::{Grpo, GrpoSettings, Mean};
use crate::align::ppo::{Ppo, PpoSettings};
use crate::align::raft::{Raft, RaftSettings};
use crate::align::reference::Reference;
use crate::align::select::Strategy;
use crate::model::tune::{LoraSpec, LoraTarget};
use crate::train::job::End;
use crate::train::metrics::StepLine;
use std::sync::atomic::Ordering;

/// Sets the flag when it has been told of so many things.
struct Stopper<'a> {
    left: usize,
    stop: &'a AtomicBool,
}

impl Stopper<'_> {
    fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Watch for Stopper<'_> {
    fn step(&mut self, _: &StepLine) {
        self.count();
    }

    fn stage(&mut self, _: &str, _: usize) {
        self.count();
    }

    fn progress(&mut self, _: usize) {
        self.count();
    }

    fn iteration(&mut self, _: &IterationLine) {
        self.count();
    }
}

fn how() -> OnlineSettings {
    let mut how = settings(3, 4, 4);
    how.generate.max_new_tokens = 5;
    how.generate.ignore_eos = false;
    how.generate.end_ids = vec![7, 11, 13, 17, 19, 23];
    how.train.batch_size = 3;
    how.train.length = Length::Epochs(2.0);
    how
}

fn bits<M: Method>(model: &M) -> Vec<u32> {
    let params = model.params().0.iter();
    params.flat_map(|param| param.value.host().unwrap()).map(|value| value.to_bits()).collect()
}

/// What a line says that does not depend on the clock.
fn facts(output: &Path) -> Vec<String> {
    let fact = |line| match line {
        Line::Step(line) => {
            format!("{} {} {} {:?}", line.step, line.loss, line.grad_norm, line.measures)
        }
        Line::Iteration(IterationLine { iteration, kept, reward_mean, ppl, measures, .. }) => {
            format!("{iteration} {kept} {reward_mean} {ppl:?} {measures:?}")
        }
        Line::Eval(_) => panic!("no evaluation"),
    };
    metrics::read(output).unwrap().into_iter().map(fact).collect()
}

fn assert_resumes<M: Method>(make: impl Fn() -> M) {
    let prompts: Vec<Prompt> = (0..6).map(|i| prompt(&[1, 40 + i, 9])).collect();
    let run = |output: &Path, left: usize, resume: bool| {
        let stop = AtomicBool::new(false);
        let mut model = make();
        let watch = &mut Stopper { left, stop: &stop };
        let outcome = go(&mut model, &how(), &prompts, output, &stop, resume, watch).unwrap();
        (outcome.end, bits(&model), watch.left)
    };
    let whole = tempfile::tempdir().unwrap();
    let most = 100_000;
    let (end, wanted, left) = run(whole.path(), most, false);
    assert_eq!(end, End::Complete);
    let (told, facts_wanted) = (most - left, facts(whole.path()));
    assert!(told > 30, "{told}");
    for cut in (1..told).step_by(3) {
        let dir = tempfile::tempdir().unwrap();
        let (end, _, _) = run(dir.path(), cut, false);
        if end == End::Complete {
            continue;
        }
        let (end, found, _) = run(dir.path(), most, true);
        assert_eq!(end, End::Complete, "cut at {cut}");
        assert!(found == wanted, "cut at {cut}");
        assert_eq!(facts(dir.path()), facts_wanted, "cut at {cut}");
        let (end, _, _) = run(dir.path(), most, true);
        assert_eq!(end, End::AlreadyDone);
    }
}

fn lora() -> TuneMethod {
    let spec = LoraSpec {
        r: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: LoraTarget::ALL.to_vec(),
        use_rslora: false,
    };
    TuneMethod::Lora { spec, adapter: None }
}

#[test]
fn raft_goes_on_where_it_was() {
    assert_resumes(|| {
        let choice = RaftSettings {
            strategy: Strategy::Local,
            share: 0.25,
            kl_coef: 0.1,
            lmflow_compat: false,
        };
        let model = open_with(lora(), false);
        let reference = Reference::of(&model, Path::new(DIR), None).unwrap();
        Raft::new(model, choice, Some(reference), None).unwrap()
    });
}

#[test]
fn ppo_goes_on_where_it_was() {
    assert_resumes(|| {
        let constants = PpoSettings {
            policy: PolicyLoss { clip: 0.2, clip_high: None },
            value: ValueLoss { clip: Some(0.2), coef: 0.1 },
            gamma: 1.0,
            lambda: 0.95,
            kl_coef: 0.1,
            kl_target: Some((1.0, 100.0)),
            kl: Kl::K3,
            whiten_rewards: true,
            missing_eos_penalty: 1.0,
        };
        let model = open(true);
        let reference = Reference::of(&model, Path::new(DIR), None).unwrap();
        Ppo::new(model, constants, reference, None).unwrap()
    });
}

#[test]
fn grpo_goes_on_where_it_was() {
    assert_resumes(|| {
        let constants = GrpoSettings {
            policy: PolicyLoss { clip: 0.2, clip_high: None },
            beta: 0.1,
            scale_rewards: true,
            mean: Mean::Answers,
        };
        let model = open_with(lora(), false);
        let reference = Reference::of(&model, Path::new(DIR), None).unwrap();
        Grpo::new(model, constants, Some(reference), None).unwrap()
    });
}

#[test]
fn a_lesson_that_was_changed_is_refused() {
    let prompts: Vec<Prompt> = (0..6).map(|i| prompt(&[1, 40 + i, 9])).collect();
    let make = || {
        let constants = GrpoSettings {
            policy: PolicyLoss { clip: 0.2, clip_high: None },
            beta: 0.0,
            scale_rewards: true,
            mean: Mean::Tokens,
        };
        Grpo::new(open_with(lora(), false), constants, None, None).unwrap()
    };
    // Cut after the second step of the first iteration: drawing tells 6 times (its stage, none done,
    // four prompts), scoring and learning once each, and a step twice.
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let watch = &mut Stopper { left: 12, stop: &stop };
    let end = go(&mut make(), &how(), &prompts, dir.path(), &stop, false, watch).unwrap().end;
    assert_eq!(end, End::Interrupted);
    let steps = metrics::read(dir.path()).unwrap().len();
    assert_eq!(steps, 2, "cut elsewhere");
    let path = dir.path().join("iterations/0001/lesson.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"source\":[", "\"source\":[9999,", 1)).unwrap();
    let (stop, watch) = (AtomicBool::new(false), &mut crate::train::Silent);
    let error = go(&mut make(), &how(), &prompts, dir.path(), &stop, true, watch).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("lesson.json") && error.contains("SHA-256"), "{error}");
}
