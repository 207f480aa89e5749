//! Data sets as rows: ids and masks of every type, layouts, what is refused and how it is named,
//! and the cache.

use puna::data::{
    DataOptions, Holdout, Layout, NOT_SCORED, Prepared, Row, Rules, Stage, TruncationSide, prepare,
    show,
};
use puna::text::{ChatTemplate, GgufVocab, TextParts, Tokenizer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A data set and a cache in a directory of their own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.data()).unwrap();
        for (name, text) in files {
            fs::write(place.data().join(name), text).unwrap();
        }
        place
    }

    fn container(kind: &str, instances: &Value) -> Place {
        Place::new(&[("x.json", &json!({"type": kind, "instances": instances}).to_string())])
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn options(&self) -> DataOptions {
        let block_size = Some(64);
        DataOptions { cache_dir: Some(self.cache()), block_size, ..DataOptions::default() }
    }

    fn prepare(&self, text: &TextParts, options: &DataOptions) -> puna::Result<Prepared> {
        let vocab_size = text.tokenizer.vocab_size();
        prepare(&self.data(), Some(text), vocab_size, 4096, options, &mut |_| {})
    }

    /// Rows of the whole set, one a document.
    fn blocks(&self, text: &TextParts, rules: Rules) -> Vec<Row> {
        let options = DataOptions { rules, layout: Layout::Blocks, ..self.options() };
        rows(&self.prepare(text, &options).unwrap())
    }
}

fn rows(prepared: &Prepared) -> Vec<Row> {
    (0..prepared.train.len()).map(|i| prepared.train.row(i).unwrap()).collect()
}

fn fixture(name: &str) -> TextParts {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name);
    TextParts::from_hf_dir(&dir).unwrap()
}

/// One token a byte (its value and two), BOS 0 and EOS 1; BOS is added by itself.
fn bytes_with(template: Option<&str>) -> TextParts {
    let names: Vec<String> = (0..=255u32)
        .map(|b| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => b,
            0..=0x20 => 0x100 + b,
            0x7f..=0xa0 => 0x121 + b - 0x7f,
            _ => 0x143,
        })
        .map(|c| char::from_u32(c).unwrap().to_string())
        .collect();
    let tokens: Vec<&str> = ["<B>", "<E>"].into_iter().chain(names.iter().map(|n| &**n)).collect();
    let vocab = GgufVocab {
        model: "gpt2",
        pre: Some("gpt-2"),
        token_types: Some((0..tokens.len()).map(|id| if id < 2 { 3 } else { 1 }).collect()),
        tokens,
        merges: Some(vec![]),
        bos_id: Some(0),
        eos_id: Some(1),
        add_bos: Some(true),
        ..GgufVocab::default()
    };
    TextParts {
        tokenizer: Tokenizer::from_gguf(&vocab).unwrap(),
        template: template.map(|source| ChatTemplate::jinja(source).unwrap()),
    }
}

fn bytes() -> TextParts {
    bytes_with(None)
}

/// A row of the byte tokenizer as text, with `[` and `]` around what is scored.
fn marked(row: &Row) -> String {
    let (mut out, mut open) = (String::new(), false);
    for (&id, &label) in row.ids.iter().zip(&row.labels) {
        assert!(label == NOT_SCORED || label == id as i32);
        if (label != NOT_SCORED) != open {
            out.push(if open { ']' } else { '[' });
            open = !open;
        }
        match id {
            0 => out.push_str("<B>"),
            1 => out.push_str("<E>"),
            id => out.push(char::from(id as u8 - 2)),
        }
    }
    if open { out + "]" } else { out }
}

fn text_rules(no_eos: bool, lmflow_compat: bool) -> Rules {
    Rules { no_eos, lmflow_compat, ..Rules::default() }
}

