//! English prose from plain text and HTML, cut into prompts and what follows them; the sets of the
//! experiment with RAFT.

use crate::{Flags, instances, shuffle, write_set};
use puna::rng::Rng;
use puna::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Ends of names of the files that are read in a folder.
const SUFFIXES: [&str; 5] = ["htm", "html", "md", "text", "txt"];
/// Pages that hold a whole book again, or none of it.
const SKIPPED: [&str; 3] = ["404.html", "print.html", "toc.html"];
/// Words of the shortest paragraph.
const SHORTEST: usize = 12;
/// Words of a prompt, and of what follows it.
const PROMPT: [usize; 2] = [12, 45];
const ANSWER: [usize; 2] = [12, 60];
/// Neighbours of a text that stay on one side of a split.
const BLOCK: usize = 10;
/// Passages whose perplexity is followed while a model learns.
const WATCHED: usize = 24;
/// What a point does not end a sentence behind.
const SHORTENED: [&str; 13] =
    ["Mr", "Mrs", "Ms", "Dr", "St", "No", "vs", "etc", "cf", "e.g", "i.e", "Fig", "Vol"];

/// A piece of a text: whole sentences, and the whole sentences after them.
pub struct Passage {
    /// What comes first.
    pub prompt: String,
    /// What follows, with the blank before it.
    pub answer: String,
}

impl Passage {
    /// Both.
    pub fn whole(&self) -> String {
        format!("{}{}", self.prompt, self.answer)
    }
}

/// The paragraphs of files and folders, with a comma between paths; each once.
///
/// # Errors
/// What cannot be read; texts without prose.
pub fn paragraphs(paths: &str) -> Result<Vec<String>> {
    let mut files = vec![];
    for path in paths.split(',').filter(|path| !path.is_empty()) {
        gather(Path::new(path), true, &mut files)?;
    }
    let (mut seen, mut out) = (HashSet::new(), vec![]);
    for file in files {
        let bytes = fs::read(&file).map_err(|source| Error::io(&file, source))?;
        let text = String::from_utf8_lossy(&bytes);
        let found = if suffix(&file).starts_with("htm") { of_html(&text) } else { of_plain(&text) };
        for paragraph in found.into_iter().filter(|text| is_prose(text)) {
            if seen.insert(paragraph.clone()) {
                out.push(paragraph);
            }
        }
    }
    match out.is_empty() {
        true => Err(Error::config("text", paths, "no paragraph of English prose in it")),
        false => Ok(out),
    }
}

/// All passages of texts, in any order but for neighbours.
///
/// # Errors
/// As [`paragraphs`].
pub fn passages(paths: &str, seed: u64) -> Result<Vec<Passage>> {
    let all = paragraphs(paths)?;
    let found: Vec<Passage> = all.iter().filter_map(|text| passage(text)).collect();
    let mut blocks: Vec<Vec<Passage>> = vec![];
    for (at, one) in found.into_iter().enumerate() {
        if at % BLOCK == 0 {
            blocks.push(vec![]);
        }
        if let Some(block) = blocks.last_mut() {
            block.push(one);
        }
    }
    shuffle(&mut blocks, &mut Rng::new(seed, 1));
    Ok(blocks.into_iter().flatten().collect())
}

fn suffix(path: &Path) -> &str {
    path.extension().and_then(|end| end.to_str()).unwrap_or_default()
}

