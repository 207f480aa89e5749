//! A quantised matrix on the device.

use super::super::{DeviceBuffer, Gpu};
use super::planes::{self, Format, Nf4Scales, Rows, Strides};
use crate::{Error, Result};
use puna_cpu::quant::BlockType;
use puna_cpu::quant::nf4::Nf4Matrix;

/// Weights that are rearranged before they are copied: what the host holds a second time.
const PIECE: usize = 1 << 22;

/// A quantised matrix [n, k] on the device, in the planes of `cuda/include/quant_blocks.h`.
pub struct QuantMatrix {
    format: Format,
    n: usize,
    k: usize,
    strides: Strides,
    /// Codes, high bits, scales, supers.
    planes: [DeviceBuffer<u8>; 4],
    /// Added to doubly quantised scales.
    offset: f32,
    /// Whether the scales were quantised where it was encoded.
    double: bool,
}

impl QuantMatrix {
    /// The matrix in these blocks of a file, row after row; some rows at a time.
    ///
    /// # Errors
    /// When the bytes are not n rows of k weights, or the device has no room.
    pub fn from_blocks(
        gpu: &Gpu,
        block: BlockType,
        [n, k]: [usize; 2],
        bytes: &[u8],
    ) -> Result<QuantMatrix> {
        let whole = k.is_multiple_of(block.block_len());
        let row_bytes = if whole { block.row_bytes(k) } else { 0 };
        if !whole || n.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(Error::Shape {
                op: format!("a matrix in {}", block.name()),
                expected: format!("{n} rows of {k} weights, whole blocks of {}", block.block_len()),
                got: format!("{} bytes", bytes.len()),
            });
        }
        let mut matrix = QuantMatrix::empty(gpu, Format::Block(block), [n, k])?;
        let at_once = rows_at_once(k);
        for first in (0..n).step_by(at_once) {
            let end = (first + at_once).min(n);
            let bytes = &bytes[first * row_bytes..end * row_bytes];
            matrix.put(gpu, first, &planes::of_blocks(block, k, bytes))?;
        }
        Ok(matrix)
    }

    /// A matrix in NF4, likewise.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn from_nf4(gpu: &Gpu, w: &Nf4Matrix) -> Result<QuantMatrix> {
        let (n, k) = (w.n(), w.k());
        let format = planes::nf4_format(k, w.nested().is_some());
        let mut matrix = QuantMatrix::empty(gpu, format, [n, k])?;
        let at_once = rows_at_once(k);
        for first in (0..n).step_by(at_once) {
            let of = first..(first + at_once).min(n);
            matrix.put(gpu, first, &planes::of_nf4(w, of))?;
        }
        let scales = Nf4Scales { nested: w.nested(), scale: &|block| w.scale(block) };
        matrix.put_nf4_scales(gpu, &scales)?;
        Ok(matrix)
    }

    /// Uploads the scales of a matrix in NF4.
    pub(super) fn put_nf4_scales(&mut self, gpu: &Gpu, scales: &Nf4Scales<'_>) -> Result<()> {
        let [rows, supers] = scales.planes([self.n, self.k]);
        (self.planes[2], self.planes[3]) = (gpu.upload(&rows)?, gpu.upload(&supers)?);
        (self.offset, self.double) = match scales.nested {
            Some(nested) => (nested.offset, true),
            None => (0.0, false),
        };
        Ok(())
    }

    /// Where the codes of a row lie.
    pub(super) fn codes_at(&self, row: usize) -> u64 {
        self.planes[0].slice().address() + (row * self.strides.codes) as u64
    }

    pub(super) fn empty(gpu: &Gpu, format: Format, [n, k]: [usize; 2]) -> Result<QuantMatrix> {
        let strides = Strides::of(format, k);
        let plane = |stride: usize| gpu.alloc::<u8>(n.saturating_mul(stride));
        let planes = [
            plane(strides.codes)?,
            plane(strides.high)?,
            plane(strides.scales)?,
            plane(strides.supers)?,
        ];
        Ok(QuantMatrix { format, n, k, strides, planes, offset: 0.0, double: false })
    }

    fn put(&mut self, gpu: &Gpu, first: usize, rows: &Rows) -> Result<()> {
        let Strides { codes, high, scales, supers } = self.strides;
        let parts = [
            (codes, &rows.codes),
            (high, &rows.high),
            (scales, &rows.scales),
            (supers, &rows.supers),
        ];
        for (plane, (stride, bytes)) in self.planes.iter_mut().zip(parts) {
            let at = first * stride;
            gpu.write(&mut plane.slice_mut().range_mut(at..at + bytes.len()), bytes)?;
        }
        Ok(())
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How its weights lie.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The format's name, as `Matrix::type_name` has it.
    pub fn type_name(&self) -> &'static str {
        match self.format {
            Format::Block(block) => block.name(),
            _ => "NF4",
        }
    }

    /// Whether NF4's scales were quantised too.
    pub fn is_double(&self) -> bool {
        self.double
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.planes.iter().map(DeviceBuffer::len).sum()
    }

    /// Everything that it holds, read back: its planes, and what is added to doubly quantised scales.
    ///
    /// # Errors
    /// When the device fails.
    pub fn contents(&self, gpu: &Gpu) -> Result<([Vec<u8>; 4], u32)> {
        let mut planes: [Vec<u8>; 4] = Default::default();
        for (plane, bytes) in self.planes.iter().zip(&mut planes) {
            bytes.resize(plane.len(), 0);
            gpu.download(&plane.slice(), bytes)?;
        }
        Ok((planes, self.offset.to_bits()))
    }

    pub(in crate::cuda) fn strides(&self) -> &Strides {
        &self.strides
    }

    pub(in crate::cuda) fn offset(&self) -> f32 {
        self.offset
    }

    /// Of the planes, in the kernels' order.
    pub(in crate::cuda) fn addresses(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|i| self.planes[i].slice().address())
    }
}

impl std::fmt::Debug for QuantMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuantMatrix[{}, {}] {}", self.n, self.k, self.type_name())
    }
}

pub(super) fn rows_at_once(k: usize) -> usize {
    (PIECE / k.max(1)).max(1)
}
