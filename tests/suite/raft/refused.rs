//! What cannot be run, scored or written.

use super::*;
use crate::support::toy;

#[test]
fn rewards_that_are_none_end_the_run_and_its_answers_stay() {
    let place = Place::new(&prompts("text_only"));
    let cases: [(&str, &[&str]); 4] = [
        ("--reward-command=exit 3", &["`exit 3`", "exit status: 3", "wanted exit status: 0"]),
        ("--reward-command=echo junk", &["`echo junk`", "line 1: \"junk\", wanted a number"]),
        (
            "--reward-command=sed 's/.*/NaN/'",
            &["`sed 's/.*/NaN/'`", "line 1: \"NaN\", wanted a finite number"],
        ),
        (
            "--reward-command=head -n 2 | sed 's/.*/1/'",
            &["`head -n 2 | sed 's/.*/1/'`", "2 lines, wanted 16, one an answer"],
        ),
    ];
    for (number_of, (flag, parts)) in cases.into_iter().enumerate() {
        let out = format!("out{number_of}");
        let run = place.run("raft", &out, &with(RAFT, &[flag]));
        assert_eq!(run.status, Some(1), "{flag}: {}", run.stderr);
        for part in parts {
            assert!(run.stderr.contains(part), "{flag}: {part}: {}", run.stderr);
        }
        let groups = lines(&place.drawn(&out));
        assert_eq!(groups.len(), 4, "{flag}");
        for group in groups {
            let group = group.as_array().expect("the answers to a prompt");
            assert!(group.len() == 4 && group.iter().all(|one| !ids(&one["ids"]).is_empty()));
        }
        assert!(!place.path(&out).join("iterations/0001/samples.jsonl").exists(), "{flag}");
        assert!(!place.path(&out).join("adapter_model.safetensors").exists(), "{flag}");
    }
}

