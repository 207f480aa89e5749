//! How varied a model's outputs are: the counts of words that published comparisons of aligned
//! models report, as GEM's metrics and RL4LMs count them.
//!
//! A word is a token of [`words`], so punctuation counts. A pair is two words in a row of one
//! output; none goes from an output to the next. Nothing is rounded here.

use super::words::words;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// Words of a window of [`Diversity::msttr_100`].
const WINDOW: usize = 100;

/// Counts over all outputs together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diversity {
    /// Mean share of different words in windows of 100, which lie one after the other in all
    /// outputs joined; the words left over at the end do not count. None without a whole window.
    pub msttr_100: Option<f64>,
    /// Different words over words. None without a word.
    pub distinct_1: Option<f64>,
    /// Different pairs over pairs. None without a pair.
    pub distinct_2: Option<f64>,
    /// Words that occur exactly once.
    pub unique_1: usize,
    /// Pairs that occur exactly once.
    pub unique_2: usize,
    /// Mean number of words of an output; 0 without an output.
    pub length: f64,
    /// Outputs.
    pub outputs: usize,
    /// Words.
    pub tokens: usize,
}

/// Counts the words of `texts`, each an output.
pub fn diversity(texts: impl Iterator<Item = impl AsRef<str>>) -> Diversity {
    // Words by number: a pair is then two numbers, however long its words are.
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut singles: Vec<usize> = vec![];
    let mut pairs: HashMap<(usize, usize), usize> = HashMap::new();
    let (mut outputs, mut tokens, mut n_pairs) = (0, 0, 0);
    let (mut window, mut filled) = (HashSet::new(), 0);
    let (mut windows, mut types) = (0, 0);
    for text in texts {
        outputs += 1;
        let mut previous = None;
        for word in words(text.as_ref()) {
            let next_number = numbers.len();
            let number = *numbers.entry(word).or_insert(next_number);
            if number == next_number {
                singles.push(0);
            }
            singles[number] += 1;
            tokens += 1;
            if let Some(previous) = previous.replace(number) {
                *pairs.entry((previous, number)).or_insert(0) += 1;
                n_pairs += 1;
            }
            window.insert(number);
            filled += 1;
            if filled == WINDOW {
                windows += 1;
                types += window.len();
                window.clear();
                filled = 0;
            }
        }
    }
    Diversity {
        msttr_100: ratio(types, windows * WINDOW),
        distinct_1: ratio(singles.len(), tokens),
        distinct_2: ratio(pairs.len(), n_pairs),
        unique_1: singles.iter().filter(|&&n| n == 1).count(),
        unique_2: pairs.values().filter(|&&n| n == 1).count(),
        length: ratio(tokens, outputs).unwrap_or(0.0),
        outputs,
        tokens,
    }
}

fn ratio(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Diversity {
    /// The counts by the names of the fields; null where there is none.
    pub fn json(&self) -> Value {
        json!({
            "msttr_100": self.msttr_100,
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
            "unique_1": self.unique_1,
            "unique_2": self.unique_2,
            "length": self.length,
            "outputs": self.outputs,
            "tokens": self.tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn counts_worked_out_by_hand() {
        let found = diversity(["The cat sat.", "the cat", "", "A the."].iter());
        // Words: the cat sat . | the cat | a the . : nine of five kinds; sat and a occur once.
        assert_eq!((found.outputs, found.tokens), (4, 9));
        assert_eq!(found.length, 9.0 / 4.0);
        assert_eq!(found.distinct_1, Some(5.0 / 9.0));
        assert_eq!(found.unique_1, 2);
        // Pairs: the-cat cat-sat sat-. | the-cat | a-the the-. : six of five kinds, four once.
        assert_eq!(found.distinct_2, Some(5.0 / 6.0));
        assert_eq!(found.unique_2, 4);
        assert_eq!(found.msttr_100, None);
    }

    #[test]
    fn nothing_has_no_shares() {
        let none: [&str; 0] = [];
        let found = diversity(none.iter());
        let zero = Diversity {
            msttr_100: None,
            distinct_1: None,
            distinct_2: None,
            unique_1: 0,
            unique_2: 0,
            length: 0.0,
            outputs: 0,
            tokens: 0,
        };
        assert_eq!(found, zero);
        assert_eq!(diversity([" ", ""].iter()), Diversity { outputs: 2, ..zero });
        let one = diversity(["word"].iter());
        assert_eq!((one.distinct_1, one.distinct_2), (Some(1.0), None));
        assert_eq!((one.unique_1, one.unique_2), (1, 0));
    }

    #[test]
    fn windows_go_on_over_outputs_and_drop_what_is_left() {
        // 60 times x, then 80 different words, then 99 times y: the windows are 60 x with the first
        // 40 words, and the other 40 with 60 y; 39 y are left over.
        let many: Vec<String> = (0..80).map(|n| format!("w{n}")).collect();
        let texts = ["x ".repeat(60), many.join(" "), "y ".repeat(99)];
        let found = diversity(texts.iter());
        assert_eq!(found.tokens, 239);
        assert_eq!(found.msttr_100, Some(82.0 / 200.0));
        // One word fewer than a window.
        assert_eq!(diversity(["x ".repeat(99)].iter()).msttr_100, None);
        assert_eq!(diversity(["x ".repeat(100)].iter()).msttr_100, Some(0.01));
    }

    #[test]
    fn counts_are_those_of_a_plain_recount() {
        let mut rng = Rng::new(5, 0);
        let texts: Vec<String> = (0..40)
            .map(|_| {
                let n = (rng.uniform() * 30.0) as usize;
                let word = |_| format!("w{}", (rng.uniform() * rng.uniform() * 50.0) as usize);
                (0..n).map(word).collect::<Vec<_>>().join(" ")
            })
            .collect();
        let found = diversity(texts.iter());
        let split: Vec<Vec<&str>> = texts.iter().map(|t| t.split_whitespace().collect()).collect();
        let all: Vec<&str> = split.iter().flatten().copied().collect();
        let pairs: Vec<&[&str]> = split.iter().flat_map(|words| words.windows(2)).collect();
        assert_eq!(found.tokens, all.len());
        let once = all.iter().filter(|a| all.iter().filter(|b| a == b).count() == 1);
        assert_eq!(found.unique_1, once.count());
        let once = pairs.iter().filter(|a| pairs.iter().filter(|b| a == b).count() == 1);
        assert_eq!(found.unique_2, once.count());
        let (mut kinds, mut kinds_of_pairs) = (all.clone(), pairs.clone());
        kinds.sort_unstable();
        kinds.dedup();
        kinds_of_pairs.sort_unstable();
        kinds_of_pairs.dedup();
        assert_eq!(found.distinct_1, Some(kinds.len() as f64 / all.len() as f64));
        assert_eq!(found.distinct_2, Some(kinds_of_pairs.len() as f64 / pairs.len() as f64));
        let shares: Vec<f64> = all
            .chunks_exact(100)
            .map(|window| {
                let mut window = window.to_vec();
                window.sort_unstable();
                window.dedup();
                window.len() as f64 / 100.0
            })
            .collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!((found.msttr_100.unwrap() - mean).abs() < 1e-12);
        assert!(shares.len() > 1);
    }

    #[test]
    fn json_has_null_for_what_is_not_there() {
        let json = diversity(["One two"].iter()).json();
        assert_eq!(json["msttr_100"], Value::Null);
        assert_eq!(json["distinct_2"], 1.0);
        assert_eq!(json["tokens"], 2);
        assert_eq!(json.as_object().map(|map| map.len()), Some(8));
    }
}
