//! `puna eval accuracy`, and `eval ppl` and `eval nll` of data sets: results, files, resumption.

use crate::support::engine;
use crate::support::program::{Run, command, puna};
use puna::eval::windows;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const STORIES: [&str; 3] = [
    "Once upon a time there was a little girl named Mia. Mia had a red ball. She played with the \
     ball in the garden every day. One day the ball rolled away and Mia was sad.",
    "Tom has a blue kite. Tom is in the park. The kite flies high in the sky. Tom is happy.",
    "The cat sat on the mat. The dog came to play. They ran and ran until the sun went down, and \
     then they slept side by side in the warm house. In the morning they ran again.",
];

/// A directory with data and results.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn set(&self, name: &str, kind: &str, instances: &Value) -> String {
        let path = self.path(name);
        fs::write(&path, json!({"type": kind, "instances": instances}).to_string()).unwrap();
        path
    }

    /// Questions; none of the answers is what a story goes on with.
    fn questions(&self, n: usize) -> String {
        let one = |i: usize| {
            let story = STORIES[i % 3];
            json!({"input": &story[..20 + i % 17], "output": format!("no such answer {i}")})
        };
        self.set("questions.json", "text2text", &(0..n).map(one).collect::<Value>())
    }
}

fn accuracy(data: &str, more: &[&str]) -> Run {
    let args = ["eval", "accuracy", "builtin", "--dataset", data, "--answer-type", "text"];
    puna(&[&args[..], &["--json"], more].concat())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}

fn lines(path: &str) -> Vec<Value> {
    read(path).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key}: {value}"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs().max(1.0)
}

#[test]
fn right_answers_are_counted_and_do_not_depend_on_the_batch() {
    let place = Place::new();
    let (data, each) = (place.questions(6), place.path("each.jsonl"));
    let short = ["--max-new-tokens=9", "--per-instance", &each];
    let value = accuracy(&data, &short).done().json().remove(0);
    assert_eq!((&value["metric"], &value["n"]), (&json!("accuracy"), &json!(6)));
    assert_eq!((&value["value"], &value["correct"]), (&json!(0.0), &json!(0)), "{value}");
    assert_eq!((&value["skipped"], &value["answer_type"]), (&json!(0), &json!("text")));
    let (file, written) = (read(&each), lines(&each));
    assert_eq!(written.len(), 6);
    for (i, line) in written.iter().enumerate() {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["place", "input", "output", "answer", "wanted", "correct"]);
        assert!(line["place"].as_str().unwrap().ends_with(&format!("instance {i}")), "{line}");
        assert_eq!(line["wanted"], format!("no such answer {i}"));
        assert_eq!(line["answer"], line["output"]);
    }
    for width in ["--batch-size=1", "--batch-size=4"] {
        accuracy(&data, &[&short[..], &[width]].concat()).done();
        assert_eq!(read(&each), file, "{width}");
    }

    // The same questions, of which the even ones want what was written.
    let instance = |(i, line): (usize, &Value)| {
        let wanted = if i % 2 == 0 { &line["output"] } else { &line["wanted"] };
        json!({"input": line["input"], "output": wanted})
    };
    let half: Value = written.iter().enumerate().map(instance).collect();
    let half = place.set("half.json", "text2text", &half);
    let args = [&short[..], &["--against", "builtin"]].concat();
    let value = accuracy(&half, &args).done().json().remove(0);
    assert_eq!((&value["value"], &value["correct"]), (&json!(0.5), &json!(3)), "{value}");
    assert!(number(&value, "low") <= 0.5 && 0.5 <= number(&value, "high"), "{value}");
    let against = &value["against"];
    assert_eq!((&against["value"], &against["difference"]), (&json!(0.5), &json!(0.0)));
    assert_eq!((&against["ties"], &against["p_value"]), (&json!(6), &json!(1.0)), "{value}");
    let value = accuracy(&half, &["--max-new-tokens=9", "--limit=1"]).done().json().remove(0);
    assert_eq!((&value["value"], &value["n"]), (&json!(1.0), &json!(1)), "{value}");

    // A structure goes around the question; a chat is another prompt.
    let around = ["--prompt-structure", "Tell me: {input}", "--max-new-tokens=3", "--limit=2"];
    for more in [&[][..], &["--chat"]] {
        let args = [&around[..], &["--per-instance", &each], more].concat();
        accuracy(&data, &args).done();
        let first = &lines(&each)[0];
        assert!(first["input"].as_str().unwrap().starts_with("Tell me: Once upon"), "{first}");
    }
    let args = ["eval", "accuracy", "builtin", "--dataset", &data, "--answer-type=gsm8k"];
    let text = puna(&[&args[..], &["--max-new-tokens=3"]].concat()).done().stdout;
    assert!(text.starts_with("accuracy 0.0000") && text.contains("0 of 6 answers"), "{text}");
}

