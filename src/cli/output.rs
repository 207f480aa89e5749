//! The stable JSON of a generated sequence.

use crate::infer::{Generated, Percentiles, Speculation, Timings, TokenLogprobs};
use serde_json::{Value, json};

/// One sequence as an object: see `generate --json`.
pub fn sequence_json(prompt: &str, prompt_ids: &[u32], one: &Generated, load_ms: f64) -> Value {
    let mut value = json!({
        "prompt": prompt,
        "prompt_tokens": prompt_ids,
        "tokens": one.tokens,
        "text": one.text,
        "finish_reason": one.finish_reason.name(),
        "timings": timings_json(&one.timings, load_ms),
    });
    if !one.logprobs.is_empty() {
        let list: Vec<Value> = one.logprobs.iter().map(logprobs_json).collect();
        value["logprobs"] = list.into();
    }
    value
}

fn logprobs_json(at: &TokenLogprobs) -> Value {
    let top = at.top.iter();
    let top: Vec<Value> = top.map(|(id, logprob)| json!({"id": id, "logprob": logprob})).collect();
    json!({"id": at.id, "logprob": at.logprob, "top": top})
}

fn timings_json(timings: &Timings, load_ms: f64) -> Value {
    json!({
        "load_ms": load_ms,
        "prompt_ms": timings.prompt_ms,
        "first_token_ms": timings.first_token_ms,
        "token_ms": timings.token_ms.map(|p| percentiles_json(&p)),
        "prompt_tok_per_s": timings.prompt_tok_per_s,
        "decode_tok_per_s": timings.decode_tok_per_s,
    })
}

/// Percentiles in milliseconds.
pub fn percentiles_json(p: &Percentiles) -> Value {
    json!({"p50": p.p50_ms, "p99": p.p99_ms, "p999": p.p999_ms, "max": p.max_ms})
}

/// What speculation did.
pub fn speculation_json(done: &Speculation) -> Value {
    json!({
        "steps": done.steps,
        "tokens": done.tokens,
        "proposed": done.proposed,
        "accepted": done.accepted,
        "tokens_per_step": done.tokens_per_step(),
        "speed_up": done.speed_up(),
    })
}

/// One line for people about what speculation did.
pub fn speculation_summary(done: &Speculation) -> String {
    let Speculation { steps, proposed, accepted, .. } = *done;
    let per_step = done.tokens_per_step();
    let mut line = format!(
        "speculation: {accepted} of {proposed} guesses right, {per_step:.2} tokens a step in \
         {steps} steps"
    );
    if let Some(factor) = done.speed_up() {
        line += &format!(", {factor:.2} times as fast as without");
    }
    line
}

/// One line for people about what a sequence took.
pub fn summary(n_prompt: usize, n_reused: usize, one: &Generated) -> String {
    let Timings { prompt_ms, prompt_tok_per_s, token_ms, decode_tok_per_s, .. } = one.timings;
    let mut line = format!("{n_prompt} prompt tokens");
    if n_reused > 0 {
        line += &format!(" ({n_reused} in the cache already)");
    }
    line += &format!(" in {prompt_ms:.0} ms ({prompt_tok_per_s:.1} tok/s)");
    line += &format!(", {} written", one.tokens.len());
    if let (Some(rate), Some(p)) = (decode_tok_per_s, token_ms) {
        line += &format!(
            " at {rate:.1} tok/s (ms a token: p50 {:.2}, p99 {:.2}, max {:.2})",
            p.p50_ms, p.p99_ms, p.max_ms
        );
    }
    line + &format!(", finish: {}", one.finish_reason.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::FinishReason;

    #[test]
    fn the_object_has_the_promised_keys() {
        let p = Percentiles { p50_ms: 1.0, p99_ms: 2.0, p999_ms: 3.0, max_ms: 4.0 };
        let mut one = Generated {
            tokens: vec![5, 2],
            text: "x".into(),
            finish_reason: FinishReason::Stop,
            logprobs: vec![],
            timings: Timings {
                prompt_ms: 10.0,
                first_token_ms: Some(11.0),
                token_ms: Some(p),
                prompt_tok_per_s: 200.0,
                decode_tok_per_s: Some(50.0),
            },
        };
        let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let value = sequence_json("p", &[1], &one, 7.0);
        let wanted = ["prompt", "prompt_tokens", "tokens", "text", "finish_reason", "timings"];
        assert_eq!(keys(&value), wanted);
        let wanted = [
            "load_ms",
            "prompt_ms",
            "first_token_ms",
            "token_ms",
            "prompt_tok_per_s",
            "decode_tok_per_s",
        ];
        assert_eq!(keys(&value["timings"]), wanted);
        assert_eq!(keys(&value["timings"]["token_ms"]), ["p50", "p99", "p999", "max"]);
        assert_eq!(value["tokens"], json!([5, 2]));
        assert_eq!(value["finish_reason"], "stop");

        one.logprobs = vec![TokenLogprobs { id: 5, logprob: -0.5, top: vec![(5, -0.5)] }];
        let value = sequence_json("p", &[1], &one, 7.0);
        let wanted = json!([{"id": 5, "logprob": -0.5, "top": [{"id": 5, "logprob": -0.5}]}]);
        assert_eq!(value["logprobs"], wanted);
    }
}
