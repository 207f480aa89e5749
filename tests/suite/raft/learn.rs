//! What is learnt, and what a run leaves.

use super::*;

#[test]
fn raft_learns_the_best_answers_to_each_type_of_prompt_and_leaves_what_it_promises() {
    for kind in ["text2text", "text_only", "conversation"] {
        let place = Place::new(&prompts(kind));
        let more = [LENGTH, VOWEL, "--reward-weights=1,-0.25", TEMPLATE, "--json"];
        let run = place.run("raft", "out", &with(RAFT, &more)).done();
        let summary = &run.json()[0];
        assert_eq!(keys(summary), SUMMARY_KEYS, "{kind}");
        assert_eq!((&summary["end"], &summary["steps"]), (&json!("complete"), &json!(4)), "{kind}");
        assert_eq!(summary["iterations"], summary["total_iterations"], "{kind}");

        let out = place.path("out");
        for name in [
            "adapter_model.safetensors",
            "adapter_config.json",
            "train_results.json",
            "answers.json",
            "checkpoint-3/manifest.json",
        ] {
            assert!(out.join(name).is_file(), "{kind}: {name}");
        }
        let page = fs::read_to_string(out.join("report.html")).unwrap();
        let parts = ["Reward", "<h2>Answers</h2>", "<th>before</th>", "<th>iteration 2</th>"];
        for part in parts {
            assert!(page.contains(part), "{kind}: {part}");
        }

        let order = place.metrics("out");
        let order: Vec<bool> = order.iter().map(|line| line.get("iteration").is_some()).collect();
        assert_eq!(order, [false, false, true, false, false, true], "{kind}");
        let (steps, lines) = (place.steps("out"), place.iterations("out"));
        let again = place.path("again");
        fs::create_dir(&again).unwrap();
        let mut n_kept = 0;
        for (at, line) in lines.iter().enumerate() {
            assert_eq!(&keys(line)[..20], &ITERATION_KEYS[..], "{kind}");
            assert_eq!((&line["iteration"], &line["step"]), (&json!(at + 1), &json!(2 * at + 2)));
            let samples = place.samples("out", at + 1);
            assert_eq!((samples.len(), &line["answers"]), (16, &json!(16)), "{kind}");
            let mut rewards = vec![];
            for (number_of, one) in samples.iter().enumerate() {
                let text = text_of(one, "text");
                let (length, vowel) = (length_rule(text), vowel_rule(text));
                assert_eq!(numbers(&one["parts"]), [length, vowel], "{kind}: {one}");
                let reward = number(one, "reward");
                assert!(near(reward, length - 0.25 * vowel), "{kind}: {one}");
                rewards.push(reward);
                assert_eq!(one["prompt"], number_of / 4, "{kind}: {one}");
                assert_eq!(one["sources"], json!(["length:3-6", "regex:[aeiou]n"]));
                assert!((1..=8).contains(&ids(&one["ids"]).len()), "{kind}: {one}");
                assert!(text_of(one, "place").contains("prompts.json"), "{kind}: {one}");
            }
            assert!(rewards.iter().any(|reward| *reward != rewards[0]), "{kind}: {rewards:?}");
            let mut asked: Vec<&str> =
                samples.iter().step_by(4).map(|one| text_of(one, "input")).collect();
            asked.sort_unstable();
            let mut all = PROMPTS;
            all.sort_unstable();
            assert_eq!(asked, all, "{kind}");

            let chosen = best_of_each(&merits(&samples), 4);
            let wanted: Vec<Value> =
                chosen.iter().map(|&at| instance(kind, &samples[at])).collect();
            let set = place.train_set("out", at).expect("a training set");
            let wanted_kind = if kind == "conversation" { kind } else { "text2text" };
            assert_eq!(set["type"], wanted_kind);
            assert_eq!(set["instances"], json!(wanted), "{kind}");
            assert_eq!(line["kept"], chosen.len(), "{kind}");
            n_kept += chosen.len();
            let name = format!("train_set_{at}.json");
            fs::copy(out.join(&name), again.join(&name)).unwrap();

            let groups = || rewards.chunks(4);
            let highest = |group: &[f64]| group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let n_ids = |one: &Value| ids(&one["ids"]).len();
            let parts = |part: usize| mean(samples.iter().map(|one| numbers(&one["parts"])[part]));
            let ended = samples.iter().map(|one| f64::from(u8::from(one["ended"] == true)));
            for (key, wanted) in [
                ("reward_mean", mean(rewards.iter().copied())),
                ("reward_first", mean(groups().map(|group| group[0]))),
                ("reward_best", mean(groups().map(highest))),
                ("reward_selected", mean(chosen.iter().map(|&at| rewards[at]))),
                ("length", mean(samples.iter().map(|one| n_ids(one) as f64))),
                ("ended", mean(ended)),
                ("reward_length:3-6", parts(0)),
                ("reward_regex:[aeiou]n", parts(1)),
                ("discarded", merits(&samples).iter().filter(|m| m.is_none()).count() as f64),
            ] {
                assert!(near(number(line, key), wanted), "{kind}: {key}, wanted {wanted}: {line}");
            }
            let distinct = number(line, "distinct_1");
            assert!(distinct > 0.0 && distinct <= 1.0, "{kind}: {line}");
            // The first step learns all of them at once, with the model that drew them.
            let first = &steps[2 * at];
            let n_tokens: usize = chosen.iter().map(|&at| n_ids(&samples[at])).sum();
            assert_eq!(first["tokens"], n_tokens, "{kind}");
            let (ppl, loss) = (number(line, "ppl"), number(first, "loss"));
            assert!(ppl > 1.0 && (loss.exp() / ppl - 1.0).abs() < 1e-3, "{kind}: {ppl} {loss}");
        }
        // What was learnt is a data set for `puna train`.
        let again = again.display().to_string();
        let args = ["train", "builtin", "--dataset", &again, "--dry-run", "--json", TEMPLATE];
        let args = with(&args, &["--method=lora", "--no-packing", "--threads=2"]);
        let plan = finish(place.plain(&args)).done();
        assert_eq!(plan.json()[0]["rows"], n_kept, "{kind}");
    }
}

