//! What the launchers of element-wise and row-wise kernels share. The kernels' side is
//! `cuda/include/elements.cuh`.

use super::floats::Floats;
use super::params::ELEMENT_LANES;
use super::{Function, Launch, Modules, aligned, u32_of};
use crate::{Error, Result};

/// Instances of a kernel for f32 and bf16.
pub(super) type Pair = [Function; 2];

pub(super) fn pair(modules: &Modules, [f32, bf16]: [&'static str; 2]) -> Result<Pair> {
    Ok([modules.function(f32)?, modules.function(bf16)?])
}

/// Instances for two types each; the names' order is that of counting.
pub(super) fn pairs(modules: &Modules, [a, b, c, d]: [&'static str; 4]) -> Result<[Pair; 2]> {
    Ok([pair(modules, [a, b])?, pair(modules, [c, d])?])
}

/// Which of a [`Pair`].
pub(super) fn instance(x: &Floats<'_>) -> usize {
    match x {
        Floats::F32(_) => 0,
        Floats::Bf16(_) => 1,
    }
}

/// Rows of `width` in `len` elements.
///
/// # Errors
/// When they are not whole rows.
pub(super) fn rows_of(op: &str, len: usize, width: usize) -> Result<usize> {
    if width > 0 && len.is_multiple_of(width) {
        return Ok(len / width);
    }
    Err(Error::Shape {
        op: op.to_owned(),
        expected: format!("rows of {width} elements, at least one"),
        got: format!("{len} elements"),
    })
}

/// Elements of each of `rows` rows, of which there are some, in `len`.
///
/// # Errors
/// When they are not that many whole rows.
pub(super) fn width_of(op: &str, len: usize, rows: usize) -> Result<usize> {
    if len.is_multiple_of(rows) {
        return Ok(len / rows);
    }
    Err(Error::Shape {
        op: op.to_owned(),
        expected: format!("{rows} rows of one length"),
        got: format!("{len} elements"),
    })
}

/// Whether arrays without rows can be moved 16 bytes at a time: all begin at a multiple of 16.
pub(super) fn wide(addresses: &[u64]) -> bool {
    addresses.iter().all(|&address| aligned(address, 0))
}

/// The same of arrays of rows of `width` elements: so do all rows, and their last lanes are whole.
pub(super) fn wide_rows(width: usize, addresses: &[u64]) -> bool {
    width.is_multiple_of(ELEMENT_LANES as usize) && wide(addresses)
}

/// Blocks of `threads` for `n` elements.
pub(super) fn by_elements(what: &'static str, n: usize, threads: u32) -> Result<Launch> {
    let of_block = threads as usize * ELEMENT_LANES as usize;
    let grid = [u32_of(what, n.div_ceil(of_block))?, 1, 1];
    Ok(Launch { grid, block: threads, shared_bytes: 0 })
}

/// Blocks of `threads` for each of `rows` of `width` elements: the row is the grid's first side.
pub(super) fn by_rows(
    what: &'static str,
    rows: usize,
    width: usize,
    threads: u32,
) -> Result<Launch> {
    let Launch { grid: [of_row, ..], block, shared_bytes } = by_elements(what, width, threads)?;
    Ok(Launch { grid: [u32_of(what, rows)?, of_row, 1], block, shared_bytes })
}