#[test]
fn prompts_that_are_too_long_count_as_wrong_and_are_told() {
    let place = Place::new();
    let instances = json!([
        {"input": STORIES[0], "output": ""},
        {"input": "Tom", "output": "x"},
        {"input": STORIES[2], "output": "x"},
    ]);
    let (data, each) = (place.set("a.json", "text2text", &instances), place.path("each.jsonl"));
    let args = ["--ctx=16", "--max-new-tokens=8", "--per-instance", &each];
    let run = accuracy(&data, &args).done();
    let value = run.json().remove(0);
    assert_eq!((&value["n"], &value["skipped"]), (&json!(3), &json!(2)), "{value}");
    assert_eq!(value["value"], 0.0);
    assert!(run.stderr.contains("2 of 3 prompts are longer than the 8 tokens"), "{}", run.stderr);
    let skipped: Vec<bool> = lines(&each).iter().map(|line| line["skipped"] == true).collect();
    assert_eq!(skipped, [true, false, true]);
    let file = read(&each);
    accuracy(&data, &[&args[..], &["--resume"]].concat()).done();
    assert_eq!(read(&each), file);
}

#[test]
fn what_an_earlier_run_left_is_kept_and_checked() {
    let place = Place::new();
    let (data, each) = (place.questions(7), place.path("each.jsonl"));
    let args = ["--max-new-tokens=9", "--batch-size=3", "--per-instance", &each];
    let resumed = [&args[..], &["--resume"]].concat();
    let whole = accuracy(&data, &args).done();
    let file = read(&each);
    let end_of = |n: usize| file.match_indices('\n').nth(n).unwrap().0 + 1;
    for kept in [0, 5, end_of(0), end_of(2) + 30, end_of(5) - 1, file.len()] {
        fs::write(&each, &file[..kept]).unwrap();
        let run = accuracy(&data, &resumed).done();
        assert_eq!((&run.stdout, read(&each)), (&whole.stdout, file.clone()), "{kept} bytes");
    }
    fs::remove_file(&each).unwrap();
    accuracy(&data, &resumed).done();
    assert_eq!(read(&each), file);

    // Lines that belong to other data, other flags or nothing.
    let other = file.replacen("instance 1\"", "instance 4\"", 1);
    let cases = [
        (other, &[][..], "each.jsonl, line 2: place"),
        (file.clone(), &["--prompt-structure", "Q: {input}"], "each.jsonl, line 1: input"),
        (file.clone(), &["--limit=3"], "each.jsonl, line 4: one more"),
        (format!("{file}{file}"), &[], "each.jsonl, line 8: one more"),
        (file.replacen("\"correct\":false", "\"correct\":true", 1), &[], "each.jsonl, line 1"),
        ("{\n".to_owned(), &[], "each.jsonl, line 1: not JSON"),
    ];
    for (text, more, wanted) in cases {
        fs::write(&each, &text).unwrap();
        let run = accuracy(&data, &[&resumed[..], more].concat());
        assert_eq!(run.status, Some(1), "{wanted}: {}", run.stderr);
        assert!(run.stderr.contains(wanted), "{wanted}: {}", run.stderr);
        assert_eq!(read(&each), text, "the file is left");
    }
    // Without --resume what is there is replaced.
    accuracy(&data, &args).done();
    assert_eq!(read(&each), file);
}