#[test]
fn top_learns_the_best_share_of_all_rounded_down() {
    let place = Place::new(&prompts("text2text"));
    let eval = format!("--eval-dataset={}", place.text("prompts.json"));
    let args = [
        "--num-raft-iteration=1",
        "--collection-strategy=top",
        "--raft-batch-size=3",
        "--top-reward-percentage=0.4",
        "--max-new-tokens=8",
        LENGTH,
        &eval,
    ];
    place.run("raft", "out", &args).done();
    let samples = place.samples("out", 1);
    // 3 / 0.4 answers, one to a prompt, all prompts before one comes again; 2.8 of 7 are learnt.
    assert_eq!(samples.len(), 7);
    let mut asked: Vec<&str> = samples[..4].iter().map(|one| text_of(one, "input")).collect();
    asked.sort_unstable();
    let mut all = PROMPTS;
    all.sort_unstable();
    assert_eq!(asked, all);
    let chosen = best(&merits(&samples), 2);
    let wanted: Vec<Value> = chosen.iter().map(|&at| instance("text2text", &samples[at])).collect();
    let set = place.train_set("out", 0).expect("a training set");
    assert_eq!((&set["type"], &set["instances"]), (&json!("text2text"), &json!(wanted)));
    let line = &place.iterations("out")[0];
    assert_eq!((&line["answers"], &line["kept"]), (&json!(7), &json!(2)));
    // That of the set that was named.
    assert!(number(line, "ppl") > 1.0, "{line}");
}

/// LMFlow's cleaning of an answer.
fn cleaned(text: &str) -> String {
    let piece = text.split("###Human").find(|piece| !piece.is_empty()).unwrap_or("");
    piece.trim().trim_matches('#').to_owned()
}

