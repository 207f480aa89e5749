//! Clipping of gradients by their global norm.

use crate::error::Result;
use crate::kernels::{Device, optim};
use crate::tensor::Grads;

/// The L2 norm over all gradients together; not finite where one of them is not.
///
/// # Errors
/// When the gradients live where `device` does not compute, or the device failed.
pub fn global_norm(device: &Device, grads: &Grads) -> Result<f64> {
    Ok(optim::sum_of_squares(device, &grads.0)?.sqrt())
}

/// `min(1, max / (norm + 1e-6))`: the factor that brings gradients of this norm down to `max`, as
/// PyTorch computes it. A `max` of 0 (or below) clips nothing.
pub fn clip_factor(norm: f64, max: f64) -> f32 {
    if max > 0.0 { (max / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Buffer, Values};

    /// Gradients of two tensors, one of several chunks.
    fn grads() -> Grads {
        let value = |i: usize| (i as f32 * 0.37).sin();
        let tensor = |len: usize| (0..len).map(value).collect::<Vec<f32>>();
        Grads([200_001, 7].map(|len| Values::from(Buffer::from_slice(&tensor(len)))).into())
    }

    #[test]
    fn the_norm_covers_all_tensors_and_does_not_depend_on_threads() {
        let grads = grads();
        let all = grads.0.iter().flat_map(|grad| grad.host().expect("on the host"));
        let want: f64 = all.map(|&g| f64::from(g).powi(2)).sum();
        let norms: Vec<f64> = [1, 2, 3, 5]
            .map(|threads| Device::new(threads).and_then(|device| global_norm(&device, &grads)))
            .map(|norm| norm.expect("a team"))
            .into();
        assert!((norms[0] - want.sqrt()).abs() < 1e-6 * want.sqrt(), "{norms:?} {want}");
        assert!(norms.iter().all(|norm| norm.to_bits() == norms[0].to_bits()), "{norms:?}");
    }

    #[test]
    fn the_factor_is_that_of_the_formula() {
        for (norm, max, want) in [
            (5.611_804, 1.0, 0.178_195_72),
            (0.5, 1.0, 1.0),
            (1.0, 1.0, 0.999_999),
            (0.0, 1.0, 1.0),
            (123.0, 0.0, 1.0),
            (f64::INFINITY, 1.0, 0.0),
        ] {
            let got = f64::from(clip_factor(norm, max));
            assert!((got - want).abs() < 2e-7, "norm {norm}, max {max}: {got}, want {want}");
        }
        assert!(clip_factor(f64::NAN, 1.0) <= 1.0, "the caller sees the norm itself");
    }
}
