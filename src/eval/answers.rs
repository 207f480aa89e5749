//! Answers taken out of what a model wrote, and compared with the right ones, as LMFlow does.
//!
//! LMFlow's rules are loose: a letter counts inside a word, a minus between two numbers is a sign,
//! an opening parenthesis spoils a yes. They are kept to the letter all the same, since a score is
//! worth something only beside other scores that were counted in the same way. Two things differ:
//! digits are those of ASCII (Python's are those of every script), and for `last_letters` LMFlow
//! goes on to cut the answer to a length that it never sets and so ends with nothing; here the
//! answer stands.

use super::words::is_white;

/// How the answer stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerType {
    /// The last number, rounded.
    Gsm8k,
    /// The last number, rounded.
    Svamp,
    /// The last number.
    Asdiv,
    /// The last number.
    Addsub,
    /// The last number.
    Singleeq,
    /// The last number.
    Multiarith,
    /// The last number.
    Math,
    /// The last capital letter from A to E.
    MultipleChoice,
    /// The last capital letter from A to E.
    Aqua,
    /// The last capital letter from A to E.
    Csqa,
    /// The last yes or no.
    Strategyqa,
    /// The last yes or no.
    CoinFlip,
    /// All of the text but quotes, points and white space.
    LastLetters,
    /// The first yes, no or maybe.
    BinaryChoice,
    /// The first yes, no or maybe.
    Pubmedqa,
    /// The first letter from A to D.
    Medmcqa,
    /// The first letter from A to D, after fewer key words.
    Usmle,
    /// The text as it is.
    Text,
}

use AnswerType as T;

/// Every type, in the order of [`AnswerType::NAMES`].
const ALL: [AnswerType; 18] = [
    T::Gsm8k,
    T::Svamp,
    T::Asdiv,
    T::Addsub,
    T::Singleeq,
    T::Multiarith,
    T::Math,
    T::MultipleChoice,
    T::Aqua,
    T::Csqa,
    T::Strategyqa,
    T::CoinFlip,
    T::LastLetters,
    T::BinaryChoice,
    T::Pubmedqa,
    T::Medmcqa,
    T::Usmle,
    T::Text,
];

/// What stands before `: ` and an answer.
const KEYS: &[&str] = &["answer", "Answer", "ANSWER", "output", "Output", "OUTPUT", "A"];
const USMLE_KEYS: &[&str] = &["Answer", "Output", "A"];

/// The words that answer, in the only cases that count.
const YES_NO_MAYBE: &[&str] = &["yes", "Yes", "YES", "no", "No", "NO", "maybe", "Maybe", "MAYBE"];

/// What stands for an answer where a text has none.
const NONE: &str = "N/A";

impl AnswerType {
    /// LMFlow's names of all types.
    pub const NAMES: &'static [&'static str] = &[
        "gsm8k",
        "svamp",
        "asdiv",
        "addsub",
        "singleeq",
        "multiarith",
        "math",
        "multiple_choice",
        "aqua",
        "csqa",
        "strategyqa",
        "coin_flip",
        "last_letters",
        "binary_choice",
        "pubmedqa",
        "medmcqa",
        "usmle",
        "text",
    ];

    /// The type of that name.
    pub fn named(name: &str) -> Option<AnswerType> {
        ALL.iter().zip(Self::NAMES).find(|(_, other)| **other == name).map(|(kind, _)| *kind)
    }

    /// LMFlow's name of the type.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The answer in `text`. Where there is none it is empty, or `N/A` for the types that look for
    /// the first yes, no, maybe or letter.
    pub fn extract(self, text: &str) -> String {
        match self {
            T::Gsm8k | T::Svamp => rounded(&last_number(text)),
            T::Asdiv | T::Addsub | T::Singleeq | T::Multiarith | T::Math => last_number(text),
            T::MultipleChoice | T::Aqua | T::Csqa => {
                let last = text.chars().rfind(|c| ('A'..='E').contains(c));
                last.map(String::from).unwrap_or_default()
            }
            T::Strategyqa | T::CoinFlip => last_yes_no(text),
            T::LastLetters => {
                text.chars().filter(|&c| !matches!(c, '"' | '\'' | '.') && !is_white(c)).collect()
            }
            T::BinaryChoice | T::Pubmedqa => first_yes_no_maybe(text),
            T::Medmcqa => first_letter(text, KEYS),
            T::Usmle => first_letter(text, USMLE_KEYS),
            T::Text => text.to_owned(),
        }
    }

    /// Whether `answer`, an extracted one, is the answer `wanted` of the data set, which nothing is
    /// extracted from: white space around it does not count.
    pub fn matches(self, answer: &str, wanted: &str) -> bool {
        match self {
            T::Strategyqa | T::CoinFlip | T::Pubmedqa | T::BinaryChoice | T::Medmcqa | T::Usmle => {
                answer.to_lowercase() == wanted.trim().to_lowercase()
            }
            // A text is not trimmed when it is extracted, so it may also equal the whole.
            T::Text => answer == wanted || answer == wanted.trim(),
            _ => answer == wanted.trim(),
        }
    }
}

