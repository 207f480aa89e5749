//! For tests: whether a gradient is that of the loss.

use crate::autograd::Dropout;
use crate::data::Row;
use crate::rng::Rng;
use crate::tensor::{Grads, Param};
use crate::train::{Packed, Trainee};

/// Moves every trained value a little, by normal draws of this deviation.
pub fn shake<M: Trainee>(model: &mut M, deviation: f32, seed: u64) {
    let mut rng = Rng::new(seed, 0);
    for param in &mut model.params_mut().0 {
        change(param, |value| *value += deviation * rng.normal() as f32);
    }
}

fn change(param: &mut Param, change: impl FnMut(&mut f32)) {
    let all = param.value.change(|values| {
        values.iter_mut().for_each(change);
        Ok(())
    });
    all.unwrap();
}

/// Compares the gradient's length with the slope of the loss along it, as a difference quotient of
/// step `h` has it: both directions at once, over all parameters.
pub fn assert_slope<M: Trainee>(model: &mut M, rows: &[Row], h: f32, bound: f64) {
    let packed = Packed::new(rows);
    let mut grads = Grads::zeros(model.params()).unwrap();
    let loss = model.run(&packed.slice(), Some((&mut grads, 1.0)), Dropout::default()).unwrap();
    let plain = model.run(&packed.slice(), None, Dropout::default()).unwrap();
    assert!((loss.nll - plain.nll).abs() < 1e-5 * plain.nll.abs().max(1.0), "{loss:?} {plain:?}");
    let grads: Vec<Vec<f32>> =
        grads.0.iter().map(|grad| grad.read().unwrap().into_owned()).collect();
    let length = grads.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    assert!(length > 1e-3, "a gradient of {length} shows nothing");
    let mut along = |step: f32| {
        for (param, grad) in model.params_mut().0.iter_mut().zip(&grads) {
            let mut grad = grad.iter();
            change(param, |value| *value += step * grad.next().unwrap() / length as f32);
        }
        let loss = model.run(&packed.slice(), None, Dropout::default()).unwrap().nll;
        for (param, grad) in model.params_mut().0.iter_mut().zip(&grads) {
            let mut grad = grad.iter();
            change(param, |value| *value -= step * grad.next().unwrap() / length as f32);
        }
        loss
    };
    // Of the quotient the curvature takes h² times its third derivative, and the rounding of a loss in
    // f32 some 1e-6 / h: with h = 1e-3 both are below the bound of one per cent.
    let slope = (along(h) - along(-h)) / (2.0 * f64::from(h));
    assert!((slope - length).abs() < bound * length, "slope {slope}, gradient {length}");
}