/// Two prompts an iteration, of which one is learnt, as long as there are any.
const COMPAT: &[&str] = &[
    "--lmflow-compat",
    "--num-raft-iteration=5",
    "--raft-batch-size=1",
    "--top-reward-percentage=0.5",
    "--output-min-length=4",
    "--max-new-tokens=8",
    LENGTH,
];

#[test]
fn lmflow_s_way_learns_whole_texts_and_asks_each_prompt_once() {
    let place = Place::new(&prompts("text2text"));
    let run = place.run("raft", "out", &with(COMPAT, &["--json"])).done();
    let summary = &run.json()[0];
    assert_eq!(
        (&summary["end"], &summary["iterations"], &summary["total_iterations"]),
        (&json!("complete"), &json!(2), &json!(5))
    );
    let mut asked = vec![];
    for (at, line) in place.iterations("out").iter().enumerate() {
        let samples = place.samples("out", at + 1);
        assert_eq!(samples.len(), 2);
        let texts: Vec<String> = samples.iter().map(|one| cleaned(text_of(one, "text"))).collect();
        let merit = |(one, text): (&Value, &String)| {
            let none = text.chars().count() < 2 || text.contains('#');
            (!none).then(|| number(one, "reward"))
        };
        let merits: Vec<Option<f64>> = samples.iter().zip(&texts).map(merit).collect();
        let n_none = merits.iter().filter(|merit| merit.is_none()).count();
        assert_eq!(number(line, "discarded"), n_none as f64);
        let chosen = best(&merits, 1);
        assert_eq!(line["kept"], chosen.len());
        let whole = |&at: &usize| {
            let input = text_of(&samples[at], "input");
            json!({"text": format!("{input}{}", texts[at])})
        };
        let instances: Vec<Value> = chosen.iter().map(whole).collect();
        let wanted =
            (!instances.is_empty()).then(|| json!({"type": "text_only", "instances": instances}));
        assert_eq!(place.train_set("out", at), wanted);
        for one in &samples {
            let n = ids(&one["ids"]).len();
            assert!(n < 8 && (n >= 4 || one["ended"] == true), "{one}");
            asked.push(text_of(one, "input").to_owned());
        }
    }
    asked.sort_unstable();
    let mut all = PROMPTS;
    all.sort_unstable();
    assert_eq!(asked, all);
}

#[test]
fn where_all_answers_are_discarded_nothing_is_learnt_and_said_so() {
    let place = Place::new(&prompts("text2text"));
    // A model that answers with a number sign, which LMFlow takes for no answer.
    let sign = |prompt: &&str| json!({"input": prompt, "output": "#"});
    let signs: Vec<Value> = PROMPTS.iter().map(sign).collect();
    place.write("signs.json", &json!({"type": "text2text", "instances": signs}).to_string());
    let (signs, tuned) = (place.text("signs.json"), place.text("tuned"));
    let args = ["train", "builtin", "--dataset", &signs, "--output", &tuned, "--method=lora"];
    let more = [
        "--lora-target-modules=all-linear",
        "--lora-dropout=0",
        "--learning-rate=0.01",
        "--max-steps=25",
        "--batch-size=4",
        "--no-packing",
        "--threads=2",
        "--quiet",
    ];
    finish(place.plain(&with(&args, &more))).done();

    let args = with(COMPAT, &["--top-k=1", "--adapter", &tuned]);
    let run = place.run("raft", "out", &args).done();
    let texts: Vec<Value> = place.samples("out", 1).iter().map(|one| one["text"].clone()).collect();
    assert!(run.stderr.contains("no answer is learnt from"), "{texts:?}: {}", run.stderr);
    for line in place.iterations("out") {
        assert_eq!((&line["kept"], &line["step"]), (&json!(0), &json!(0)), "{texts:?}");
        assert_eq!(number(&line, "discarded"), 2.0);
        assert!(line["reward_selected"].is_null() && line["ppl"].is_null(), "{line}");
    }
    assert!(place.train_set("out", 0).is_none() && place.steps("out").is_empty());
    let adapter = |name: &str| tensors(&place.path(name).join("adapter_model.safetensors"));
    assert!(adapter("out") == adapter("tuned"), "nothing was learnt, yet it changed");
}

