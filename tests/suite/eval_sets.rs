//! `puna eval choice` and `puna eval diversity`, and the log-probabilities that choices are scored by.

use crate::support::engine;
use crate::support::fixture;
use crate::support::program::puna;
use puna::eval::choice::Asker;
use puna::model::llama::{KvType, LogitsFor, Segment};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn path(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn log_probabilities_do_not_depend_on_what_was_asked_before() {
    let model = engine::load(&fixture::dir("mini-gqa"), 2, false);
    let ids = |n: usize, salt: usize| -> Vec<u32> {
        (0..n).map(|i| ((i * 37 + salt * i * i) % 311 + 3) as u32).collect()
    };
    // The plain way: all logits of the whole text at once.
    let plain = |tokens: &[u32], n_context: usize| -> f64 {
        let mut ws = model.workspace();
        let mut cache = model.new_cache(tokens.len(), KvType::F32).unwrap();
        let (logits, rope_len) = (LogitsFor::All, None);
        let segment = Segment { tokens, cache: &mut cache, logits, rope_len };
        model.forward(&mut ws, &mut [segment]).unwrap();
        (n_context..tokens.len())
            .map(|at| {
                let logits = ws.logits(at - 1).unwrap();
                let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                f64::from(logits[tokens[at] as usize]) - sum.ln()
            })
            .sum()
    };
    let mut shared = ids(40, 1);
    shared.extend(ids(9, 5));
    let mut other = ids(40, 1);
    other.extend(ids(4, 7));
    let texts = [(shared.clone(), 40), (other, 40), (ids(12, 3), 1), (shared, 44), (ids(2, 2), 1)];
    let mut asker = Asker::new(&model, 64, KvType::F32).unwrap();
    for (tokens, n_context) in &texts {
        let found = asker.log_prob(tokens, *n_context).unwrap();
        let alone = Asker::new(&model, 64, KvType::F32).unwrap().log_prob(tokens, *n_context);
        assert_eq!(found, alone.unwrap());
        let wanted = plain(tokens, *n_context);
        assert!((found - wanted).abs() < 1e-4 * wanted.abs(), "{found} {wanted}");
    }
    // A long text loses its beginning.
    let long = ids(50, 1);
    let mut narrow = Asker::new(&model, 20, KvType::F32).unwrap();
    let found = narrow.log_prob(&long, 45).unwrap();
    let wanted = plain(&long[29..], 45 - 29);
    assert!((found - wanted).abs() < 1e-4 * wanted.abs(), "{found} {wanted}");
    for (tokens, n_context) in
        [(ids(5, 1), 0), (ids(5, 1), 5), (ids(50, 1), 20), (vec![3, 4000, 5], 1)]
    {
        assert!(asker.log_prob(&tokens, n_context).is_err() || tokens.len() == 50);
        assert!(narrow.log_prob(&tokens, n_context).is_err());
    }
}

fn arc(n: usize) -> String {
    let animals = ["cat", "dog", "owl", "fox"];
    let letters = ["A", "B", "C", "D"];
    let line = |i: usize| {
        json!({
            "question": format!("Which of them is number {i}?"),
            "choices": {"text": animals, "label": ["A", "B", "C", "D"]},
            "answerKey": letters[i % 4],
        })
    };
    (0..n).map(|i| format!("{}\n", line(i))).collect()
}

#[test]
fn a_task_is_asked_and_two_models_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let data = path(dir.path(), "arc.jsonl", &arc(10));
    let shots = path(dir.path(), "shots.jsonl", &arc(3));
    let each = dir.path().join("each.jsonl").display().to_string();
    let args = [
        "eval",
        "choice",
        "builtin",
        "--task=arc_easy",
        "--dataset",
        &data,
        "--num-fewshot=2",
        "--fewshot-dataset",
        &shots,
        "--per-instance",
        &each,
        "--against",
        "builtin",
        "--json",
    ];
    let run = puna(&args).done();
    let value = &run.json()[0];
    let number = |key: &str| value[key].as_f64().unwrap();
    assert_eq!((&value["n"], &value["metric"]), (&json!(10), &json!("acc")));
    assert!(number("low") <= number("value") && number("value") <= number("high"), "{value}");
    assert!((0.0..=1.0).contains(&number("acc_norm")));
    let against = &value["against"];
    assert_eq!((&against["ties"], &against["p_value"]), (&json!(10), &json!(1.0)), "{value}");
    let lines: Vec<Value> = fs::read_to_string(&each)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 10);
    let right = lines.iter().filter(|line| line["acc"] == 1.0).count();
    assert!((number("value") - right as f64 / 10.0).abs() < 1e-12);
    for (i, line) in lines.iter().enumerate() {
        let logs: Vec<f64> =
            line["log_probs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let chosen = line["chosen"].as_u64().unwrap() as usize;
        assert!(logs.iter().all(|&log| log <= logs[chosen] && log < 0.0), "{line}");
        assert_eq!(line["acc"] == 1.0, chosen == i % 4);
    }
    let text = puna(&args[..args.len() - 3]).done().stdout;
    assert!(text.starts_with("arc_easy acc 0.") && text.contains("10 questions"), "{text}");
    // The first questions alone, without examples.
    let few = ["eval", "choice", "builtin", "--task=arc_easy", "--dataset", &data, "--limit=3"];
    assert!(puna(&few).done().stdout.contains("3 questions"));
}

