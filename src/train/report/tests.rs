//! The page: well-formed, safe from the text in it, and with what the metrics have.

use super::steps::smoothed;
use super::*;
use crate::train::trainee::Measures;

fn step(step: usize, loss: f64) -> Line {
    Line::Step(StepLine {
        step,
        epoch: step as f64 / 10.0,
        loss,
        lr: 5e-5 / step as f64,
        grad_norm: 1.0 + step as f64,
        tokens: 10,
        tok_per_s: 100.0,
        peak_bytes: Some(5 << 20),
        measures: Measures::new(),
    })
}

fn eval(step: usize, loss: f64) -> Line {
    Line::Eval(EvalLine {
        step,
        eval_loss: loss,
        eval_accuracy: 0.25,
        eval_ppl: Some(loss.exp()),
        eval_tokens: 9,
        measures: Measures::new(),
    })
}

/// Every tag is closed in order: what a strict reader of XML insists on.
fn assert_well_formed(page: &str) {
    let body = page.strip_prefix("<!DOCTYPE html>\n").expect("the document type comes first");
    let (mut open, mut rest) = (Vec::<&str>::new(), body);
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            let name = tag.split_whitespace().next().expect("a tag has a name");
            open.push(name);
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

#[test]
fn a_page_is_well_formed_and_needs_nothing_else() {
    let lines: Vec<Line> = (1..=40)
        .flat_map(|i| {
            let eval = (i % 10 == 0).then(|| eval(i, 3.0 - i as f64 / 40.0));
            std::iter::once(step(i, 4.0 / i as f64)).chain(eval)
        })
        .collect();
    let settings = [("learning_rate".to_owned(), "5e-5".to_owned())];
    let page = render("run", &settings, &lines);
    assert_well_formed(&page);
    for part in ["Loss", "Learning rate", "Gradient norm", "Evaluation", "prefers-color-scheme"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(page.contains("<td>5e-5</td>") && page.contains("evaluation loss 2.75 to 2"));
    for part in ["http", "<script", "src=", "url("] {
        assert!(!page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<figure>").count(), 6);
}

#[test]
fn text_cannot_break_out() {
    let settings = [("a<b>\"'&".to_owned(), "</td><script>alert(1)</script>".to_owned())];
    let page = render("<i>&\"x\"</i>", &settings, &[step(1, 1.0)]);
    assert_well_formed(&page);
    assert!(!page.contains("<script") && !page.contains("<i>"));
    assert!(page.contains("&lt;i&gt;&amp;&quot;x&quot;&lt;/i&gt;"));
}

#[test]
fn runs_of_any_length_have_a_page() {
    for lines in [vec![], vec![step(1, 2.0)], vec![eval(0, 2.0)]] {
        assert_well_formed(&render("r", &[], &lines));
    }
    assert!(render("r", &[], &[]).contains("No step was taken."));
    // No evaluation, no chart of it.
    assert_eq!(render("r", &[], &[step(1, 2.0)]).matches("<figure>").count(), 4);
}

#[test]
fn smoothing_is_a_mean_of_what_came() {
    assert_eq!(smoothed(&[(1.0, 3.0), (2.0, 3.0)]), [(1.0, 3.0), (2.0, 3.0)]);
    let noisy: Vec<_> = (0..100).map(|i| (f64::from(i), f64::from(i % 2))).collect();
    let last = smoothed(&noisy)[99].1;
    assert!((0.3..0.7).contains(&last), "{last}");
}

fn iteration(iteration: usize) -> Line {
    let i = iteration as f64;
    Line::Iteration(IterationLine {
        iteration,
        step: 10 * iteration,
        answers: 8,
        kept: 2,
        reward_mean: i / 4.0,
        reward_first: i / 8.0,
        reward_best: i / 2.0,
        reward_selected: Some(i / 2.0),
        length: 30.0,
        ended: 0.5,
        ppl: Some(9.0 - i),
        msttr_100: Some(0.75),
        distinct_1: Some(0.5),
        distinct_2: Some(0.625),
        unique_1: 40,
        unique_2: 60,
        sample_s: 6.0,
        score_s: 1.0,
        train_s: 3.0,
        sample_tok_per_s: Some(200.0),
        measures: Measures::from([("kl".into(), 0.125), ("kl_coef".into(), 0.25)]),
    })
}

fn answer(iteration: usize, text: &str) -> ShownAnswer {
    ShownAnswer { iteration, text: text.to_owned(), reward: Some(iteration as f64 / 4.0) }
}

#[test]
fn iterations_have_curves_of_their_own() {
    let lines: Vec<Line> = (1..=4).map(iteration).collect();
    let page = render("r", &[], &lines);
    assert_well_formed(&page);
    let titles = ["Reward", "Diversity", "Length", "Perplexity", "kl", "kl coef", "Time"];
    for title in titles {
        assert!(page.contains(&format!("<figcaption>{title} <")), "{title}");
    }
    assert_eq!(page.matches("<figure>").count(), titles.len());
    assert_eq!(page.matches(">iteration</text>").count(), titles.len());
    for part in [
        "<p>4 iterations, 40 steps; reward 0.25 to 1</p>",
        "<title>iteration 4: 2</title>",
        "<th>answers</th><td>32</td>",
        "<th>last reward</th><td>1</td>",
        "<th>last reward, best of a prompt</th><td>2</td>",
        "<th>reward gain</th><td>0.75</td>",
        "<th>sampled tokens per second, mean</th><td>200</td>",
        "<th>share of time, sampling</th><td>60.0 %</td>",
        "<th>share of time, scoring</th><td>10.0 %</td>",
        "<th>share of time, learning</th><td>30.0 %</td>",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for class in ["one", "two", "three", "four"] {
        assert!(page.contains(&format!("<polyline class=\"{class}\"")), "{class}");
    }
    // Steps between them have theirs too.
    let lines: Vec<Line> =
        (1..=4).flat_map(|i| [step(10 * i, 4.0 / i as f64), iteration(i)]).collect();
    let page = render("r", &[], &lines);
    assert_well_formed(&page);
    assert_eq!(page.matches("<figure>").count(), titles.len() + 4);
    assert_eq!(page.matches(">step</text>").count(), 4);
}

#[test]
fn what_an_iteration_has_not_is_left_out() {
    let page = render("r", &[], &[Line::Iteration(IterationLine::default())]);
    assert_well_formed(&page);
    assert_eq!(page.matches("<figure>").count(), 3);
    assert!(!page.contains("share of time") && !page.contains("sampled tokens"));
    assert!(!page.contains("Answers"));
}

#[test]
fn answers_stand_side_by_side() {
    let text = "<script>alert(1)</script>\n& \"x\"";
    let answers = (0..=4).map(|i| answer(i, &format!("at {i}"))).collect();
    let shown = [
        Shown { prompt: text.to_owned(), answers },
        Shown { prompt: "long".to_owned(), answers: vec![answer(0, &"é".repeat(601))] },
        Shown { prompt: "whole".to_owned(), answers: vec![answer(4, &"è".repeat(600))] },
    ];
    let page = render_with("r", &[], &[iteration(4)], &shown);
    assert_well_formed(&page);
    assert!(!page.contains("<script"));
    for part in [
        "<tr><th>prompt</th><th>before</th><th>iteration 2</th><th>iteration 4</th></tr>",
        "<td>&lt;script&gt;alert(1)&lt;/script&gt;\n&amp; &quot;x&quot;</td>",
        "<td>at 0<div class=\"reward\">reward 0</div></td>",
        "<td>at 4<div class=\"reward\">reward 1</div></td>",
        &format!("<td>long</td><td>{}…<div", "é".repeat(600)),
        &format!("<td>whole</td><td></td><td></td><td>{}<div", "è".repeat(600)),
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("at 1<") && !page.contains("at 3<"));
    // Without any there is no table, and a prompt needs no reward.
    let none = [Shown { prompt: "p".to_owned(), answers: vec![] }];
    assert_eq!(render_with("r", &[], &[], &none), render("r", &[], &[]));
    let plain = ShownAnswer { reward: None, ..answer(1, "a") };
    let shown = [Shown { prompt: "p".to_owned(), answers: vec![plain] }];
    let page = render_with("r", &[], &[], &shown);
    assert_well_formed(&page);
    assert!(page.contains("<th>prompt</th><th>iteration 1</th></tr>"));
    assert!(page.contains("<td>p</td><td>a</td>"));
}

#[test]
fn lines_and_answers_come_back_as_what_they_were() {
    let bare = Line::Iteration(IterationLine::default());
    for line in [step(2, 1.5), eval(2, 0.0), iteration(3), bare] {
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
    }
    let shown = Shown { prompt: "p\n".to_owned(), answers: vec![answer(1, "a \"b\"")] };
    let text = serde_json::to_string(&shown).unwrap();
    assert_eq!(serde_json::from_str::<Shown>(&text).unwrap(), shown);
}
