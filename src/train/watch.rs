//! Who is told what happens in a run. The library prints nothing; the command line does.

use super::metrics::{EvalLine, StepLine};
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
