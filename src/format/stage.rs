//! Output that appears whole or not at all: written under a temporary name beside its place,
//! synced, renamed. What is dropped before its `commit` is removed.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Makes the names in a directory durable. Systems that cannot open a directory need no such call.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = File::open(dir).and_then(|file| file.sync_all());
        synced.map_err(|source| Error::io(dir, source))?;
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A hidden name beside `path` that belongs to this process.
fn beside(path: &Path, ending: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        Error::io(path, std::io::Error::new(ErrorKind::InvalidInput, "not a name to write to"))
    })?;
    let name = format!(".{}.{}.{ending}", name.to_string_lossy(), std::process::id());
    Ok(path.with_file_name(name))
}

/// Refuses a path at which something is.
///
/// # Errors
/// [`Error::Io`] of kind `AlreadyExists`.
pub fn refuse_existing(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) => {
            let what = "is there already; --overwrite replaces it";
            Err(Error::io(path, std::io::Error::new(ErrorKind::AlreadyExists, what)))
        }
        Err(_) => Ok(()),
    }
}

/// A file being written.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` once committed.
    file: Option<BufWriter<File>>,
}

impl StagedFile {
    /// Begins a file that will be called `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<StagedFile> {
        let temporary = beside(path, "tmp")?;
        let file = File::create(&temporary).map_err(|source| Error::io(path, source))?;
        let file = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(StagedFile { path: path.to_path_buf(), temporary, file })
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::Io`], a full disk for one.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(|source| Error::io(&self.path, source)),
            None => Ok(()),
        }
    }

    /// Syncs the file, gives it its name, and syncs the name.
    ///
    /// # Errors
    /// [`Error::Io`]; the file is then removed.
    pub fn commit(mut self) -> Result<()> {
        if let Some(mut file) = self.file.take() {
            let written = file.flush().and_then(|()| file.get_ref().sync_all());
            if let Err(source) = written.and_then(|()| fs::rename(&self.temporary, &self.path)) {
                // Put back, so that dropping `self` removes the unfinished file.
                self.file = Some(file);
                return Err(Error::io(&self.path, source));
            }
            sync_dir(parent(&self.path))?;
        }
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing useful can be done about a failure here: the unfinished file then stays.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole file.
///
/// # Errors
/// [`Error::Io`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = StagedFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

/// A directory being written.
#[derive(Debug)]
pub struct StagedDir {
    path: PathBuf,
    temporary: PathBuf,
    committed: bool,
}

impl StagedDir {
    /// Begins a directory that will be called `path`. Where one is there, `replaceable` decides:
    /// without it the path is refused, with it the directory is replaced if it holds nothing but
    /// files whose names it accepts.
    ///
    /// # Errors
    /// [`Error::Io`]: something is there, or the system refuses.
    pub fn create(path: &Path, replaceable: Option<fn(&str) -> bool>) -> Result<StagedDir> {
        match replaceable {
            None => refuse_existing(path)?,
            Some(accepts) => check_replaceable(path, accepts)?,
        }
        let temporary = beside(path, "tmp")?;
        let io = |source| Error::io(path, source);
        match fs::remove_dir_all(&temporary) {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(io(source)),
            _ => fs::create_dir(&temporary).map_err(io)?,
        }
        Ok(StagedDir { path: path.to_path_buf(), temporary, committed: false })
    }

    /// Where the files go until the directory has its name.
    pub fn dir(&self) -> &Path {
        &self.temporary
    }

    /// Gives the directory its name; one that was there goes away.
    ///
    /// # Errors
    /// [`Error::Io`]; what was there is then there again, and the new directory is removed.
    pub fn commit(mut self) -> Result<()> {
        sync_dir(&self.temporary)?;
        let io = |source| Error::io(&self.path, source);
        let old = beside(&self.path, "old")?;
        let replaces = fs::symlink_metadata(&self.path).is_ok();
        if replaces {
            fs::rename(&self.path, &old).map_err(io)?;
        }
        if let Err(source) = fs::rename(&self.temporary, &self.path) {
            if replaces {
                // The first error is the one to report.
                let _ = fs::rename(&old, &self.path);
            }
            return Err(io(source));
        }
        self.committed = true;
        sync_dir(parent(&self.path))?;
        if replaces {
            fs::remove_dir_all(&old).map_err(|source| Error::io(&old, source))?;
        }
        Ok(())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing useful can be done about a failure here: the unfinished directory then stays.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// A directory is replaced only if losing it loses nothing else than files of the same kind.
fn check_replaceable(path: &Path, accepts: fn(&str) -> bool) -> Result<()> {
    let io = |source| Error::io(path, source);
    let refuse = |what: String| Err(io(std::io::Error::new(ErrorKind::AlreadyExists, what)));
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if !found.is_dir() => {
            return refuse("is there and no directory, which is what would replace it".into());
        }
        Ok(_) => {}
    }
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !accepts(&name) || !entry.file_type().map_err(io)?.is_file() {
            return refuse(format!("holds {name:?}, which --overwrite would delete"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_dropped_file_leaves_nothing_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_file(&path, b"old").unwrap();
        let mut staged = StagedFile::create(&path).unwrap();
        staged.write(b"new").unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(staged);
        assert_eq!(
            (names(dir.path()), fs::read(&path).unwrap()),
            (vec!["x".into()], b"old".into())
        );
        write_file(&path, b"new").unwrap();
        assert_eq!(
            (names(dir.path()), fs::read(&path).unwrap()),
            (vec!["x".into()], b"new".into())
        );
        let error = write_file(&path.join("y"), b"").unwrap_err().to_string();
        assert!(error.starts_with(&path.join("y").display().to_string()), "{error}");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_directory_appears_whole_and_replaces_only_its_like() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let accepts: fn(&str) -> bool = |name| name == "a";
        let staged = StagedDir::create(&path, None).unwrap();
        fs::write(staged.dir().join("a"), "1").unwrap();
        assert!(!path.exists());
        staged.commit().unwrap();
        assert_eq!((names(dir.path()), names(&path)), (vec!["model".into()], vec!["a".into()]));

        let refused = StagedDir::create(&path, None).unwrap_err().to_string();
        assert!(refused.contains("--overwrite"), "{refused}");
        let staged = StagedDir::create(&path, Some(accepts)).unwrap();
        fs::write(staged.dir().join("a"), "2").unwrap();
        staged.commit().unwrap();
        assert_eq!(
            (names(dir.path()), fs::read(path.join("a")).unwrap()),
            (vec!["model".into()], b"2".into())
        );

        fs::write(path.join("thesis.txt"), "").unwrap();
        let refused = StagedDir::create(&path, Some(accepts)).unwrap_err().to_string();
        assert!(refused.contains("thesis.txt"), "{refused}");
        drop(StagedDir::create(&dir.path().join("other"), None).unwrap());
        assert_eq!(names(dir.path()), ["model"]);
    }
}
