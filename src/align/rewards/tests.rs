//! Rules, programs that behave and programs that do not, reward models, sums.

use super::*;
use crate::data::{Conversation, Question, Rules};
use crate::model::llama::{LoadOptions, Model};
use crate::model::tune::{LoraSpec, LoraTarget, Precision, TuneMethod, TuneModel, TuneOptions};
use crate::text::Message;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

static GO: AtomicBool = AtomicBool::new(false);

fn prompt(text: &str, answer: Option<&str>) -> Prompt {
    Prompt {
        question: Question::Text(text.to_owned()),
        ids: vec![1],
        text: text.to_owned(),
        answer: answer.map(str::to_owned),
        place: "data.json: instance 7".to_owned(),
    }
}

fn scored(rule: &str, answer: &str, reference: Option<&str>) -> Result<f64> {
    let prompt = prompt("What?", reference);
    Rule::parse(rule).unwrap().score(&Asked { prompt: &prompt, answer })
}

#[test]
fn rules_score_answers() {
    let cases: &[(&str, &str, Option<&str>, f64)] = &[
        ("length:2-4", "", None, 0.0),
        ("length:2-4", " \n ", None, 0.0),
        ("length:2-4", "one", None, 0.5),
        ("length:2-4", "one two", None, 1.0),
        ("length:2-4", "one  two\nthree\tfour", None, 1.0),
        ("length:2-4", "1 2 3 4 5", None, 0.75),
        ("length:2-4", "1 2 3 4 5 6 7", None, 0.25),
        ("length:2-4", "1 2 3 4 5 6 7 8", None, 0.0),
        ("length:2-4", "1 2 3 4 5 6 7 8 9", None, 0.0),
        ("length:0-1", "", None, 1.0),
        ("length:3-3", "1 2 3", None, 1.0),
        ("regex:b+c", "a bbc d", None, 1.0),
        ("regex:b+c", "a bb d", None, 0.0),
        ("regex:^a:b$", "a:b", None, 1.0),
        ("regex:^a:b$", "xa:b", None, 0.0),
        ("regex:", "", None, 1.0),
        ("json", " {\"a\": [1, 2.5e3, null]}\n", None, 1.0),
        ("json", "7", None, 1.0),
        ("json", "\"text\"", None, 1.0),
        ("json", "", None, 0.0),
        ("json", "{\"a\": 1,}", None, 0.0),
        ("json", "{} {}", None, 0.0),
        ("json", "Here: {}", None, 0.0),
        ("json", "NaN", None, 0.0),
        ("exact", " 42\n", Some("42"), 1.0),
        ("exact", "42", Some("\n42 "), 1.0),
        ("exact", "42.", Some("42"), 0.0),
        ("exact", "Yes", Some("yes"), 0.0),
        ("exact", "", Some(""), 1.0),
        ("exact:gsm8k", "It is 1,200 or so, so 42.", Some("42"), 1.0),
        ("exact:gsm8k", "none", Some("42"), 0.0),
        ("exact:gsm8k", "42", Some("so it is 42"), 0.0),
        ("exact:math", "about 2.50", Some("2.50"), 1.0),
        ("exact:strategyqa", "I say yes.", Some("Yes"), 1.0),
        ("exact:medmcqa", "Answer: b", Some("B"), 1.0),
        ("exact:aqua", "It is (C)", Some("C"), 1.0),
        ("exact:text", "as it is", Some("as it is"), 1.0),
    ];
    let mut failures = vec![];
    for &(rule, answer, reference, wanted) in cases {
        let found = scored(rule, answer, reference).unwrap();
        if (found - wanted).abs() > 1e-12 {
            failures.push(format!("{rule} {answer:?} {reference:?}: {found}, wanted {wanted}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rules_are_named_as_they_are_written() {
    for text in ["length:20-80", "regex:a:(b|c)", "json", "exact", "exact:gsm8k"] {
        assert_eq!(Rule::parse(text).unwrap().name(), text);
    }
    let cases = [
        ("", "wanted length:LOW-HIGH, regex:PATTERN"),
        ("jsonl", "wanted length:LOW-HIGH, regex:PATTERN"),
        ("json:x", "wanted length:LOW-HIGH, regex:PATTERN"),
        ("length", "wanted length:LOW-HIGH, regex:PATTERN"),
        ("length:5", "as in length:20-80"),
        ("length:5-4", "as in length:20-80"),
        ("length:0-0", "as in length:20-80"),
        ("length:-1-4", "as in length:20-80"),
        ("length:1-x", "as in length:20-80"),
        ("regex:a(", "wanted a regular expression: unclosed group"),
        ("exact:", "one of gsm8k, svamp"),
        ("exact:GSM8K", "one of gsm8k, svamp"),
    ];
    for (text, message) in cases {
        let found = Rule::parse(text).unwrap_err();
        assert!(found.contains(message) && !found.contains('\n'), "{text}: {found}");
    }
}

#[test]
fn exact_needs_a_reference() {
    for (rule, name) in [("exact", "the rule exact needs"), ("exact:aqua", "exact:aqua needs")] {
        let error = scored(rule, "A", None).unwrap_err().to_string();
        assert!(error.starts_with("data.json: instance 7: no reference answer"), "{error}");
        assert!(error.contains(name), "{error}");
    }
}

/// What a program gives to `n` answers of about `size` bytes.
fn run_sized(command: &str, n: usize, size: usize, timeout: u64) -> Result<Vec<f64>> {
    let (prompt, answer) = (prompt("What?", None), "x".repeat(size));
    let asked = vec![Asked { prompt: &prompt, answer: &answer }; n];
    Program::new(command, Duration::from_secs(timeout)).scores(&asked, &GO)
}

fn run(command: &str, n: usize) -> Result<Vec<f64>> {
    run_sized(command, n, 1, 60)
}

#[test]
fn programs_give_numbers() {
    assert_eq!(run("sed 's/.*/1.5/'", 3).unwrap(), [1.5; 3]);
    assert_eq!(run("sed 's/.*/-2e-1/' | cat", 2).unwrap(), [-0.2; 2]);
    let mixed = r#"echo '{"score": 2, "why": "so"}'; echo; echo ' 3 '; printf 4"#;
    assert_eq!(run(mixed, 3).unwrap(), [2.0, 3.0, 4.0]);
    // Reads nothing of what would fill the pipe many times.
    assert_eq!(run_sized("yes 1 | head -n 2", 2, 1 << 20, 60).unwrap(), [1.0; 2]);
    // Fills standard error before it says a number.
    assert_eq!(run_sized("cat >&2; echo 1; echo 2", 2, 1 << 20, 60).unwrap(), [1.0, 2.0]);
    // Nothing to ask, nothing to start.
    assert_eq!(run("exit 1", 0).unwrap(), [0.0; 0]);
}

#[test]
fn programs_are_told_all_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("asked.jsonl");
    let text = prompt("Two\nlines", Some("\"so\""));
    let mut talk = prompt("And?", None);
    let messages = vec![Message::new("user", "Hi"), Message::new("user", "And?")];
    let system = Some("Be brief.".to_owned());
    let conversation = Conversation { messages, system, ..Conversation::default() };
    talk.question = Question::Conversation(conversation);
    let asked =
        [Asked { prompt: &text, answer: "a\r\nb" }, Asked { prompt: &talk, answer: "ü \u{2028}" }];
    let command = format!("tee '{}' | sed 's/.*/0/'", file.display());
    let mut program = Program::new(command.as_str(), Duration::from_secs(60));
    assert_eq!(program.name(), command);
    assert_eq!(program.scores(&asked, &GO).unwrap(), [0.0, 0.0]);
    let found = std::fs::read_to_string(&file).unwrap();
    let found: Vec<Value> =
        found.split_terminator('\n').map(|line| serde_json::from_str(line).unwrap()).collect();
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "And?"},
    ]);
    assert_eq!(
        found,
        [
            json!({"prompt": "Two\nlines", "response": "a\r\nb", "answer": "\"so\""}),
            json!({
                "prompt": "And?", "response": "ü \u{2028}", "answer": null, "messages": messages
            }),
        ]
    );
}

