//! The named conversation templates of LMFlow, as data. What each one writes is fixed by the
//! models' published chat formats; the table in `tests/suite/text_presets.rs` holds the strings.

use super::pieces::{Part, Preset, System};
use Part::{Bos, Eos, Text};

/// Nothing in it; the base of the entries below.
const PLAIN: Preset = Preset {
    names: &[],
    start: &[],
    system: System::None,
    force_system: false,
    user: &[Text("{}")],
    assistant: &[Text("{}")],
    tool: None,
    end: &[],
    drop_last: None,
    no_first_newline: false,
    stops: &[],
};

const CHATML: Preset = Preset {
    names: &["chatml", "yi", "qwen2"],
    system: System::Pieces(&[Text("<|im_start|>system\n{}<|im_end|>\n")]),
    user: &[Text("<|im_start|>user\n{}<|im_end|>\n")],
    assistant: &[Text("<|im_start|>assistant\n{}<|im_end|>\n")],
    ..PLAIN
};

const LLAMA3: Preset = Preset {
    names: &["llama3"],
    start: &[Bos],
    system: System::Pieces(&[Text("<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>")]),
    user: &[Text("<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>")],
    assistant: &[Text("<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>")],
    ..PLAIN
};

/// The presets made of pieces.
pub(super) static PIECES: [Preset; 15] = [
    Preset {
        names: &["empty", "disable"],
        user: &[Bos, Text("{}")],
        assistant: &[Text("{}"), Eos],
        ..PLAIN
    },
    Preset { names: &["empty_no_special_tokens"], ..PLAIN },
    Preset {
        names: &["llama2"],
        system: System::InUser("<<SYS>>\n{}\n<</SYS>>\n\n"),
        user: &[Bos, Text("[INST] {} [/INST]")],
        assistant: &[Text("{}"), Eos],
        ..PLAIN
    },
    LLAMA3,
    Preset {
        names: &["llama3_for_tool"],
        tool: Some(&[Text("<|start_header_id|>tool<|end_header_id|>\n\n{}<|eot_id|>")]),
        ..LLAMA3
    },
    CHATML,
    Preset {
        names: &["qwen2_for_tool"],
        tool: Some(&[Text("<|im_start|>tool\n{}<|im_end|>\n")]),
        ..CHATML
    },
    Preset { names: &["internlm2"], start: &[Bos], ..CHATML },
    Preset { names: &["yi1_5"], system: System::Pieces(&[Text("{}")]), ..CHATML },
    Preset {
        names: &["chatglm3"],
        start: &[Text("[gMASK]sop")],
        system: System::Pieces(&[Text("<|system|>\n {}")]),
        user: &[Text("<|user|>\n {}")],
        assistant: &[Text("<|assistant|>\n {}")],
        stops: &["<|user|>", "<|observation|>"],
        ..PLAIN
    },
    Preset {
        names: &["deepseek", "deepseek_v2"],
        start: &[Bos],
        system: System::Pieces(&[Text("{}\n\n")]),
        user: &[Text("User: {}\n\n")],
        assistant: &[Text("Assistant: {}"), Eos],
        ..PLAIN
    },
    Preset {
        names: &["gemma"],
        start: &[Bos],
        system: System::Pieces(&[Text("{}")]),
        user: &[Text("<start_of_turn>user\n{}<end_of_turn>\n")],
        assistant: &[Text("<start_of_turn>model\n{}<end_of_turn>\n")],
        ..PLAIN
    },
    Preset {
        names: &["phi3"],
        start: &[Bos],
        system: System::Pieces(&[Text("<|system|>\n{}<|end|>\n")]),
        user: &[Text("<|user|>\n{}<|end|>\n")],
        assistant: &[Text("<|assistant|>\n{}<|end|>\n")],
        end: &[Eos],
        ..PLAIN
    },
    Preset {
        names: &["zephyr"],
        system: System::Pieces(&[Text("<|system|>\n{}"), Eos]),
        user: &[Text("\n<|user|>\n{}"), Eos],
        assistant: &[Text("\n<|assistant|>\n{}"), Eos],
        no_first_newline: true,
        ..PLAIN
    },
    Preset {
        names: &["hymba"],
        system: System::Pieces(&[Text("<extra_id_0>System{}\n\n")]),
        force_system: true,
        user: &[Text("<extra_id_1>User\n{}\n")],
        assistant: &[Text("<extra_id_1>Assistant\n{}\n")],
        tool: Some(&[Text("<extra_id_1>Tool\n{}\n")]),
        end: &[Eos],
        // The newline's id in this family's vocabulary.
        drop_last: Some(13),
        stops: &["<extra_id_1>"],
        ..PLAIN
    },
];

