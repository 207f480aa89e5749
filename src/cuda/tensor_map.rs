//! Maps of matrices, by which bulk copies of compute capability 9.0 cut boxes out of them. A map is
//! 128 bytes that the driver fills in (the harness its own way); kernels take it by value.

use half::bf16;

use super::device::Backend;
use super::{DeviceSlice, Gpu};
use crate::{Error, Result};

pub(crate) use super::params::TensorMap;

/// A matrix of bf16 in memory, row-major, and the height of the boxes that are cut out of it, which
/// are `BOX_COLS` wide. One that exists lies within its buffer and is one that the hardware takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boxes {
    pub address: u64,
    pub rows: u64,
    pub cols: u64,
    /// Elements from a row to the next.
    pub stride: u64,
    pub box_rows: u32,
}

impl Boxes {
    /// The conditions are those of the driver's `cuTensorMapEncodeTiled`.
    fn of(
        x: DeviceSlice<'_, bf16>,
        [rows, cols]: [usize; 2],
        stride: usize,
        box_rows: u32,
    ) -> Result<Self> {
        let last = rows.checked_sub(1).and_then(|last| last.checked_mul(stride));
        let end = last.and_then(|last| last.checked_add(cols));
        let sizes = (1..=1usize << 32).contains(&rows) && (1..=1usize << 32).contains(&cols);
        let fits = sizes
            && end.is_some_and(|end| end <= x.len())
            && x.address().is_multiple_of(16)
            && stride.is_multiple_of(8)
            && (cols..1usize << 39).contains(&stride)
            && (1..=256).contains(&box_rows);
        if !fits {
            return Err(Error::Shape {
                op: "bulk copies".into(),
                expected: "a matrix of at least one row and column within its buffer, rows at \
                           multiples of 16 bytes, boxes of 1 to 256 rows"
                    .into(),
                got: format!(
                    "[{rows}, {cols}], rows {stride} apart, in {} elements at {:#x}, boxes of \
                     {box_rows} rows",
                    x.len(),
                    x.address()
                ),
            });
        }
        Ok(Boxes {
            address: x.address(),
            rows: rows as u64,
            cols: cols as u64,
            stride: stride as u64,
            box_rows,
        })
    }
}

/// The map of a matrix [rows, cols] whose rows lie `stride` elements apart, for boxes of `box_rows`
/// rows.
///
/// # Errors
/// When the matrix is not within `x` or not as bulk copies want it; when the driver refuses.
pub(super) fn tensor_map(
    gpu: &Gpu,
    x: DeviceSlice<'_, bf16>,
    shape: [usize; 2],
    stride: usize,
    box_rows: u32,
) -> Result<TensorMap> {
    let boxes = Boxes::of(x, shape, stride, box_rows)?;
    match &gpu.device.backend {
        Backend::Driver(driver) => driver.tensor_map(&boxes),
        #[cfg(feature = "cuda-host")]
        Backend::Host(host) => Ok(host.tensor_map(&boxes)),
    }
}

#[cfg(all(test, feature = "cuda-host"))]
mod tests {
    use super::*;

    #[test]
    fn only_matrices_within_their_buffer_and_aligned_ones_have_boxes() {
        let gpu = Gpu::host().expect("an order");
        let buffer = gpu.alloc::<bf16>(10 * 64).expect("room");
        let whole = buffer.slice();
        let of = |x, shape, stride, rows| Boxes::of(x, shape, stride, rows).is_ok();
        assert!(of(whole, [10, 64], 64, 64));
        assert!(of(whole, [10, 40], 64, 1));
        assert!(of(whole.range(0..9 * 64 + 40), [10, 40], 64, 256));
        assert!(!of(whole.range(0..9 * 64 + 39), [10, 40], 64, 64), "beyond the end");
        assert!(!of(whole, [11, 64], 64, 64), "beyond the end");
        assert!(!of(whole, [0, 64], 64, 64) && !of(whole, [10, 0], 64, 64), "empty");
        assert!(!of(whole, [10, 64], 56, 64), "rows that overlap");
        assert!(!of(whole, [10, 60], 60, 64), "a stride of 120 bytes");
        assert!(!of(whole.range(1..640), [9, 64], 64, 64), "an odd address");
        assert!(!of(whole, [10, 64], 64, 0) && !of(whole, [10, 64], 64, 257), "boxes");
        assert!(!of(whole, [usize::MAX, 64], usize::MAX, 64), "sizes that overflow");
    }
}