/// The last number, commas inside numbers left out, without a point at its end. A minus before a
/// digit is its sign, also where it stands between two numbers.
fn last_number(text: &str) -> String {
    let text = text.replace(',', "");
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut last = 0..0;
    let mut at = 0;
    while at < bytes.len() {
        let first = at + usize::from(bytes[at] == b'-');
        let whole = digits(first);
        if whole == 0 {
            at += 1;
            continue;
        }
        let mut end = first + whole;
        if bytes.get(end) == Some(&b'.') {
            end += 1 + digits(end + 1);
        }
        last = at..end;
        at = end;
    }
    let number = &text[last];
    number.strip_suffix('.').unwrap_or(number).to_owned()
}

/// The number as an integer, halves to the even one as Python rounds; nothing for what is no
/// finite number.
fn rounded(number: &str) -> String {
    match number.parse::<f64>().map(f64::round_ties_even) {
        // No sign for a zero.
        Ok(0.0) => "0".into(),
        Ok(value) if value.is_finite() => format!("{value:.0}"),
        _ => String::new(),
    }
}

fn last_yes_no(text: &str) -> String {
    let text = text.to_lowercase();
    let between = |c: char| is_white(c) || matches!(c, '"' | '\'' | '.' | ':' | ',');
    let last = text.split(between).rfind(|word| matches!(*word, "yes" | "no"));
    last.unwrap_or_default().to_owned()
}

/// What follows each `: ` that one of `keys` stands before.
fn after_keys<'a>(text: &'a str, keys: &[&str]) -> impl Iterator<Item = &'a str> {
    let colons = text.match_indices(": ");
    let keyed = colons.filter(move |(at, _)| keys.iter().any(|key| text[..*at].ends_with(*key)));
    keyed.map(move |(at, colon)| &text[at + colon.len()..])
}

/// Whether a word may end before `rest`: only a point or white space tells, the end of the text
/// does not.
fn ends_word(rest: &str) -> bool {
    rest.starts_with(|c: char| c == '.' || is_white(c))
}

fn first_yes_no_maybe(text: &str) -> String {
    for rest in after_keys(text, KEYS) {
        let word = rest.trim_start_matches('(');
        if let Some(found) = YES_NO_MAYBE.iter().find(|form| word.starts_with(**form)) {
            // Parentheses before the word stay, and make the answer one that nothing matches.
            // LMFlow's scores count such an answer as wrong, so ours do.
            return rest[..rest.len() - word.len() + found.len()].to_lowercase();
        }
    }
    // No border is asked for in front: the `no` of `piano.` counts.
    for (at, _) in text.char_indices() {
        for form in YES_NO_MAYBE {
            if text[at..].strip_prefix(*form).is_some_and(ends_word) {
                return form.to_lowercase();
            }
        }
    }
    NONE.into()
}

fn is_choice(c: char) -> bool {
    matches!(c, 'A'..='D' | 'a'..='d')
}

fn first_letter(text: &str, keys: &[&str]) -> String {
    for rest in after_keys(text, keys) {
        // Any word that begins with such a letter counts, as `because` does.
        let first = rest.trim_start_matches('(').chars().next();
        if let Some(letter) = first.filter(|&c| is_choice(c)) {
            return letter.to_ascii_lowercase().to_string();
        }
    }
    for (at, letter) in text.char_indices().filter(|&(_, c)| is_choice(c)) {
        if ends_word(text[at + 1..].trim_start_matches(')')) {
            // LMFlow takes the second character of what it found if that has a parenthesis, which
            // after two of them is the second of these.
            let answer = if text[..at].ends_with("((") { '(' } else { letter };
            return answer.to_ascii_lowercase().to_string();
        }
    }
    NONE.into()
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
