//! `puna dpo` as a user meets it: the three types of data, what a run leaves, errors.

use crate::support::program::{Run, puna};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new(files: &[(&str, Value)]) -> Place {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value.to_string()).unwrap();
        }
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dpo(&self, data: &str, out: &str, args: &[&str]) -> Run {
        let data = format!("--dataset={}", self.path(data).display());
        let out = format!("--output={}", self.path(out).display());
        let all = ["dpo", "builtin", &data, &out, "--threads=2", "--batch-size=4"];
        puna(&all.iter().chain(args).copied().collect::<Vec<_>>())
    }

    fn lines(&self, out: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

const ANIMALS: [&str; 6] = ["cat", "dog", "owl", "fox", "bee", "cow"];

/// Short answers are preferred to loud ones.
fn texts(kind: &str) -> Value {
    let one = |(i, animal): (usize, &&str)| {
        let (prompt, other) = (format!("Not the {animal}: "), ANIMALS[(i + 1) % 6]);
        let (good, bad) = (format!("The {other}."), format!("The {other}!!! Wow!!!"));
        match kind {
            "paired_text_to_text" => {
                json!({"prompt": prompt, "chosen": good, "rejected": bad, "margin": 0.5})
            }
            "text_to_scored_textlist" => json!({"input": prompt, "output": [
                {"score": 0.1, "text": bad},
                {"score": 0.4, "text": format!("A {other}.")},
                {"score": 0.9, "text": good},
            ]}),
            _ => {
                let talk = |answer: &str| {
                    json!({"messages": [
                        {"role": "user", "content": prompt},
                        {"role": "assistant", "content": answer},
                    ]})
                };
                json!({"chosen": talk(&good), "rejected": talk(&bad)})
            }
        }
    };
    let instances: Vec<Value> = ANIMALS.iter().enumerate().map(one).collect();
    json!({"type": kind, "instances": instances})
}

const KINDS: [&str; 3] = ["paired_text_to_text", "text_to_scored_textlist", "paired_conversation"];

#[test]
fn every_type_of_preference_is_learnt_and_a_run_leaves_what_it_promises() {
    for kind in KINDS {
        let place = Place::new(&[("data/a.json", texts(kind))]);
        let args = [
            "--method=lora",
            "--lora-target-modules=all-linear",
            "--lora-dropout=0",
            "--learning-rate=0.01",
            "--max-steps=12",
            "--conversation-template=chatml",
            "--eval-steps=6",
            "--eval-dataset",
        ];
        let eval = place.path("data").display().to_string();
        let run = place.dpo("data", "out", &[&args[..], &[&eval, "--json"]].concat()).done();
        let result = &run.json()[0];
        assert_eq!(result["steps"], 12, "{kind}");
        assert!(result["eval_ppl"].is_null() && result["eval_accuracy"] == 1.0, "{kind}: {result}");
        let lines = place.lines("out");
        // The first step's policy is the reference.
        let first = lines[0]["loss"].as_f64().unwrap();
        assert!((first - 2f64.ln()).abs() < 1e-6, "{kind}: {first}");
        let evals: Vec<&Value> = lines.iter().filter(|l| l.get("eval_loss").is_some()).collect();
        let last = evals.last().unwrap();
        assert!(last["eval_loss"].as_f64() < Some(0.5), "{kind}: {last}");
        assert!(last["eval_reward_margin"].as_f64() > Some(0.0), "{kind}: {last}");
        for name in ["adapter_model.safetensors", "adapter_config.json", "train_results.json"] {
            assert!(place.path("out").join(name).is_file(), "{kind}: {name}");
        }
        let report = fs::read_to_string(place.path("out").join("report.html")).unwrap();
        assert!(report.contains("reward margin") && report.contains("sigmoid"));
    }
}

#[test]
fn full_tuning_compares_with_the_weights_it_began_with() {
    let place = Place::new(&[("a.json", texts("paired_text_to_text"))]);
    let args = ["--max-steps=3", "--learning-rate=1e-4", "--loss=ipo", "--no-shuffle"];
    place.dpo("a.json", "out", &args).done();
    let losses: Vec<f64> =
        place.lines("out").iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    // h is 0: (0 - 1 / (2 beta))² with beta 0.1.
    assert!((losses[0] - 25.0).abs() < 1e-4, "{losses:?}");
    assert!(losses[2] < losses[0], "{losses:?}");
    assert!(place.path("out/model.safetensors").is_file());
    // The same command goes on only if it is told to; then there is nothing to do.
    let again = place.dpo("a.json", "out", &args);
    assert!(again.status == Some(2) && again.stderr.contains("--resume"), "{}", again.stderr);
    let resumed = place.dpo("a.json", "out", &[&args[..], &["--resume"]].concat()).done();
    assert!(resumed.stdout.contains("done already"), "{}", resumed.stdout);
    // A run on with another loss is another run.
    let other = place.dpo("a.json", "out", &["--max-steps=3", "--loss=hinge", "--resume"]);
    assert!(other.status != Some(0) && other.stderr.contains("loss"), "{}", other.stderr);
}

#[test]
fn kto_learns_from_groups_of_pairs() {
    let place = Place::new(&[("a.json", texts("paired_text_to_text"))]);
    let args = [
        "--loss=kto",
        "--method=lora",
        "--lora-target-modules=all-linear",
        "--lora-dropout=0",
        "--learning-rate=0.01",
        "--max-steps=10",
        "--eval-steps=5",
        "--eval-dataset",
    ];
    let eval = place.path("a.json").display().to_string();
    place.dpo("a.json", "out", &[&args[..], &[&eval]].concat()).done();
    let lines = place.lines("out");
    // Nothing has moved: every answer costs half its weight.
    assert!((lines[0]["loss"].as_f64().unwrap() - 0.5).abs() < 1e-6, "{}", lines[0]);
    let last = lines.iter().rfind(|line| line.get("eval_loss").is_some()).unwrap();
    assert!(last["eval_loss"].as_f64() < Some(0.45), "{last}");
    assert!(last["eval_reward_accuracy"].as_f64() == Some(1.0), "{last}");
    assert!(last["eval_kl_baseline"].as_f64() >= Some(0.0), "{last}");
    let refused: [(&[&str], &str); 3] = [
        (&["--loss=kto", "--simpo-gamma=1"], "simpo-gamma = 1: kto has no such constant"),
        (&["--loss=kto", "--desirable-weight=-1"], "--desirable-weight"),
        (&["--desirable-weight=2"], "only --loss kto weighs answers"),
    ];
    for (flags, part) in refused {
        let run = place.dpo("a.json", "other", flags);
        assert!(run.status == Some(2) && run.stderr.contains(part), "{flags:?}: {}", run.stderr);
    }
}

#[test]
fn a_dry_run_says_what_it_would_take_and_writes_nothing() {
    let place = Place::new(&[("a.json", texts("paired_text_to_text"))]);
    let run = place.dpo("a.json", "out", &["--dry-run", "--json", "--method=lora"]).done();
    let plan = &run.json()[0];
    assert_eq!((&plan["rows"], &plan["steps"]), (&json!(6), &json!(2)));
    assert!(plan["tok_per_s"].as_f64() > Some(0.0));
    assert!(!place.path("out").exists());
}

#[test]
fn what_is_no_pair_is_named() {
    let set = |kind: &str, instance: Value| json!({"type": kind, "instances": [instance]});
    let talk = |role: &str| json!({"messages": [{"role": "user", "content": "a"}, {"role": role, "content": "b"}]});
    let cases = [
        (set("text_only", json!({"text": "a"})), "wanted one of paired_text_to_text"),
        (
            set("paired_text_to_text", json!({"prompt": "a", "chosen": "", "rejected": "b"})),
            "key \"chosen\": empty",
        ),
        (set("paired_text_to_text", json!({"prompt": "a", "chosen": "b"})), "rejected"),
        (
            set(
                "text_to_scored_textlist",
                json!({"input": "a", "output": [{"score": 1, "text": "b"}]}),
            ),
            "1 answers, wanted two",
        ),
        (
            set(
                "paired_conversation",
                json!({"chosen": talk("assistant"), "rejected": talk("user")}),
            ),
            "key \"rejected\": the last message is not the assistant's",
        ),
    ];
    for (value, wanted) in cases {
        let place = Place::new(&[("a.json", value)]);
        let run = place.dpo("a.json", "out", &[]);
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(wanted) && run.stderr.contains("a.json"), "{}", run.stderr);
        assert!(!place.path("out").exists());
    }
    // Told to, they are left out and counted; a set without any pair is still refused.
    let mut both = texts("paired_text_to_text");
    let bad = json!({"prompt": "a", "chosen": "", "rejected": "b"});
    both["instances"].as_array_mut().unwrap().push(bad);
    let place = Place::new(&[("a.json", both)]);
    let run = place.dpo("a.json", "out", &["--skip-bad-instances", "--max-steps=1"]).done();
    assert!(run.stderr.contains("1 instances left out"), "{}", run.stderr);
    let usage = [
        (&["--loss=dpo"][..], "wanted one of sigmoid"),
        (&["--beta=0"][..], "wanted a number above 0"),
        (&["--loss=hinge", "--label-smoothing=0.1"][..], "only sigmoid and robust"),
        (&["--max-length=8", "--max-prompt-length=8"][..], "--max-prompt-length 8"),
        (&["--max-length=1"][..], "--max-length 1: wanted at least 2"),
        (&["--lora-r=4"][..], "--lora-r with --method full"),
    ];
    for (args, wanted) in usage {
        let run = place.dpo("a.json", "other", args);
        assert!(run.status == Some(2) && run.stderr.contains(wanted), "{}", run.stderr);
    }
}
