//! A data set made ready for training: read as a stream, tokenised in parallel, laid out as rows,
//! kept in a file that a second run finds again.
//!
//! ```text
//! key = SHA-256(form and meaning of rows, data files, tokenizer, template, options)
//! no valid file of that key: for each batch of instances, in order:
//!     render on all threads -> cut -> arrange -> append to the file
//! ```
//!
//! What is in a row depends on data and options alone, not on threads or on batches.

use super::cache::{self, Key, Reader};
use super::layout::{Layout, TruncationSide};
use super::render::Rules;
use super::rows::Row;
use super::source::Source;
use super::tokenize::Builder;
use crate::error::{Error, Result};
use crate::text::{ChatTemplate, TextParts};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The block size where none is asked for and the model could take more.
const DEFAULT_BLOCK_SIZE: usize = 1024;

/// How many instances are held back from training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Holdout {
    /// This many in a hundred, rounded, at least one.
    Percent(f64),
    /// This many.
    Count(usize),
}

/// How a data set becomes rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DataOptions {
    /// What is written around texts, and what is scored.
    pub rules: Rules,
    /// How documents become rows.
    pub layout: Layout,
    /// Longest row; `None`: the model's maximum, but no more than 1024.
    pub block_size: Option<usize>,
    /// A block size above the model's maximum is lowered to it.
    pub truncate_to_model_max_length: bool,
    /// Which end of a too long document is lost.
    pub truncation_side: TruncationSide,
    /// Documents that [`Layout::Group`] concatenates.
    pub group_texts_batch_size: usize,
    /// [`Layout::Group`] drops what is left over short of a block.
    pub drop_remainder: bool,
    /// Leave out and count instances that there is nothing to train on in.
    pub skip_bad_instances: bool,
    /// Instances held back, chosen by `seed`.
    pub holdout: Option<Holdout>,
    /// Chooses the instances that are held back.
    pub seed: u64,
    /// Where the rows are kept; `None`: `puna/rows` in the user's cache directory.
    pub cache_dir: Option<PathBuf>,
    /// Where the rows are kept when the user has no cache directory.
    pub output_dir: Option<PathBuf>,
    /// Make the rows again even if they are there.
    pub overwrite_cache: bool,
}

impl Default for DataOptions {
    fn default() -> Self {
        DataOptions {
            rules: Rules::default(),
            layout: Layout::Packed,
            block_size: None,
            truncate_to_model_max_length: true,
            truncation_side: TruncationSide::Right,
            group_texts_batch_size: 1000,
            drop_remainder: false,
            skip_bad_instances: false,
            holdout: None,
            seed: 0,
            cache_dir: None,
            output_dir: None,
            overwrite_cache: false,
        }
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The data is hashed to look for rows that are there already.
    Hashing,
    /// Instances are counted, to choose those that are held back.
    Counting,
    /// Instances become rows.
    Tokenizing,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of the data that are done with.
    pub done_bytes: u64,
    /// Bytes of all data files.
    pub total_bytes: u64,
    /// Instances so far; 0 while hashing.
    pub instances: u64,
}

/// What became of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Type of the records, by LMFlow's name.
    pub kind: String,
    /// Longest row that was allowed; 0 for tokenised records, which are never cut.
    pub block_size: usize,
    /// Instances read.
    pub instances: u64,
    /// Of these left out, as there was nothing to train on in them.
    pub skipped: u64,
    /// Place and reason of the first of them.
    pub skipped_first: Vec<String>,
    /// Of these held back.
    pub held_out_instances: u64,
    /// Documents in the rows: instances, or their pieces.
    pub documents: u64,
    /// Instances that were too long and are in the rows in several pieces.
    pub split: u64,
    /// Instances that were too long and lost an end.
    pub truncated: u64,
    /// Tokens that they lost.
    pub truncated_tokens: u64,
    /// Tokens that were dropped with the remainders of groups.
    pub dropped_tokens: u64,
    /// Rows to train on.
    pub rows: u64,
    /// Rows held back.
    pub held_out_rows: u64,
    /// Rows of both without a target (groups cut inside a prompt).
    pub rows_without_targets: u64,
    /// Longest instance, in tokens, before it was cut.
    pub longest: u64,
    /// What the user should know, a sentence each.
    pub warnings: Vec<String>,
    /// The rows were there already; nothing was tokenised.
    #[serde(skip)]
    pub cache_hit: bool,
}

/// What stands beside the rows in their file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Notes {
    pub(super) report: Report,
    /// Number of the first instance of each file.
    pub(super) firsts: Vec<u64>,
    pub(super) n_tokens: u64,
    pub(super) n_scored: u64,
}

/// Rows on disk, read by index. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RowSet {
    reader: Arc<Reader>,
    n_tokens: u64,
    n_scored: u64,
    files: Arc<[PathBuf]>,
    firsts: Arc<[u64]>,
}

impl RowSet {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.reader.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of all rows.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Targets of all rows.
    pub fn n_scored(&self) -> u64 {
        self.n_scored
    }

    /// A row, read from the file.
    ///
    /// # Errors
    /// [`Error::Shape`] beyond the last row; a failing read; a file that changed meanwhile.
    pub fn row(&self, index: usize) -> Result<Row> {
        self.reader.row(index)
    }

