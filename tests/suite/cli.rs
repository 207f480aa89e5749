//! The command line as a user meets it: exit statuses, one-line errors, what goes to standard
//! output, the stable JSON, config files, stop strings, data sets, interruption.

use crate::support::program::{Run, command, finish, puna, puna_with_input};
use crate::support::toy;
use puna_cpu::isa::Isa;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Ids of a prompt of `mini-gqa` and what follows it, from `greedy.json`.
const PROMPT: &str = "197,289,174,112,54";
const CONTINUATION: [u32; 24] = [
    70, 14, 65, 266, 278, 87, 41, 278, 304, 109, 287, 280, 100, 304, 38, 186, 172, 163, 287, 41,
    283, 286, 89, 251,
];

fn mini(model: &str) -> String {
    format!("{}/tests/fixtures/{model}", env!("CARGO_MANIFEST_DIR"))
}

fn toy_model() -> (TempDir, String) {
    let dir = TempDir::new().unwrap();
    toy::make(dir.path());
    let path = dir.path().to_str().unwrap().to_owned();
    (dir, path)
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text_of(run: &Run) -> String {
    run.json()[0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn no_arguments_say_what_to_do_first() {
    let run = puna(&[]).done();
    for words in ["puna info MODEL", "puna chat MODEL", "--help"] {
        assert!(run.stdout.contains(words), "{}", run.stdout);
    }
    assert_eq!(run.stderr, "");
}

#[test]
fn every_help_fits_a_screen_and_shows_an_example() {
    let commands: [&[&str]; 6] =
        [&["info"], &["generate"], &["chat"], &["eval"], &["eval", "nll"], &["bench"]];
    for command in commands {
        let run = puna(&[command, &["--help"]].concat()).done();
        let n_lines = run.stdout.lines().count();
        assert!(n_lines <= 45, "{command:?}: {n_lines} lines");
        assert!(run.stdout.contains("Example"), "{command:?}: {}", run.stdout);
        let widest = run.stdout.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{command:?}: {widest:?} columns");
        assert_eq!(run.stderr, "", "{command:?}");
    }
    assert!(puna(&["--version"]).done().stdout.starts_with("puna "));
}

/// Arguments, exit status, and words of the one line: the thing, what was found, what was wanted.
const ERRORS: &[(&[&str], i32, &[&str])] = &[
    (&["generate", "no/such/model", "--tokens", "1"], 1, &["no/such/model", "No such file"]),
    (&["generate", "MINI", "--tokens", "1", "--temprature", "1"], 2, &["--temprature"]),
    (&["generate", "MINI", "--tokens", "1", "--temperature", "hot"], 2, &["--temperature", "hot"]),
    (&["generate", "MINI", "--tokens", "1", "--temperature", "-1"], 1, &["temperature", "-1", "0"]),
    (&["generate", "MINI", "--tokens", "1", "--top-p", "2"], 1, &["top_p", "2", "at most 1"]),
    (&["generate", "MINI", "--tokens", "1", "--n", "0"], 2, &["--n", "0", "at least 1"]),
    (&["generate", "MINI", "--tokens", "1", "--kv-type", "q4"], 2, &["--kv-type", "q4", "q8_0"]),
    (
        &["generate", "MINI", "--tokens", "1", "--device", "gpu"],
        2,
        &["--device", "gpu", "cuda[:N]"],
    ),
    (&["generate", "MINI", "--tokens", "1", "--device", "cuda"], 1, &["cuda:0", "CPU only"]),
    (&["generate", "MINI", "--tokens", "1,x"], 2, &["tokens", "\"x\"", "1,2,3"]),
    (&["eval", "nll", "MINI", "--tokens", "1,"], 2, &["tokens", "\"\"", "1,2,3"]),
    (&["generate", "MINI", "--tokens", "@nowhere.json"], 1, &["nowhere.json", "No such file"]),
    (&["generate", "MINI", "--tokens", "1,320"], 1, &["token 1", "320", "less than"]),
    (&["eval", "nll", "MINI", "--tokens", "1,2,9999"], 1, &["token 2", "9999", "320"]),
    (&["eval", "nll", "MINI", "--tokens", "1"], 1, &["1 tokens", "at least 2"]),
    (
        &["eval", "nll", "MINI", "--tokens", "1,2", "--window", "4", "--stride", "5"],
        1,
        &["stride", "5", "4"],
    ),
    (&["generate", "MINI", "--tokens", "1,2,3", "--ctx", "2"], 1, &["3 tokens", "2", "--ctx"]),
    (&["generate", "MINI", "-p", "hello"], 1, &["tokenizer", "none"]),
    (&["chat", "MINI"], 1, &["tokenizer", "none"]),
    (&["generate", "MINI"], 2, &["nothing to continue"]),
    (&["generate"], 2, &["nothing to continue"]),
    (&["generate", "MINI", "--tokens", "1", "-p", "x"], 2, &["--tokens", "--prompt"]),
    (&["generate", "MINI", "--dataset", "d"], 2, &["--dataset", "--output"]),
    (&["generate", "MINI", "--tokens", "1", "--adapter", "x"], 1, &["x"]),
    (&["compose", "MINI"], 2, &["compose"]),
    (&["eval"], 2, &["command"]),
    (&["info", "no/such/model"], 1, &["no/such/model"]),
    (&["bench", "no/such/model"], 1, &["no/such/model"]),
];

#[test]
fn errors_are_one_line_and_have_their_status() {
    let mini = mini("mini-gqa");
    let mut failures = vec![];
    for (args, status, words) in ERRORS {
        let args: Vec<&str> = args.iter().map(|&a| if a == "MINI" { &mini } else { a }).collect();
        let run = puna(&args);
        let lines: Vec<&str> = run.stderr.lines().collect();
        let mut fault = |what: &str| failures.push(format!("{args:?}: {what}: {}", run.stderr));
        if run.status != Some(*status) {
            fault(&format!("status {:?}, wanted {status}", run.status));
        }
        if !run.stdout.is_empty() {
            fault("something on standard output");
        }
        let hinted = lines.len() == 1 || lines.get(1).is_some_and(|l| l.starts_with("hint: "));
        if lines.is_empty() || lines.len() > 2 || !hinted || !lines[0].starts_with("error: ") {
            fault("not an error line and at most a hint");
        }
        for word in words.iter().filter(|word| !lines[0].contains(**word)) {
            fault(&format!("lacks {word:?}"));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn an_unknown_instruction_set_is_refused_by_name() {
    for args in [&["generate", &mini("mini-gqa"), "--tokens", "1"][..], &["info", "--machine"]] {
        let mut command = command(args);
        command.env("PUNA_ISA", "sse9");
        let run = finish(command);
        assert_eq!(run.status, Some(1), "{args:?}");
        for words in ["PUNA_ISA", "sse9", "portable"] {
            assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
        }
    }
}

#[test]
fn every_instruction_set_writes_the_same_tokens() {
    let wanted: Vec<String> = CONTINUATION.iter().map(u32::to_string).collect();
    let wanted = format!("{}\n", wanted.join(","));
    for isa in Isa::available() {
        let mini = mini("mini-gqa");
        let mut command = command(&[
            "generate",
            &mini,
            "--tokens",
            PROMPT,
            "--max-new-tokens",
            "24",
            "--ignore-eos",
        ]);
        command.env("PUNA_ISA", isa.level().name());
        assert_eq!(finish(command).done().stdout, wanted, "{isa}");
    }
}

#[test]
fn json_has_the_promised_keys_and_nothing_else_is_on_stdout() {
    let (_dir, toy) = toy_model();
    let args =
        ["generate", &toy, "-p", "with open", "--max-new-tokens", "8", "--ignore-eos", "--json"];
    let run = puna(&[&args[..], &["-v", "--verbose-prompt"]].concat()).done();
    let lines = run.json();
    assert_eq!(lines.len(), 1);
    let one = &lines[0];
    let wanted = ["finish_reason", "prompt", "prompt_tokens", "text", "timings", "tokens"];
    assert_eq!(keys(one), wanted);
    let wanted = [
        "decode_tok_per_s",
        "first_token_ms",
        "load_ms",
        "prompt_ms",
        "prompt_tok_per_s",
        "token_ms",
    ];
    assert_eq!(keys(&one["timings"]), wanted);
    assert_eq!(keys(&one["timings"]["token_ms"]), ["max", "p50", "p99", "p999"]);
    assert_eq!(one["prompt"], "with open");
    assert_eq!(one["prompt_tokens"][0], 0, "the tokenizer adds its BOS");
    assert_eq!((ids(&one["tokens"]).len(), &one["finish_reason"]), (8, &json!("length")));
    let prompt: Vec<String> = ids(&one["prompt_tokens"]).iter().map(u32::to_string).collect();
    assert!(run.stderr.contains(&prompt.join(",")), "{}", run.stderr);

    // Without --json the same text, and a line's end.
    let plain = puna(&args[..args.len() - 1]).done();
    assert_eq!(plain.stdout, format!("{}\n", one["text"].as_str().unwrap()));
    let quiet = puna(&[&args[..], &["--quiet"]].concat()).done();
    assert_eq!((text_of(&quiet), quiet.stderr.as_str()), (text_of(&run), ""));
}

#[test]
fn log_probabilities_come_with_each_token() {
    let mini = mini("mini-gqa");
    let args = ["generate", &mini, "--tokens", PROMPT, "--max-new-tokens", "5", "--ignore-eos"];
    let one = &puna(&[&args[..], &["--json", "--logprobs", "3"]].concat()).done().json()[0];
    let list = one["logprobs"].as_array().unwrap();
    assert_eq!(list.len(), 5);
    for (entry, id) in list.iter().zip(ids(&one["tokens"])) {
        assert_eq!(keys(entry), ["id", "logprob", "top"]);
        assert_eq!(entry["id"], id);
        let top = entry["top"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["id"]), (3, &json!(id)), "greedy takes the likeliest");
        let values: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values[0] <= 0.0, "{values:?}");
        assert!(values.iter().map(|v| v.exp()).sum::<f64>() <= 1.0 + 1e-6);
        assert_eq!(entry["logprob"], top[0]["logprob"]);
    }
}

#[test]
fn a_config_file_stands_in_for_flags_and_flags_win() {
    let dir = TempDir::new().unwrap();
    let mini = mini("mini-gqa");
    let values = json!({"model": mini, "tokens": [197, 289, 174, 112, 54], "max_new_tokens": 6,
        "ignore_eos": true, "json": true, "kv_type": "f32"});
    let (json_file, yaml_file) = (dir.path().join("c.json"), dir.path().join("c.yaml"));
    std::fs::write(&json_file, values.to_string()).unwrap();
    let yaml = format!(
        "# a comment\nmodel: {mini}\ntokens: [197, 289, 174, 112, 54]\nmax_new_tokens: 6\n\
         ignore_eos: true\njson: true\nkv_type: f32\n"
    );
    std::fs::write(&yaml_file, yaml).unwrap();
    for file in [&json_file, &yaml_file] {
        let file = file.to_str().unwrap();
        let run = puna(&["generate", "--config", file]).done();
        assert_eq!(ids(&run.json()[0]["tokens"]), CONTINUATION[..6], "{file}");
        let run = puna(&["generate", "--config", file, "--max-new-tokens", "2"]).done();
        assert_eq!(ids(&run.json()[0]["tokens"]), CONTINUATION[..2], "{file}");
        let run = puna(&["generate", "--config", file, "--tokens", "41"]).done();
        assert_eq!(run.json()[0]["prompt_tokens"], json!([41]), "{file}");
    }
    let bad = dir.path().join("bad.json");
    let cases = [
        (r#"{"max_new_token": 3}"#, 1, "max_new_tokens"),
        (r#"{"max_new_tokens": true}"#, 1, "max_new_tokens"),
        (r#"{"temperature": "hot"}"#, 2, "hot"),
        ("[1]", 1, "object"),
        ("{", 1, "JSON"),
    ];
    for (text, status, word) in cases {
        std::fs::write(&bad, text).unwrap();
        let run = puna(&["generate", &mini, "--tokens", "1", "--config", bad.to_str().unwrap()]);
        assert_eq!(run.status, Some(status), "{text}: {}", run.stderr);
        let first = run.stderr.lines().next().unwrap();
        assert!(first.contains("bad.json") && first.contains(word), "{text}: {first}");
        assert_eq!(run.stdout, "", "{text}");
    }
}

#[test]
fn stop_strings_cut_exactly_also_across_tokens() {
    let (_dir, toy) = toy_model();
    let args = ["generate", &toy, "-p", "The with", "--max-new-tokens", "60", "--ignore-eos"];
    let whole = text_of(&puna(&[&args[..], &["--json"]].concat()).done());
    let letters: Vec<(usize, char)> = whole.char_indices().collect();
    let mut n_tried = 0;
    for window in letters.windows(5).step_by(3) {
        // Half characters at the end of a cut text are another matter.
        if window.iter().any(|(_, c)| !c.is_ascii_graphic()) {
            continue;
        }
        let stop: String = window.iter().map(|(_, c)| c).collect();
        let cut = &whole[..whole.find(&stop).unwrap()];
        let run = puna(&[&args[..], &["--stop", "not there", "--stop", &stop, "--json"]].concat());
        let one = &run.done().json()[0];
        assert_eq!((one["text"].as_str(), &one["finish_reason"]), (Some(cut), &json!("stop")));
        let streamed = puna(&[&args[..], &["--stop", &stop]].concat()).done().stdout;
        assert_eq!(streamed, format!("{cut}\n"), "stop {stop:?}");
        n_tried += 1;
    }
    assert!(n_tried >= 3, "{n_tried} stop strings in {whole:?}");
}

#[test]
fn several_sequences_share_one_prompt() {
    let mini = mini("mini-gqa");
    let run = |more: &[&str]| {
        let args = ["generate", &mini, "--tokens", PROMPT, "--max-new-tokens", "8", "--ignore-eos"];
        puna(&[&args[..], &["--n", "4"], more].concat()).done()
    };
    let greedy = run(&[]);
    let lines: Vec<&str> = greedy.stdout.lines().collect();
    assert_eq!(lines, ["70,14,65,266,278,87,41,278"; 4]);
    assert_eq!(run(&["--json"]).json().len(), 4);

    let drawn = |seed: &str| run(&["--temperature", "1", "--seed", seed]).stdout;
    let one = drawn("7");
    assert_eq!(one.lines().count(), 4);
    let mut distinct: Vec<&str> = one.lines().collect();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 4, "each sequence has its own stream: {one}");
    assert_eq!(drawn("7"), one);
    assert_ne!(drawn("8"), one);
    // The first of four is the one of a run alone.
    let args = ["generate", &mini, "--tokens", PROMPT, "--max-new-tokens", "8", "--ignore-eos"];
    let alone = puna(&[&args[..], &["--temperature", "1", "--seed", "7"]].concat()).done().stdout;
    assert_eq!(alone.lines().next(), one.lines().next());
}

#[test]
fn a_full_context_ends_the_text_and_says_so() {
    let mini = mini("mini-gqa");
    let args = ["generate", &mini, "--tokens", PROMPT, "--ctx", "8", "--ignore-eos", "--json"];
    let run = puna(&args).done();
    let one = &run.json()[0];
    // Three of the new tokens fill the context, the fourth comes from the last of them.
    assert_eq!(ids(&one["tokens"]), CONTINUATION[..4]);
    assert_eq!(one["finish_reason"], "length");
    assert!(run.stderr.contains("context full at 8 positions"), "{}", run.stderr);
}

#[test]
fn likelihoods_come_with_a_file_of_every_token() {
    let dir = TempDir::new().unwrap();
    let reference: Value =
        serde_json::from_slice(&std::fs::read(mini("mini-gqa/ppl.json")).unwrap()).unwrap();
    let (ids_file, out) = (dir.path().join("ids.json"), dir.path().join("nll.json"));
    std::fs::write(&ids_file, reference["ids"].to_string()).unwrap();
    let (mini, tokens) = (mini("mini-gqa"), format!("@{}", ids_file.display()));
    let args = ["eval", "nll", &mini, "--tokens", &tokens, "--window", "48", "--stride", "32"];
    let run = puna(&[&args[..], &["--json", "--per-token", out.to_str().unwrap()]].concat()).done();
    let score = &run.json()[0];
    for key in ["nll", "ppl", "tokens"] {
        assert!(score[key].is_number(), "{key}: {score}");
    }
    assert_eq!(score["tokens"], reference["scored_tokens"]);
    let (nll, ppl) = (score["nll"].as_f64().unwrap(), score["ppl"].as_f64().unwrap());
    assert!((nll - reference["nll_mean"].as_f64().unwrap()).abs() < 1e-4, "{nll}");
    assert!((ppl - nll.exp()).abs() < 1e-9 * ppl);
    let each: Vec<f64> = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(each.len(), 199);
    assert!((each.iter().sum::<f64>() / 199.0 - nll).abs() < 1e-12);
}

/// Writes a data set of one file and returns its folder.
fn data_set(dir: &Path, name: &str, content: &Value) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("data.json"), content.to_string()).unwrap();
    folder
}

#[test]
fn data_sets_are_answered_into_a_text_to_textlist() {
    let (dir, toy) = toy_model();
    let user = |text: &str| json!({"role": "user", "content": text});
    let sets = [
        ("text_only", json!([{"text": "with a"}, {"text": "The b"}]), &[][..]),
        ("text2text", json!([{"input": "with a", "output": "x"}]), &["--n", "2"]),
        ("text2text", json!([{"input": "with a", "output": "x"}]), &["--chat", "--system", "Be."]),
        ("conversation", json!([{"system": "Be.", "messages": [user("with a")]}]), &[]),
    ];
    for (i, (kind, instances, more)) in sets.into_iter().enumerate() {
        let content = json!({"type": kind, "instances": instances});
        let folder = data_set(dir.path(), &format!("set{i}"), &content);
        let out = dir.path().join(format!("out{i}.json"));
        let (folder, out) = (folder.to_str().unwrap(), out.to_str().unwrap());
        let common = ["--max-new-tokens", "6", "--ignore-eos"];
        let args = ["generate", &toy, "--dataset", folder, "--output", out];
        let run = puna(&[&args[..], &common, more].concat()).done();
        assert_eq!(run.stdout, "", "{kind}");
        let answers: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
        assert_eq!(answers["type"], "text_to_textlist");
        let answers = answers["instances"].as_array().unwrap();
        assert_eq!(answers.len(), instances.as_array().unwrap().len(), "{kind}");
        let n = if more.contains(&"--n") { 2 } else { 1 };
        assert!(answers.iter().all(|a| a["output"].as_array().unwrap().len() == n), "{kind}");
        // The answers are those of the same prompts one by one.
        let chat = more.contains(&"--chat") || kind == "conversation";
        let prompt = if chat {
            "<|begin|>system: Be.<|end|>user: with a<|end|>assistant: "
        } else {
            "with a"
        };
        assert_eq!(answers[0]["input"], prompt, "{kind}");
        let chat: &[&str] = if chat { &["--chat", "--system", "Be."] } else { &[] };
        let one = ["generate", &toy, "-p", "with a", "--json"];
        let alone = text_of(&puna(&[&one[..], &common, chat].concat()).done());
        assert_eq!(answers[0]["output"][0], json!(alone), "{kind}");
    }
}

#[test]
fn a_data_set_that_cannot_be_answered_is_refused_before_the_work() {
    let (dir, toy) = toy_model();
    let assistant = json!([{"messages": [{"role": "assistant", "content": "x"}]}]);
    let sets = [
        (json!({"type": "float_only", "instances": [{"value": 1.5}]}), "float_only"),
        (json!({"type": "text_only", "instances": [{"texts": "x"}]}), "text"),
        (json!({"type": "conversation", "instances": assistant}), "assistant"),
    ];
    for (i, (content, word)) in sets.into_iter().enumerate() {
        let folder = data_set(dir.path(), &format!("bad{i}"), &content);
        let out = dir.path().join("out.json");
        let (folder, out) = (folder.to_str().unwrap(), out.to_str().unwrap());
        let run = puna(&["generate", &toy, "--dataset", folder, "--output", out]);
        assert_eq!(run.status, Some(1), "{content}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{content}: {}", run.stderr);
        assert!(!Path::new(out).exists());
        // Nor by a model that has no tokenizer.
        let run = puna(&["generate", &mini("mini-gqa"), "--dataset", folder, "--output", out]);
        assert_eq!(run.status, Some(1), "{content}");
    }
    let content = json!({"type": "text_only", "instances": [{"text": "x"}]});
    let folder = data_set(dir.path(), "good", &content);
    let out = dir.path().join("out.json");
    let (folder, out) = (folder.to_str().unwrap(), out.to_str().unwrap());
    let run = puna(&["generate", &mini("mini-gqa"), "--dataset", folder, "--output", out]);
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("tokenizer"), "{}", run.stderr);
}

#[test]
fn a_chat_from_a_pipe_answers_line_by_line() {
    let (dir, toy) = toy_model();
    let saved = dir.path().join("talk.json");
    let input =
        format!("with a\n/save {}\n/stats\n/reset\nwith a\n/exit\nnot read\n", saved.display());
    let args = ["chat", &toy, "--max-new-tokens", "6", "--json"];
    let run = puna_with_input(&args, &input).done();
    let answers = run.json();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["text"], answers[1]["text"], "a reset forgets everything");
    assert_eq!(answers[0]["prompt_tokens"], answers[1]["prompt_tokens"]);
    let talk: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    assert_eq!(talk["type"], "conversation");
    let messages = &talk["instances"][0]["messages"];
    assert_eq!(messages[0], json!({"role": "user", "content": "with a"}));
    assert_eq!(messages[1], json!({"role": "assistant", "content": answers[0]["text"]}));
}

#[test]
fn an_interrupt_ends_the_work_with_what_was_done_and_status_130() {
    let mini = mini("mini-gqa");
    let args = ["generate", &mini, "--tokens", PROMPT, "--ctx", "300000", "--max-new-tokens"];
    let mut child = command(&[&args[..], &["290000", "--ignore-eos", "--json", "-v"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("loaded in") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before it loaded");
    }
    // The handler is there a moment after the model is.
    std::thread::sleep(Duration::from_millis(500));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    let one: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(one["finish_reason"], "cancelled");
    assert_eq!(ids(&one["tokens"])[..24], CONTINUATION);
    assert!(rest.lines().any(|line| line == "error: interrupted"), "{rest}");
}
