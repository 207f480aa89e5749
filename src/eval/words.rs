//! Words of a text as the diversity measures count them: NLTK's English word tokens, lower-cased.
//!
//! NLTK's `word_tokenize` cuts a text into sentences and then applies the Treebank rules to each:
//! an ordered list of rewritings, every one of which sees what those before it left behind. They
//! are followed here in that order, since a scanner that applied them at once would differ where
//! two of them meet. The rules are those of NLTK 3.9.1. What differs from it:
//!
//! - NLTK finds the ends of sentences with Punkt and the abbreviations that it learnt. Here a
//!   question or exclamation mark before white space is an end, and so is a period, except after
//!   another period, a title (`Dr.`), a single letter other than `I`, or a short word with periods
//!   inside (`e.g.`), and except before a lower-case letter after a number (`3.`) or one of a few
//!   abbreviations (`etc.`). Closing quotes and brackets after the mark belong to the sentence. A
//!   border decides little: whether a period is split off its word, and whether a quote that opens
//!   a line opens or closes.
//! - Letters, digits and white space are those of Rust's `char`, which for a few rare signs are not
//!   Python's.
//! - Releases after 3.9.1 also split off long dashes (3.9.4 does), and 3.10 splits an opening
//!   single quote off any word. The figures that ours are compared with are older.

/// Titles and the like: a name follows, so their period never ends a sentence.
const TITLES: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "rev", "hon", "gen", "lt", "sgt", "capt", "gov", "sen",
    "vs",
];

/// Abbreviations whose period ends a sentence unless a lower-case letter follows.
const ABBREVIATIONS: &[&str] =
    &["etc", "inc", "ltd", "co", "corp", "jr", "sr", "dept", "approx", "a.m", "p.m"];

/// Words that are two for the Treebank; `wanna` only before white space.
const JOINED: &[(&str, &str)] = &[
    ("can", "not"),
    ("d", "'ye"),
    ("gim", "me"),
    ("gon", "na"),
    ("got", "ta"),
    ("lem", "me"),
    ("more", "'n"),
    ("wan", "na"),
];

/// The word tokens of `text`, lower-cased.
pub fn words(text: &str) -> Vec<String> {
    let mut words = vec![];
    for sentence in sentences(text) {
        let spaced: String = treebank(sentence).into_iter().collect();
        words.extend(spaced.split(' ').filter(|word| !word.is_empty()).map(str::to_lowercase));
    }
    words
}

/// White space as Python's regular expressions have it: the four separators of ASCII as well.
pub(super) fn is_white(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn sentences(text: &str) -> Vec<&str> {
    let mut found = vec![];
    let mut begin = 0;
    for (at, mark) in text.char_indices() {
        if !matches!(mark, '.' | '?' | '!') {
            continue;
        }
        let rest = text[at + 1..].trim_start_matches(['"', '\'', ')', ']', '}']);
        let next = rest.trim_start_matches(is_white);
        let last = next.is_empty() || next.len() == rest.len();
        if last || (mark == '.' && !period_ends(&text[begin..at], next)) {
            continue;
        }
        found.push(&text[begin..text.len() - rest.len()]);
        begin = text.len() - next.len();
    }
    found.push(&text[begin..]);
    found
}

/// Whether a period between `before` and, after white space, `next` ends a sentence.
fn period_ends(before: &str, next: &str) -> bool {
    let small_next = next.starts_with(char::is_lowercase);
    let word = before.rsplit(is_white).next().unwrap_or(before);
    let word = word.trim_start_matches(|c: char| !c.is_alphanumeric());
    let small = word.to_lowercase();
    let small = small.rsplit('-').next().unwrap_or(&small);
    if before.ends_with('.') || TITLES.contains(&small) {
        return false;
    }
    if ABBREVIATIONS.contains(&small) || small.chars().all(|c| matches!(c, '0'..='9' | '.' | ',')) {
        // The second also holds for no word at all, `(..). next`: the more careful way.
        return !small_next;
    }
    let short = |part: &str| {
        (1..=2).contains(&part.chars().count()) && part.chars().all(char::is_alphabetic)
    };
    let initial = word.chars().count() == 1 && word != "I" && short(word);
    !(initial || small.contains('.') && small.split('.').all(short))
}

/// The sentence with single spaces between its tokens, and around them.
fn treebank(sentence: &str) -> Vec<char> {
    let text: Vec<char> = sentence.chars().collect();
    let text = opening_quotes(&text);
    let text = punctuation(&final_period(text));
    let text = closing_quotes(&text);
    // The quotes of possession and omission, then the longer endings, in that order.
    let text = endings(&text, &["'s", "'S", "'m", "'M", "'d", "'D", "'"]);
    let text = endings(&text, &["'ll", "'LL", "'re", "'RE", "'ve", "'VE", "n't", "N'T"]);
    contractions(&text)
}

/// Goes over `text` from left to right. `rule` is asked at each place: it writes what is to stand
/// there and returns how many characters that replaces, 0 where it leaves them alone.
fn rewrite(text: &[char], rule: impl Fn(usize, &mut Vec<char>) -> usize) -> Vec<char> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 4);
    let mut at = 0;
    while at < text.len() {
        match rule(at, &mut out) {
            0 => {
                out.push(text[at]);
                at += 1;
            }
            n => at += n,
        }
    }
    out
}