    /// Where an instance of [`Row::source`] stands: its file and its number there.
    pub fn place(&self, instance: u32) -> String {
        let instance = u64::from(instance);
        let file = self.firsts.partition_point(|&first| first <= instance).saturating_sub(1);
        match (self.files.get(file), self.firsts.get(file)) {
            (Some(path), Some(first)) => {
                format!("{}, instance {}", path.display(), instance - first)
            }
            _ => format!("instance {instance}"),
        }
    }
}

/// A data set as rows.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Rows to train on.
    pub train: RowSet,
    /// Rows held back, of instances that no row of `train` holds anything of.
    pub held_out: Option<RowSet>,
    /// What became of the data.
    pub report: Report,
}

/// The rows of the data set at `path`, made now or found in the cache. `text` may be absent for
/// tokenised records only; `model_max_len` is the model's longest context.
///
/// # Errors
/// What [`Source`] refuses; kinds that are not trained on; options that cannot be used; an instance
/// with nothing to train on (unless these are skipped), ids beyond `vocab_size` and what the
/// tokenizer refuses, by file and instance; a set of which nothing is left; a cache that cannot be
/// written.
pub fn prepare(
    path: &Path,
    text: Option<&TextParts>,
    vocab_size: usize,
    model_max_len: usize,
    options: &DataOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared> {
    check(options, vocab_size)?;
    let (block_size, warning) = block_size(options, model_max_len)?;
    let source = Source::open(path)?;
    let total_bytes = source.total_bytes()?;
    let settings = format!(
        "{:?} {block_size} {model_max_len} {vocab_size} {:?} {:?} {} {} {} {:?} {}",
        options.rules,
        options.layout,
        options.truncation_side,
        options.group_texts_batch_size,
        options.drop_remainder,
        options.skip_bad_instances,
        options.holdout,
        options.holdout.map_or(0, |_| options.seed),
    );
    let key = key(&source, text, options, &settings, total_bytes, progress)?;
    let dir = cache_dir(options)?;
    let name = cache::hex(&key);
    let paths = [dir.join(format!("{name}.rows")), dir.join(format!("{name}.heldout.rows"))];
    let with_held_out = options.holdout.is_some();
    if !options.overwrite_cache
        && let Some(found) = open(&source, &paths, &key, with_held_out, true)
    {
        return Ok(found);
    }
    let plan = Plan { text, vocab_size, model_max_len, block_size, warning, options, total_bytes };
    Builder::new(&source, &plan, &paths, key, progress)?.build()?;
    open(&source, &paths, &key, with_held_out, false).ok_or_else(|| {
        Error::format(&paths[0], "the rows that were just written cannot be read back")
    })
}

/// All that decides the rows.
pub(super) struct Plan<'a> {
    pub(super) text: Option<&'a TextParts>,
    pub(super) vocab_size: usize,
    pub(super) model_max_len: usize,
    pub(super) block_size: usize,
    /// What to say about the block size.
    pub(super) warning: Option<String>,
    pub(super) options: &'a DataOptions,
    pub(super) total_bytes: u64,
}

fn check(options: &DataOptions, vocab_size: usize) -> Result<()> {
    if vocab_size == 0 || i32::try_from(vocab_size).is_err() {
        return Err(Error::config("vocab_size", vocab_size, "wanted 1 to 2^31 - 1"));
    }
    if options.group_texts_batch_size == 0 {
        return Err(Error::config("group_texts_batch_size", 0, "wanted at least 1"));
    }
    match options.holdout {
        Some(Holdout::Count(0)) => Err(Error::config("holdout", 0, "wanted at least 1 instance")),
        Some(Holdout::Percent(p)) if !(p > 0.0 && p < 100.0) => {
            Err(Error::config("holdout", p, "wanted more than 0 and less than 100 percent"))
        }
        _ => Ok(()),
    }
}

/// The block size, and what to say about it.
fn block_size(options: &DataOptions, model_max_len: usize) -> Result<(usize, Option<String>)> {
    let (size, warning) = match options.block_size {
        None if model_max_len > DEFAULT_BLOCK_SIZE => (
            DEFAULT_BLOCK_SIZE,
            Some(format!(
                "block_size not given: {DEFAULT_BLOCK_SIZE} is used; the model takes up to {model_max_len}"
            )),
        ),
        None => (model_max_len, None),
        Some(asked) if asked > model_max_len && options.truncate_to_model_max_length => (
            model_max_len,
            Some(format!("block_size {asked} is lowered to the model's maximum {model_max_len}")),
        ),
        Some(asked) => (asked, None),
    };
    match size {
        0 | 1 => Err(Error::config("block_size", size, "wanted at least 2")),
        size if u32::try_from(size).is_err() => {
            Err(Error::config("block_size", size, "wanted less than 2^32"))
        }
        size => Ok((size, warning)),
    }
}

