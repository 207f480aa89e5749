//! `puna reward` and `puna eval reward` as a user meets them.

use crate::support::fixture;
use crate::support::program::{Run, puna};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new(files: &[(&str, Value)]) -> Place {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn train(&self, args: &[&str]) -> Run {
        let (data, out) = (self.text("pairs.json"), self.text("judge"));
        let all = ["reward", "builtin", "--dataset", &data, "--output", &out, "--threads=2"];
        puna(&all.iter().chain(args).copied().collect::<Vec<_>>())
    }

    fn eval(&self, model: &str, data: &str, args: &[&str]) -> Run {
        let data = self.text(data);
        let all = ["eval", "reward", model, "--dataset", &data, "--json"];
        puna(&all.iter().chain(args).copied().collect::<Vec<_>>())
    }
}

const ANIMALS: [&str; 8] = ["cat", "dog", "owl", "fox", "bee", "cow", "elk", "hen"];

fn answers(animal: &str) -> (String, String, String) {
    let prompt = format!("Name one animal, but not the {animal}: ");
    (prompt, "The ant.".into(), "The ant!!! Wow!!!".into())
}

/// Short answers are preferred to loud ones.
fn pairs() -> Value {
    let one = |animal: &&str| {
        let (prompt, chosen, rejected) = answers(animal);
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": 0.5})
    };
    json!({"type": "paired_text_to_text", "instances": ANIMALS.iter().map(one).collect::<Vec<_>>()})
}

fn lists() -> Value {
    let one = |animal: &&str| {
        let (prompt, good, bad) = answers(animal);
        json!({"input": prompt, "output": [bad, good, "The bat!!! Wow!!!"]})
    };
    json!({"type": "text_to_textlist", "instances": ANIMALS.iter().map(one).collect::<Vec<_>>()})
}

#[test]
fn a_reward_model_learns_what_is_preferred_and_scores_answers() {
    for method in ["full", "lora"] {
        let place = Place::new(&[("pairs.json", pairs()), ("answers.json", lists())]);
        let (rate, lora) = match method {
            "lora" => ("--learning-rate=0.01", &["--lora-target-modules=all-linear"][..]),
            _ => ("--learning-rate=0.0003", &[][..]),
        };
        let method = format!("--method={method}");
        let args = [&method, rate, "--max-steps=12", "--batch-size=4", "--json", "--margin"];
        let run = place.train(&[&args[..], lora].concat()).done();
        assert_eq!(run.json()[0]["steps"], 12);
        let metrics = fs::read_to_string(place.path("judge/metrics.jsonl")).unwrap();
        let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        assert!(last["reward_accuracy"] == 1.0 && last["loss"].as_f64() < Some(0.5), "{last}");

        let judge = place.text("judge");
        let adapter = ["--adapter", &judge];
        let (model, with) =
            if lora.is_empty() { (&*judge, &[][..]) } else { ("builtin", &adapter[..]) };
        let run = place.eval(model, "pairs.json", with).done();
        let found = &run.json()[0];
        assert_eq!((&found["metric"], &found["n"]), (&json!("reward_accuracy"), &json!(8)));
        assert_eq!(found["value"], 1.0, "{method}");

        let (scored, each) = (place.text("scored.json"), place.text("each.jsonl"));
        let args = ["--output", &scored, "--per-instance", &each];
        let run = place.eval(model, "answers.json", &[with, &args].concat()).done();
        assert_eq!(run.json()[0]["n"], 24);
        let scored: Value = serde_json::from_str(&fs::read_to_string(scored).unwrap()).unwrap();
        assert_eq!(scored["type"], "text_to_scored_textlist");
        let lines = fs::read_to_string(each).unwrap();
        for (line, instance) in lines.lines().zip(scored["instances"].as_array().unwrap()) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["best"], 1, "{method}: {line}");
            assert_eq!(line["scores"][1], instance["output"][1]["score"]);
            assert_eq!(instance["output"][1]["text"], "The ant.");
        }
        // What was scored is what dpo reads.
        let out = place.text("better");
        let scored = place.text("scored.json");
        puna(&["dpo", "builtin", "--dataset", &scored, "--output", &out, "--max-steps=1"]).done();

        // It does not speak.
        let mut words = vec!["generate", model, "-p", "a"];
        words.extend(with);
        let run = puna(&words);
        assert!(run.status == Some(1) && run.stderr.contains("eval reward"), "{}", run.stderr);
    }
}

