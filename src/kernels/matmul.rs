//! Products of rows with weight matrices. Serving: matrices that share their input are computed
//! together, quantised ones from int8 activations. Training: one packed product in f32 or bf16,
//! for the forward pass and both gradients.

use super::{Cpu, Scratch};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, MatrixData, Params, Rows};
use puna_cpu::floats::FloatsMut;
use puna_cpu::gemm::{self, Source};
use puna_cpu::products::{self, Weights};

pub use puna_cpu::gemm::{Factor, Precision};
pub use puna_cpu::products::Product;

/// A matrix and where its product goes: `out` is [m, n].
///
/// # Errors
/// When the matrix is stored for look-ups only.
pub fn product<'a>(w: &'a Matrix, params: &'a Params, out: &'a mut [f32]) -> Result<Product<'a>> {
    let weights = match (&w.data, w.dense(params)) {
        (MatrixData::Packed(packed), _) => Weights::Packed(packed),
        (_, Some(dense)) => Weights::Dense(dense),
        (_, None) => return Err(lookups_only(w)),
    };
    Ok(Product { w: weights, out })
}

fn lookups_only(w: &Matrix) -> Error {
    Error::Unsupported(format!("products with {w:?} kept as file blocks"))
}

/// `out = x wᵀ` for each product; `x` is [m, k]. With `exact`, weights meet the f32 activations
/// unrounded; without it quantised weights meet int8 activations, and BF16 weights BF16 ones
/// where the machine multiplies those.
///
/// # Errors
/// When a shape does not fit.
pub fn products(
    cpu: &Cpu,
    scratch: &mut Scratch,
    x: &[f32],
    m: usize,
    exact: bool,
    list: &mut [Product<'_>],
) -> Result<()> {
    for Product { w, out } in list.iter() {
        if x.len() != m * w.k() || out.len() != m * w.n() {
            return Err(Error::Shape {
                op: "product".into(),
                expected: format!("x [{m}, {}], out [{m}, {}]", w.k(), w.n()),
                got: format!("{} and {} values", x.len(), out.len()),
            });
        }
    }
    products::products(cpu.isa, &cpu.team, &mut scratch.matmul, x, m, exact, list);
    Ok(())
}

/// A weight [n, k] as a factor of [`gemm()`]; quantised weights are decoded tile by tile.
///
/// # Errors
/// When the matrix is stored for look-ups only.
pub fn weight<'a>(w: &'a Matrix, params: &'a Params) -> Result<Factor<'a>> {
    let source = match (&w.data, w.dense(params)) {
        (MatrixData::Packed(packed), _) => Source::Packed(packed),
        (_, Some(dense)) => Source::Dense(dense),
        (_, None) => return Err(lookups_only(w)),
    };
    Ok(Factor { source, rows: w.n, cols: w.k, transposed: false })
}

/// Rows as a factor of [`gemm()`].
pub fn factor(rows: &Rows) -> Factor<'_> {
    let [m, n] = rows.dims2();
    Factor::plain(rows.floats(), m, n)
}

/// `out = alpha a b`, or `out += alpha a b` with `acc`. The same bits for any number of threads.
///
/// # Panics
/// When the shapes do not fit.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    cpu: &Cpu,
    scratch: &mut Scratch,
    precision: Precision,
    out: FloatsMut<'_>,
    acc: bool,
    alpha: f32,
    a: Factor<'_>,
    b: Factor<'_>,
) {
    gemm::gemm(cpu.isa, &cpu.team, &mut scratch.gemm, precision, out, acc, alpha, a, b);
}
