//! Conversation presets: the strings each one writes, what is in the loss, where BOS and EOS go;
//! and the surroundings of a model's own Jinja template.

use puna::text::{ChatTemplate, GgufVocab, Message, Tokenizer};

fn say(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

const SPECIAL: [&str; 14] = [
    "<B>",
    "<E>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|user|>",
    "<extra_id_1>",
    "<｜User｜>",
    "<｜end▁of▁sentence｜>",
];

/// A tokenizer with one token a byte, so that pieces can be read back as strings.
fn bytes(bos: Option<u32>, eos: Option<u32>) -> Tokenizer {
    let byte_tokens: Vec<String> = (0..=255u8)
        .map(|b| match b {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b).to_string(),
            0..=0x20 => char::from_u32(0x100 + u32::from(b)).unwrap().to_string(),
            0x7f..=0xa0 => char::from_u32(0x121 + u32::from(b - 0x7f)).unwrap().to_string(),
            0xad => "\u{143}".to_string(),
        })
        .collect();
    let tokens: Vec<&str> =
        SPECIAL.iter().copied().chain(byte_tokens.iter().map(String::as_str)).collect();
    let types = (0..tokens.len()).map(|id| if id < SPECIAL.len() { 3 } else { 1 }).collect();
    Tokenizer::from_gguf(&GgufVocab {
        model: "gpt2",
        pre: Some("gpt-2"),
        token_types: Some(types),
        tokens,
        merges: Some(Vec::new()),
        bos_id: bos,
        eos_id: eos,
        ..GgufVocab::default()
    })
    .unwrap()
}

/// One turn with and without a system text, and two turns: the pieces with `[` before what is in
/// the loss and `|` between pieces.
fn shape(template: &ChatTemplate, t: &Tokenizer, system: Option<&str>, turns: usize) -> String {
    let all =
        [say("user", "Q1"), say("assistant", "A1"), say("user", "Q2"), say("assistant", "A2")];
    let pieces = template.encode_pieces(t, system, &all[..turns * 2]).unwrap();
    let texts: Vec<String> = pieces
        .iter()
        .map(|p| {
            format!("{}{}", if p.in_loss { "[" } else { "" }, t.decode(&p.ids, false).unwrap())
        })
        .collect();
    texts.join("|")
}