#[test]
fn text_only_begins_as_the_tokenizer_says_and_ends_with_eos() {
    let place = Place::container("text_only", &json!([{"text": "Hello world"}, {"text": "<E>"}]));
    for name in ["spm", "byte-level"] {
        let text = fixture(name);
        let plain = text.tokenizer.encode("Hello world", true, true).unwrap();
        assert_eq!(plain[0], text.tokenizer.bos_id().unwrap_or(plain[0]), "{name}: BOS is added");
        let eos: Vec<u32> = text.tokenizer.eos_id().into_iter().collect();
        for (rules, end) in [
            (Rules::default(), eos.as_slice()),
            (text_rules(true, false), &[]),
            (text_rules(false, true), &[]),
        ] {
            let row = &place.blocks(&text, rules)[0];
            assert_eq!(row.ids, [&plain, end].concat(), "{name}");
            let labels: Vec<i32> = row.ids.iter().map(|&id| id as i32).collect();
            assert_eq!((&row.labels, row.n_scored()), (&labels, labels.len() - 1), "{name}");
        }
    }
    // A special token in the text is that token, and a second EOS is not added after it.
    let rows = place.blocks(&bytes(), Rules::default());
    assert_eq!(marked(&rows[0]), "[<B>Hello world<E>]");
    assert_eq!(marked(&rows[1]), "[<B><E>]");
}

#[test]
fn text2text_scores_the_output_and_its_end() {
    let place = Place::container("text2text", &json!([{"input": "2+2=", "output": "4"}]));
    let compat = Rules { lmflow_compat: true, ..Rules::default() };
    let all = Rules { train_on_prompt: true, ..Rules::default() };
    for (rules, wanted) in [
        (Rules::default(), "<B>2+2=[4<E>]"),
        (text_rules(true, false), "<B>2+2=[4]"),
        (compat.clone(), "2+2=[4]"),
        (all, "[<B>2+2=4<E>]"),
    ] {
        assert_eq!(marked(&place.blocks(&bytes(), rules)[0]), wanted);
    }
    // Both sides are encoded apart: the output brings SentencePiece's own space again.
    let spm = fixture("spm");
    let side = |text: &str| spm.tokenizer.encode(text, false, true).unwrap();
    let row = &place.blocks(&spm, compat)[0];
    assert_eq!(row.ids, [side("2+2="), side("4")].concat());
    let eos = spm.tokenizer.eos_id().unwrap();
    let bos = spm.tokenizer.bos_id().unwrap();
    let row = &place.blocks(&spm, Rules::default())[0];
    assert_eq!(row.ids, [vec![bos], side("2+2="), side("4"), vec![eos]].concat());
    assert!(row.labels[..=side("2+2=").len()].iter().all(|&label| label == NOT_SCORED));
}

fn turns(n: usize) -> Value {
    let turn = |i| match i % 2 {
        0 => json!({"role": "user", "content": format!("q{i}")}),
        _ => json!({"role": "assistant", "content": format!("a{i}")}),
    };
    (0..n).map(turn).collect()
}

fn with_template(name: &str) -> Rules {
    Rules { conversation_template: Some(name.into()), ..Rules::default() }
}

