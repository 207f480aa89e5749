//! The question-and-answer set of the built-in model: well-formed, and held out in earnest.

use puna::data::{Kind, Record, read};
use std::collections::BTreeSet;
use std::path::Path;

fn pairs(name: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("builtin/qa").join(name);
    let set = read(&path).unwrap();
    assert_eq!(set.kind, Kind::Text2Text);
    let pair = |record| match record {
        Record::Text2Text { input, output } => (input, output),
        other => panic!("{name}: {other:?}"),
    };
    set.records.into_iter().map(pair).collect()
}

/// What the statements before a question say: (who, what), (color, what), (who, where).
fn facts(input: &str) -> BTreeSet<(String, String)> {
    let mut facts = BTreeSet::new();
    let (statements, question) = input.trim_start_matches("Q: ").rsplit_once(". ").unwrap();
    assert!(question.ends_with("?\nA:"), "{input}");
    for words in statements.split(". ").map(|s| s.split(' ').collect::<Vec<_>>()) {
        match words[..] {
            [who, "has", "a", color, what] => {
                facts.insert((who.to_owned(), what.to_owned()));
                facts.insert((color.to_owned(), what.to_owned()));
            }
            [who, "is", "in", "the", place] => {
                facts.insert((who.to_owned(), place.to_owned()));
            }
            _ => panic!("{input}"),
        }
    }
    facts
}

#[test]
fn answers_stand_in_the_statements_and_nothing_held_out_is_trained_on() {
    let (train, heldout) = (pairs("train.json"), pairs("heldout.json"));
    assert!(train.len() >= 600 && (100..=200).contains(&heldout.len()));
    for (input, output) in train.iter().chain(&heldout) {
        let last = output.split(' ').next_back().unwrap();
        let known = facts(input);
        assert!(known.len() >= 2, "{input}");
        let stands = known.iter().any(|(a, b)| a == last || b == last);
        assert!(output.starts_with(' ') && stands, "{input}{output}");
    }
    let all = |set: &[(String, String)]| -> BTreeSet<_> {
        set.iter().flat_map(|(input, _)| facts(input)).collect()
    };
    let (known, held) = (all(&train), all(&heldout));
    assert!(known.len() > 400 && held.len() > 100);
    let shared: Vec<_> = known.intersection(&held).collect();
    assert!(shared.is_empty(), "{shared:?}");
}

#[test]
fn always_taking_the_same_word_of_the_statements_answers_at_most_half() {
    for name in ["train.json", "heldout.json"] {
        let pairs = pairs(name);
        // The name, the color, the thing, the place: where they stand in a question's statements.
        for place in [1, 4, 5, 10] {
            let word = |input: &str| {
                let word = input.split_whitespace().nth(place).unwrap_or_default();
                word.trim_end_matches('.').to_owned()
            };
            let right = pairs.iter().filter(|(input, output)| {
                output.split(' ').next_back() == Some(word(input).as_str())
            });
            let share = right.count() as f64 / pairs.len() as f64;
            assert!(share <= 0.5, "{name}: word {place} answers {share:.2}");
        }
    }
}