#[test]
fn strings_of_the_presets_made_of_pieces() {
    let t = bytes(Some(0), Some(1));
    let chatml = "<|im_start|>user\nQ1<|im_end|>\n|[<|im_start|>assistant\nA1<|im_end|>\n";
    let chatml2 = "|<|im_start|>user\nQ2<|im_end|>\n|[<|im_start|>assistant\nA2<|im_end|>\n";
    let system = "<|im_start|>system\nS<|im_end|>\n";
    let llama3 = "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>|[<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>";
    let llama3_2 = "|<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>|[<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>";
    let llama3_s = "<B><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>";
    let own = |s: &str, first: &str, second: &str| [s, first, second].concat();
    // Name; two turns with the system text S; one turn without.
    let cases: Vec<(&str, String, String)> = vec![
        (
            "llama2",
            "<B>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ1 [/INST]|[A1<E>|<B>[INST] Q2 [/INST]|[A2<E>".into(),
            "<B>[INST] Q1 [/INST]|[A1<E>".into(),
        ),
        ("llama3", own(llama3_s, llama3, llama3_2), own("<B>", llama3, "")),
        ("llama3_for_tool", own(llama3_s, llama3, llama3_2), own("<B>", llama3, "")),
        ("chatml", own(system, chatml, chatml2), chatml.into()),
        ("yi", own(system, chatml, chatml2), chatml.into()),
        ("qwen2", own(system, chatml, chatml2), chatml.into()),
        ("qwen2_for_tool", own(system, chatml, chatml2), chatml.into()),
        ("internlm2", own(&format!("<B>{system}"), chatml, chatml2), own("<B>", chatml, "")),
        ("yi1_5", own("S", chatml, chatml2), chatml.into()),
        (
            "chatglm3",
            "[gMASK]sop<|system|>\n S<|user|>\n Q1|[<|assistant|>\n A1|<|user|>\n Q2|[<|assistant|>\n A2".into(),
            "[gMASK]sop<|user|>\n Q1|[<|assistant|>\n A1".into(),
        ),
        (
            "deepseek",
            "<B>S\n\nUser: Q1\n\n|[Assistant: A1<E>|User: Q2\n\n|[Assistant: A2<E>".into(),
            "<B>User: Q1\n\n|[Assistant: A1<E>".into(),
        ),
        (
            "deepseek_v2",
            "<B>S\n\nUser: Q1\n\n|[Assistant: A1<E>|User: Q2\n\n|[Assistant: A2<E>".into(),
            "<B>User: Q1\n\n|[Assistant: A1<E>".into(),
        ),
        (
            "gemma",
            "<B>S<start_of_turn>user\nQ1<end_of_turn>\n|[<start_of_turn>model\nA1<end_of_turn>\n|<start_of_turn>user\nQ2<end_of_turn>\n|[<start_of_turn>model\nA2<end_of_turn>\n".into(),
            "<B><start_of_turn>user\nQ1<end_of_turn>\n|[<start_of_turn>model\nA1<end_of_turn>\n".into(),
        ),
        (
            "phi3",
            "<B><|system|>\nS<|end|>\n<|user|>\nQ1<|end|>\n|[<|assistant|>\nA1<|end|>\n|<|user|>\nQ2<|end|>\n|[<|assistant|>\nA2<|end|>\n<E>".into(),
            "<B><|user|>\nQ1<|end|>\n|[<|assistant|>\nA1<|end|>\n<E>".into(),
        ),
        (
            "zephyr",
            "<|system|>\nS<E>\n<|user|>\nQ1<E>|[\n<|assistant|>\nA1<E>|\n<|user|>\nQ2<E>|[\n<|assistant|>\nA2<E>".into(),
            "<|user|>\nQ1<E>|[\n<|assistant|>\nA1<E>".into(),
        ),
        (
            "hymba",
            "<extra_id_0>SystemS\n\n<extra_id_1>User\nQ1\n|[<extra_id_1>Assistant\nA1\n|<extra_id_1>User\nQ2\n|[<extra_id_1>Assistant\nA2\n<E>".into(),
            "<extra_id_0>System\n\n<extra_id_1>User\nQ1\n|[<extra_id_1>Assistant\nA1\n<E>".into(),
        ),
    ];
    let mut failures = Vec::new();
    for (name, two, one) in &cases {
        let template = ChatTemplate::preset(name).unwrap();
        for (got, want) in
            [(shape(&template, &t, Some("S"), 2), two), (shape(&template, &t, Some(" "), 1), one)]
        {
            if got != *want {
                failures.push(format!("{name}\n   got {got:?}\n  want {want:?}"));
            }
        }
    }
    for (name, want) in [
        ("empty", "<B>Q1|[A1<E>|<B>Q2|[A2<E>"),
        ("disable", "<B>Q1|[A1<E>|<B>Q2|[A2<E>"),
        ("empty_no_special_tokens", "Q1|[A1|Q2|[A2"),
    ] {
        assert_eq!(shape(&ChatTemplate::preset(name).unwrap(), &t, None, 2), want, "{name}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(cases.len() + 3 + 9, ChatTemplate::preset_names().len());
}

#[test]
fn strings_of_the_jinja_presets() {
    let t = bytes(Some(0), Some(1));
    let qwen = |default: &str| {
        format!(
            "<|im_start|>system\n{default}<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n|[A1<|im_end|>\n"
        )
    };
    let eos = "<｜end▁of▁sentence｜>";
    let cases = [
        ("qwen2_5", qwen("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")),
        ("qwen2_5_1m", qwen("You are a helpful assistant.")),
        ("qwen2_5_math", qwen("Please reason step by step, and put your final answer within \\boxed{}.")),
        (
            "qwen_qwq",
            qwen("You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."),
        ),
        (
            "qwen3",
            "<|im_start|>user\nQ1<|im_end|>\n|[<|im_start|>assistant\n<think>\n\n</think>\n\nA1<|im_end|>\n".into(),
        ),
        ("deepseek_v3", format!("<B><｜User｜>Q1<｜Assistant｜>|[A1{eos}")),
        ("deepseek_r1", format!("<B><｜User｜>Q1<｜Assistant｜>|[A1{eos}")),
        ("deepseek_r1_distill", format!("<B><｜User｜>Q1<｜Assistant｜>|[A1{eos}")),
        (
            "gemma3",
            "<B><start_of_turn>user\nQ1<end_of_turn>\n<start_of_turn>model\n|[A1<end_of_turn>\n".into(),
        ),
    ];
    let mut failures = Vec::new();
    for (name, want) in &cases {
        let got = shape(&ChatTemplate::preset(name).unwrap(), &t, None, 1);
        if got != *want {
            failures.push(format!("{name}\n   got {got:?}\n  want {want:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for (name, want) in [
        (
            "qwen2_5",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n|[A1<|im_end|>\n|<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n|[A2<|im_end|>\n",
        ),
        (
            "qwen3",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n|[<|im_start|>assistant\nA1<|im_end|>\n|<|im_start|>user\nQ2<|im_end|>\n|[<|im_start|>assistant\n<think>\n\n</think>\n\nA2<|im_end|>\n",
        ),
        (
            "gemma3",
            "<B><start_of_turn>user\nS\n\nQ1<end_of_turn>\n<start_of_turn>model\n|[A1<end_of_turn>\n|<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n|[A2<end_of_turn>\n",
        ),
    ] {
        assert_eq!(shape(&ChatTemplate::preset(name).unwrap(), &t, Some("S"), 2), want, "{name}");
    }
    let thought = [say("user", "Q"), say("assistant", "<think>\nhm\n</think>\n\nA")];
    let r1 = ChatTemplate::preset("deepseek_r1").unwrap();
    assert_eq!(
        r1.render("<B>", "<E>", &thought, false).unwrap(),
        format!("<B><｜User｜>Q<｜Assistant｜>\n\nA{eos}")
    );
}

#[test]
fn where_the_assistant_begins() {
    let t = bytes(Some(0), Some(1));
    let ask = [say("system", "S"), say("user", "Q")];
    for (name, want) in [
        ("llama2", "<B>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST]"),
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("deepseek", "<B>S\n\nUser: Q\n\nAssistant:"),
        ("chatglm3", "[gMASK]sop<|system|>\n S<|user|>\n Q<|assistant|>\n"),
        ("phi3", "<B><|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\n"),
        ("zephyr", "<|system|>\nS<E>\n<|user|>\nQ<E>\n<|assistant|>\n"),
        ("deepseek_r1_distill", "<B>S<｜User｜>Q<｜Assistant｜><think>\n"),
        ("gemma3", "<B><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\n"),
    ] {
        let template = ChatTemplate::preset(name).unwrap();
        let ids = template.encode(&t, &ask, true).unwrap();
        assert_eq!(t.decode(&ids, false).unwrap(), want, "{name}");
        assert_eq!(template.render("<B>", "<E>", &ask, true).unwrap(), want, "{name}");
    }
}

/// Special tokens of the pieces are single ids, and an empty text is one space.
#[test]
fn ids_of_pieces() {
    let t = bytes(Some(0), Some(1));
    let plain = |text: &str| t.encode(text, false, false).unwrap();
    let turn = [say("user", ""), say("assistant", "ok")];
    let pieces = ChatTemplate::preset("llama3").unwrap().encode_pieces(&t, None, &turn).unwrap();
    assert_eq!(pieces.len(), 2);
    assert_eq!(pieces[0].ids, [&[0, 4][..], &plain("user"), &[5], &plain("\n\n "), &[6]].concat());
    assert_eq!(
        pieces[1].ids,
        [&[4][..], &plain("assistant"), &[5], &plain("\n\nok"), &[6]].concat()
    );
    assert!(pieces[1].in_loss && !pieces[0].in_loss);
    // Tool roles: the call and its answer stand in the masked half.
    let tools =
        [say("user", "Q"), say("function", "F"), say("observation", "O"), say("assistant", "A")];
    let template = ChatTemplate::preset("qwen2_for_tool").unwrap();
    let pieces = template.encode_pieces(&t, None, &tools).unwrap();
    let masked = t.decode(&pieces[0].ids, false).unwrap();
    assert_eq!(
        masked,
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nF<|im_end|>\n<|im_start|>tool\nO<|im_end|>\n"
    );
    assert!(ChatTemplate::preset("qwen2").unwrap().encode_pieces(&t, None, &tools).is_err());
    // A last question without an answer is left out; without any answer there is nothing to learn.
    let open = [say("user", "Q"), say("assistant", "A"), say("user", "more")];
    assert_eq!(
        ChatTemplate::preset("chatml").unwrap().encode_pieces(&t, None, &open).unwrap().len(),
        2
    );
    assert!(ChatTemplate::preset("chatml").unwrap().encode_pieces(&t, None, &open[..1]).is_err());
    assert!(ChatTemplate::preset("chatml").unwrap().encode_pieces(&t, None, &open[1..]).is_err());
    // EOS cannot be invented, BOS can be left out.
    let none = bytes(None, None);
    assert!(ChatTemplate::preset("llama2").unwrap().encode_pieces(&none, None, &turn).is_err());
    assert!(ChatTemplate::preset("llama3").unwrap().encode_pieces(&none, None, &turn).is_ok());
}

#[test]
fn stops_and_names() {
    let t = bytes(Some(0), Some(1));
    let stops = |name: &str| ChatTemplate::preset(name).unwrap().stop_ids(&t);
    assert_eq!(stops("chatml"), [3]);
    assert_eq!(stops("llama3"), [6]);
    assert_eq!(stops("llama2"), [1]);
    assert_eq!(stops("phi3"), [1, 9]);
    assert_eq!(stops("chatglm3"), [10]);
    assert_eq!(stops("hymba"), [1, 11]);
    assert_eq!(stops("deepseek_v3"), [13]);
    assert_eq!(t.eos_ids(), [1, 3, 6, 9, 8, 13]);
    let error = ChatTemplate::preset("vicuna").unwrap_err().to_string();
    assert!(
        error.contains("vicuna") && error.contains("llama2") && error.contains("gemma3"),
        "{error}"
    );
    let own = || Some(ChatTemplate::jinja("own").unwrap());
    let text = |t: ChatTemplate| t.render("<B>", "<E>", &[say("user", "Q")], false).unwrap();
    assert_eq!(text(ChatTemplate::resolve(None, own()).unwrap()), "own");
    assert_eq!(text(ChatTemplate::resolve(Some("tokenizer"), own()).unwrap()), "own");
    assert_eq!(text(ChatTemplate::resolve(Some("hf_auto"), None).unwrap()), "<B>Q");
    assert_eq!(text(ChatTemplate::resolve(None, None).unwrap()), "<B>Q");
    assert_eq!(
        text(ChatTemplate::resolve(Some("chatml"), own()).unwrap()),
        "<|im_start|>user\nQ<|im_end|>\n"
    );
    assert!(ChatTemplate::resolve(Some("tokenizer"), None).is_err());
}

#[test]
fn own_templates_have_what_they_use() {
    let messages = [say("user", " hi <b> "), say("assistant", "x")];
    for (source, want) in [
        (
            "{% for m in messages %}\n  {% if m['role'] == 'user' %}\nU:{{ m.content.strip() }}\n  {% endif %}\n{% endfor %}",
            "U:hi <b>\n",
        ),
        ("{{ messages[0].content | tojson }}", "\" hi <b> \""),
        ("{{ {'a': [1, 'é'], 'b': none} | tojson }}", "{\"a\": [1, \"é\"], \"b\": null}"),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        (
            "{{ 'a,b'.split(',')[-1] }}{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('x') }}",
            "bTrueFalse",
        ),
        (
            "{% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ ' y'.lstrip() }}{{ 'T'.lower() }}",
            "x1yt",
        ),
        (
            "{% if tools %}t{% endif %}{% if tools is not none %}n{% endif %}{{ messages[1:]|length }}{{ messages[::-1][0].content }}",
            "1x",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{{ bos_token + 'a' + eos_token }}{% if not add_generation_prompt %}!{% endif %}",
            "<B>a<E>!",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{% if strftime_now is defined %}d{% endif %}{{ raise_exception is defined }}", "dTrue"),
        ("a{# note #}b\n", "ab"),
        ("{% generation %}g{% endgeneration %}", "g"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('y') }}", "<y>"),
    ] {
        let template = ChatTemplate::jinja(source).unwrap();
        let got = template.render("<B>", "<E>", &messages, false);
        assert_eq!(got.as_deref().unwrap_or("failed"), want, "{source}: {got:?}");
    }
}

#[test]
fn faulty_and_endless_templates_are_errors_with_a_line() {
    for (source, want) in [
        ("\n{{ raise_exception('only users') }}", "line 2: "),
        ("{{ raise_exception('only users') }}", "only users"),
        ("a\n\n{% if %}", "line 3"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for i in range(90000) %}{{ 'x' * 100000 }}{% endfor %}", "bytes"),
        ("{{ missing.deeper.still }}", "line 1"),
        ("{% include 'other' %}", "line 1"),
    ] {
        let error = ChatTemplate::jinja(source)
            .unwrap()
            .render("", "", &[], false)
            .unwrap_err()
            .to_string();
        assert!(error.contains(want), "{source}: {error}");
    }
    assert!(ChatTemplate::jinja("x".repeat(2 << 20)).is_err());
}

/// A template that writes BOS gets no second one, and without generation blocks the assistant's
/// part is what an answer adds.
#[test]
fn own_template_ids_and_loss() {
    let t = bytes(Some(0), Some(1));
    let source = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let template = ChatTemplate::jinja(source).unwrap();
    let ids = template.encode(&t, &[say("user", "Q")], true).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 0).count(), 1);
    assert_eq!(
        shape(&template, &t, None, 2),
        "<B><|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\n|[A1<|im_end|>\n|<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n|[A2<|im_end|>\n"
    );
    assert_eq!(template.stop_ids(&t), [3]);
}
