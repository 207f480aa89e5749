//! Products of activation rows with weight matrices. Matrices that share their input are
//! computed together.

use super::Cpu;
use crate::error::{Error, Result};
use crate::tensor::{Matrix, MatrixData};
use puna_cpu::products::{self, Weights};

pub use puna_cpu::products::{Product, Scratch as MatmulScratch};

/// A matrix and where its product goes: `out` is [m, n].
///
/// # Errors
/// When the matrix is stored for look-ups only.
pub fn product<'a>(w: &'a Matrix, out: &'a mut [f32]) -> Result<Product<'a>> {
    let weights = match (&w.data, w.dense()) {
        (MatrixData::Packed(packed), _) => Weights::Packed(packed),
        (_, Some(dense)) => Weights::Dense(dense),
        (_, None) => {
            return Err(Error::Unsupported(format!("products with {w:?} kept as file blocks")));
        }
    };
    Ok(Product { w: weights, out })
}

/// `out = x wᵀ` for each product; `x` is [m, k]. With `exact`, weights meet the f32 activations
/// unrounded; without it quantised weights meet int8 activations, and BF16 weights BF16 ones
/// where the machine multiplies those.
///
/// # Errors
/// When a shape does not fit.
pub fn products(
    cpu: &Cpu,
    scratch: &mut MatmulScratch,
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
    products::products(cpu.isa, &cpu.team, scratch, x, m, exact, list);
    Ok(())
}
