//! A low-rank addition to a linear layer (Hu et al. 2021, arXiv 2106.09685), fused into it:
//! `y += scale * (dropout(x) aᵀ) bᵀ`.

use crate::autograd::{Adjoints, Cx, Dropout, NodeId};
use crate::error::Result;
use crate::kernels::linear::{self, Adapter, weight};
use crate::kernels::matmul::{Product, factor, gemm, products};
use crate::kernels::rows::{self, Mask};
use crate::tensor::{Matrix, ParamId, Rows};

/// One adapter of one linear layer.
pub struct Lora {
    /// [r, in].
    pub a: Matrix,
    /// [out, r].
    pub b: Matrix,
    /// `alpha / r`, or `alpha / sqrt(r)`.
    pub scale: f32,
    /// Probability with which an input is dropped in training.
    pub dropout: f32,
    /// Distinguishes this adapter's dropout masks from those of others.
    pub key: u64,
}

impl Lora {
    /// Whether an optimiser owns it.
    pub fn is_trained(&self) -> bool {
        self.a.param().is_some()
    }

    /// The parameters that its matrices are, if an optimiser owns them.
    pub(super) fn params(&self) -> Option<[ParamId; 2]> {
        Some([self.a.param()?, self.b.param()?])
    }

    /// What kernels are told of it.
    pub(super) fn adapter(&self) -> Adapter<'_> {
        Adapter { a: &self.a, b: &self.b, scale: self.scale }
    }

    /// Whether inputs are dropped in this pass.
    pub(super) fn drops(&self, cx: &Cx<'_, '_>) -> bool {
        self.mask(cx).is_some()
    }

    /// Room for the derivative of `dropout(x) aᵀ` [m, r].
    pub(super) fn inner_derivative(&self, cx: &Cx<'_, '_>, m: usize) -> Result<Rows> {
        cx.pool.take(linear::derivative_dtype(cx.device, cx.precision()), m, self.a.n)
    }

    /// This pass's mask; `None` where nothing is dropped.
    fn mask(&self, cx: &Cx<'_, '_>) -> Option<Mask> {
        let Dropout { key, first_row, .. } = cx.dropout.filter(|_| self.dropout > 0.0)?;
        let key = key ^ self.key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Some(Mask { p: self.dropout, key, first_row })
    }

    fn dropped(&self, cx: &Cx<'_, '_>, x: &Rows) -> Result<Rows> {
        let Some(mask) = self.mask(cx) else { return Ok(x.clone()) };
        let [m, width] = x.dims2();
        let mut out = cx.pool.take(x.dtype(), m, width)?;
        rows::dropout(cx.device, out.floats_mut(), x.floats(), width, mask)?;
        Ok(out)
    }

    /// `u = dropout(x) aᵀ` [m, r] in a training pass.
    pub(super) fn inner(&self, cx: &mut Cx<'_, '_>, x: &Rows) -> Result<Rows> {
        let x = self.dropped(cx, x)?;
        let mut u = cx.take_f32(x.rows(), self.a.n)?;
        let precision = cx.precision();
        let a = weight(&self.a, cx.params, precision)?.t();
        gemm(cx.device, cx.scratch, precision, u.floats_mut(), false, 1.0, factor(&x), a)?;
        Ok(u)
    }

    /// Adds `scale u bᵀ` to `y` [m, out] in a training pass.
    pub(super) fn add(&self, cx: &mut Cx<'_, '_>, y: &mut Rows, u: &Rows) -> Result<()> {
        let precision = cx.precision();
        let b = weight(&self.b, cx.params, precision)?.t();
        gemm(cx.device, cx.scratch, precision, y.floats_mut(), true, self.scale, factor(u), b)
    }

    /// Adds to `y` [m, out] while serving.
    pub(super) fn serve(
        &self,
        cx: &mut Cx<'_, '_>,
        y: &mut Rows,
        x: &Rows,
        exact: bool,
    ) -> Result<()> {
        let [m, n] = y.dims2();
        let (mut u, mut sum) = (cx.take_f32(m, self.a.n)?, cx.take_f32(m, n)?);
        let (device, params) = (cx.device, cx.params);
        let list = [Product { w: &self.a, out: u.floats_mut() }];
        products(device, cx.scratch, params, x.floats(), m, exact, list)?;
        rows::scale(device, u.floats_mut(), self.scale)?;
        let list = [Product { w: &self.b, out: sum.floats_mut() }];
        products(device, cx.scratch, params, u.floats(), m, exact, list)?;
        rows::add_acc(device, y.floats_mut(), sum.floats(), n)
    }

    /// Gradients: of `a` and `b` into `cx.grads`, of the input to its node.
    pub(super) fn backward(
        &self,
        cx: &mut Cx<'_, '_>,
        adjoints: &mut Adjoints,
        dout: &Rows,
        x: Option<&Rows>,
        u: &Rows,
        node: Option<NodeId>,
    ) -> Result<()> {
        let (m, precision) = (dout.rows(), cx.precision());
        // du = scale * dout b
        let mut du = self.inner_derivative(cx, m)?;
        let b = weight(&self.b, cx.params, precision)?;
        let out = du.floats_mut();
        gemm(cx.device, cx.scratch, precision, out, false, self.scale, factor(dout), b)?;
        if let (Some([a, b]), Some(x), Some(grads)) = (self.params(), x, cx.grads.as_deref_mut()) {
            // db += scale * doutᵀ u
            let (db, dout) = (grads.get_mut(b), factor(dout).t());
            gemm(cx.device, cx.scratch, precision, db, true, self.scale, dout, factor(u))?;
            // da += duᵀ dropout(x)
            let x = self.dropped(cx, x)?;
            if let Some(grads) = cx.grads.as_deref_mut() {
                let (da, du) = (grads.get_mut(a), factor(&du).t());
                gemm(cx.device, cx.scratch, precision, da, true, 1.0, du, factor(&x))?;
            }
        }
        let Some(node) = node else { return Ok(()) };
        // dx += mask(du a)
        let k = self.a.k;
        let a = weight(&self.a, cx.params, precision)?;
        let (mut dx, acc) = adjoints.target(cx, node, m, k)?;
        match self.mask(cx) {
            None => {
                gemm(cx.device, cx.scratch, precision, dx.floats_mut(), acc, 1.0, factor(&du), a)?;
            }
            Some(mask) => {
                let mut part = cx.take_f32(m, k)?;
                let out = part.floats_mut();
                gemm(cx.device, cx.scratch, precision, out, false, 1.0, factor(&du), a)?;
                let mut masked = cx.take_f32(m, k)?;
                rows::dropout(cx.device, masked.floats_mut(), part.floats(), k, mask)?;
                match acc {
                    true => rows::add_acc(cx.device, dx.floats_mut(), masked.floats(), k)?,
                    false => dx = masked,
                }
            }
        }
        adjoints.put(node, dx);
        Ok(())
    }
}
