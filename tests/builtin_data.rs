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
        assert!(known.len() >= 4, "{input}");
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
fn always_naming_the_first_or_the_last_one_answers_at_most_half() {
    for (name, most) in [("train.json", 0.5), ("heldout.json", 0.5)] {
        let set = pairs(name);
        for first in [true, false] {
            let right = set.iter().filter(|(input, output)| guess(input, first) == *output);
            let share = right.count() as f64 / set.len() as f64;
            assert!(share <= most, "{name}, first {first}: {share}");
        }
    }
}

/// The answer that would fit the first (or the last) one of whom something of the kind is said.
fn guess(input: &str, first: bool) -> String {
    let statements: Vec<Vec<&str>> = input
        .trim_start_matches("Q: ")
        .split(". ")
        .map(|statement| statement.split(' ').collect())
        .collect();
    let (question, statements) = statements.split_last().unwrap();
    let has = |words: &&Vec<&str>| words[1] == "has";
    let take = |list: Vec<&Vec<&str>>| -> Vec<String> {
        let one = if first { list.first() } else { list.last() };
        one.unwrap().iter().map(|word| (*word).to_owned()).collect()
    };
    let owner = take(statements.iter().filter(has).collect());
    match question[0] {
        "Who" => format!(" {}", owner[0]),
        "What" if question[1] == "color" => format!(" {}", owner[3]),
        "What" => format!(" a {}", owner[4]),
        _ => {
            let placed = take(statements.iter().filter(|words| words[1] == "is").collect());
            format!(" in the {}", placed[4])
        }
    }
}