#[test]
fn ppo_learns_from_a_program_and_follows_its_divergence() {
    let place = Place::new(&prompts("text2text"));
    let count = format!("--reward-command={COUNT}");
    let args = [
        "--iterations=2",
        "--num-prompts=4",
        "--max-new-tokens=8",
        "--learning-rate=0.001",
        "--kl-target=6",
        "--kl-horizon=40",
        &count,
    ];
    place.run("ppo", "out", &args).done();
    let lines = place.iterations("out");
    assert_eq!(lines.len(), 2);
    for (at, line) in lines.iter().enumerate() {
        let samples = place.samples("out", at + 1);
        assert_eq!((samples.len(), &line["kept"]), (4, &json!(4)));
        for one in &samples {
            assert_eq!(number(one, "reward"), n_bytes(one), "{one}");
            assert_eq!(one["sources"], json!([COUNT]));
        }
        let wanted = mean(samples.iter().map(n_bytes));
        assert!(near(number(line, "reward_mean"), wanted), "{line}");
        for key in ["value_mean", "return_mean", "distinct_1", "ppl"] {
            assert!(number(line, key).is_finite(), "{key}: {line}");
        }
    }
    // The first policy is the reference; the weight moves by at most 20 % in a horizon.
    let kl = number(&lines[0], "kl");
    assert!(kl.abs() < 1e-3, "{kl}");
    assert_eq!(number(&lines[0], "kl_coef"), 0.05);
    let factor = 1.0 + (kl / 6.0 - 1.0).clamp(-0.2, 0.2) * 4.0 / 40.0;
    assert!(near(number(&lines[1], "kl_coef"), 0.05 * factor), "{}", lines[1]);
    assert!(number(&lines[1], "kl").abs() > 1e-6, "{}", lines[1]);
    // Four passes over four answers, eight at a time.
    let steps = place.steps("out");
    assert_eq!(steps.len(), 8);
    for key in ["policy_loss", "value_loss", "clip_fraction", "value_clip_fraction"] {
        assert!(number(&steps[0], key).is_finite(), "{key}: {}", steps[0]);
    }
    for first in [&steps[0], &steps[4]] {
        assert!((number(first, "ratio") - 1.0).abs() < 1e-3, "{first}");
        assert!(number(first, "approx_kl").abs() < 1e-4, "{first}");
    }
    assert!(place.train_set("out", 0).is_none());
    let page = fs::read_to_string(place.path("out/report.html")).unwrap();
    assert!(page.contains("kl coef") && page.contains("<h2>Answers</h2>"));
    // The adapter is one for tokens: the value head is no part of it.
    let out = place.text("out");
    let args = ["generate", "builtin", "--adapter", &out, "-p", "One day", "--max-new-tokens=4"];
    finish(place.plain(&args)).done();
}