fn gather(path: &Path, named: bool, files: &mut Vec<PathBuf>) -> Result<()> {
    let io = |source| Error::io(path, source);
    if path.is_dir() {
        let mut inside = vec![];
        for entry in fs::read_dir(path).map_err(io)? {
            inside.push(entry.map_err(io)?.path());
        }
        inside.sort();
        return inside.iter().try_for_each(|path| gather(path, false, files));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if named || (SUFFIXES.contains(&suffix(path)) && !SKIPPED.contains(&name)) {
        files.push(path.to_owned());
    }
    Ok(())
}

/// The text of each `<p>` inside `<main>`, or of the whole page where there is none.
fn of_html(page: &str) -> Vec<String> {
    let main = match (page.find("<main"), page.rfind("</main>")) {
        (Some(from), Some(to)) if from < to => &page[from..to],
        _ => page,
    };
    let (mut out, mut rest) = (vec![], main);
    while let Some(at) = rest.find("<p") {
        rest = &rest[at + 2..];
        // Not <pre> or <path>.
        if !rest.starts_with(['>', ' ']) {
            continue;
        }
        let Some(open) = rest.find('>') else { break };
        let body = &rest[open + 1..];
        let end = body.find("</p>").unwrap_or(body.len());
        out.push(collapsed(&without_tags(&body[..end])));
        rest = &body[end..];
    }
    out
}

/// What empty lines stand between; in a file without them, each line.
fn of_plain(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n");
    let between = if text.contains("\n\n") { "\n\n" } else { "\n" };
    text.split(between).map(collapsed).collect()
}

fn collapsed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn without_tags(html: &str) -> String {
    let (mut out, mut rest) = (String::new(), html);
    while let Some(at) = rest.find(['<', '&']) {
        out.push_str(&rest[..at]);
        let here = &rest[at..];
        if here.starts_with('<') {
            rest = here.find('>').map_or("", |end| &here[end + 1..]);
            continue;
        }
        let end = here.find(';').filter(|&end| end < 10);
        match end.and_then(|end| Some((entity(&here[1..end])?, &here[end + 1..]))) {
            Some((sign, after)) => {
                out.push(sign);
                rest = after;
            }
            None => {
                out.push('&');
                rest = &here[1..];
            }
        }
    }
    out + rest
}

fn entity(name: &str) -> Option<char> {
    Some(match name {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    })
}

/// Whole sentences, and mostly words: no heading, list, table or program.
fn is_prose(text: &str) -> bool {
    let n = text.chars().count();
    let plain = text.chars().filter(|c| c.is_alphabetic() || *c == ' ').count();
    let begins = text.starts_with(|c: char| c.is_uppercase() || matches!(c, '"' | '“' | '‘'));
    let ends = text.ends_with(['.', '!', '?', '"', '”', '’', ')']);
    begins && ends && 100 * plain >= 85 * n && n_words(text) >= SHORTEST
}

fn n_words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// The sentences of a paragraph, by a rule: they end in a sign before a blank and a capital.
fn sentences(paragraph: &str) -> Vec<&str> {
    let signs: Vec<(usize, char)> = paragraph.char_indices().collect();
    let (mut out, mut start) = (vec![], 0);
    for (at, &(byte, sign)) in signs.iter().enumerate() {
        if !matches!(sign, '.' | '!' | '?') || byte < start {
            continue;
        }
        let closing = |c: char| matches!(c, '"' | '\'' | '”' | '’' | ')' | ']');
        let after = signs[at + 1..].iter().take_while(|(_, c)| closing(*c)).count() + at + 1;
        let (Some(&(blank, ' ')), Some(&(next, first))) = (signs.get(after), signs.get(after + 1))
        else {
            continue;
        };
        let word = paragraph[start..byte].rsplit([' ', '(']).next().unwrap_or_default();
        let shortened = SHORTENED.contains(&word) || word.chars().count() == 1;
        let begins = first.is_uppercase() || matches!(first, '"' | '“' | '‘' | '(');
        if begins && !(sign == '.' && shortened) {
            out.push(&paragraph[start..blank]);
            start = next;
        }
    }
    out.push(&paragraph[start..]);
    out
}

/// The first sentences of a paragraph up to enough words, and those after them that fit.
fn passage(paragraph: &str) -> Option<Passage> {
    let all = sentences(paragraph);
    let (mut n_prompt, mut words) = (0, 0);
    while words < PROMPT[0] {
        words += n_words(all.get(n_prompt)?);
        n_prompt += 1;
    }
    if words > PROMPT[1] {
        return None;
    }
    let (mut end, mut answer_words) = (n_prompt, 0);
    while let Some(next) = all.get(end).map(|sentence| n_words(sentence)) {
        if answer_words + next > ANSWER[1] {
            break;
        }
        answer_words += next;
        end += 1;
    }
    (answer_words >= ANSWER[0]).then(|| Passage {
        prompt: all[..n_prompt].join(" "),
        answer: format!(" {}", all[n_prompt..end].join(" ")),
    })
}

/// Questions with answers.
pub fn text2text(passages: &[Passage]) -> Vec<Value> {
    passages.iter().map(|one| json!({"input": one.prompt, "output": one.answer})).collect()
}

/// Whole texts.
pub fn text_only(passages: &[Passage]) -> Vec<Value> {
    passages.iter().map(|one| json!({"text": one.whole()})).collect()
}

fn prompts(passages: &[Passage]) -> Vec<Value> {
    passages.iter().map(|one| json!({"text": one.prompt})).collect()
}

/// The sets of the experiment with RAFT, no passage in two of them: to tune on, to make pairs for
/// the reward model from, prompts to learn from, and those to measure with.
///
/// # Errors
/// As [`passages`]; too few of them.
pub fn sets(flags: &Flags) -> Result<Value> {
    let (paths, out) = (flags.text("text")?, flags.path("out")?);
    let sizes = [
        flags.number("sft", 800)?,
        flags.number("reward", 480)?,
        flags.number("prompts", 320)?,
        flags.number("test", 128)?,
    ];
    let all = passages(paths, flags.seed()?)?;
    let (found, wanted) = (all.len(), sizes.iter().sum::<usize>());
    if found < wanted {
        let why = format!("{found} passages in it, wanted {wanted}; a longer text has more");
        return Err(Error::config("text", paths, why));
    }
    let (sft, rest) = all.split_at(sizes[0]);
    let (reward, rest) = rest.split_at(sizes[1]);
    let (asked, rest) = rest.split_at(sizes[2]);
    let test = &rest[..sizes[3]];
    write_set(&out.join("sft.json"), "text2text", &text2text(sft))?;
    write_set(&out.join("reward.json"), "text2text", &text2text(reward))?;
    write_set(&out.join("reward-prompts.json"), "text_only", &prompts(reward))?;
    write_set(&out.join("prompts.json"), "text_only", &prompts(asked))?;
    write_set(&out.join("test.json"), "text2text", &text2text(test))?;
    write_set(&out.join("test-prompts.json"), "text_only", &prompts(test))?;
    write_set(&out.join("test-text.json"), "text_only", &text_only(test))?;
    let watched = &test[..WATCHED.min(test.len())];
    write_set(&out.join("watched.json"), "text2text", &text2text(watched))?;
    let words = |part: fn(&Passage) -> &str| -> usize {
        let used = &all[..wanted];
        used.iter().map(|one| n_words(part(one))).sum::<usize>() / wanted.max(1)
    };
    Ok(json!({
        "passages found": found,
        "to tune on": sft.len(),
        "for the reward model": reward.len(),
        "prompts to learn from": asked.len(),
        "held out to measure": test.len(),
        "words of a prompt": words(|one| one.prompt.as_str()),
        "words of what follows": words(|one| one.answer.as_str()),
    }))
}

/// How often a rule that knows nothing prefers what is preferred; a tie is half a time.
fn by_rule(pairs: &[Value], value: fn(&str) -> usize) -> f64 {
    let of = |pair: &Value, key: &str| value(pair[key].as_str().unwrap_or_default());
    let right = |pair: &Value| match of(pair, "chosen").cmp(&of(pair, "rejected")) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    };
    pairs.iter().map(right).sum::<f64>() / pairs.len().max(1) as f64
}