fn push_spaced(out: &mut Vec<char>, token: &[char]) {
    out.push(' ');
    out.extend(token);
    out.push(' ');
}

/// Writes the two parts of a word as two tokens.
fn push_split(out: &mut Vec<char>, first: &[char], second: &[char]) {
    push_spaced(out, first);
    out.extend(second);
    out.push(' ');
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_at(text: &[char], at: usize) -> bool {
    text.get(at).is_some_and(|&c| is_word(c))
}

fn run(text: &[char], at: usize, wanted: impl Fn(char) -> bool) -> usize {
    text[at..].iter().take_while(|&&c| wanted(c)).count()
}

fn here(text: &[char], at: usize, wanted: &str) -> bool {
    wanted.chars().enumerate().all(|(i, c)| text.get(at + i) == Some(&c))
}

fn here_any_case(text: &[char], at: usize, wanted: &str) -> bool {
    let same = |(i, c): (usize, char)| text.get(at + i).is_some_and(|t| t.eq_ignore_ascii_case(&c));
    wanted.chars().enumerate().all(same)
}

fn opening_quotes(text: &[char]) -> Vec<char> {
    let mut text = rewrite(text, |at, out| match text[at] {
        '«' | '“' | '‘' | '„' => {
            push_spaced(out, &text[at..=at]);
            1
        }
        '`' => {
            let n = run(text, at, |c| c == '`');
            push_spaced(out, &text[at..at + n]);
            n
        }
        _ => 0,
    });
    if text.first() == Some(&'"') {
        text[0] = '`';
        text.insert(0, '`');
    }
    let text = rewrite(&text, |at, out| {
        if !here(&text, at, "``") {
            return 0;
        }
        push_spaced(out, &['`', '`']);
        2
    });
    let text = rewrite(&text, |at, out| {
        let n = match () {
            () if !matches!(text[at], ' ' | '(' | '[' | '{' | '<') => return 0,
            () if here(&text, at + 1, "\"") => 1,
            () if here(&text, at + 1, "''") => 2,
            () => return 0,
        };
        out.push(text[at]);
        push_spaced(out, &['`', '`']);
        1 + n
    });
    // A single quote before a word of one letter, unless it may be an ending such as 's.
    rewrite(&text, |at, out| {
        if text[at] != '\'' || !word_at(&text, at + 1) || word_at(&text, at + 2) {
            return 0;
        }
        let letter = text[at + 1];
        if matches!(letter.to_ascii_lowercase(), 'm' | 't' | 's' | 'd' | 'n') {
            return 0;
        }
        out.extend(['\'', ' ', letter]);
        2
    })
}

/// Splits off a period that only closing quotes, brackets and white space follow.
fn final_period(text: Vec<char>) -> Vec<char> {
    let Some(at) = text.iter().rposition(|&c| c == '.') else { return text };
    if at == 0 || text[at - 1] == '.' {
        return text;
    }
    let closers = |c: char| matches!(c, ']' | ')' | '}' | '>' | '"' | '\'' | '»' | '”' | '’' | ' ');
    let end = at + 1 + run(&text, at + 1, closers);
    if !text[end..].iter().all(|&c| is_white(c)) {
        return text;
    }
    let mut out = text[..at].to_vec();
    push_spaced(&mut out, &['.']);
    out.extend(&text[at + 1..end]);
    out.push(' ');
    out
}

/// All marks but periods and quotes.
fn punctuation(text: &[char]) -> Vec<char> {
    // The character after a comma or colon is passed over with it, as in the Treebank rules: of
    // two commas in a row, the second stays with what follows.
    let mut text = rewrite(text, |at, out| {
        let next = text.get(at + 1).filter(|c| !c.is_numeric());
        match (text[at], next) {
            (':' | ',', Some(&next)) => {
                push_spaced(out, &text[at..=at]);
                out.push(next);
                2
            }
            _ => 0,
        }
    });
    if let Some(mark) = text.pop_if(|c| matches!(*c, ':' | ',')) {
        push_spaced(&mut text, &[mark]);
    }
    let text = rewrite(&text, |at, out| {
        let n = match text[at] {
            ';' | '@' | '#' | '$' | '%' | '&' | '?' | '!' => 1,
            '.' => run(&text, at, |c| c == '.'),
            _ => 0,
        };
        if n == 0 || (n == 1 && text[at] == '.') {
            return 0;
        }
        push_spaced(out, &text[at..at + n]);
        n
    });
    let text = rewrite(&text, |at, out| {
        if text[at] == '\'' || !here(&text, at + 1, "' ") {
            return 0;
        }
        out.push(text[at]);
        push_spaced(out, &['\'']);
        3
    });
    rewrite(&text, |at, out| {
        let n = match text[at] {
            '*' | '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' => 1,
            '-' if here(&text, at, "--") => 2,
            _ => return 0,
        };
        push_spaced(out, &text[at..at + n]);
        n
    })
}

/// Closing quotes; afterwards all white space is single spaces, and the text begins and ends with
/// one.
fn closing_quotes(text: &[char]) -> Vec<char> {
    let quoted = rewrite(text, |at, out| match text[at] {
        '»' | '”' | '’' => {
            push_spaced(out, &text[at..=at]);
            1
        }
        '"' => {
            push_spaced(out, &['\'', '\'']);
            1
        }
        '\'' if here(text, at, "''") => {
            push_spaced(out, &['\'', '\'']);
            2
        }
        _ => 0,
    });
    let mut padded = vec![];
    push_spaced(&mut padded, &quoted);
    rewrite(&padded, |at, out| {
        let n = run(&padded, at, is_white);
        if n > 0 {
            out.push(' ');
        }
        n
    })
}

/// Splits one of `all` off the word that it ends.
fn endings(text: &[char], all: &[&str]) -> Vec<char> {
    rewrite(text, |at, out| {
        if matches!(text[at], '\'' | ' ') {
            return 0;
        }
        let after = |ending: &str| text.get(at + 1 + ending.len()) == Some(&' ');
        let found = all.iter().find(|ending| here(text, at + 1, ending) && after(ending));
        let Some(ending) = found else { return 0 };
        out.push(text[at]);
        push_spaced(out, &text[at + 1..at + 1 + ending.len()]);
        ending.len() + 2
    })
}

fn contractions(text: &[char]) -> Vec<char> {
    let mut text = rewrite(text, |at, out| {
        if at > 0 && is_word(text[at - 1]) {
            return 0;
        }
        for (first, second) in JOINED {
            let middle = at + first.len();
            let end = middle + second.len();
            if here_any_case(text, at, first)
                && here_any_case(text, middle, second)
                && !word_at(text, end)
                && (*first != "wan" || text.get(end).is_some_and(|&c| is_white(c)))
            {
                push_split(out, &text[at..middle], &text[middle..end]);
                return end - at;
            }
        }
        0
    });
    for word in [" 'tis", " 'twas"] {
        text = rewrite(&text, |at, out| {
            let end = at + word.len();
            if !here_any_case(&text, at, word) || word_at(&text, end) {
                return 0;
            }
            // The quote and the t, then the rest; the space in front is part of what is replaced.
            push_split(out, &text[at + 1..at + 3], &text[at + 3..end]);
            word.len()
        });
    }
    text
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
