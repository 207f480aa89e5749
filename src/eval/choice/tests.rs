//! Prompts, answers and faults of every data set, and the scores.

use super::*;
use serde_json::{Value, json};

fn good(task: Task, value: Value) -> Item {
    item(task, &value, "test").unwrap()
}

/// What is wrong with `value`, without its place.
fn fault(task: Task, value: &Value) -> String {
    let error = item(task, value, "set.jsonl, line 7").unwrap_err().to_string();
    error.strip_prefix("set.jsonl, line 7: ").unwrap().to_owned()
}

/// `value` with another value at `path`, or without what is there.
fn with(value: &Value, path: &str, other: Option<Value>) -> Value {
    let mut changed = value.clone();
    let (parent, key) = path.rsplit_once('/').unwrap();
    let map = changed.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match other {
        Some(other) => map.insert(key.into(), other),
        None => map.shift_remove(key),
    };
    changed
}

fn arc() -> Value {
    json!({
        "id": "x",
        "question": "Which one floats?",
        "choices": {"text": ["stone", "cork", "iron"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    })
}

fn mmlu() -> Value {
    json!({
        "question": " How many? \n",
        "subject": "high_school_counting",
        "choices": ["one", "two", "three", "four"],
        "answer": 2,
    })
}

fn truthful() -> Value {
    json!({
        "question": "Is it so?",
        "mc1_targets": {"choices": ["It is.", "It is not."], "labels": [1, 0]},
        "mc2_targets": {"choices": ["Yes.", "It is.", "No."], "labels": [1, 1, 0]},
    })
}

fn medmcqa() -> Value {
    json!({
        "question": "Which bone?", "opa": "rib", "opb": "ulna", "opc": "tibia", "opd": "skull",
        "cop": 3, "choice_type": "single", "subject_name": "Anatomy", "exp": null,
    })
}

#[test]
fn names() {
    assert_eq!(Task::NAMES.len(), ALL.len());
    for (at, task) in ALL.into_iter().enumerate() {
        assert_eq!(task as usize, at);
        assert_eq!(Task::named(task.name()), Some(task));
    }
    assert_eq!(Task::HellaSwag.name(), "hellaswag");
    assert_eq!(Task::MedMcQa.name(), "medmcqa");
    assert_eq!(Task::named("ARC"), None);
}

#[test]
fn a_question_of_arc() {
    for task in [Task::ArcEasy, Task::ArcChallenge] {
        let found = good(task, arc());
        assert_eq!(found.context, "Question: Which one floats?\nAnswer:");
        assert_eq!(found.choices, [" stone", " cork", " iron"]);
        assert_eq!(found.correct, [false, true, false]);
        assert_eq!(found.subject, None);
    }
    let numbers = with(&arc(), "/choices/label", Some(json!(["1", "2", "3"])));
    assert!(good(Task::ArcEasy, with(&numbers, "/answerKey", Some(json!("3")))).correct[2]);
    assert_eq!(fault(Task::ArcEasy, &numbers), "key \"answerKey\": \"B\", wanted one of 1, 2, 3");
    let short = with(&arc(), "/choices/label", Some(json!(["A"])));
    assert_eq!(
        fault(Task::ArcEasy, &short),
        "key \"choices.label\": 1 of them, wanted as many as \"choices.text\" has, 3"
    );
}

#[test]
fn a_text_of_hellaswag() {
    let value = json!({
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] Heat the oven.",
        "ctx_b": "then PUT Tom's cake",
        "ctx": "not this",
        "endings": ["in it [step] quickly.", " out [title] Wait", "  on  top", "[a\nb]"],
        "label": "1",
    });
    let found = good(Task::HellaSwag, value.clone());
    // The second part loses its capitals; of a bracket the blanks around it become one.
    assert_eq!(found.context, "Baking: How to bake. Heat the oven. Then put tom's cake");
    assert_eq!(found.choices, [" in it quickly.", " out. Wait", " on top", " [a\nb]"]);
    assert_eq!(found.correct, [false, true, false, false]);

    let joined = with(&with(&value, "/ctx_a", None), "/ctx", Some(json!("A b. she C")));
    assert_eq!(good(Task::HellaSwag, joined).context, "Baking: A b. she C");
    let empty = with(&value, "/ctx_b", Some(json!("")));
    assert_eq!(good(Task::HellaSwag, empty).context, "Baking: How to bake. Heat the oven.");
    assert_eq!(
        fault(Task::HellaSwag, &with(&value, "/label", Some(json!("")))),
        "key \"label\": \"\", wanted a whole number from 0, less than 4"
    );
    let neither = with(&with(&value, "/ctx_a", None), "/ctx", None);
    assert!(fault(Task::HellaSwag, &neither).starts_with("key \"ctx_a\": not there (found "));
}

#[test]
fn a_question_of_mmlu() {
    let found = good(Task::Mmlu, mmlu());
    assert_eq!(found.context, "How many?\nA. one\nB. two\nC. three\nD. four\nAnswer:");
    assert_eq!(found.choices, [" A", " B", " C", " D"]);
    assert_eq!(found.correct, [false, false, true, false]);
    assert_eq!(found.subject.as_deref(), Some("high_school_counting"));
    assert_eq!(
        fault(Task::Mmlu, &with(&mmlu(), "/choices", Some(json!(["one"])))),
        "key \"choices\": 1 of them, wanted 4 choices"
    );
    assert_eq!(
        fault(Task::Mmlu, &with(&mmlu(), "/answer", Some(json!(4)))),
        "key \"answer\": 4, wanted a whole number from 0, less than 4"
    );
    assert_eq!(
        fault(Task::Mmlu, &with(&mmlu(), "/subject", None)),
        "key \"subject\": not there (found \"question\", \"choices\", \"answer\"), wanted a string"
    );
}

#[test]
fn a_question_of_truthfulqa() {
    let found = good(Task::TruthfulQaMc1, truthful());
    assert_eq!(found.context, "Q: Is it so?\nA:");
    assert_eq!(found.choices, [" It is.", " It is not."]);
    assert_eq!(found.correct, [true, false]);
    let found = good(Task::TruthfulQaMc2, truthful());
    assert_eq!(found.choices, [" Yes.", " It is.", " No."]);
    assert_eq!(found.correct, [true, true, false]);

    let none = with(&truthful(), "/mc2_targets/labels", Some(json!([0, 0, 0])));
    assert_eq!(
        fault(Task::TruthfulQaMc2, &none),
        "key \"mc2_targets.labels\": 0 of them are 1, wanted at least one"
    );
    let two = with(&truthful(), "/mc1_targets/labels", Some(json!([1, 1])));
    assert_eq!(
        fault(Task::TruthfulQaMc1, &two),
        "key \"mc1_targets.labels\": 2 of them are 1, wanted one"
    );
    let odd = with(&truthful(), "/mc1_targets/labels", Some(json!([1, "0"])));
    assert_eq!(
        fault(Task::TruthfulQaMc1, &odd),
        "key \"mc1_targets.labels[1]\": \"0\", wanted 0 or 1"
    );
    assert_eq!(
        fault(Task::TruthfulQaMc1, &with(&truthful(), "/mc1_targets", Some(json!([])))),
        "mc1_targets: a list, wanted an object"
    );
}

#[test]
fn a_question_of_pubmedqa() {
    let hub = json!({
        "question": "Does it help?",
        "context": {"contexts": ["It was tried.", "It worked."], "labels": ["AIM", "END"]},
        "final_decision": "maybe",
    });
    let own = json!({
        "QUESTION": "Does it help?",
        "CONTEXTS": ["It was tried.", "It worked."],
        "final_decision": "maybe",
    });
    let found = good(Task::PubMedQa, hub.clone());
    assert_eq!(
        found.context,
        "Abstract: It was tried.\nIt worked.\nQuestion: Does it help?\nAnswer:"
    );
    assert_eq!(found.choices, [" yes", " no", " maybe"]);
    assert_eq!(found.correct, [false, false, true]);
    assert_eq!(good(Task::PubMedQa, own), found);
    assert_eq!(
        fault(Task::PubMedQa, &with(&hub, "/final_decision", Some(json!("Yes")))),
        "key \"final_decision\": \"Yes\", wanted one of yes, no, maybe"
    );
    assert_eq!(
        fault(Task::PubMedQa, &with(&hub, "/context/contexts", Some(json!(["a", 1])))),
        "key \"context.contexts[1]\": a number, wanted a string"
    );
}

#[test]
fn a_question_of_medqa() {
    let endings = json!({
        "sent1": "What now?", "sent2": "", "ending0": "rest", "ending1": "salt",
        "ending2": "heat", "ending3": "ice", "label": 3,
    });
    let options = json!({
        "question": "What now?", "answer": "ice", "answer_idx": "D",
        "options": {"A": "rest", "B": "salt", "C": "heat", "D": "ice"},
    });
    let found = good(Task::MedQa, endings.clone());
    assert_eq!(found.context, "Question: What now?\nA. rest\nB. salt\nC. heat\nD. ice\nAnswer:");
    assert_eq!(found.choices, [" A", " B", " C", " D"]);
    assert_eq!(found.correct, [false, false, false, true]);
    assert_eq!(good(Task::MedQa, options.clone()), found);
    assert_eq!(
        fault(Task::MedQa, &with(&options, "/options/E", Some(json!("none")))),
        "key \"options\": 5 of them, wanted A, B, C and D"
    );
    assert!(fault(Task::MedQa, &with(&endings, "/ending2", None)).contains("\"ending2\""));
}

#[test]
fn a_question_of_medmcqa() {
    let found = good(Task::MedMcQa, medmcqa());
    assert_eq!(
        found.context,
        "Question: Which bone?\nChoices:\nA. rib\nB. ulna\nC. tibia\nD. skull\nAnswer:"
    );
    assert_eq!(found.choices, [" A", " B", " C", " D"]);
    assert_eq!(found.correct, [false, false, false, true]);
    assert_eq!(found.subject.as_deref(), Some("Anatomy"));
    assert_eq!(good(Task::MedMcQa, with(&medmcqa(), "/subject_name", None)).subject, None);
    // The test part hides its answers.
    assert_eq!(
        fault(Task::MedMcQa, &with(&medmcqa(), "/cop", Some(json!(-1)))),
        "key \"cop\": -1, wanted a whole number from 0, less than 4"
    );
    assert_eq!(fault(Task::MedMcQa, &json!([1])), "record: a list, wanted an object");
}

#[test]
fn prompts_with_examples() {
    let (shot, asked) = (good(Task::ArcEasy, arc()), good(Task::ArcEasy, arc()));
    assert_eq!(with_shots(Task::ArcEasy, None, &[], &asked), asked.context);
    assert_eq!(
        with_shots(Task::ArcEasy, None, &[shot.clone(), shot], &asked),
        "Question: Which one floats?\nAnswer: cork\n\n\
         Question: Which one floats?\nAnswer: cork\n\n\
         Question: Which one floats?\nAnswer:"
    );
    // The header once, by the subject of the question that is asked.
    let (asked, mut shot) = (good(Task::Mmlu, mmlu()), good(Task::Mmlu, mmlu()));
    shot.context = "Hm?\nAnswer:".into();
    shot.subject = None;
    let header = "The following are multiple choice questions (with answers) about high school \
                  counting.\n\n";
    assert_eq!(
        with_shots(Task::Mmlu, None, &[shot], &asked),
        format!("{header}Hm?\nAnswer: C\n\n{}", asked.context)
    );
    assert_eq!(with_shots(Task::Mmlu, None, &[], &asked), format!("{header}{}", asked.context));
    let asked = good(Task::TruthfulQaMc2, truthful());
    assert_eq!(
        with_shots(Task::TruthfulQaMc2, Some("Q: One?\nA: One."), &[], &asked),
        "Q: One?\nA: One.\n\nQ: Is it so?\nA:"
    );
}

#[test]
fn the_likeliest_and_the_likeliest_by_character() {
    let mut asked = good(Task::ArcEasy, arc());
    // stone, cork, iron: by character -0.8, -0.875, -1.
    let found = score(Task::ArcEasy, &asked, &[-4.0, -3.5, -4.0]);
    assert_eq!(found, Scored { acc: 1.0, acc_norm: Some(0.0), mc2: None, chosen: 1 });
    // Equal ones: the first.
    let found = score(Task::ArcChallenge, &asked, &[-4.0, -2.0, -2.0]);
    assert_eq!((found.acc, found.chosen), (1.0, 1));
    assert_eq!(score(Task::ArcEasy, &asked, &[-2.0, -2.0, -2.0]).chosen, 0);
    // Characters, not bytes: six of each, but twelve bytes of the second.
    asked.choices = vec![" aaaaaa".into(), " éééééé".into(), " ".into()];
    let found = score(Task::HellaSwag, &asked, &[-6.0, -6.6, -0.5]);
    assert_eq!((found.acc, found.acc_norm, found.chosen), (0.0, Some(0.0), 2));
    let found = score(Task::HellaSwag, &asked, &[-6.6, -6.0, -0.5]);
    assert_eq!(found.acc_norm, Some(1.0));
    // What is not a number is never chosen.
    let found = score(Task::MedQa, &asked, &[f64::NAN, -9.0, f64::NEG_INFINITY]);
    assert_eq!((found.acc, found.acc_norm, found.chosen), (1.0, Some(1.0), 1));
    for task in [Task::Mmlu, Task::PubMedQa, Task::TruthfulQaMc1, Task::TruthfulQaMc2] {
        assert_eq!(score(task, &asked, &[-1.0, -2.0, -3.0]).acc_norm, None, "{}", task.name());
    }
    assert!(score(Task::MedMcQa, &asked, &[-1.0, -2.0, -3.0]).acc_norm.is_some());
}

#[test]
fn the_share_of_the_true_answers() {
    let asked = good(Task::TruthfulQaMc2, truthful());
    // Probabilities 1, 2 and 5, far below what a float holds before they are made relative.
    let logprobs = [1f64, 2.0, 5.0].map(|p| p.ln() - 2000.0);
    let found = score(Task::TruthfulQaMc2, &asked, &logprobs);
    assert!((found.mc2.unwrap() - 3.0 / 8.0).abs() < 1e-9, "{found:?}");
    assert_eq!((found.acc, found.chosen), (0.0, 2));
    let asked = good(Task::TruthfulQaMc1, truthful());
    let found = score(Task::TruthfulQaMc1, &asked, &[-1.0, -2.0]);
    assert_eq!(found, Scored { acc: 1.0, acc_norm: None, mc2: None, chosen: 0 });
}

#[test]
#[should_panic(expected = "log-probabilities: 2, wanted one for each of 3 choices")]
fn a_log_probability_for_each_choice() {
    score(Task::ArcEasy, &good(Task::ArcEasy, arc()), &[-1.0, -2.0]);
}
