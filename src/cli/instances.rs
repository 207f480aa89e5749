//! A file of results with a line for each instance, written as they come, so that a run that was
//! interrupted can go on where it stopped.

use crate::error::{Error, Result};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// JSON lines, in the order of the instances.
pub struct Instances {
    path: PathBuf,
    file: File,
}

impl Instances {
    /// An empty file in place of what is there.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn create(path: &Path) -> Result<Instances> {
        let file = File::create(path).map_err(|source| Error::io(path, source))?;
        Ok(Instances { path: path.to_owned(), file })
    }

    /// Goes on behind the lines of the file, where there is one, and returns these. What stands
    /// behind the last line's end is half a line and is dropped. `check` hears the number of each
    /// line, from 0, and what it holds, and says what is wrong with it.
    ///
    /// # Errors
    /// What the system refuses; a line that is not JSON or that `check` does not want, by number
    /// from 1. The file is then as it was.
    pub fn resume(
        path: &Path,
        check: &mut dyn FnMut(usize, &Value) -> Result<(), String>,
    ) -> Result<(Instances, Vec<Value>)> {
        let io = |source| Error::io(path, source);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(io)?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let text = std::str::from_utf8(&bytes[..whole]).map_err(|error| {
            Error::format_at(path, error.valid_up_to() as u64, "not UTF-8, wanted JSON lines")
        })?;
        let mut lines = vec![];
        for (index, line) in text.lines().enumerate() {
            let fault = |what: String| Error::Data {
                place: format!("{}, line {}", path.display(), index + 1),
                what,
            };
            let value: Value =
                serde_json::from_str(line).map_err(|e| fault(format!("not JSON: {e}")))?;
            check(index, &value).map_err(fault)?;
            lines.push(value);
        }
        file.set_len(whole as u64).map_err(io)?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(io)?;
        Ok((Instances { path: path.to_owned(), file }, lines))
    }

    /// Writes the line of the next instance. Nothing is held back.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn write(&mut self, value: &Value) -> Result<()> {
        let line = format!("{value}\n");
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|source| Error::io(&self.path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_go_on_behind_the_last_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("each.jsonl");
        let fine = &mut |_: usize, _: &Value| Ok(());
        let (mut file, lines) = Instances::resume(&path, fine).unwrap();
        assert!(lines.is_empty(), "no file yet");
        for n in 0..3 {
            file.write(&json!({"n": n})).unwrap();
        }
        drop(file);
        let whole = std::fs::read_to_string(&path).unwrap();
        assert_eq!(whole, "{\"n\":0}\n{\"n\":1}\n{\"n\":2}\n");
        for torn in [&whole[..whole.len() - 1], &whole[..17], &whole[..16], &whole[..3], ""] {
            std::fs::write(&path, torn).unwrap();
            let (mut file, lines) = Instances::resume(&path, fine).unwrap();
            assert_eq!(lines.len(), torn.matches('\n').count());
            for n in lines.len()..3 {
                file.write(&json!({"n": n})).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{torn:?}");
        }
        Instances::create(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn a_line_that_is_not_wanted_is_named_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("each.jsonl");
        let mut wanted = |index: usize, value: &Value| match value["n"] == json!(index) {
            true => Ok(()),
            false => Err(format!("n {}, wanted {index}", value["n"])),
        };
        let cases = [
            ("{\"n\":0}\n{\"n\":7}\n{", "each.jsonl, line 2: n 7, wanted 1"),
            ("{\"n\":0}\n{\"n\"\n", "each.jsonl, line 2: not JSON"),
            ("\n", "each.jsonl, line 1: not JSON"),
        ];
        for (text, part) in cases {
            std::fs::write(&path, text).unwrap();
            let error = Instances::resume(&path, &mut wanted).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, b"\xff\n").unwrap();
        assert!(Instances::resume(&path, &mut wanted).is_err());
        assert!(Instances::create(dir.path()).is_err());
    }
}