#[test]
fn a_rule_that_needs_answers_is_refused_where_there_are_none() {
    let place = Place::new(&prompts("text_only"));
    let run = place.run("raft", "out", &with(RAFT, &["--reward-rule=exact"]));
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in ["prompts.json", "no reference answer, which the rule exact"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    assert!(!place.path("out").exists());
}

#[test]
fn a_program_made_good_is_asked_about_the_answers_that_are_there() {
    let place = Place::new(&prompts("text2text"));
    let script = format!("sh '{}'", place.text("score.sh"));
    let flag = format!("--reward-command={script}");
    let args = with(RAFT, &[flag.as_str()]);
    let resume = with(&args, &["--resume"]);
    place.write("score.sh", "echo nobody is there >&2\nexit 3\n");
    let run = place.run("raft", "out", &args);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in [script.as_str(), "exit status: 3", "nobody is there"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let drawn = place.drawn("out");
    let before = fs::read(&drawn).unwrap();
    let groups = lines(&drawn);

    // Nobody loses them by starting again, by another program or by one that fails once more.
    let run = place.run("raft", "out", &args);
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    for part in ["--resume", "--overwrite"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let other = format!("--reward-command={COUNT}");
    let run = place.run("raft", "out", &with(RAFT, &["--resume", &other]));
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in ["reward_command = ", "begun with", &script] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let run = place.run("raft", "out", &resume);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert!(fs::read(&drawn).unwrap() == before);

    place.write("score.sh", &format!("{COUNT}\n"));
    place.run("raft", "out", &resume).done();
    assert!(!drawn.exists());
    let samples = place.samples("out", 1);
    // Lines stand in the order in which prompts were done.
    let mut wanted: Vec<&Value> =
        groups.iter().flat_map(|group| group.as_array().unwrap()).collect();
    wanted.sort_by_key(|one| one["prompt"].as_u64());
    assert_eq!(samples.len(), wanted.len());
    for (one, wanted) in samples.iter().zip(wanted) {
        for key in ["prompt", "ids", "text", "ended"] {
            assert_eq!(one[key], wanted[key], "{key}");
        }
        assert_eq!(number(one, "reward"), n_bytes(one));
    }
    // No token was drawn by this process for the first iteration.
    let lines = place.iterations("out");
    assert!(lines[0]["sample_tok_per_s"].is_null(), "{}", lines[0]);
    assert!(number(&lines[1], "sample_tok_per_s") > 0.0, "{}", lines[1]);
    place.run("raft", "whole", &args).done();
    assert_same(&place, "out", "whole");
}

#[test]
fn numbers_that_no_run_can_have_are_refused_before_anything_is_written() {
    let place = Place::new(&prompts("text_only"));
    let cases: [(&str, &[&str], &str); 5] = [
        ("raft", &["--top-reward-percentage=1e-13"], "answers to a prompt = 1000"),
        ("raft", &["--raft-batch-size=99999999999999"], "prompts of an iteration = 9999"),
        ("grpo", &["--num-generations=600"], "answers to a prompt = 600: wanted 1 to 512"),
        ("grpo", &["--inference-batch-size=513"], "inference_batch_size = 513: wanted 1 to 512"),
        ("ppo", &["--num-prompts=18446744073709551615"], "prompts of an iteration = 1844"),
    ];
    for (method, flags, part) in cases {
        let run = place.run(method, "out", &with(flags, &[LENGTH]));
        assert!(run.status == Some(2) && run.stderr.contains(part), "{flags:?}: {}", run.stderr);
        assert!(!place.path("out").exists(), "{flags:?}");
    }
}

#[test]
fn answers_that_are_not_the_runs_own_are_refused() {
    let place = Place::new(&prompts("text_only"));
    let script = format!("sh '{}'", place.text("score.sh"));
    let flag = format!("--reward-command={script}");
    let args = with(RAFT, &[flag.as_str()]);
    let resume = with(&args, &["--resume"]);
    place.write("score.sh", "exit 3\n");
    place.run("raft", "out", &args);
    let drawn = place.drawn("out");
    let text = fs::read_to_string(&drawn).unwrap();
    for (found, wrong) in [("\"prompt\":1", "\"prompt\":9"), ("\"ids\":[", "\"ids\":[999999,")] {
        fs::write(&drawn, text.replace(found, wrong)).unwrap();
        let run = place.run("raft", "out", &resume);
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains("drawn.jsonl"), "{}", run.stderr);
    }
    fs::write(&drawn, &text).unwrap();
    place.write("score.sh", &format!("{COUNT}\n"));
    place.run("raft", "out", &resume).done();
}

#[test]
fn prompts_that_are_too_long_are_left_out_and_counted() {
    let mut set = prompts("text2text");
    let long = json!({"input": "The cat sat on the mat. ".repeat(20), "output": ANSWER});
    set["instances"].as_array_mut().unwrap().push(long);
    let place = Place::new(&set);
    let args = with(RAFT, &[LENGTH, "--max-prompt-length=24"]);
    let run = place.run("raft", "out", &args).done();
    let wanted = "1 prompts of more than 24 tokens are left out; the first: ";
    assert!(run.stderr.contains(wanted), "{}", run.stderr);
    for one in place.samples("out", 1) {
        assert!(PROMPTS.contains(&text_of(&one, "input")), "{one}");
    }
    let run = place.run("raft", "none", &with(RAFT, &[LENGTH, "--max-prompt-length=1"]));
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in ["prompts.json", "none of 5 prompts has at most 1 tokens"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    assert!(!place.path("none").exists());
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_is_written() {
    let place = Place::new(&prompts("text_only"));
    let usage: [(&str, &[&str], &[&str]); 10] = [
        ("raft", &[], &["nothing says what an answer is worth", "hint: ", "--reward-rule RULE"]),
        ("ppo", &[], &["nothing says what an answer is worth"]),
        ("raft", &[LENGTH, "--top-reward-percentage=1.5"], &["top_reward_percentage = 1.5"]),
        ("raft", &[LENGTH, "--collection-strategy=best"], &["wanted local or top"]),
        ("raft", &[LENGTH, "--output-min-length=4"], &["without --lmflow-compat"]),
        ("raft", &[LENGTH, "--max-new-tokens=512"], &["--max-new-tokens 512", "positions"]),
        ("raft", &["--reward-rule=length:6-3"], &["wanted length:LOW-HIGH"]),
        ("grpo", &[LENGTH, "--num-generations=1"], &["--num-generations 1"]),
        ("ppo", &[LENGTH, "--gamma=2"], &["gamma = 2"]),
        ("ppo", &[LENGTH, "--kl-horizon=9"], &["--kl-horizon without --kl-target"]),
    ];
    for (method, args, parts) in usage {
        let run = place.run(method, "out", args);
        assert_eq!(run.status, Some(2), "{method} {args:?}: {}", run.stderr);
        for part in parts {
            assert!(run.stderr.contains(part), "{method} {args:?}: {part}: {}", run.stderr);
        }
        assert!(!place.path("out").exists(), "{method} {args:?}");
    }
    // A model for tokens is no reward model.
    let run = place.run("raft", "out", &with(RAFT, &["--reward-model=builtin"]));
    assert!(run.status == Some(1) && run.stderr.contains("`puna reward`"), "{}", run.stderr);
    let none = json!({"type": "float_only", "instances": [{"value": 1.0}]});
    place.write("prompts.json", &none.to_string());
    let run = place.run("raft", "out", &with(RAFT, &[LENGTH]));
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in ["prompts.json", "float_only", "wanted texts"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    assert!(!place.path("out").exists());
}

#[test]
fn a_second_run_needs_to_be_told() {
    let place = Place::new(&prompts("text2text"));
    let args = with(RAFT, &[LENGTH]);
    place.run("raft", "out", &args).done();
    let out = place.path("out");
    let adapter = || fs::read(out.join("adapter_model.safetensors")).unwrap();
    let before = adapter();
    let run = place.run("raft", "out", &args);
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    for part in ["--resume", "--overwrite"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    // What is done stays done, and is no other run's.
    let run = place.run("raft", "out", &with(&args, &["--resume"])).done();
    assert!(run.stdout.contains("done already"), "{}", run.stdout);
    let run = place.run("raft", "out", &with(&args, &["--resume", "--json"])).done();
    let found = &run.json()[0];
    assert_eq!((&found["end"], &found["iterations"]), (&json!("already_done"), &json!(2)));
    let run = place.run("raft", "out", &with(&args, &["--resume", "--temperature=0.5"]));
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in ["temperature = 0.5", "begun with 0.85"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    assert!(adapter() == before);

    place.write("out/notes.txt", "mine");
    let once = [
        "--num-raft-iteration=1",
        "--raft-batch-size=4",
        "--top-reward-percentage=0.25",
        "--max-new-tokens=8",
        "--seed=5",
        "--overwrite",
        LENGTH,
    ];
    place.run("raft", "out", &once).done();
    assert!(adapter() != before);
    assert!(place.train_set("out", 0).is_some() && place.train_set("out", 1).is_none());
    assert!(out.join("iterations/0001/samples.jsonl").is_file());
    assert!(!out.join("iterations/0002").exists());
    assert_eq!(place.iterations("out").len(), 1);
    assert!(!entries(&out).iter().any(|name| name.starts_with("checkpoint-")));
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
}

/// Runs RAFT on the built-in model with a reward model that is made of `base`, and compares what it
/// rewarded with what `eval reward` gives the same texts.
fn judged_by(base: &str) {
    let place = Place::new(&prompts("text2text"));
    let pair =
        |prompt: &&str| json!({"prompt": prompt, "chosen": " cat.", "rejected": " cat!!! Wow!!!"});
    let pairs: Vec<Value> = PROMPTS.iter().map(pair).collect();
    let pairs = json!({"type": "paired_text_to_text", "instances": pairs});
    place.write("pairs.json", &pairs.to_string());
    let (data, judge) = (place.text("pairs.json"), place.text("judge"));
    let args = ["reward", base, "--dataset", &data, "--output", &judge, "--method=lora"];
    let more =
        ["--learning-rate=0.01", "--max-steps=3", "--batch-size=4", "--threads=2", "--quiet"];
    finish(place.plain(&with(&args, &more))).done();

    let flags = ["--reward-model", base, "--reward-adapter", &judge];
    place.run("raft", "out", &with(RAFT, &flags)).done();
    let samples = place.samples("out", 1);
    assert!(samples.iter().all(|one| one["sources"] == json!([base])), "{}", samples[0]);
    let rewards: Vec<f64> = samples.iter().map(|one| number(one, "reward")).collect();
    let list = |group: &[Value]| {
        let texts: Vec<&Value> = group.iter().map(|one| &one["text"]).collect();
        json!({"input": group[0]["input"], "output": texts})
    };
    let instances: Vec<Value> = samples.chunks(4).map(list).collect();
    let lists = json!({"type": "text_to_textlist", "instances": instances});
    place.write("answers.json", &lists.to_string());
    let (answers, each) = (place.text("answers.json"), place.text("each.jsonl"));
    let args = ["eval", "reward", base, "--adapter", &judge, "--dataset", &answers];
    finish(place.plain(&with(&args, &["--per-instance", &each]))).done();
    let scores: Vec<f64> =
        lines(Path::new(&each)).iter().flat_map(|line| numbers(&line["scores"])).collect();
    assert_eq!(scores.len(), rewards.len());
    for (score, reward) in scores.iter().zip(&rewards) {
        assert!((score - reward).abs() < 1e-4 * score.abs().max(1.0), "{score} {reward}");
    }
    assert!(rewards.iter().any(|reward| *reward != rewards[0]), "{rewards:?}");
}

#[test]
fn a_reward_model_gives_what_eval_reward_gives() {
    judged_by("builtin");
}

#[test]
fn a_reward_model_with_another_tokenizer_reads_the_texts() {
    // Its vocabulary of 521 is another one than the built-in model's: ids would mean other words.
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    toy::make(&other);
    judged_by(other.to_str().unwrap());
}