#[test]
fn what_is_no_question_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = path(dir.path(), "good.jsonl", &arc(2));
    let bad = path(dir.path(), "bad.jsonl", &format!("{}{{\"question\": \"x\"}}\n", arc(1)));
    let torn = path(dir.path(), "torn.jsonl", "{\"question\"\n");
    let empty = path(dir.path(), "empty.jsonl", "\n");
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--task=arc_easy", "--dataset", &bad], 1, "bad.jsonl, line 2"),
        (&["--task=arc_easy", "--dataset", &torn], 1, "not JSON"),
        (&["--task=arc_easy", "--dataset", &empty], 1, "no question"),
        (&["--task=arc_easy", "--dataset", "/no/such"], 1, "/no/such"),
        (&["--task=arc", "--dataset", &good], 2, "wanted one of arc_easy"),
        (&["--task=arc_easy"], 2, "no questions named"),
        (&["--task=arc_easy", "--dataset", &good, "--num-fewshot=1"], 2, "--num-fewshot alone"),
        (
            &["--task=arc_easy", "--dataset", &good, "--num-fewshot=9", "--fewshot-dataset", &good],
            1,
            "2 examples, wanted 9",
        ),
    ];
    for (args, status, wanted) in cases {
        let run = puna(&[&["eval", "choice", "builtin"], args].concat());
        assert_eq!(run.status, Some(status), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(wanted), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn diversity_counts_the_answers_of_a_set() {
    let dir = tempfile::tempdir().unwrap();
    let set = json!({"type": "text_to_textlist", "instances": [
        {"input": "a", "output": ["The cat sat.", "The cat ran."]},
        {"input": "b", "output": ["The dog sat."]},
    ]});
    let data = path(dir.path(), "a.json", &set.to_string());
    let run = puna(&["eval", "diversity", "--dataset", &data, "--json"]).done();
    let value = &run.json()[0];
    // the cat sat . | the cat ran . | the dog sat . -> the cat sat . ran dog
    assert_eq!((&value["tokens"], &value["outputs"]), (&json!(12), &json!(3)));
    assert_eq!(value["distinct_1"].as_f64(), Some(0.5));
    assert_eq!(value["unique_1"], 2);
    // the-cat cat-sat sat-. cat-ran ran-. the-dog dog-sat of nine.
    assert!((value["distinct_2"].as_f64().unwrap() - 7.0 / 9.0).abs() < 1e-12);
    assert_eq!((&value["unique_2"], &value["length"]), (&json!(5), &json!(4.0)));
    assert!(value["msttr_100"].is_null());
    let text = puna(&["eval", "diversity", "--dataset", &data]).done().stdout;
    assert!(text.contains("distinct_1 0.5"), "{text}");
    let wrong =
        path(dir.path(), "b.json", "{\"type\": \"float_only\", \"instances\": [{\"value\": 1}]}");
    let run = puna(&["eval", "diversity", "--dataset", &wrong]);
    assert!(
        run.status == Some(1) && run.stderr.contains("wanted one of text_only"),
        "{}",
        run.stderr
    );
    let run = puna(&["eval", "diversity"]);
    assert!(run.status == Some(2) && run.stderr.contains("no data named"), "{}", run.stderr);
}