#[test]
fn an_interrupted_run_leaves_whole_answers_and_goes_on() {
    let place = Place::new();
    let (data, each) = (place.questions(40), place.path("each.jsonl"));
    let args = ["eval", "accuracy", "builtin", "--dataset", &data, "--answer-type=text", "--json"];
    let args = [&args[..], &["--max-new-tokens=100", "--per-instance", &each]].concat();
    let mut child = command(&[&args[..], &["--batch-size=1"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !fs::read_to_string(&each).is_ok_and(|text| text.contains('\n')) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its first answer");
        std::thread::sleep(Duration::from_millis(2));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let part = read(&each);
    let n_done = lines(&each).len();
    assert!((1..40).contains(&n_done) && part.ends_with('\n'), "{n_done} answers");
    let resumed = puna(&[&args[..], &["--resume"]].concat()).done();
    let file = read(&each);
    assert!(file.starts_with(&part));
    let whole = puna(&args).done();
    assert_eq!((resumed.stdout, file), (whole.stdout, read(&each)));
}

#[test]
fn perplexity_is_the_mean_of_the_windows() {
    let place = Place::new();
    let texts: Value = STORIES.iter().map(|text| json!({"text": text})).collect();
    let data = place.set("texts.json", "text_only", &texts);
    let (text, out) = (place.path("text.txt"), place.path("nll.json"));
    fs::write(&text, STORIES.join("\n\n")).unwrap();
    let plain = puna(&["eval", "nll", "builtin", "--text", &text, "--json"]).done();
    let n = plain.json()[0]["tokens"].as_u64().unwrap() as usize + 1;
    for (window, stride) in [(32, 16), (24, 24), (48, 20), (400, 300)] {
        let (window_flag, stride_flag) = (format!("--window={window}"), format!("{stride}"));
        let nll = ["eval", "nll", "builtin", "--text", &text, &window_flag, "--json"];
        let per_token = ["--stride", &stride_flag, "--per-token", &out];
        let by_token = puna(&[&nll[..], &per_token].concat()).done().json().remove(0);
        let each: Vec<f64> = serde_json::from_str(&read(&out)).unwrap();
        let cut = windows(n, window, stride).unwrap();
        let (mut rest, mut means) = (&each[..], vec![]);
        for one in &cut {
            let (own, after) = rest.split_at(one.end - one.first_scored);
            means.push(own.iter().sum::<f64>() / own.len() as f64);
            rest = after;
        }
        assert!(rest.is_empty());
        let wanted = (means.iter().sum::<f64>() / means.len() as f64).exp();

        let ppl = ["eval", "ppl", "builtin", &window_flag, "--block-size", &stride_flag, "--json"];
        for source in [["--dataset", &data], ["--text", &text]] {
            let args = [&ppl[..], &source, &["--against", "builtin"]].concat();
            let value = puna(&args).done().json().remove(0);
            assert!(close(number(&value, "value"), wanted), "{value}, wanted {wanted}");
            assert!(close(number(&value, "ppl_token"), number(&by_token, "ppl")), "{value}");
            assert_eq!((&value["n"], &value["tokens"]), (&json!(cut.len()), &by_token["tokens"]));
            assert_eq!(number(&value["against"], "value"), number(&value, "value"), "{value}");
            if cut.len() > 1 {
                assert!(number(&value, "low") <= wanted * (1.0 + 1e-9), "{value}");
                assert!(number(&value, "high") >= wanted * (1.0 - 1e-9), "{value}");
                assert_eq!(value["against"]["p_value"], 1.0);
                assert_eq!(value["against"]["ties"], json!(cut.len()));
            }
        }
    }
    let shown = puna(&["eval", "ppl", "builtin", "--dataset", &data]).done().stdout;
    assert!(shown.starts_with("perplexity ") && shown.contains("(window 512, "), "{shown}");
}

/// Ids of each sample, and the first that is scored.
type Scored = Vec<(Vec<u32>, usize)>;

/// Data sets with what is scored of them, and a text of one token, which each has once.
fn samples(place: &Place) -> (Vec<(String, Scored)>, String) {
    let model = engine::load(Path::new("builtin"), 1, false);
    let encode = |text: &str| model.tokenizer().unwrap().encode(text, false, true).unwrap();
    let one_token = [".", "a", "the", "A"].into_iter().find(|text| encode(text).len() == 1);
    let one_token = one_token.expect("one of them is a token").to_owned();
    let long = STORIES.join(" ").repeat(2);
    let mut sets = vec![];

    let texts = [STORIES[0], &one_token, STORIES[1], &long, "Tom is sad."];
    let instances: Value = texts.iter().map(|text| json!({"text": text})).collect();
    let path = place.set("texts.json", "text_only", &instances);
    sets.push((path, texts.iter().map(|text| (encode(text), 0)).collect()));

    let pairs = [
        (STORIES[0], " She found the ball."),
        ("", &*one_token),
        (&*long, " The end of it."),
        ("Tom", &*long),
        ("", "Tom is happy."),
    ];
    let instances: Value =
        pairs.iter().map(|(input, output)| json!({"input": input, "output": output})).collect();
    let path = place.set("pairs.json", "text2text", &instances);
    let ids = |(input, output): &(&str, &str)| {
        let ids = if input.is_empty() { vec![] } else { encode(input) };
        let from = ids.len();
        ([ids, encode(output)].concat(), from)
    };
    sets.push((path, pairs.iter().map(ids).collect()));
    (sets, one_token)
}

#[test]
fn the_likelihood_of_a_set_is_that_of_its_samples() {
    let place = Place::new();
    let (each, out, ids_file) =
        (place.path("each.jsonl"), place.path("nll.json"), place.path("ids.json"));
    let windows = ["--window=64", "--stride=32", "--json"];
    let (sets, one_token) = samples(&place);
    for (data, samples) in sets {
        let set = ["eval", "nll", "builtin", "--dataset", &data, "--per-instance", &each];
        let run = puna(&[&set[..], &windows, &["--against", "builtin"]].concat()).done();
        let value = run.json().remove(0);
        let found = lines(&each);
        assert_eq!(found.len(), samples.len());
        let (mut sum, mut n_tokens) = (0.0, 0);
        for ((ids, from), line) in samples.iter().zip(&found) {
            assert!(line["place"].as_str().unwrap().starts_with(&data), "{line}");
            if ids.len() < 2 {
                assert_eq!((&line["nll"], &line["tokens"]), (&json!(0.0), &json!(0)));
                continue;
            }
            fs::write(&ids_file, json!(ids).to_string()).unwrap();
            let tokens = format!("@{ids_file}");
            let args = ["eval", "nll", "builtin", "--tokens", &tokens, "--per-token", &out];
            puna(&[&args[..], &windows].concat()).done();
            let all: Vec<f64> = serde_json::from_str(&read(&out)).unwrap();
            // The first value is that of the second token.
            let own = &all[(*from).max(1) - 1..];
            let wanted: f64 = own.iter().sum();
            assert!(close(number(line, "nll"), wanted), "{line}, wanted {wanted}");
            assert_eq!(line["tokens"], json!(own.len()), "{line}");
            (sum, n_tokens) = (sum + wanted, n_tokens + own.len());
        }
        assert_eq!((&value["metric"], &value["n"]), (&json!("nll"), &json!(samples.len())));
        assert!(close(number(&value, "value"), sum / samples.len() as f64), "{value} {sum}");
        assert_eq!(value["tokens"], json!(n_tokens));
        let per_token = number(&value, "nll_per_token");
        assert!(close(per_token, sum / n_tokens as f64), "{value}");
        assert!(close(number(&value, "ppl"), per_token.exp()), "{value}");
        assert_eq!(value["unscored"], 1, "{one_token:?}");
        let warning = "1 of 5 samples have no token to score";
        assert!(run.stderr.contains(warning), "{}", run.stderr);
        let against = &value["against"];
        assert_eq!((&against["ties"], &against["difference"]), (&json!(5), &json!(0.0)));
        let with_bos = puna(&[&set[..], &windows, &["--add-bos"]].concat()).done();
        let tokens = with_bos.json()[0]["tokens"].as_u64().unwrap() as usize;
        // A token more for each sample whose first token is to be scored.
        let first = samples.iter().filter(|(_, from)| *from == 0).count();
        assert_eq!(tokens, n_tokens + first, "{}", with_bos.stdout);
        let text = puna(&["eval", "nll", "builtin", "--dataset", &data]).done().stdout;
        assert!(text.contains("nats a sample, 5 samples;"), "{text}");
    }
}

#[test]
fn sums_of_an_earlier_run_are_kept_and_checked() {
    let place = Place::new();
    let each = place.path("each.jsonl");
    for (data, _) in samples(&place).0 {
        let args = ["eval", "nll", "builtin", "--dataset", &data, "--per-instance", &each];
        let args = [&args[..], &["--window=64", "--stride=32", "--json"]].concat();
        let resumed = [&args[..], &["--resume"]].concat();
        let whole = puna(&args).done();
        let file = read(&each);
        let end_of = |n: usize| file.match_indices('\n').nth(n).unwrap().0 + 1;
        for kept in [0, 5, end_of(0), end_of(1), end_of(2) + 30, end_of(4) - 1, file.len()] {
            fs::write(&each, &file[..kept]).unwrap();
            let run = puna(&resumed).done();
            let found = (run.stdout, read(&each));
            assert_eq!(found, (whole.stdout.clone(), file.clone()), "{data}: {kept} bytes");
        }
        fs::remove_file(&each).unwrap();
        puna(&resumed).done();
        assert_eq!(read(&each), file, "{data}");

        // Lines that belong to other data, other flags or nothing.
        let changed = |from: &str, to: &str| file.replacen(from, to, 1);
        let cases: [(String, &[&str], &str); 6] = [
            (changed("instance 1\"", "instance 4\""), &[], "each.jsonl, line 2: place"),
            (changed("\"tokens\":", "\"tokens\":9"), &[], "each.jsonl, line 1: tokens 9"),
            (file.clone(), &["--add-bos"], ": tokens "),
            (changed("\"nll\":", "\"was\":"), &[], "each.jsonl, line 1: nll null, wanted a number"),
            (format!("{file}{file}"), &[], "each.jsonl, line 6: one more, wanted at most 5"),
            ("{\n".to_owned(), &[], "each.jsonl, line 1: not JSON"),
        ];
        for (text, more, wanted) in cases {
            fs::write(&each, &text).unwrap();
            let run = puna(&[&resumed[..], more].concat());
            assert_eq!(run.status, Some(1), "{data}, {wanted}: {}", run.stderr);
            assert!(run.stderr.contains(wanted), "{data}, {wanted}: {}", run.stderr);
            assert_eq!(read(&each), text, "{data}, {wanted}: the file is left");
        }
        // Without --resume what is there is replaced.
        puna(&args).done();
        assert_eq!(read(&each), file, "{data}");
    }
}

#[test]
fn windows_of_an_earlier_run_are_kept_and_checked() {
    let place = Place::new();
    let each = place.path("each.jsonl");
    // So many windows that they do not share one forward pass.
    let texts: Value = STORIES.iter().cycle().take(15).map(|text| json!({"text": text})).collect();
    let data = place.set("texts.json", "text_only", &texts);
    let args = ["eval", "ppl", "builtin", "--dataset", &data, "--per-instance", &each];
    let args = [&args[..], &["--window=24", "--against", "builtin", "--json"]].concat();
    let run = |more: &[&str]| puna(&[&args[..], more].concat());
    let stride = "--block-size=12";
    let whole = run(&[stride]).done();
    let (file, value) = (read(&each), whole.json().remove(0));

    // The lines are those of the windows, and the perplexities follow from them.
    let found = lines(&each);
    let cut = windows(number(&value, "tokens") as usize + 1, 24, 12).unwrap();
    assert_eq!((found.len(), &value["n"]), (cut.len(), &json!(cut.len())));
    assert!(cut.len() > 23, "{value}");
    for (line, one) in found.iter().zip(&cut) {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["place", "nll", "tokens"]);
        assert_eq!(line["place"], format!("tokens {}..{}", one.first_scored, one.end));
        assert_eq!(line["tokens"], json!(one.end - one.first_scored), "{line}");
    }
    let sum: f64 = found.iter().map(|line| number(line, "nll")).sum();
    assert!(close(number(&value, "ppl_token"), (sum / number(&value, "tokens")).exp()), "{value}");
    let means = found.iter().map(|line| number(line, "nll") / number(line, "tokens"));
    assert!(close(number(&value, "value"), (means.sum::<f64>() / cut.len() as f64).exp()));

    let end_of = |n: usize| file.match_indices('\n').nth(n).unwrap().0 + 1;
    let in_last = file.len() - 1;
    for kept in [0, 5, end_of(0), end_of(1), end_of(2) + 30, end_of(22), in_last, file.len()] {
        fs::write(&each, &file[..kept]).unwrap();
        let found = (run(&[stride, "--resume"]).done().stdout, read(&each));
        assert_eq!(found, (whole.stdout.clone(), file.clone()), "{kept} bytes");
    }
    fs::remove_file(&each).unwrap();
    run(&[stride, "--resume"]).done();
    assert_eq!(read(&each), file);

    // Lines that belong to another text, other flags or nothing.
    let changed = |from: &str, to: &str| file.replacen(from, to, 1);
    let n = cut.len();
    let one_more = format!("each.jsonl, line {}: one more, wanted at most {n} windows", n + 1);
    let other_place = "each.jsonl, line 2: place \"tokens 24..36\", wanted \"tokens 24..32\"";
    let cases: [(String, &str, &str); 7] = [
        (changed("tokens 24..36", "tokens 24..37"), stride, "each.jsonl, line 2: place"),
        (changed("\"tokens\":23", "\"tokens\":9"), stride, "line 1: tokens 9, wanted 23"),
        (file.clone(), "--block-size=8", other_place),
        (file.clone(), "--block-size=25", "block-size = 25"),
        (changed("\"nll\":", "\"was\":"), stride, "each.jsonl, line 1: nll null, wanted a number"),
        (format!("{file}{file}"), stride, &one_more),
        ("{\n".to_owned(), stride, "each.jsonl, line 1: not JSON"),
    ];
    for (text, flag, wanted) in cases {
        fs::write(&each, &text).unwrap();
        let run = run(&[flag, "--resume"]);
        assert_eq!(run.status, Some(1), "{wanted}: {}", run.stderr);
        assert!(run.stderr.contains(wanted), "{wanted}: {}", run.stderr);
        assert_eq!(read(&each), text, "{wanted}: the file is left");
    }
    // Without --resume what is there is replaced.
    run(&[stride]).done();
    assert_eq!(read(&each), file);
}

#[test]
fn wrong_usage_and_wrong_data_are_named() {
    let place = Place::new();
    let questions = place.questions(2);
    let texts = place.set("texts.json", "text_only", &json!([{"text": STORIES[0]}]));
    let lone = place.set("lone.json", "text_only", &json!([{"text": ""}]));
    let nowhere = format!("--per-instance={}", place.path("no/such/each.jsonl"));
    let text_type = "--answer-type=text";
    let cases: [(&[&str], i32, &str); 20] = [
        (&["accuracy", "builtin"], 2, "no data named"),
        (&["accuracy", "builtin", "--dataset", &questions], 2, "no type of answers named"),
        (
            &["accuracy", "builtin", "--dataset", &questions, "--answer-type=words"],
            2,
            "wanted one of gsm8k",
        ),
        (
            &["accuracy", "builtin", "--dataset", &questions, text_type, "--resume"],
            2,
            "--resume alone",
        ),
        (
            &["accuracy", "builtin", "--dataset", &questions, text_type, "--prompt-structure=Q:"],
            2,
            "\"Q:\": wanted {input} in it",
        ),
        (&["accuracy", "builtin", "--dataset", &texts, text_type], 1, "wanted text2text"),
        (
            &["accuracy", "builtin", "--dataset", &questions, text_type, &nowhere],
            1,
            "no/such/each.jsonl",
        ),
        (&["ppl", "builtin"], 2, "nothing to score"),
        (&["ppl", "builtin", "--dataset", &questions], 1, "wanted text_only"),
        (&["ppl", "builtin", "--dataset", &texts, "--text", &texts], 2, "cannot be used with"),
        (&["ppl", "builtin", "--dataset", &lone], 1, "wanted at least 2"),
        (&["ppl", "builtin", "--dataset", &texts, "--resume"], 2, "--resume alone"),
        (
            &["ppl", "builtin", "--dataset", &texts, "--window=8", "--block-size=9"],
            1,
            "block-size = 9: wanted at most the window's 8",
        ),
        (&["nll", "builtin"], 2, "nothing to score"),
        (&["nll", "builtin", "--dataset", &texts, "--tokens=1,2"], 2, "cannot be used with"),
        (&["nll", "builtin", "--text", &texts, "--add-bos"], 2, "--add-bos without --dataset"),
        (&["nll", "builtin", "--text", &texts, "--resume"], 2, "--resume without --dataset"),
        (&["nll", "builtin", "--dataset", &texts, "--resume"], 2, "--resume alone"),
        (&["nll", "builtin", "--dataset", &texts, "--per-token=x"], 2, "--per-token with"),
        (&["nll", "builtin", "--dataset", &lone], 1, "no sample has a token to score"),
    ];
    for (args, status, wanted) in cases {
        let run = puna(&[&["eval"], args].concat());
        assert_eq!(run.status, Some(status), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(wanted), "{args:?}: {}", run.stderr);
    }
}