#[test]
fn programs_that_fail_are_told_of() {
    let wanted = r#"wanted a number or {"score": number}"#;
    let cases = [
        ("cat > /dev/null; exit 3", "twice: ended with exit status: 3, wanted exit status: 0"),
        ("echo oops >&2; exit 3", "exit status: 3, wanted exit status: 0; it said: oops"),
        ("seq 1 9 >&2; exit 3", "it said: 5 | 6 | 7 | 8 | 9"),
        ("sed 's/.*/1/'; exit 3", "exit status: 3"),
        ("echo Trouble; exit 3", "exit status: 0; line 1: \"Trouble\", wanted a number"),
        ("kill -9 $$", "signal: 9"),
        ("no-such-program-here", "exit status: 127, wanted"),
        ("echo 1; echo 2; echo abc", "line 3: \"abc\", wanted a number"),
        ("echo 1; echo; echo '[2]'", wanted),
        ("echo 1; echo 2; echo '{\"score\": null}'", wanted),
        ("echo 1; echo 2; echo '{\"score\": NaN}'", wanted),
        ("echo NaN", "line 1: \"NaN\", wanted a finite number"),
        ("echo 1; echo -inf", "line 2: \"-inf\", wanted a finite number"),
        ("echo 1e999", "wanted a finite number"),
        ("echo 1", "1 lines, wanted 3, one an answer"),
        ("cat > /dev/null", "0 lines, wanted 3"),
        ("sed 's/.*/1/;p'", "more than 3 lines, wanted 3"),
        ("yes 1", "more than 3 lines, wanted 3"),
        ("cat /dev/zero", "line 1: more than 1048576 bytes"),
    ];
    let mut failures = vec![];
    for (command, message) in cases {
        match run(command, 3) {
            Err(error @ Error::Data { .. }) => {
                let error = error.to_string();
                let named = error.starts_with(&format!("the reward command `{command}`: "));
                if !named || !error.contains(message) {
                    failures.push(format!("{command}: {error}"));
                }
            }
            other => failures.push(format!("{command}: {other:?}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_program_may_fail_once() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("was here").display().to_string();
    let command = format!("if test -e '{marker}'; then sed 's/.*/2/'; else touch '{marker}'; ");
    assert_eq!(run(&format!("{command} exit 1; fi"), 2).unwrap(), [2.0, 2.0]);
    let command = format!("if test -e '{marker}'; then rm '{marker}'; exit 4; else echo ten; fi");
    let error = run(&command, 2).unwrap_err().to_string();
    assert!(error.contains("line 1: \"ten\", wanted"), "{error}");
    assert!(error.contains("; the time before: ended with exit status: 4"), "{error}");
}

#[test]
fn nothing_is_waited_for_longer_than_told() {
    let began = Instant::now();
    let error = run_sized("echo 1; sleep 60; echo 2", 2, 1, 1).unwrap_err().to_string();
    assert!(error.contains("no end after 1 s, with 1 of 2 scores"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
    // One that ends, and leaves its pipes to another.
    let began = Instant::now();
    assert_eq!(run("sleep 60 & echo 1", 1).unwrap(), [1.0]);
    assert!(began.elapsed() < Duration::from_secs(30));
    // One that closes its pipes and goes on.
    let began = Instant::now();
    let error = run_sized("echo 1; exec >&- 2>&-; sleep 60", 1, 1, 1).unwrap_err().to_string();
    assert!(error.contains("no end after 1 s, with 1 of 1 scores"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn programs_and_what_they_start_are_ended() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("too late");
    let (prompt, cancel) = (prompt("What?", None), AtomicBool::new(false));
    let command = format!("(sleep 2; touch '{}') & sleep 60", marker.display());
    let mut program = Program::new(command, Duration::from_secs(600));
    let began = Instant::now();
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            cancel.store(true, Ordering::Relaxed);
        });
        program.scores(&[Asked { prompt: &prompt, answer: "x" }], &cancel)
    });
    assert!(matches!(found, Err(Error::Cancelled)), "{found:?}");
    assert!(began.elapsed() < Duration::from_secs(30));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!marker.exists());
}

/// The built-in model with an untrained head of scores.
fn judge(max_length: usize) -> Judge {
    let dir = tempfile::tempdir().unwrap();
    let targets = vec![LoraTarget::Wq];
    let spec = LoraSpec { r: 2, alpha: 4.0, dropout: 0.0, targets, use_rslora: false };
    let options = TuneOptions {
        threads: 1,
        precision: Precision::F32,
        method: TuneMethod::Lora { spec, adapter: None },
        gradient_checkpointing: false,
        seed: 0,
        score: true,
        value: false,
    };
    TuneModel::open(Path::new("builtin"), &options).unwrap().save(dir.path()).unwrap();
    let options = LoadOptions { adapters: vec![dir.path().to_owned()], ..LoadOptions::threads(1) };
    let model = Model::load(Path::new("builtin"), &options).unwrap();
    Judge::new(model, Rules::default(), max_length, "judge".to_owned()).unwrap()
}

#[test]
fn reward_models_read_texts_and_cut_long_ones_in_front() {
    let cat = prompt("Name one animal, but not the cat: ", None);
    let dog = prompt("Name one animal, but not the dog: ", None);
    let asked = [
        Asked { prompt: &cat, answer: "The ant is a small animal." },
        Asked { prompt: &dog, answer: "The ant is a small animal." },
        Asked { prompt: &cat, answer: "" },
    ];
    let mut whole = judge(512);
    let scores = whole.scores(&asked, &GO).unwrap();
    assert_eq!((scores.len(), whole.take_cut()), (3, 0));
    assert!(scores[0] != scores[1] && scores[0] != scores[2], "{scores:?}");
    for (one, score) in asked.iter().zip(&scores) {
        let alone = whole.scores(&[*one], &GO).unwrap();
        assert!((alone[0] - score).abs() < 1e-5, "{alone:?} {score}");
    }
    assert_eq!(whole.scores(&[], &GO).unwrap(), [0.0; 0]);
    let mut short = judge(3);
    let cut = short.scores(&asked, &GO).unwrap();
    assert_eq!((short.take_cut(), short.take_cut()), (3, 0));
    assert!((cut[0] - cut[1]).abs() < 1e-5 && cut[0] != scores[0], "{cut:?} {scores:?}");
    let stop = AtomicBool::new(true);
    assert!(matches!(short.scores(&asked, &stop), Err(Error::Cancelled)));
}

#[test]
fn only_reward_models_judge() {
    let load = || Model::load(Path::new("builtin"), &LoadOptions::threads(1)).unwrap();
    let error = Judge::new(load(), Rules::default(), 9, "m".to_owned()).err().unwrap();
    assert!(error.to_string().contains("`puna reward` makes a reward model"), "{error}");
}

/// Always the same scores.
struct Fixed(&'static str, Vec<f64>);

impl Reward for Fixed {
    fn name(&self) -> String {
        self.0.to_owned()
    }

    fn scores(&mut self, _: &[Asked<'_>], _: &AtomicBool) -> Result<Vec<f64>> {
        Ok(self.1.clone())
    }

    fn take_cut(&mut self) -> usize {
        self.1.len()
    }
}

/// Name, scores, weight.
type Part<'a> = (&'static str, &'a [f64], f64);

fn sum(parts: &[Part<'_>]) -> Result<Rewards> {
    let part = |&(name, scores, weight): &Part<'_>| {
        let source: Box<dyn Reward> = Box::new(Fixed(name, scores.to_vec()));
        (source, weight)
    };
    Rewards::new(parts.iter().map(part).collect())
}

#[test]
fn rewards_are_weighted_sums() {
    let prompt = prompt("What?", None);
    let asked = [Asked { prompt: &prompt, answer: "x" }; 2];
    let mut rewards = sum(&[("a", &[1.0, 2.0], 2.0), ("b", &[10.0, -10.0], -0.5)]).unwrap();
    assert_eq!(rewards.names(), ["a", "b"]);
    let scores = rewards.scores(&asked, &GO).unwrap();
    assert_eq!(scores.total, [-3.0, 9.0]);
    let parts = [("a".to_owned(), vec![1.0, 2.0]), ("b".to_owned(), vec![10.0, -10.0])];
    assert_eq!(scores.parts, parts);
    assert_eq!(rewards.take_cut(), 4);

    let refused = |parts: &[Part<'_>]| {
        let found = sum(parts).and_then(|mut rewards| rewards.scores(&asked, &GO));
        found.unwrap_err().to_string()
    };
    let cases: [(&[Part<'_>], &str); 7] = [
        (&[], "rewards = none: wanted at least one"),
        (&[("a", &[1.0, 2.0], f64::NAN)], "weight of the reward a = NaN: wanted a finite number"),
        (&[("a", &[1.0], 1.0)], "the reward a: 1 scores, wanted 2, one an answer"),
        (&[("a", &[1.0; 3], 1.0)], "the reward a: 3 scores, wanted 2"),
        (&[("a", &[1.0, f64::NAN], 0.0)], "instance 7: the reward a is NaN, wanted a finite"),
        (&[("a", &[f64::INFINITY, 1.0], 1.0)], "the reward a is inf, wanted a finite number"),
        (&[("a", &[f64::MAX, 1.0], 2.0)], "the sum of the rewards is inf, wanted a finite"),
    ];
    for (parts, message) in cases {
        let found = refused(parts);
        assert!(found.contains(message), "{found}");
    }
}
