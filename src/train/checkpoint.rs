//! `checkpoint-STEP/`: everything that is needed to go on, or nothing. Written under a temporary
//! name, synced, sealed with a manifest, renamed. What goes into one is the trainer's business.

use super::manifest;
use crate::error::{Error, Result};
use crate::format::stage::StagedDir;
use std::fs;
use std::path::{Path, PathBuf};

/// What the names of checkpoints begin with; the step follows.
const PREFIX: &str = "checkpoint-";
/// Ending of a checkpoint that is being deleted.
const GONE: &str = ".gone";

/// The directory of a step's checkpoint.
pub fn dir(output: &Path, step: usize) -> PathBuf {
    output.join(format!("{PREFIX}{step}"))
}

/// Writes the checkpoint of `step`: `fill` writes its files into the directory that it is given.
/// On an error nothing of it stays, and no other checkpoint is touched.
///
/// # Errors
/// What `fill` and the system refuse.
pub fn write(
    output: &Path,
    step: usize,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let path = dir(output, step);
    if path.exists() {
        // Only one that did not verify can be here: a run goes on from the newest that does.
        remove(output, step)?;
    }
    let staged = StagedDir::create(&path, None)?;
    fill(staged.dir())?;
    manifest::seal(staged.dir())?;
    staged.commit()?;
    Ok(path)
}

/// Steps that have a checkpoint, whole or not, in rising order.
///
/// # Errors
/// A directory that cannot be read; one that is not there holds none.
pub fn steps(output: &Path) -> Result<Vec<usize>> {
    let io = |source| Error::io(output, source);
    let entries = match fs::read_dir(output) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(io)?,
    };
    let mut steps = vec![];
    for entry in entries {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        // `checkpoint-007` is none of ours, and would be taken for `checkpoint-7`.
        let step =
            step.and_then(|text| text.parse().ok().filter(|n: &usize| n.to_string() == text));
        if let Some(step) = step.filter(|_| entry.path().is_dir()) {
            steps.push(step);
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The newest checkpoint that verifies; `warn` hears of those passed over.
///
/// # Errors
/// There are checkpoints but none verifies, or the directory cannot be read.
pub fn newest(output: &Path, mut warn: impl FnMut(&str)) -> Result<Option<usize>> {
    let steps = steps(output)?;
    for &step in steps.iter().rev() {
        match manifest::verify(&dir(output, step)) {
            Ok(()) => return Ok(Some(step)),
            Err(error) => warn(&format!("{PREFIX}{step} is broken and passed over: {error}")),
        }
    }
    if steps.is_empty() {
        return Ok(None);
    }
    let what = format!("none of {} checkpoints is whole; --overwrite starts anew", steps.len());
    Err(Error::format(output, what))
}

/// Deletes the oldest checkpoints until `limit` are left. `best` and the newest always stay.
///
/// # Errors
/// What the system refuses.
pub fn prune(output: &Path, limit: usize, best: Option<usize>) -> Result<()> {
    let steps = steps(output)?;
    let newest = steps.last().copied();
    let mut n_left = steps.len();
    for &step in &steps {
        if n_left > limit && Some(step) != newest && Some(step) != best {
            remove(output, step)?;
            n_left -= 1;
        }
    }
    Ok(())
}

/// Deletes a checkpoint. It loses its name first, so that a kill leaves none that is half there.
///
/// # Errors
/// What the system refuses.
pub fn remove(output: &Path, step: usize) -> Result<()> {
    let path = dir(output, step);
    let gone = output.join(format!(".{PREFIX}{step}.{}{GONE}", std::process::id()));
    fs::rename(&path, &gone).map_err(|source| Error::io(&path, source))?;
    fs::remove_dir_all(&gone).map_err(|source| Error::io(&gone, source))
}

/// Deletes what killed runs left half written or half deleted in `output`.
///
/// # Errors
/// What the system refuses.
pub fn clean(output: &Path) -> Result<()> {
    let io = |source| Error::io(output, source);
    for entry in fs::read_dir(output).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_leftover(&name) {
            let path = entry.path();
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|source| Error::io(&path, source))?;
        }
    }
    Ok(())
}