#[test]
fn what_is_merged_scores_the_same_and_gguf_is_refused() {
    let place = Place::new(&[("pairs.json", pairs()), ("answers.json", lists())]);
    let args = ["--method=lora", "--learning-rate=0.01", "--max-steps=3"];
    place.train(&args).done();
    let (judge, merged) = (place.text("judge"), place.text("merged"));
    puna(&["merge", "builtin", "--adapter", &judge, &merged, "--dtype=F32"]).done();
    let value = |model: &str, with: &[&str]| {
        let run = place.eval(model, "answers.json", with).done();
        run.json()[0]["value"].as_f64().unwrap()
    };
    let exact = value("builtin", &["--adapter", &judge, "--exact"]);
    let same = value(&merged, &[]);
    assert!((exact - same).abs() < 1e-4 * exact.abs().max(1.0), "{exact} {same}");
    let gguf = place.text("merged.gguf");
    let run = puna(&["convert", &merged, &gguf]);
    assert!(run.status == Some(1) && run.stderr.contains("reward model"), "{}", run.stderr);
    assert!(!Path::new(&gguf).exists());
    // Its adapter is not tuned for tokens, which would lose the head; nothing is written.
    let (adapter, lost) = (format!("--adapter={judge}"), place.text("lost"));
    let data = place.text("pairs.json");
    let run =
        puna(&["dpo", "builtin", "--dataset", &data, "--output", &lost, "--method=lora", &adapter]);
    assert!(run.status == Some(1) && run.stderr.contains("reward model"), "{}", run.stderr);
    assert!(!Path::new(&lost).exists());
    // A reward model goes on as one, and is no model for tokens.
    let (data, out) = (place.text("pairs.json"), place.text("again"));
    let on = ["reward", &merged, "--dataset", &data, "--output", &out, "--max-steps=1"];
    puna(&on).done();
    let run = puna(&["dpo", &merged, "--dataset", &data, "--output", &place.text("x")]);
    assert!(run.status == Some(1) && run.stderr.contains("reward model"), "{}", run.stderr);
}

#[test]
fn a_model_without_a_tokenizer_says_so() {
    // The scores themselves are compared in `align::reward`'s tests, by token ids.
    let place = Place::new(&[("pairs.json", pairs())]);
    let model = fixture::dir("mini-mha").join("reward-model");
    let run = place.eval(&model.display().to_string(), "pairs.json", &[]);
    assert!(run.status == Some(1) && run.stderr.contains("tokenizer"), "{}", run.stderr);
}

