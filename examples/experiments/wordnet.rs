//! WordNet's files (`data.noun`, `index.noun` and so on, versions 3.0 and 3.1): words, what they
//! mean, and what is a kind of what. The format is that of the manual page wndb(5WN).

use puna::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Words of a word, at most; and of a definition.
const MAX_WORDS: usize = 3;
const DEFINITION: [usize; 2] = [4, 25];
/// Letters from which on a word in its own definition gives it away.
const TELLING: usize = 4;

/// Words of one meaning.
pub struct Synset {
    /// The words, blanks inside.
    pub words: Vec<String>,
    /// The number of its lexicographer's file: a broad topic.
    pub topic: u8,
    /// What the words mean.
    pub definition: String,
    /// Sentences with one of them.
    pub examples: Vec<String>,
    /// Its direct kinds.
    pub kinds: Vec<u32>,
}

/// A word with one meaning of it.
#[derive(Clone)]
pub struct Entry {
    /// The word.
    pub word: String,
    /// What it means.
    pub definition: String,
    /// What it may be mixed up with has the same number.
    pub group: usize,
    /// A sentence with it.
    pub example: Option<String>,
}

/// The words of one part of speech.
pub struct Part {
    /// Meanings by their place in the file.
    pub synsets: BTreeMap<u32, Synset>,
    /// Meanings of a word in small letters, the commonest first, and how many of them were met in
    /// texts.
    pub index: BTreeMap<String, (Vec<u32>, usize)>,
}

impl Part {
    /// Reads `noun`, `verb`, `adj` or `adv`.
    ///
    /// # Errors
    /// Files that are not there; a line that is none of WordNet's.
    pub fn read(dir: &Path, name: &str) -> Result<Part> {
        let (mut synsets, mut above) = (BTreeMap::new(), vec![]);
        each_line(&dir.join(format!("data.{name}")), |line| {
            let (number, synset, parents) = synset(line)?;
            synsets.insert(number, synset);
            above.extend(parents.into_iter().map(|parent| (parent, number)));
            Some(())
        })?;
        for (parent, kind) in above {
            let synset: Option<&mut Synset> = synsets.get_mut(&parent);
            if let Some(synset) = synset {
                synset.kinds.push(kind);
            }
        }
        let mut index = BTreeMap::new();
        each_line(&dir.join(format!("index.{name}")), |line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let n_pointers: usize = fields.get(3)?.parse().ok()?;
            let n_met: usize = fields.get(5 + n_pointers)?.parse().ok()?;
            let numbers = fields.get(6 + n_pointers..)?.iter();
            let numbers = numbers.map(|field| field.parse().ok()).collect::<Option<Vec<u32>>>()?;
            index.insert(plain(fields[0]), (numbers, n_met));
            Some(())
        })?;
        Ok(Part { synsets, index })
    }

    /// A meaning of a word by its number, from 1.
    ///
    /// # Errors
    /// There is none.
    pub fn sense(&self, word: &str, number: usize) -> Result<u32> {
        let found = self.index.get(word).and_then(|(all, _)| all.get(number.wrapping_sub(1)));
        found.copied().ok_or_else(|| {
            Error::config("wordnet", word, format!("wanted a word with {number} meanings"))
        })
    }

    /// All kinds of a meaning, and theirs, without itself.
    pub fn below(&self, root: u32) -> BTreeSet<u32> {
        let (mut found, mut open) = (BTreeSet::new(), vec![root]);
        while let Some(number) = open.pop() {
            let kinds = self.synsets.get(&number).map_or(&[][..], |synset| synset.kinds.as_slice());
            open.extend(kinds.iter().copied().filter(|&kind| found.insert(kind)));
        }
        found
    }

    /// Words that texts were met with, each in its commonest meaning.
    pub fn common(&self) -> Vec<Entry> {
        let of = |(word, (numbers, n_met)): (&String, &(Vec<u32>, usize))| {
            let synset = self.synsets.get(numbers.first()?).filter(|_| *n_met > 0)?;
            let word = synset.words.iter().find(|own| own.to_lowercase() == *word)?;
            synset.entry(word, usize::from(synset.topic))
        };
        self.index.iter().filter_map(of).collect()
    }
}

impl Synset {
    /// One of its words with its meaning; none where the two do not make a fair question.
    pub fn entry(&self, word: &str, group: usize) -> Option<Entry> {
        let simple = |c: char| c.is_ascii_alphabetic() || c == ' ' || c == '-';
        let n_words = word.split(' ').count();
        let n = self.definition.split(' ').count();
        if !word.chars().all(simple)
            || n_words > MAX_WORDS
            || n < DEFINITION[0]
            || n > DEFINITION[1]
        {
            return None;
        }
        let (small, own) = (self.definition.to_lowercase(), word.to_lowercase());
        let tells = |part: &str| part.len() >= TELLING && small.contains(part);
        if own.split([' ', '-']).any(tells) {
            return None;
        }
        let example = self.examples.iter().find(|text| text.to_lowercase().contains(&own));
        Some(Entry {
            word: word.to_owned(),
            definition: self.definition.clone(),
            group,
            example: example.cloned(),
        })
    }
}

/// Hands over the lines after the licence; one that `take` does not want is a fault.
fn each_line(path: &Path, mut take: impl FnMut(&str) -> Option<()>) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
        if !line.starts_with(' ') && take(line).is_none() {
            let what = format!("line {}: none of WordNet's, wanted as in wndb(5WN)", number + 1);
            return Err(Error::format(path, what));
        }
    }
    Ok(())
}

/// A word as it is written: blanks inside, no mark of an adjective's place.
fn plain(word: &str) -> String {
    let word = word.split_once('(').map_or(word, |(word, _)| word);
    word.replace('_', " ")
}

/// Number, meaning, and what it is a kind of.
fn synset(line: &str) -> Option<(u32, Synset, Vec<u32>)> {
    let (head, gloss) = line.split_once(" | ")?;
    let fields: Vec<&str> = head.split_whitespace().collect();
    let number = fields.first()?.parse().ok()?;
    let topic = fields.get(1)?.parse().ok()?;
    let n_words = usize::from_str_radix(fields.get(3)?, 16).ok()?;
    let words = (0..n_words).map(|at| fields.get(4 + 2 * at).map(|word| plain(word)));
    let words = words.collect::<Option<Vec<String>>>()?;
    let first = 4 + 2 * n_words;
    let n_pointers: usize = fields.get(first)?.parse().ok()?;
    let pointers = fields.get(first + 1..first + 1 + 4 * n_pointers)?.chunks(4);
    let parents = pointers.filter(|pointer| pointer[0] == "@");
    let parents = parents.map(|pointer| pointer[1].parse().ok()).collect::<Option<Vec<u32>>>()?;
    let (definition, examples) = gloss_parts(gloss.trim());
    Some((number, Synset { words, topic, definition, examples, kinds: vec![] }, parents))
}

/// The definition, without a label in parentheses before it, and the sentences after it.
fn gloss_parts(gloss: &str) -> (String, Vec<String>) {
    let end = gloss.find("; \"").unwrap_or(gloss.len());
    let (definition, rest) = gloss.split_at(end);
    let label = definition.strip_prefix('(').and_then(|rest| rest.split_once(") "));
    let definition = label.map_or(definition, |(_, definition)| definition);
    let examples = rest.split('"').skip(1).step_by(2);
    let examples = examples.filter(|text| !text.is_empty()).map(str::to_owned).collect();
    (definition.trim().to_owned(), examples)
}