#[test]
fn grpo_compares_the_answers_to_a_prompt() {
    let place = Place::new(&prompts("text2text"));
    let count = format!("--reward-command={COUNT}");
    let args = [
        "--iterations=2",
        "--num-prompts=2",
        "--num-generations=4",
        "--max-new-tokens=8",
        "--learning-rate=0.001",
        "--beta=0.04",
        &count,
    ];
    place.run("grpo", "out", &args).done();
    let lines = place.iterations("out");
    assert_eq!(lines.len(), 2);
    for (at, line) in lines.iter().enumerate() {
        let samples = place.samples("out", at + 1);
        assert_eq!((samples.len(), &line["kept"]), (8, &json!(8)));
        let rewards: Vec<f64> = samples.iter().map(n_bytes).collect();
        let found: Vec<f64> = samples.iter().map(|one| number(one, "reward")).collect();
        assert_eq!(found, rewards);
        let groups = rewards.chunks(4);
        let equal = groups.filter(|group| group.iter().all(|reward| *reward == group[0])).count();
        assert_eq!(number(line, "equal_groups"), equal as f64 / 2.0, "{line}");
        assert!(number(line, "kl").is_finite() && line.get("kl_coef").is_none(), "{line}");
    }
    assert!(number(&lines[0], "kl").abs() < 1e-3, "{}", lines[0]);
    let steps = place.steps("out");
    assert_eq!(steps.len(), 2);
    for step in &steps {
        assert!((number(step, "ratio") - 1.0).abs() < 1e-3, "{step}");
        assert!(number(step, "kl_to_reference") > -1e-9, "{step}");
    }
    assert!(place.path("out/adapter_model.safetensors").is_file());

    // Where no answer is better than another there is nothing to learn.
    let args = [
        "--iterations=1",
        "--num-prompts=2",
        "--num-generations=2",
        "--max-new-tokens=8",
        "--reward-rule=regex:ZZZZ",
        "--json",
    ];
    let run = place.run("grpo", "equal", &args).done();
    assert!(run.stderr.contains("no answer is learnt from"), "{}", run.stderr);
    let summary = &run.json()[0];
    assert_eq!((&summary["steps"], &summary["kept"]), (&json!(0), &json!(0)));
    assert!(summary["train_loss"].is_null());
    let line = &place.iterations("equal")[0];
    assert_eq!(number(line, "equal_groups"), 1.0);
    assert!(line["reward_selected"].is_null() && line.get("kl").is_none(), "{line}");
    let adapter = tensors(&place.path("equal/adapter_model.safetensors"));
    let mut second = adapter.iter().filter(|(name, _)| name.contains("lora_B"));
    assert!(second.all(|(_, values)| values.iter().all(|value| *value == 0.0)));
}

#[test]
fn iterative_dpo_prefers_the_best_answer_of_a_prompt_to_its_worst() {
    let place = Place::new(&prompts("text2text"));
    let args = [
        "--iterations=2",
        "--num-prompts=4",
        "--num-generations=4",
        "--max-new-tokens=8",
        "--learning-rate=0.01",
        "--num-train-epochs=3",
        "--json",
        LENGTH,
    ];
    let run = place.run("iterative-dpo", "out", &args).done();
    assert_eq!(run.json()[0]["iterations"], 2);
    // The first policy is the reference, which costs log 2 a pair.
    let steps = place.steps("out");
    assert!((number(&steps[0], "loss") - 2f64.ln()).abs() < 1e-6, "{}", steps[0]);
    for iteration in 0..2 {
        let samples = place.samples("out", iteration + 1);
        let rewards: Vec<f64> = samples.iter().map(|one| number(one, "reward")).collect();
        let mut wanted = vec![];
        for (group, rewards) in samples.chunks(4).zip(rewards.chunks(4)) {
            let first = |better: &dyn Fn(f64, f64) -> bool| {
                (1..4).fold(0, |at, i| if better(rewards[i], rewards[at]) { i } else { at })
            };
            // Of equal ones the first is the best, and the last the worst.
            let (best, worst) = (first(&|a, b| a > b), first(&|a, b| a <= b));
            if rewards[best] > rewards[worst] {
                wanted.push(json!({
                    "prompt": group[0]["input"],
                    "chosen": group[best]["text"],
                    "rejected": group[worst]["text"],
                }));
            }
        }
        let line = &place.iterations("out")[iteration];
        assert_eq!(line["kept"], wanted.len(), "{line}");
        assert_eq!(number(line, "without_pair"), (4 - wanted.len()) as f64);
        match place.train_set("out", iteration) {
            Some(set) => {
                assert_eq!(set["type"], "paired_text_to_text");
                assert_eq!(set["instances"], json!(wanted));
            }
            None => assert!(wanted.is_empty()),
        }
    }
    assert!(place.path("out/adapter_model.safetensors").is_file());
    let run = place.run("iterative-dpo", "none", &with(&args, &["--loss=kto"]));
    assert!(run.status == Some(2) && run.stderr.contains("`puna dpo`"), "{}", run.stderr);
}