/// Beginning and end of the Qwen 2.5 templates; the default system text goes between.
const QWEN_HEAD: &str = r"{%- set first = messages[0] %}
{{- '<|im_start|>system\n' }}
{%- if first.role == 'system' %}{{ first.content }}{% else %}{{ '";
const QWEN_TAIL: &str = r"' }}{% endif %}
{{- '<|im_end|>\n' }}
{%- for message in (messages[1:] if first.role == 'system' else messages) %}
{{- '<|im_start|>' ~ message.role ~ '\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content ~ '<|im_end|>\n' }}{% endgeneration %}
{%- else %}{{ message.content ~ '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Only the answers after the last question show their reasoning.
const QWEN3: &str = r"{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\n' ~ messages[0].content ~ '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last_user=messages|length - 1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set parts = message.content.split('</think>') %}
{%- set thought = '' %}
{%- set answer = message.content %}
{%- if parts|length > 1 %}
{%- set thought = parts[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set answer = parts[-1].lstrip('\n') %}
{%- endif %}
{%- generation %}{{ '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last_user and (loop.last or thought) %}{{ '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' ~ answer.lstrip('\n') }}
{%- else %}{{ answer }}{% endif %}
{{- '<|im_end|>\n' }}{% endgeneration %}
{%- elif not (message.role == 'system' and loop.first) %}{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The system text without marks, then user and assistant marks; `ANSWER` is what an assistant's
/// content becomes, `OPEN` what follows the assistant mark when an answer begins.
const DEEPSEEK: &str = r"{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}SYSTEM{% endfor %}
{{- ns.system }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<｜User｜>' ~ message.content }}
{%- elif message.role == 'assistant' %}{{ '<｜Assistant｜>' }}{% generation %}{{ ANSWER ~ '<｜end▁of▁sentence｜>' }}{% endgeneration %}
{%- elif message.role != 'system' %}{{ raise_exception('role ' ~ message.role ~ ', wanted system, user or assistant') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>OPEN' }}{% endif %}";

/// Several system texts are joined by an empty line.
const DEEPSEEK_JOIN: &str =
    r"{% set ns.system = ns.system ~ ('' if loop.first else '\n\n') ~ message.content %}";
/// The last system text counts.
const DEEPSEEK_LAST: &str = "{% set ns.system = message.content %}";
/// An answer without the reasoning before it.
const AFTER_THOUGHT: &str = "message.content.split('</think>')[-1]";

const GEMMA3: &str = r"{{- bos_token }}
{%- set ns = namespace(prefix='') %}
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}{% set ns.prefix = messages[0].content ~ '\n\n' %}{% set turns = messages[1:] %}{% endif %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}
{%- if message.role == 'assistant' %}{{ '<start_of_turn>model\n' }}{% generation %}{{ message.content|trim ~ '<end_of_turn>\n' }}{% endgeneration %}
{%- else %}{{ '<start_of_turn>' ~ message.role ~ '\n' ~ ns.prefix ~ message.content|trim ~ '<end_of_turn>\n' }}{% set ns.prefix = '' %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// Names of the presets that are Jinja templates.
pub(super) const JINJA_NAMES: [&str; 9] = [
    "deepseek_v3",
    "deepseek_r1",
    "deepseek_r1_distill",
    "qwen2_5",
    "qwen2_5_1m",
    "qwen2_5_math",
    "qwen_qwq",
    "qwen3",
    "gemma3",
];

/// The template of a Jinja preset.
pub(super) fn jinja(name: &str) -> Option<String> {
    let qwen = |system: &str| Some([QWEN_HEAD, system, QWEN_TAIL].concat());
    let deepseek = |system: &str, answer: &str, open: &str| {
        let source = DEEPSEEK.replace("SYSTEM", system).replace("ANSWER", answer);
        Some(source.replace("OPEN", open))
    };
    match name {
        "deepseek_v3" => deepseek(DEEPSEEK_JOIN, "message.content", ""),
        "deepseek_r1" => deepseek(DEEPSEEK_JOIN, AFTER_THOUGHT, ""),
        "deepseek_r1_distill" => deepseek(DEEPSEEK_LAST, AFTER_THOUGHT, r"<think>\n"),
        "qwen2_5" => qwen("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        "qwen2_5_1m" => qwen("You are a helpful assistant."),
        "qwen2_5_math" => {
            qwen(r"Please reason step by step, and put your final answer within \\boxed{}.")
        }
        "qwen_qwq" => qwen(
            "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step.",
        ),
        "qwen3" => Some(QWEN3.into()),
        "gemma3" => Some(GEMMA3.into()),
        _ => None,
    }
}

/// Names of all presets.
pub(super) fn names() -> Vec<&'static str> {
    PIECES.iter().flat_map(|preset| preset.names.iter().copied()).chain(JINJA_NAMES).collect()
}