#[test]
fn conversations_score_what_the_assistant_says() {
    let marks = "{% for m in messages %}{{ '<' ~ m.role ~ '>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content ~ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let plain = "{{ bos_token }}{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content ~ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let prompt = Rules { train_on_prompt: true, ..with_template("chatml") };
    let chatml = "<|im_start|>user\nq0<|im_end|>\n[<|im_start|>assistant\na1<|im_end|>\n]";
    let cases: Vec<(Option<&str>, Rules, Value, String)> = vec![
        // A header of the assistant lies in its piece.
        (None, with_template("chatml"), json!({"messages": turns(2)}), chatml.into()),
        // A question without an answer is left out.
        (None, with_template("chatml"), json!({"messages": turns(3)}), chatml.into()),
        (None, prompt, json!({"messages": turns(2)}), format!("[{}]", chatml.replace(['[', ']'], ""))),
        (
            None,
            with_template("chatml"),
            json!({"messages": turns(4), "system": "s"}),
            format!(
                "<|im_start|>system\ns<|im_end|>\n{chatml}{}",
                chatml.replace("q0", "q2").replace("a1", "a3")
            ),
        ),
        // A system message is the system text.
        (
            None,
            with_template("chatml"),
            json!({"messages": [{"role": "system", "content": "s"}, turns(2)[0], turns(2)[1]]}),
            format!("<|im_start|>system\ns<|im_end|>\n{chatml}"),
        ),
        // No content is one space.
        (
            None,
            with_template("empty"),
            json!({"messages": [turns(1)[0], {"role": "assistant", "content": ""}]}),
            "<B>q0[ <E>]".into(),
        ),
        // Without a template of its own a model gets `empty`.
        (None, Rules::default(), json!({"messages": turns(2)}), "<B>q0[a1<E>]".into()),
        (None, with_template("hf_auto"), json!({"messages": turns(2)}), "<B>q0[a1<E>]".into()),
        (
            Some(plain),
            Rules::default(),
            json!({"messages": turns(4)}),
            "<B><user>q0<E><assistant>[a1<E>]<user>q2<E><assistant>[a3<E>]".into(),
        ),
        (
            Some(marks),
            with_template("tokenizer"),
            json!({"messages": turns(4), "system": "s"}),
            "<system>s<user>q0<assistant>[a1<E>]<user>q2<assistant>[a3<E>]".into(),
        ),
    ];
    let mut failures = vec![];
    for (template, rules, instance, wanted) in cases {
        let place = Place::container("conversation", &json!([instance]));
        let options = DataOptions {
            rules,
            layout: Layout::Blocks,
            block_size: Some(512),
            ..place.options()
        };
        let got = match place.prepare(&bytes_with(template), &options) {
            Ok(prepared) => marked(&rows(&prepared)[0]),
            Err(error) => error.to_string(),
        };
        if got != wanted {
            failures.push(format!("{instance}\n   got {got}\n  want {wanted}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The pieces that LLaMA 2's vocabulary has for two short turns, at its ids; the pieces that the
/// merging goes through on its way stand where that vocabulary has others.
fn llama2_words() -> TextParts {
    let words: [(u32, &str); 24] = [
        (518, "▁["),
        (25580, "INST"),
        (29962, "]"),
        (3532, "▁<<"),
        (14816, "SY"),
        (29903, "S"),
        (6778, ">>"),
        (9675, "sys"),
        (3888, "info"),
        (29966, "<"),
        (829, "</"),
        (10994, "Hello"),
        (29914, "/"),
        (6324, "▁Hi"),
        (29991, "!"),
        (1128, "▁How"),
        (526, "▁are"),
        (366, "▁you"),
        (29973, "?"),
        (306, "▁I"),
        (29915, "'"),
        (29885, "m"),
        (1781, "▁good"),
        (3969, "▁thanks"),
    ];
    let mut tokens: Vec<(String, i32)> = (0..32000).map(|id| (format!("unused {id}"), 5)).collect();
    let specials = [("<unk>", 2), ("<s>", 3), ("</s>", 3)];
    for (slot, (text, kind)) in tokens.iter_mut().zip(specials) {
        *slot = (text.into(), kind);
    }
    for byte in 0..256 {
        tokens[3 + byte] = (format!("<0x{byte:02X}>"), 6);
    }
    let mut known = BTreeSet::new();
    for (id, text) in words.iter().copied().chain([(29892, ",")]) {
        tokens[id as usize] = (text.into(), 1);
        known.insert(text.to_string());
    }
    let mut free = 20_000;
    for (_, word) in words {
        for end in word.char_indices().map(|(at, c)| at + c.len_utf8()) {
            for part in [word[..end].to_string(), word[..end].chars().last().unwrap().to_string()] {
                if known.insert(part.clone()) {
                    tokens[free] = (part, 1);
                    free += 1;
                }
            }
        }
    }
    let vocab = GgufVocab {
        model: "llama",
        tokens: tokens.iter().map(|(text, _)| text.as_str()).collect(),
        scores: Some(vec![0.0; tokens.len()]),
        token_types: Some(tokens.iter().map(|&(_, kind)| kind).collect()),
        ..GgufVocab::default()
    };
    TextParts { tokenizer: Tokenizer::from_gguf(&vocab).unwrap(), template: None }
}

#[test]
fn llama2_conversations_have_lmflows_ids() {
    let messages = json!([
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "I'm good, thanks!"}
    ]);
    let instance = json!([{"system": "sysinfo", "messages": messages}]);
    let place = Place::container("conversation", &instance);
    let row = &place.blocks(&llama2_words(), with_template("llama2"))[0];
    let user: [&[u32]; 2] = [
        &[
            1, 518, 25580, 29962, 3532, 14816, 29903, 6778, 13, 9675, 3888, 13, 29966, 829, 14816,
            29903, 6778, 13, 13, 10994, 518, 29914, 25580, 29962,
        ],
        &[1, 518, 25580, 29962, 1128, 526, 366, 29973, 518, 29914, 25580, 29962],
    ];
    let assistant: [&[u32]; 2] =
        [&[6324, 29991, 2], &[306, 29915, 29885, 1781, 29892, 3969, 29991, 2]];
    let mut labels = vec![];
    for (user, assistant) in user.iter().zip(assistant) {
        labels.extend(user.iter().map(|_| NOT_SCORED));
        labels.extend(assistant.iter().map(|&id| id as i32));
    }
    assert_eq!(row.ids, [user[0], assistant[0], user[1], assistant[1]].concat());
    assert_eq!(row.labels, labels);
}

#[test]
fn tokenized_lines_stay_as_they_are_and_need_no_tokenizer() {
    let lines = "{\"input_ids\":[5,6,7]}\n\n{\"input_ids\":[1,2,3,4],\"labels\":[-100,-100,9,4]}\n";
    let place = Place::new(&[("x.jsonl", lines)]);
    let options = DataOptions { block_size: Some(2), ..place.options() };
    let prepared = prepare(&place.data(), None, 10, 3, &options, &mut |_| {}).unwrap();
    let wanted = [
        Row { ids: vec![5, 6, 7], labels: vec![5, 6, 7], spans: vec![3], source: vec![0] },
        Row {
            ids: vec![1, 2, 3, 4],
            labels: vec![-100, -100, 9, 4],
            spans: vec![4],
            source: vec![1],
        },
    ];
    assert_eq!(rows(&prepared), wanted);
    assert_eq!((prepared.train.n_tokens(), prepared.train.n_scored()), (7, 4));
    assert!(prepared.report.warnings[0].starts_with("1 rows are longer than the model's maximum 3"));
    assert!(prepared.train.place(1).ends_with("x.jsonl, instance 1"));
}

#[test]
fn what_cannot_be_trained_on_is_named() {
    let conversation =
        |messages: Value| json!({"type": "conversation", "instances": [{"messages": turns(2)}, {"messages": messages}]});
    let of = |kind: &str, instances: Value| json!({"type": kind, "instances": instances});
    let cases: Vec<(Value, &[&str])> = vec![
        (of("text_only", json!([{"text": "a"}, {"text": ""}])), &["x.json, instance 1", "\"text\": empty"]),
        (of("text2text", json!([{"input": "a", "output": ""}])), &["x.json, instance 0", "\"output\": empty"]),
        (conversation(turns(1)), &["x.json, instance 1", "an answer", "--skip-bad-instances"]),
        (
            conversation(json!([{"role": "assistant", "content": "a"}])),
            &["x.json, instance 1", "begins with a user's message"],
        ),
        (
            conversation(json!([{"role": "user", "content": "a"}, {"role": "robot", "content": "a"}, {"role": "assistant", "content": "a"}])),
            &["x.json, instance 1", "\"robot\""],
        ),
        (of("paired_conversation", json!([{"chosen": {"messages": turns(2)}, "rejected": {"messages": turns(2)}}])), &["x.json", "\"paired_conversation\"", "reward models"]),
        (of("paired_text_to_text", json!([{"prompt": "p", "chosen": "c", "rejected": "r"}])), &["preference tuning (dpo)"]),
        (of("text_to_textlist", json!([{"input": "i", "output": ["o"]}])), &["answers to be scored"]),
        (of("text_to_scored_textlist", json!([{"input": "i", "output": []}])), &["scored answers (dpo)"]),
        (of("float_only", json!([{"value": 1}])), &["scores that a reward model gives"]),
    ];
    let mut failures = vec![];
    for (data, parts) in cases {
        let place = Place::new(&[("x.json", &data.to_string())]);
        let error = place.prepare(&bytes(), &place.options()).unwrap_err().to_string();
        for part in parts.iter().filter(|part| !error.contains(*part)) {
            failures.push(format!("{data}: {error:?} lacks {part:?}"));
        }
    }
    let tokenized: [(&str, &[&str]); 5] = [
        ("{\"input_ids\":[5,6]}\n{\"input_ids\":[5,10]}", &["line 2", "id 10", "vocabulary of 10"]),
        ("{\"input_ids\":[5,6],\"labels\":[-100,12]}", &["line 1", "labels[1] is 12"]),
        ("{\"input_ids\":[5,6],\"labels\":[5,-100]}", &["line 1 (instance 0)", "none is a scored"]),
        ("{\"input_ids\":[5]}", &["line 1", "1 tokens"]),
        ("{\"text\":\"a\"}", &["x.jsonl", "need a tokenizer"]),
    ];
    for (lines, parts) in tokenized {
        let place = Place::new(&[("x.jsonl", lines)]);
        let run = prepare(&place.data(), None, 10, 64, &place.options(), &mut |_| {});
        let error = run.unwrap_err().to_string();
        for part in parts.iter().filter(|part| !error.contains(*part)) {
            failures.push(format!("{lines}: {error:?} lacks {part:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn instances_that_lose_their_answer_when_cut_are_refused() {
    let long = json!([{"input": "x".repeat(100), "output": "y"}, {"input": "x", "output": "y"}]);
    let place = Place::container("text2text", &long);
    for layout in [Layout::Packed, Layout::Blocks] {
        let options = DataOptions { layout, ..place.options() };
        let error = place.prepare(&bytes(), &options).unwrap_err().to_string();
        assert!(error.contains("instance 0") && error.contains("block_size 64"), "{error}");
        let kept_end = DataOptions { truncation_side: TruncationSide::Left, ..options.clone() };
        let prepared = place.prepare(&bytes(), &kept_end).unwrap();
        let lost = 1 + 100 + 1 + 1 - 64;
        assert_eq!((prepared.report.truncated, prepared.report.truncated_tokens), (1, lost));
        let skipping = DataOptions { skip_bad_instances: true, ..options };
        assert_eq!(place.prepare(&bytes(), &skipping).unwrap().report.skipped, 1);
    }
    let grouped = DataOptions { layout: Layout::Group, ..place.options() };
    let prepared = place.prepare(&bytes(), &grouped).unwrap();
    assert_eq!(prepared.train.n_tokens(), 103 + 4);
    assert_eq!(prepared.report.rows_without_targets, 1);
}

#[test]
fn skipped_instances_are_counted_with_their_reasons() {
    let instances: Value =
        (0..20).map(|i| json!({"text": if i % 2 == 0 { "" } else { "good" }})).collect();
    let place = Place::container("text_only", &instances);
    let options = DataOptions { skip_bad_instances: true, ..place.options() };
    let report = place.prepare(&bytes(), &options).unwrap().report;
    assert_eq!((report.instances, report.skipped, report.documents), (20, 10, 10));
    assert_eq!(report.skipped_first.len(), 5);
    assert!(report.skipped_first[1].contains("x.json, instance 2: key \"text\": empty"));
    let all_bad = Place::container("text_only", &json!([{"text": ""}]));
    let options = DataOptions { skip_bad_instances: true, ..all_bad.options() };
    let error = all_bad.prepare(&bytes(), &options).unwrap_err().to_string();
    assert!(error.contains("1 of 1 instances were skipped"), "{error}");
}

#[test]
fn tools_are_left_out_with_a_warning_or_refused_where_they_belong() {
    let instance = json!([{"messages": turns(2), "tools": ["t"]}]);
    let place = Place::container("conversation", &instance);
    let options = |name: &str| DataOptions { rules: with_template(name), ..place.options() };
    let report = place.prepare(&bytes(), &options("empty")).unwrap().report;
    assert!(report.warnings[0].contains("tools of 1 conversations"), "{:?}", report.warnings);
    let error = place.prepare(&bytes(), &options("hymba")).unwrap_err().to_string();
    assert!(error.contains("instance 0") && error.contains("hymba"), "{error}");
}

#[test]
fn the_block_size_follows_the_model() {
    let place = Place::container("text_only", &json!([{"text": "x".repeat(3000)}]));
    let cases = [
        (None, true, 1024, "block_size not given"),
        (Some(5000), true, 4096, "lowered"),
        (Some(5000), false, 5000, ""),
        (Some(100), true, 100, ""),
    ];
    for (block_size, truncate_to_model_max_length, wanted, warning) in cases {
        let options = DataOptions { block_size, truncate_to_model_max_length, ..place.options() };
        let report = place.prepare(&bytes(), &options).unwrap().report;
        assert_eq!(report.block_size, wanted);
        assert_eq!(report.longest, 3002);
        let said = report.warnings.join("\n");
        assert!(said.contains(warning) && (!warning.is_empty() || said.is_empty()), "{said}");
    }
    let small = DataOptions { block_size: Some(1), ..place.options() };
    assert!(place.prepare(&bytes(), &small).is_err());
}

fn many(n: usize) -> Place {
    let text = |i: usize| format!("{i} {}", "ab ".repeat(i * 7 % 41));
    let instances: Value = (0..n).map(|i| json!({"text": text(i)})).collect();
    Place::container("text_only", &instances)
}

#[test]
fn a_type_after_the_instances_is_the_same_set() {
    let before = Place::new(&[("a.json", r#"{"type":"text_only","instances":[{"text":"ab"}]}"#)]);
    let after = Place::new(&[("a.json", r#"{"instances":[{"text":"ab"}],"type":"text_only"}"#)]);
    assert_eq!(
        before.blocks(&bytes(), Rules::default()),
        after.blocks(&bytes(), Rules::default())
    );
    let twice = r#"{"type":"text_only","instances":[{"text":"a"}],"instances":[{"text":"b"}]}"#;
    let place = Place::new(&[("a.json", twice)]);
    let error = place.prepare(&bytes(), &place.options()).unwrap_err().to_string();
    assert!(error.contains("\"instances\": there twice"), "{error}");
    let cut = Place::new(&[("a.json", r#"{"type":"text_only","instances":[{"text":"ab"},"#)]);
    let error = cut.prepare(&bytes(), &cut.options()).unwrap_err().to_string();
    assert!(error.contains("a.json") && error.contains("not JSON"), "{error}");
    assert!(!cut.cache().read_dir().unwrap().any(|_| true), "nothing half-written is left");
}

#[test]
fn the_same_rows_on_any_number_of_threads() {
    let place = many(3000);
    let run = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let options = DataOptions { overwrite_cache: true, ..place.options() };
        let prepared = pool.install(|| place.prepare(&bytes(), &options).unwrap());
        assert!(!prepared.report.cache_hit);
        let mut files: Vec<PathBuf> =
            place.cache().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        fs::read(files.remove(0)).unwrap()
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3), "the files differ");
}

#[test]
fn a_second_run_finds_the_rows_and_any_change_makes_them_anew() {
    let place = many(30);
    let chat = |template| bytes_with(Some(template));
    let options = place.options();
    let text = chat("{{ messages[0].content }}");
    let first = place.prepare(&text, &options).unwrap();
    assert!(!first.report.cache_hit);
    let mut stages = vec![];
    let n = text.tokenizer.vocab_size();
    let mut progress = |p: puna::data::Progress| stages.push(p.stage);
    let again =
        prepare(&place.data(), Some(&text), n, 4096, &options, &mut progress).unwrap();
    assert!(again.report.cache_hit);
    assert!(stages.iter().all(|&stage| stage == Stage::Hashing), "nothing is tokenised again");
    assert_eq!(rows(&again), rows(&first));
    assert_eq!(
        puna::data::Report { cache_hit: false, ..again.report },
        first.report,
        "what was reported is kept"
    );
    let hit = |text: &TextParts, options: &DataOptions| {
        place.prepare(text, options).unwrap().report.cache_hit
    };
    assert!(!hit(&chat("{{ messages[0].role }}"), &options), "template");
    assert!(!hit(&fixture("byte-level"), &options), "tokenizer");
    assert!(!hit(&fixture("spm"), &options), "tokenizer");
    let changes: Vec<DataOptions> = vec![
        DataOptions { block_size: Some(63), ..options.clone() },
        DataOptions { layout: Layout::Blocks, ..options.clone() },
        DataOptions { layout: Layout::Group, ..options.clone() },
        DataOptions { rules: text_rules(true, false), ..options.clone() },
        DataOptions { truncation_side: TruncationSide::Left, ..options.clone() },
        DataOptions { holdout: Some(Holdout::Count(3)), ..options.clone() },
        DataOptions { holdout: Some(Holdout::Count(3)), seed: 1, ..options.clone() },
    ];
    for changed in &changes {
        assert!(!hit(&text, changed), "{changed:?}");
        assert!(hit(&text, changed), "{changed:?}");
    }
    assert!(hit(&text, &DataOptions { seed: 9, ..options.clone() }), "nothing is chosen by seed");
    assert!(!hit(&text, &DataOptions { overwrite_cache: true, ..options.clone() }));
    // One byte of the data, and the name of a file.
    let file = place.data().join("x.json");
    let data = fs::read_to_string(&file).unwrap();
    fs::write(&file, data.replacen("ab", "ac", 1)).unwrap();
    assert!(!hit(&text, &options), "data");
    fs::write(&file, data).unwrap();
    assert!(hit(&text, &options));
    fs::rename(&file, place.data().join("y.json")).unwrap();
    assert!(!hit(&text, &options), "file name");
}

#[test]
fn a_damaged_cache_is_made_again() {
    let place = many(30);
    let options = DataOptions { holdout: Some(Holdout::Percent(20.0)), ..place.options() };
    let first = place.prepare(&bytes(), &options).unwrap();
    let wanted = rows(&first);
    let files: Vec<PathBuf> =
        place.cache().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    for file in files {
        let whole = fs::read(&file).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            bytes
        };
        let damaged =
            [flipped(9), flipped(200), flipped(whole.len() - 3), whole[..whole.len() / 2].to_vec(), vec![]];
        for bytes in damaged {
            fs::write(&file, bytes).unwrap();
            let again = place.prepare(&bytes_with(None), &options).unwrap();
            assert!(!again.report.cache_hit);
            assert_eq!(rows(&again), wanted);
            assert_eq!(fs::read(&file).unwrap(), whole, "the same bytes");
        }
        fs::remove_file(&file).unwrap();
        assert!(!place.prepare(&bytes(), &options).unwrap().report.cache_hit);
    }
}

#[test]
fn held_out_instances_are_in_no_row_of_the_rest() {
    let place = many(200);
    let run = |holdout, seed| {
        let options = DataOptions { holdout: Some(holdout), seed, ..place.options() };
        let prepared = place.prepare(&bytes(), &options).unwrap();
        let held_out = prepared.held_out.clone().unwrap();
        let sources = |n: usize, row: &dyn Fn(usize) -> Row| -> BTreeSet<u32> {
            (0..n).flat_map(|i| row(i).source).collect()
        };
        let train = sources(prepared.train.len(), &|i| prepared.train.row(i).unwrap());
        let held = sources(held_out.len(), &|i| held_out.row(i).unwrap());
        assert!(train.is_disjoint(&held));
        assert_eq!(train.len() + held.len(), 200);
        assert_eq!(prepared.report.held_out_instances, held.len() as u64);
        held
    };
    let held = run(Holdout::Percent(5.0), 1);
    assert_eq!(held.len(), 10);
    assert_eq!(held, run(Holdout::Count(10), 1));
    assert_ne!(held, run(Holdout::Count(10), 2));
    for holdout in [Holdout::Count(0), Holdout::Count(200), Holdout::Percent(0.0), Holdout::Percent(100.0), Holdout::Percent(f64::NAN)] {
        let options = DataOptions { holdout: Some(holdout), ..place.options() };
        assert!(place.prepare(&bytes(), &options).is_err(), "{holdout:?}");
    }
}

#[test]
fn packed_texts_are_all_there() {
    let place = many(500);
    let text = bytes();
    let options = place.options();
    let prepared = place.prepare(&text, &options).unwrap();
    let blocks = DataOptions { layout: Layout::Blocks, block_size: Some(4096), ..options.clone() };
    let whole = rows(&place.prepare(&text, &blocks).unwrap());
    let mut pieces = vec![vec![]; 500];
    for row in rows(&prepared) {
        assert!(row.ids.len() <= 64);
        let mut start = 0;
        for (&n, &source) in row.spans.iter().zip(&row.source) {
            pieces[source as usize].push(row.ids[start..start + n as usize].to_vec());
            start += n as usize;
        }
    }
    // Pieces of one instance lie in rows in any order, but the first begins with BOS.
    for (source, row) in whole.iter().enumerate() {
        let mut ids: Vec<u32> = pieces[source].concat();
        let mut wanted = row.ids.clone();
        ids.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(ids, wanted, "instance {source}");
    }
    assert!(prepared.report.split > 0 && prepared.report.truncated == 0);
    assert_eq!(prepared.report.rows as usize, prepared.train.len());
    // Short rows are few: three of four blocks are full to the last token or nearly.
    assert!(prepared.train.n_tokens() * 10 > prepared.train.len() as u64 * 64 * 9);
}

#[test]
fn a_large_set_is_read_as_a_stream() {
    let place = Place::new(&[]);
    let mut lines = String::new();
    for i in 0..60_000 {
        lines.push_str(&format!("{{\"input_ids\":[{},{},7,8,9]}}\n", i % 1000, i / 1000));
    }
    fs::write(place.data().join("a.jsonl"), &lines).unwrap();
    fs::write(place.data().join("b.jsonl"), "{\"input_ids\":[1,2]}\n").unwrap();
    let mut seen = vec![];
    let mut progress = |p: puna::data::Progress| seen.push((p.stage, p.instances, p.done_bytes));
    let prepared =
        prepare(&place.data(), None, 1000, 64, &place.options(), &mut progress).unwrap();
    assert_eq!(prepared.train.len(), 60_001);
    assert_eq!(prepared.train.row(54_321).unwrap().ids, [321, 54, 7, 8, 9]);
    assert!(prepared.train.place(60_000).ends_with("b.jsonl, instance 0"));
    assert!(prepared.train.place(59_999).ends_with("a.jsonl, instance 59999"));
    let tokenizing = seen.iter().filter(|(stage, ..)| *stage == Stage::Tokenizing);
    assert!(tokenizing.count() > 50, "reported on the way");
    assert!(seen.is_sorted_by_key(|&(stage, instances, _)| (stage == Stage::Tokenizing, instances)));
    let bytes = lines.len() as u64 + 20;
    assert_eq!(seen.last(), Some(&(Stage::Tokenizing, 60_001, bytes)));
}

#[test]
fn rows_are_shown_with_their_mask() {
    let place = Place::container("text2text", &json!([{"input": "q\u{1b}", "output": "é[\n"}]));
    let row = &place.blocks(&bytes(), Rules::default())[0];
    assert_eq!(
        show(row, Some(&bytes().tokenizer), false).unwrap(),
        "document 1 of 1: 8 tokens, 5 scored, instance 0\n<B>q\\u{1b}[<c3><a9>\\[\\n<E>]\n"
    );
    let coloured = show(row, Some(&bytes().tokenizer), true).unwrap();
    assert!(coloured.contains("\x1b[32m<E>") || coloured.contains("\x1b[92m<E>"), "{coloured:?}");
}
