//! Instances of a data set one at a time, so that a set may be larger than memory.
//!
//! A container's `instances` are parsed and handed over one by one; where its `type` stands after
//! them, the file is read twice. JSON lines are read line by line. What is refused, and how it is
//! named, is the same for whoever reads.

use super::parse::{Object, describe, fault};
use super::record::{Kind, Record};
use crate::error::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess};
use serde_json::Value;
use std::cell::Cell;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Bytes that are read from a file at once.
const READ_BYTES: usize = 1 << 18;

/// The files of a data set.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    files: Vec<PathBuf>,
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which file, in order of name.
    pub file: usize,
    /// Which instance of the file, from 0.
    pub index: usize,
    /// Its line, from 1, in a file of lines.
    pub line: Option<usize>,
}

/// One instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// What it holds.
    pub record: Record,
    /// Where it stands.
    pub place: Place,
    /// Bytes of all files that were read so far.
    pub bytes_read: u64,
}

impl Source {
    /// The files of the data set at `path`: itself, or every `*.json` and `*.jsonl` directly in it
    /// in order of name.
    ///
    /// # Errors
    /// What the system refuses; a directory without such files.
    pub fn open(path: &Path) -> Result<Source> {
        let io = |source| Error::io(path, source);
        let mut files = vec![];
        if fs::metadata(path).map_err(io)?.is_dir() {
            for entry in fs::read_dir(path).map_err(io)? {
                let file = entry.map_err(io)?.path();
                if (has_extension(&file, "json") || has_extension(&file, "jsonl")) && file.is_file()
                {
                    files.push(file);
                }
            }
            files.sort();
            if files.is_empty() {
                let what = "no *.json or *.jsonl file in this directory, wanted at least one";
                return Err(fault(&path.display().to_string(), what));
            }
        } else {
            files.push(path.to_owned());
        }
        Ok(Source { path: path.to_owned(), files })
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Bytes of all files together.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn total_bytes(&self) -> Result<u64> {
        let size = |file: &PathBuf| fs::metadata(file).map(|m| m.len());
        self.files.iter().try_fold(0, |sum: u64, file| {
            Ok(sum.saturating_add(size(file).map_err(|source| Error::io(file, source))?))
        })
    }

    /// The place in words: file, and instance or line.
    pub fn name(&self, place: Place) -> String {
        let file = self.files.get(place.file).unwrap_or(&self.path);
        place_name(file, place.index, place.line)
    }

    /// Hands every instance to `take`, in order; returns their type.
    ///
    /// # Errors
    /// The first error of `take`; files that cannot be read or are not JSON; types that are
    /// unknown, unsupported or mixed; records that break their type; a set without records.
    pub fn for_each(&self, take: &mut dyn FnMut(Instance) -> Result<()>) -> Result<Kind> {
        let mut known: Option<(Kind, PathBuf)> = None;
        let mut n_records = 0usize;
        let bytes_read = Rc::new(Cell::new(0));
        for (file, path) in self.files.iter().enumerate() {
            let mut agree = |kind: Kind| match &known {
                Some((first, _)) if *first == kind => Ok(()),
                Some((first, first_path)) => {
                    let what = format!(
                        "type \"{}\", wanted \"{}\" as in {}: all files must have one type",
                        kind.name(),
                        first.name(),
                        first_path.display()
                    );
                    Err(fault(&path.display().to_string(), what))
                }
                None => {
                    known = Some((kind, path.clone()));
                    Ok(())
                }
            };
            let mut hand_over = |record, index, line| {
                n_records += 1;
                let place = Place { file, index, line };
                take(Instance { record, place, bytes_read: bytes_read.get() })
            };
            if has_extension(path, "jsonl") {
                read_lines(path, &bytes_read, &mut agree, &mut hand_over)?;
            } else {
                read_object(path, &bytes_read, &mut agree, &mut hand_over)?;
            }
        }
        match known {
            Some((kind, _)) if n_records > 0 => Ok(kind),
            _ => Err(fault(&self.path.display().to_string(), "no records, wanted at least one")),
        }
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

fn place_name(file: &Path, index: usize, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{}, line {line} (instance {index})", file.display()),
        None => format!("{}, instance {index}", file.display()),
    }
}

/// Counts what is read from a file.
struct Counted {
    file: File,
    bytes_read: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        self.bytes_read.set(self.bytes_read.get() + n as u64);
        Ok(n)
    }
}

/// The file's bytes without a byte-order mark.
fn open(path: &Path, bytes_read: &Rc<Cell<u64>>) -> Result<BufReader<Counted>> {
    let io = |source| Error::io(path, source);
    let file = File::open(path).map_err(io)?;
    let counted = Counted { file, bytes_read: bytes_read.clone() };
    let mut reader = BufReader::with_capacity(READ_BYTES, counted);
    if reader.fill_buf().map_err(io)?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    Ok(reader)
}

type Agree<'a> = &'a mut dyn FnMut(Kind) -> Result<()>;
type HandOver<'a> = &'a mut dyn FnMut(Record, usize, Option<usize>) -> Result<()>;

/// One reading of an object `{"type": .., "instances": [..]}`.
struct Reading<'a> {
    path: &'a Path,
    name: &'a str,
    kind: Option<Kind>,
    saw_type: bool,
    saw_instances: bool,
    /// The instances stood before the type.
    passed_over: bool,
    agree: Agree<'a>,
    hand_over: HandOver<'a>,
    /// Our own error, which serde's cannot carry.
    error: Option<Error>,
}

