//! Data sets as rows: ids and masks of every type, what is left out or refused and how it is named.

use crate::support::data::{Place, bytes, bytes_with, fixture, rows};
use puna::data::{DataOptions, Layout, NOT_SCORED, Row, Rules, TruncationSide, prepare, show};
use puna::text::{GgufVocab, TextParts, Tokenizer};
use serde_json::{Value, json};
use std::collections::BTreeSet;

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
        (
            None,
            prompt,
            json!({"messages": turns(2)}),
            format!("[{}]", chatml.replace(['[', ']'], "")),
        ),
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
        let options =
            DataOptions { rules, layout: Layout::Blocks, block_size: Some(512), ..place.options() };
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
    assert!(
        prepared.report.warnings[0].starts_with("1 rows are longer than the model's maximum 3")
    );
    assert!(prepared.train.place(1).ends_with("x.jsonl, instance 1"));
}

#[test]
fn what_cannot_be_trained_on_is_named() {
    let conversation = |messages: Value| json!({"type": "conversation", "instances": [{"messages": turns(2)}, {"messages": messages}]});
    let of = |kind: &str, instances: Value| json!({"type": kind, "instances": instances});
    let cases: Vec<(Value, &[&str])> = vec![
        (
            of("text_only", json!([{"text": "a"}, {"text": ""}])),
            &["x.json, instance 1", "\"text\": empty"],
        ),
        (
            of("text2text", json!([{"input": "a", "output": ""}])),
            &["x.json, instance 0", "\"output\": empty"],
        ),
        (conversation(turns(1)), &["x.json, instance 1", "an answer", "--skip-bad-instances"]),
        (
            conversation(json!([{"role": "assistant", "content": "a"}])),
            &["x.json, instance 1", "begins with a user's message"],
        ),
        (
            conversation(
                json!([{"role": "user", "content": "a"}, {"role": "robot", "content": "a"}, {"role": "assistant", "content": "a"}]),
            ),
            &["x.json, instance 1", "\"robot\""],
        ),
        (
            of(
                "paired_conversation",
                json!([{"chosen": {"messages": turns(2)}, "rejected": {"messages": turns(2)}}]),
            ),
            &["x.json", "\"paired_conversation\"", "reward models"],
        ),
        (
            of("paired_text_to_text", json!([{"prompt": "p", "chosen": "c", "rejected": "r"}])),
            &["preference tuning (dpo)"],
        ),
        (
            of("text_to_textlist", json!([{"input": "i", "output": ["o"]}])),
            &["answers to be scored"],
        ),
        (
            of("text_to_scored_textlist", json!([{"input": "i", "output": []}])),
            &["scored answers (dpo)"],
        ),
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