/// Pairs for a reward model: what really follows is preferred to the model's own answer.
///
/// # Errors
/// Files that do not belong together; what the system refuses.
pub fn pairs(flags: &Flags) -> Result<Value> {
    let (path, out) = (flags.path("answers")?, flags.path("out")?);
    let real = instances(&flags.path("dataset")?)?;
    let drawn = instances(&path)?;
    if real.len() != drawn.len() {
        let what = format!("{} answers, wanted {}, one a passage", drawn.len(), real.len());
        return Err(Error::format(path, what));
    }
    let (mut all, mut empty) = (vec![], 0);
    for (at, (real, drawn)) in real.iter().zip(&drawn).enumerate() {
        if real["input"] != drawn["input"] {
            let what = format!("answer {at} is to {}, wanted {}", drawn["input"], real["input"]);
            return Err(Error::format(path, what));
        }
        let (chosen, rejected) = (&real["output"], &drawn["output"][0]);
        empty += usize::from(rejected.as_str() == Some(""));
        if chosen != rejected {
            let pair = json!({"prompt": real["input"], "chosen": chosen, "rejected": rejected});
            all.push(pair);
        }
    }
    let held_out = flags.number("held-out", 80)?.min(all.len() / 2);
    let (train, test) = all.split_at(all.len() - held_out);
    write_set(&out.join("pairs.json"), "paired_text_to_text", train)?;
    write_set(&out.join("pairs-held-out.json"), "paired_text_to_text", test)?;
    let ended = |text: &str| usize::from(text.ends_with(['.', '!', '?', '"', '”', ')']));
    Ok(json!({
        "pairs to train on": train.len(),
        "pairs held out": test.len(),
        "of both, with an empty answer": empty,
        "right by \"the longer one\"": by_rule(test, |text| text.chars().count()),
        "right by \"the one that ends a sentence\"": by_rule(test, ended),
    }))
}