impl Reading<'_> {
    fn stop<T, E: serde::de::Error>(&mut self, error: Error) -> Result<T, E> {
        let words = error.to_string();
        self.error = Some(error);
        Err(E::custom(words))
    }

    fn again<T, E: serde::de::Error>(&mut self, key: &str) -> Result<T, E> {
        self.stop(fault(self.name, format!("key \"{key}\": there twice, wanted once")))
    }
}

fn read_object(
    path: &Path,
    bytes_read: &Rc<Cell<u64>>,
    agree: Agree<'_>,
    hand_over: HandOver<'_>,
) -> Result<()> {
    let name = path.display().to_string();
    let mut kind = None;
    loop {
        let before = bytes_read.get();
        let mut reading = Reading {
            path,
            name: &name,
            kind,
            saw_type: false,
            saw_instances: false,
            passed_over: false,
            agree: &mut *agree,
            hand_over: &mut *hand_over,
            error: None,
        };
        let mut json = serde_json::Deserializer::from_reader(open(path, bytes_read)?);
        let read = json.deserialize_any(Top(&mut reading)).and_then(|()| json.end());
        if let Some(error) = reading.error {
            return Err(error);
        }
        read.map_err(|error| match error.is_io() {
            true => Error::io(path, error.into()),
            false => fault(&name, format!("not JSON: {error}")),
        })?;
        let missing = |key: &str, wanted: &str| {
            Err(fault(&name, format!("key \"{key}\" not there, wanted {wanted}")))
        };
        if !reading.saw_type {
            return missing("type", "one of the container's types");
        }
        if !reading.saw_instances {
            return missing("instances", "a list");
        }
        if !reading.passed_over {
            return Ok(());
        }
        // Once more, now that the type is known; its bytes count once.
        kind = reading.kind;
        bytes_read.set(before);
    }
}

/// What a JSON value other than the wanted one is refused with.
macro_rules! refuse_scalars {
    () => {
        fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
            self.refuse("a boolean")
        }
        fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
            self.refuse("a number")
        }
        fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
            self.refuse("a number")
        }
        fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
            self.refuse("a number")
        }
        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
            self.refuse("a string")
        }
        fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
            self.refuse("null")
        }
    };
}

/// The outermost value: an object.
struct Top<'r, 'a>(&'r mut Reading<'a>);