/// SHA-256 over everything that the rows depend on.
fn key(
    source: &Source,
    text: Option<&TextParts>,
    options: &DataOptions,
    settings: &str,
    total_bytes: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Key> {
    let mut hash = Sha256::new();
    // Each part with its length, so that no two lists of parts are the same bytes.
    let part = |hash: &mut Sha256, bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(&mut hash, &cache::VERSION.to_le_bytes());
    part(&mut hash, settings.as_bytes());
    if let Some(text) = text {
        part(&mut hash, text.tokenizer.fingerprint()?.as_bytes());
        let name = options.rules.conversation_template.as_deref();
        // A name that cannot be resolved is an error for conversations only, later.
        let template = ChatTemplate::resolve(name, text.template.clone());
        part(&mut hash, template.map_or_else(|_| String::new(), |t| t.identity()).as_bytes());
    }
    let mut done_bytes = 0;
    let mut bytes = vec![0; 1 << 20];
    for path in source.files() {
        let io = |source| Error::io(path, source);
        part(&mut hash, path.file_name().unwrap_or_default().as_encoded_bytes());
        let mut file = File::open(path).map_err(io)?;
        let mut content = Sha256::new();
        loop {
            let n = file.read(&mut bytes).map_err(io)?;
            if n == 0 {
                break;
            }
            content.update(&bytes[..n]);
            done_bytes += n as u64;
            progress(Progress { stage: Stage::Hashing, done_bytes, total_bytes, instances: 0 });
        }
        part(&mut hash, &content.finalize());
    }
    Ok(hash.finalize().into())
}

/// The directory of the cache, made where it is not there.
fn cache_dir(options: &DataOptions) -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let choices = cache_choices(options, variable("XDG_CACHE_HOME"), variable("HOME"));
    let mut refused =
        Error::config("cache_dir", "not given", "neither XDG_CACHE_HOME nor HOME is set");
    for dir in choices {
        // A directory that is there may still refuse files: try with one.
        match fs::create_dir_all(&dir).and_then(|()| probe(&dir)) {
            Ok(()) => return Ok(dir),
            Err(source) => refused = Error::io(dir, source),
        }
    }
    Err(refused)
}

/// Where the cache may be, best first.
fn cache_choices(
    options: &DataOptions,
    xdg_cache_home: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Vec<PathBuf> {
    if let Some(dir) = &options.cache_dir {
        return vec![dir.clone()];
    }
    // By its specification a relative XDG_CACHE_HOME is as good as none.
    let absolute = |dir: Option<PathBuf>| dir.filter(|dir| dir.is_absolute());
    let users = absolute(xdg_cache_home).or_else(|| Some(absolute(home)?.join(".cache")));
    let users = users.map(|dir| dir.join("puna").join("rows"));
    users.into_iter().chain(options.output_dir.clone()).collect()
}

/// Whether a file can be made in a directory.
fn probe(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".probe.{}", std::process::id()));
    File::create(&path)?;
    fs::remove_file(&path)
}

/// The rows of a key, if they are there whole.
fn open(
    source: &Source,
    paths: &[PathBuf; 2],
    key: &Key,
    with_held_out: bool,
    cache_hit: bool,
) -> Option<Prepared> {
    let files: Arc<[PathBuf]> = source.files().into();
    let set = |path: &Path| {
        let reader = Reader::open(path, key)?;
        let notes: Notes = serde_json::from_slice(reader.notes()).ok()?;
        let set = RowSet {
            reader: Arc::new(reader),
            n_tokens: notes.n_tokens,
            n_scored: notes.n_scored,
            files: files.clone(),
            firsts: notes.firsts.into(),
        };
        Some((set, notes.report))
    };
    let (train, report) = set(&paths[0])?;
    let held_out = match with_held_out {
        true => Some(set(&paths[1])?.0),
        false => None,
    };
    Some(Prepared { train, held_out, report: Report { cache_hit, ..report } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_user_keeps_caches_or_else_beside_the_output() {
        let path = |path: &str| Some(PathBuf::from(path));
        let options = DataOptions { output_dir: path("out"), ..DataOptions::default() };
        let cases = [
            (path("/x"), path("/h"), vec!["/x/puna/rows", "out"]),
            (path("x"), path("/h"), vec!["/h/.cache/puna/rows", "out"]),
            (None, path("/h"), vec!["/h/.cache/puna/rows", "out"]),
            (path(""), None, vec!["out"]),
        ];
        for (xdg, home, wanted) in cases {
            let wanted: Vec<PathBuf> = wanted.into_iter().map(PathBuf::from).collect();
            assert_eq!(cache_choices(&options, xdg, home), wanted);
        }
        let asked = DataOptions { cache_dir: path("c"), ..options };
        assert_eq!(cache_choices(&asked, path("/x"), path("/h")), [PathBuf::from("c")]);
    }

    #[test]
    fn a_directory_that_takes_no_files_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let options = DataOptions { cache_dir: Some(file.join("rows")), ..DataOptions::default() };
        let error = cache_dir(&options).unwrap_err().to_string();
        assert!(error.contains("file/rows"), "{error}");
        let options = DataOptions { cache_dir: Some(dir.path().join("a/b")), ..options };
        assert_eq!(cache_dir(&options).unwrap(), dir.path().join("a/b"));
        assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 0);
    }
}