#[test]
fn texts_conversations_and_empty_answers_are_scored_too() {
    let text = json!({"type": "text_only", "instances": [{"text": "a"}, {"text": "b c"}]});
    let talk = json!({"type": "conversation", "instances": [{"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    ]}]});
    let empty =
        json!({"type": "text_to_textlist", "instances": [{"input": "a", "output": ["b", ""]}]});
    let place = Place::new(&[
        ("pairs.json", pairs()),
        ("text.json", text),
        ("talk.json", talk),
        ("empty.json", empty),
    ]);
    place.train(&["--max-steps=1"]).done();
    let judge = place.text("judge");
    let floats = place.text("floats.json");
    for (data, n) in [("text.json", 2), ("talk.json", 1)] {
        let run = place.eval(&judge, data, &["--output", &floats]).done();
        assert_eq!(run.json()[0]["n"], n, "{data}");
        let written: Value = serde_json::from_slice(&fs::read(&floats).unwrap()).unwrap();
        assert_eq!(written["type"], "float_only");
        let values = written["instances"].as_array().unwrap();
        let mean = values.iter().map(|one| one["value"].as_f64().unwrap()).sum::<f64>() / n as f64;
        assert!((mean - run.json()[0]["value"].as_f64().unwrap()).abs() < 1e-6, "{written}");
    }
    let run = place.eval(&judge, "empty.json", &[]).done();
    assert_eq!(run.json()[0]["n"], 2);
}

#[test]
fn an_answer_that_ended_at_once_can_be_the_rejected_one() {
    let pair = json!({"prompt": "a", "chosen": "b", "rejected": ""});
    let list =
        json!({"type": "text_to_textlist", "instances": [{"input": "a", "output": ["b", ""]}]});
    let place = Place::new(&[
        ("pairs.json", json!({"type": "paired_text_to_text", "instances": [pair]})),
        ("list.json", list),
    ]);
    place.train(&["--max-steps=2", "--learning-rate=0.01"]).done();
    let (judge, each) = (place.text("judge"), place.text("each.jsonl"));
    let line = |data: &str| {
        place.eval(&judge, data, &["--per-instance", &each]).done();
        serde_json::from_slice::<Value>(&fs::read(&each).unwrap()).unwrap()
    };
    let (pair, list) = (line("pairs.json"), line("list.json"));
    assert_eq!(json!([pair["chosen"], pair["rejected"]]), list["scores"]);
    assert_ne!(pair["chosen"], pair["rejected"]);
    // Without EOS nothing is left of it.
    let run = place.eval(&judge, "pairs.json", &["--no-eos"]);
    let wanted = "key \"rejected\": empty";
    assert!(run.status != Some(0) && run.stderr.contains(wanted), "{}", run.stderr);
}

#[test]
fn what_an_earlier_run_scored_is_kept_and_checked() {
    let place = Place::new(&[("pairs.json", pairs()), ("answers.json", lists())]);
    place.train(&["--max-steps=1"]).done();
    let [judge, each, out] = ["judge", "each.jsonl", "out.json"].map(|name| place.text(name));
    let read = || fs::read_to_string(&each).unwrap();
    let sets: [(&str, &[&str]); 2] = [("answers.json", &["--output", &out]), ("pairs.json", &[])];
    for (data, more) in sets {
        let args = [&["--per-instance", &each][..], more].concat();
        let resumed = [&args[..], &["--resume"]].concat();
        let whole = place.eval(&judge, data, &args).done();
        let (file, scored) = (read(), fs::read(&out).ok());
        assert_eq!(scored.is_some(), !more.is_empty(), "{data}");
        let end_of = |n: usize| file.match_indices('\n').nth(n).unwrap().0 + 1;
        for kept in [0, 5, end_of(0), end_of(2) + 30, end_of(6) - 1, file.len()] {
            fs::write(&each, &file[..kept]).unwrap();
            // What the whole run wrote is not to be taken for what this one writes.
            let _ = fs::remove_file(&out);
            let run = place.eval(&judge, data, &resumed).done();
            assert_eq!((&run.stdout, read()), (&whole.stdout, file.clone()), "{data}: {kept}");
            assert_eq!(fs::read(&out).ok(), scored, "{data}: {kept} bytes");
        }
        fs::remove_file(&each).unwrap();
        place.eval(&judge, data, &resumed).done();
        assert_eq!(read(), file, "{data}");
        let _ = fs::remove_file(&out);

        // Lines that belong to other data, other flags or nothing.
        let changed = |from: &str, to: &str| file.replacen(from, to, 1);
        let (first, verdict) = match data {
            "pairs.json" => ("\"chosen\":", "\"correct\":"),
            _ => ("\"scores\":", "\"best\":"),
        };
        let cases: [(String, &[&str], &str); 7] = [
            (changed("instance 1\"", "instance 4\""), &[], "each.jsonl, line 2: place"),
            (changed("\"tokens\":[", "\"tokens\":[1,"), &[], "each.jsonl, line 1: tokens [1,"),
            (file.clone(), &["--max-length=8"], "each.jsonl, line 1: tokens"),
            (changed(first, "\"was\":"), &[], "wanted a score of each of"),
            (changed(verdict, "\"was\":"), &[], "of those scores"),
            (format!("{file}{file}"), &[], "each.jsonl, line 9: one more, wanted at most 8"),
            ("{\n".to_owned(), &[], "each.jsonl, line 1: not JSON"),
        ];
        for (text, flags, wanted) in cases {
            fs::write(&each, &text).unwrap();
            let run = place.eval(&judge, data, &[&resumed[..], flags].concat());
            assert_eq!(run.status, Some(1), "{data}, {wanted}: {}", run.stderr);
            assert!(run.stderr.contains(wanted), "{data}, {wanted}: {}", run.stderr);
            assert_eq!(read(), text, "{data}, {wanted}: the file is left");
        }
        assert!(!Path::new(&out).exists(), "{data}: nothing was scored");
        // Without --resume what is there is replaced.
        place.eval(&judge, data, &args).done();
        assert_eq!(read(), file, "{data}");
        let _ = fs::remove_file(&out);
    }
    // A model that cannot score leaves the file as it was.
    let file = read();
    let run = place.eval("builtin", "pairs.json", &["--per-instance", &each]);
    assert!(run.status == Some(1) && run.stderr.contains("puna reward"), "{}", run.stderr);
    assert_eq!(read(), file);
}

#[test]
fn two_reward_models_are_compared() {
    let place = Place::new(&[("pairs.json", pairs()), ("answers.json", lists())]);
    place.train(&["--max-steps=1"]).done();
    let judge = place.text("judge");
    let sets = [("answers.json", "reward", 24), ("pairs.json", "reward_accuracy", 8)];
    for (data, metric, n) in sets {
        let run = place.eval(&judge, data, &["--against", &judge]).done();
        let value = &run.json()[0];
        let number = |key: &str| value[key].as_f64().unwrap();
        assert_eq!((&value["metric"], &value["n"]), (&json!(metric), &json!(n)));
        assert!(number("low") <= number("value") && number("value") <= number("high"), "{value}");
        let against = &value["against"];
        assert_eq!((&against["value"], &against["difference"]), (&value["value"], &json!(0.0)));
        assert_eq!((&against["ties"], &against["p_value"]), (&json!(n), &json!(1.0)), "{value}");
        let path = place.text(data);
        let args = ["eval", "reward", &judge, "--dataset", &path, "--against", &judge];
        let text = puna(&args).done().stdout;
        let mean = format!("mean of {n}\nthe other ");
        assert!(text.starts_with(metric) && text.contains(&mean), "{text}");
        assert!(text.contains(": difference 0.0000 (0.0000 to 0.0000), p = 1.0000"), "{text}");
    }
}

#[test]
fn what_cannot_be_scored_is_named() {
    let floats = json!({"type": "float_only", "instances": [{"value": 1.0}]});
    let place = Place::new(&[("pairs.json", pairs()), ("floats.json", floats)]);
    let run = place.eval("builtin", "pairs.json", &[]);
    assert!(run.status == Some(1) && run.stderr.contains("puna reward"), "{}", run.stderr);
    place.train(&["--max-steps=1"]).done();
    let judge = place.text("judge");
    let run = place.eval(&judge, "floats.json", &[]);
    let wanted = "wanted one of text_to_textlist";
    assert!(run.status == Some(1) && run.stderr.contains(wanted), "{}", run.stderr);
    assert!(run.stderr.contains("floats.json"), "{}", run.stderr);
    let run = puna(&["eval", "reward", &judge]);
    assert!(run.status == Some(2) && run.stderr.contains("no data named"), "{}", run.stderr);
    let run = place.eval(&judge, "pairs.json", &["--resume"]);
    assert!(run.status == Some(2) && run.stderr.contains("--resume alone"), "{}", run.stderr);
    let run = place.eval(&judge, "pairs.json", &["--output", "x"]);
    assert!(run.status == Some(2) && run.stderr.contains("--output with pairs"), "{}", run.stderr);
}