impl Top<'_, '_> {
    fn refuse<E: serde::de::Error>(self, found: &str) -> Result<(), E> {
        let what = format!("{found}, wanted an object with type and instances");
        let error = fault(self.0.name, what);
        self.0.stop(error)
    }
}

impl<'de> serde::de::Visitor<'de> for Top<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    refuse_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let reading = self.0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "type" if reading.saw_type => return reading.again("type"),
                "type" => {
                    reading.saw_type = true;
                    let value: Value = map.next_value()?;
                    let kind = kind_named(reading.name, &value)
                        .and_then(|kind| (reading.agree)(kind).map(|()| kind));
                    match kind {
                        Ok(kind) => reading.kind = Some(kind),
                        Err(error) => return reading.stop(error),
                    }
                }
                "instances" if reading.saw_instances => return reading.again("instances"),
                "instances" => {
                    reading.saw_instances = true;
                    match reading.kind {
                        Some(kind) => map.next_value_seed(List { reading: &mut *reading, kind })?,
                        None => {
                            map.next_value::<IgnoredAny>()?;
                            reading.passed_over = true;
                        }
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The instances: a list.
struct List<'r, 'a> {
    reading: &'r mut Reading<'a>,
    kind: Kind,
}

impl List<'_, '_> {
    fn refuse<E: serde::de::Error>(self, found: &str) -> Result<(), E> {
        let error = fault(self.reading.name, format!("key \"instances\": {found}, wanted a list"));
        self.reading.stop(error)
    }
}

impl<'de> DeserializeSeed<'de> for List<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> serde::de::Visitor<'de> for List<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    refuse_scalars!();

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let List { reading, kind } = self;
        let mut index = 0;
        while let Some(value) = list.next_element::<Value>()? {
            let place = place_name(reading.path, index, None);
            let record = Object::new(&place, "", &value).and_then(|object| object.record(kind));
            if let Err(error) = record.and_then(|record| (reading.hand_over)(record, index, None)) {
                return reading.stop(error);
            }
            index += 1;
        }
        Ok(())
    }
}

fn kind_named(place: &str, value: &Value) -> Result<Kind> {
    let Some(name) = value.as_str() else {
        return Err(fault(place, format!("key \"type\": {}, wanted a string", describe(value))));
    };
    if name == "image_text" {
        return Err(Error::Unsupported(format!("{place}: records of type image_text")));
    }
    let in_container = Kind::ALL.iter().copied().filter(|kind| *kind != Kind::Tokenized);
    in_container.clone().find(|kind| kind.name() == name).ok_or_else(|| {
        let names: Vec<&str> = in_container.map(Kind::name).collect();
        fault(place, format!("key \"type\": \"{name}\", wanted one of {}", names.join(", ")))
    })
}

/// Reads one JSON object a line; empty lines are passed over.
fn read_lines(
    path: &Path,
    bytes_read: &Rc<Cell<u64>>,
    agree: Agree<'_>,
    hand_over: HandOver<'_>,
) -> Result<()> {
    let mut reader = open(path, bytes_read)?;
    let mut line = vec![];
    let (mut number, mut index) = (0, 0);
    let mut first: Option<Kind> = None;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|source| Error::io(path, source))? == 0 {
            return Ok(());
        }
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = place_name(path, index, Some(number));
        let value: Value = serde_json::from_slice(&line).map_err(|error| {
            // serde_json counts lines inside this one line only.
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            fault(&place, format!("not JSON: {what} at column {}", error.column()))
        })?;
        let object = Object::new(&place, "", &value)?;
        let kind = object.kind_by_keys()?;
        match first {
            None => {
                agree(kind)?;
                first = Some(kind);
            }
            Some(first) if first == kind => {}
            Some(first) => {
                let what = format!(
                    "its keys are those of \"{}\", wanted \"{}\" as in the lines before",
                    kind.name(),
                    first.name()
                );
                return Err(fault(&place, what));
            }
        }
        hand_over(object.record(kind)?, index, Some(number))?;
        index += 1;
    }
}
