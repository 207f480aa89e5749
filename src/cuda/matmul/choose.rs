//! Which kernel computes a product: from the types and the alignment of its factors, then its
//! shape.

use super::super::params::MatmulParams;
use super::super::tune::{self, Form};
use super::super::{FloatsMut, Gpu};
use super::{FEW_ROWS, Factor, Precision, Source, hopper, sm};
use crate::{Error, Result};

/// A family of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Whichever suits: what everyone but a test asks for.
    Chosen,
    /// Tiles of 128 x 128 outputs.
    Large,
    /// Tiles of 64 x 64 outputs, for products too small to fill a device with large ones.
    Small,
    /// Tiles of 64 x 64 of bf16 products whose factors are of any type and alignment.
    Any,
    /// bf16 products `x wᵀ` of up to 16 rows, w in bf16.
    Skinny,
    /// f32 products `x wᵀ` of up to 16 rows.
    Matvec,
    /// Tiles of 128 x 256 outputs by warp groups, of bf16 products `x wᵀ` of at least one input:
    /// compute capability 9.0 alone.
    Wgmma,
    /// The same of any form, factors copied in bulk.
    Tma,
}

/// Sizes of a product.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Shape {
    /// The sizes of `out = a b`, all three compared with each other and with their lengths.
    pub fn of(op: &str, out: &FloatsMut<'_>, a: &Factor<'_>, b: &Factor<'_>) -> Result<Shape> {
        let ((m, k), (b_rows, n)) = (a.shape(), b.shape());
        let fits = |f: &Factor<'_>| f.rows.checked_mul(f.cols) == Some(f.source.len());
        if k != b_rows || m.checked_mul(n) != Some(out.len()) || !fits(a) || !fits(b) {
            return Err(Error::Shape {
                op: op.into(),
                expected: format!("[{m}, {k}] [{k}, {n}] -> {m} x {n} values"),
                got: format!(
                    "{} and {} values, second factor [{b_rows}, {n}], {} results",
                    a.source.len(),
                    b.source.len(),
                    out.len()
                ),
            });
        }
        Ok(Shape { m, n, k })
    }

    pub fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0
    }

    /// What kernels are told, types and second product left out.
    pub fn params(&self, alpha: f32, flags: u32) -> Result<MatmulParams> {
        Ok(MatmulParams {
            m: size(self.m)?,
            n: size(self.n)?,
            k: size(self.k)?,
            k2: 0,
            alpha,
            flags,
            a_type: 0,
            b_type: 0,
        })
    }
}

/// Sizes that kernels count in 32 bits, with room for a tile beyond the end.
const MAX_SIZE: usize = (1 << 31) - 1024;

pub(in super::super) fn size(n: usize) -> Result<i32> {
    match i32::try_from(n) {
        Ok(small) if n <= MAX_SIZE => Ok(small),
        _ => Err(Error::Unsupported(format!("a product with a side of {n}, above {MAX_SIZE}"))),
    }
}

impl Kernel {
    /// The kernel that computes this product.
    ///
    /// # Errors
    /// When the one asked for does not take it.
    pub(super) fn resolve(
        self,
        gpu: &Gpu,
        precision: Precision,
        shape: Shape,
        a: &Factor<'_>,
        b: &Factor<'_>,
    ) -> Result<Kernel> {
        let few = shape.m <= FEW_ROWS && !a.transposed && b.transposed;
        let f16 = matches!(a.source, Source::F16(_));
        let form = Form::of(a.transposed, b.transposed);
        let tensor = a.is_aligned_bf16() && b.is_aligned_bf16();
        // Asynchronous copies bring x of either type; registers round it.
        let skinny = few && !f16 && a.is_aligned() && b.is_aligned_bf16();
        let takes = |kernel| match (kernel, precision) {
            (Kernel::Chosen, _) => true,
            (Kernel::Large | Kernel::Small, Precision::Bf16) => tensor,
            (Kernel::Large | Kernel::Small, Precision::F32) => true,
            (Kernel::Any, precision) => precision == Precision::Bf16,
            (Kernel::Skinny, precision) => precision == Precision::Bf16 && skinny,
            (Kernel::Matvec, precision) => precision == Precision::F32 && few,
            (Kernel::Wgmma, precision) => {
                precision == Precision::Bf16 && tensor && shape.k > 0 && form == Form::Nt
            }
            (Kernel::Tma, precision) => precision == Precision::Bf16 && tensor && shape.k > 0,
        };
        if matches!(self, Kernel::Wgmma | Kernel::Tma) {
            hopper::of(gpu)?;
        }
        if !takes(self) {
            return Err(Error::Unsupported(format!(
                "{self:?} kernels of precision {precision:?} for factors [{}, {}] and [{}, {}] as \
                 they are stored",
                a.rows, a.cols, b.rows, b.cols
            )));
        }
        if self != Kernel::Chosen {
            return Ok(self);
        }
        let groups = gpu.matmul.hopper.as_ref().is_some_and(|kernels| kernels.chosen)
            && takes(Kernel::Tma)
            && tune::is_for_groups(shape.m, shape.n);
        let large = tune::is_large(sm(gpu), form, shape.m, shape.n);
        Ok(match precision {
            Precision::Bf16 if skinny => Kernel::Skinny,
            Precision::Bf16 if !tensor => Kernel::Any,
            Precision::Bf16 if groups => Kernel::Tma,
            Precision::F32 if few => Kernel::Matvec,
            _ if large => Kernel::Large,
            _ => Kernel::Small,
        })
    }

    /// The kernel that computes a gated product, which are fewer.
    ///
    /// # Errors
    /// As [`Kernel::resolve`].
    pub(super) fn resolve_gated(
        self,
        gpu: &Gpu,
        shape: Shape,
        x: &Factor<'_>,
        w: &Factor<'_>,
    ) -> Result<Kernel> {
        let kernel = self.resolve(gpu, Precision::Bf16, shape, x, w)?;
        // What warp groups would take, large tiles take.
        let groups = self == Kernel::Chosen && kernel == Kernel::Tma;
        Ok(if groups { Kernel::Large } else { kernel })
    }
}
