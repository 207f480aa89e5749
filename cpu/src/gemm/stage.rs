//! Where results go: straight into f32, or from a member's block of f32 into bf16 or into the
//! transpose.

use super::pack::transpose;
use crate::convert;
use crate::floats::FloatsMut;
use crate::isa::Isa;
use crate::team::SharedMut;
use half::bf16;
use std::ops::Range;

/// Rows and columns of a block that are transposed together.
const RUN: usize = 64;

/// The result of a product, as its tiles see it: rows by columns.
pub struct Out<'a> {
    data: Data<'a>,
    /// Elements from a column to the next where the tiles compute the transpose.
    column: Option<usize>,
    /// Elements from a row to the next otherwise.
    row: usize,
}

enum Data<'a> {
    F32(SharedMut<'a, f32>),
    Bf16(SharedMut<'a, bf16>),
}

impl<'a> Out<'a> {
    /// The block `out` [m, n]; with `transposed` the tiles compute [n, m].
    pub fn new(out: FloatsMut<'a>, transposed: bool, n: usize) -> Self {
        let data = match out {
            FloatsMut::F32(x) => Data::F32(SharedMut::new(x)),
            FloatsMut::Bf16(x) => Data::Bf16(SharedMut::new(x)),
        };
        Out { data, column: transposed.then_some(n), row: n }
    }

    /// Address of an element of an f32 result that is not transposed.
    pub fn f32_at(&self, row: usize, col: usize) -> *mut f32 {
        match &self.data {
            Data::F32(out) if self.column.is_none() => {
                assert!(row * self.row + col < out.len(), "({row}, {col}) lies outside");
                // SAFETY: inside the slice by the assertion.
                unsafe { out.as_ptr().add(row * self.row + col) }
            }
            _ => unreachable!("such results are staged"),
        }
    }

    /// Reads rows and columns into `stage`, whose rows are `stage_row` apart.
    ///
    /// # Safety
    /// No other thread uses these elements meanwhile.
    pub unsafe fn read(
        &self,
        isa: Isa,
        stage: &mut [f32],
        stage_row: usize,
        rows: &Range<usize>,
        cols: &Range<usize>,
    ) {
        let Some(column) = self.column else {
            for (r, stage) in rows.clone().zip(stage.chunks_mut(stage_row)) {
                let at = r * self.row + cols.start;
                // SAFETY: this function's contract.
                unsafe { self.load(isa, &mut stage[..cols.len()], at) };
            }
            return;
        };
        let mut run = [0.0f32; RUN * RUN];
        for from in rows.clone().step_by(RUN) {
            let len = RUN.min(rows.end - from);
            for first in cols.clone().step_by(RUN) {
                let some = RUN.min(cols.end - first);
                for (c, run) in (first..first + some).zip(run.chunks_mut(RUN)) {
                    // SAFETY: this function's contract.
                    unsafe { self.load(isa, &mut run[..len], c * column + from) };
                }
                let at = (from - rows.start) * stage_row + first - cols.start;
                transpose(isa, &mut stage[at..], stage_row, &run, RUN, some, len);
            }
        }
    }

    /// Writes rows and columns from `stage`.
    ///
    /// # Safety
    /// As [`Out::read`].
    pub unsafe fn write(
        &self,
        isa: Isa,
        stage: &[f32],
        stage_row: usize,
        rows: &Range<usize>,
        cols: &Range<usize>,
    ) {
        let Some(column) = self.column else {
            for (r, stage) in rows.clone().zip(stage.chunks(stage_row)) {
                let at = r * self.row + cols.start;
                // SAFETY: this function's contract.
                unsafe { self.store(isa, at, &stage[..cols.len()]) };
            }
            return;
        };
        let mut run = [0.0f32; RUN * RUN];
        for from in rows.clone().step_by(RUN) {
            let len = RUN.min(rows.end - from);
            for first in cols.clone().step_by(RUN) {
                let some = RUN.min(cols.end - first);
                let at = (from - rows.start) * stage_row + first - cols.start;
                transpose(isa, &mut run, RUN, &stage[at..], stage_row, len, some);
                for (c, run) in (first..first + some).zip(run.chunks(RUN)) {
                    // SAFETY: this function's contract.
                    unsafe { self.store(isa, c * column + from, &run[..len]) };
                }
            }
        }
    }

    /// # Safety
    /// No other thread uses these elements meanwhile.
    unsafe fn load(&self, isa: Isa, to: &mut [f32], at: usize) {
        let range = at..at + to.len();
        match &self.data {
            // SAFETY: this function's contract.
            Data::F32(x) => to.copy_from_slice(unsafe { x.slice(range) }),
            // SAFETY: likewise.
            Data::Bf16(x) => convert::bf16_to_f32(isa, to, unsafe { x.slice(range) }),
        }
    }

    /// # Safety
    /// As `load`.
    unsafe fn store(&self, isa: Isa, at: usize, from: &[f32]) {
        let range = at..at + from.len();
        match &self.data {
            // SAFETY: this function's contract.
            Data::F32(x) => unsafe { x.slice(range) }.copy_from_slice(from),
            // SAFETY: likewise.
            Data::Bf16(x) => convert::f32_to_bf16(isa, unsafe { x.slice(range) }, from),
        }
    }
}
