//! Who is told what happens in a run. The library prints nothing; the command line does.

use super::metrics::{EvalLine, IterationLine, StepLine};
use std::path::Path;

/// Told of everything, in order. Each method does nothing unless it is written.
pub trait Watch {
    /// `done` of `total` steps are done; the rest begins.
    fn begin(&mut self, done: usize, total: usize) {
        let _ = (done, total);
    }
    /// A step is done.
    fn step(&mut self, line: &StepLine) {
        let _ = line;
    }
    /// An evaluation of so many rows begins.
    fn evaluating(&mut self, n_rows: usize) {
        let _ = n_rows;
    }
    /// It is done.
    fn evaluated(&mut self, line: &EvalLine) {
        let _ = line;
    }
    /// A checkpoint, or the result, is saved.
    fn saved(&mut self, dir: &Path) {
        let _ = dir;
    }
    /// A part of an iteration begins, of `total` of what it is named after.
    fn stage(&mut self, what: &str, total: usize) {
        let _ = (what, total);
    }
    /// So many of these are done.
    fn progress(&mut self, done: usize) {
        let _ = done;
    }
    /// An iteration is done.
    fn iteration(&mut self, line: &IterationLine) {
        let _ = line;
    }
    /// Something worth knowing.
    fn remark(&mut self, text: &str) {
        let _ = text;
    }
    /// Something is not as it should be.
    fn warn(&mut self, text: &str) {
        let _ = text;
    }
}

/// Hears nothing.
pub struct Silent;

impl Watch for Silent {}