/// `.NAME.PID.tmp` and the like of a process that no longer runs.
fn is_leftover(name: &str) -> bool {
    let mut parts = name.rsplitn(3, '.');
    let (Some(ending), Some(pid), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Ok(pid) = pid.parse::<u32>() else { return false };
    let lives = pid != std::process::id() && Path::new(&format!("/proc/{pid}")).exists();
    rest.starts_with('.') && rest.len() > 1 && matches!(ending, "tmp" | "old" | "gone") && !lives
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(output: &Path, step: usize) {
        let path = write(output, step, |dir| {
            fs::write(dir.join("x"), step.to_string()).unwrap();
            Ok(())
        });
        assert_eq!(path.unwrap(), dir(output, step));
    }

    fn names(output: &Path) -> Vec<String> {
        let entries = fs::read_dir(output).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_whole_one_is_found() {
        let out = tempfile::tempdir().unwrap();
        let out = out.path();
        assert_eq!(newest(&out.join("none"), |_| panic!("no warning")).unwrap(), None);
        for step in [2, 10, 9] {
            make(out, step);
        }
        fs::create_dir(out.join("checkpoint-011")).unwrap();
        fs::write(out.join("checkpoint-12"), "a file").unwrap();
        assert_eq!(steps(out).unwrap(), [2, 9, 10]);
        assert_eq!(newest(out, |_| panic!("no warning")).unwrap(), Some(10));
        fs::write(dir(out, 10).join("x"), "11").unwrap();
        let mut warnings = vec![];
        assert_eq!(newest(out, |w| warnings.push(w.to_owned())).unwrap(), Some(9));
        assert!(warnings.len() == 1 && warnings[0].contains("checkpoint-10"), "{warnings:?}");
        for step in [2, 9] {
            fs::remove_file(dir(out, step).join("x")).unwrap();
        }
        let error = newest(out, |_| ()).unwrap_err().to_string();
        assert!(error.contains("none of 3") && error.contains("--overwrite"), "{error}");
        // A broken one makes room for its step.
        make(out, 10);
        assert_eq!(newest(out, |_| ()).unwrap(), Some(10));
    }

    #[test]
    fn a_failure_leaves_nothing_and_touches_nothing() {
        let out = tempfile::tempdir().unwrap();
        make(out.path(), 1);
        let error = write(out.path(), 2, |dir| {
            fs::write(dir.join("x"), "half").unwrap();
            Err(Error::Unsupported("full".into()))
        });
        assert!(error.is_err());
        assert_eq!(names(out.path()), ["checkpoint-1"]);
        manifest::verify(&dir(out.path(), 1)).unwrap();
    }

    #[test]
    fn pruning_keeps_the_best_and_the_newest() {
        let cases: [(usize, Option<usize>, &[usize]); 5] = [
            (2, None, &[4, 5]),
            (1, None, &[5]),
            (1, Some(2), &[2, 5]),
            (3, Some(1), &[1, 4, 5]),
            (9, Some(1), &[1, 2, 3, 4, 5]),
        ];
        for (limit, best, wanted) in cases {
            let out = tempfile::tempdir().unwrap();
            (1..=5).for_each(|step| make(out.path(), step));
            prune(out.path(), limit, best).unwrap();
            assert_eq!(steps(out.path()).unwrap(), wanted, "{limit} {best:?}");
            assert_eq!(names(out.path()).len(), wanted.len());
        }
    }

    #[test]
    fn leftovers_of_dead_processes_go() {
        let out = tempfile::tempdir().unwrap();
        // No process has the largest number that fits.
        let dead = u32::MAX;
        for name in [format!(".checkpoint-3.{dead}.tmp"), format!(".checkpoint-2.{dead}.gone")] {
            fs::create_dir(out.path().join(name)).unwrap();
        }
        let kept = [".config".to_owned(), format!("a.{dead}.tmp"), ".x.y.tmp".into()];
        for name in &kept {
            fs::write(out.path().join(name), "").unwrap();
        }
        #[cfg(target_os = "linux")]
        fs::create_dir(out.path().join(".checkpoint-4.1.tmp")).unwrap();
        clean(out.path()).unwrap();
        let left = names(out.path());
        assert!(kept.iter().all(|name| left.contains(name)), "{left:?}");
        assert_eq!(left.len(), kept.len() + usize::from(cfg!(target_os = "linux")), "{left:?}");
    }
}
