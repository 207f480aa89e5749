//! NF4 by its formulae. They are f32 formulae: an encoder has their bits or is another format.

use crate::quant::nf4::{CODE, NESTED_CODE};

/// Codes of the weights, one a byte, and the scale of every 64.
pub fn nf4_encode(w: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![], vec![]);
    for block in w.chunks(64) {
        let scale = block.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        for w in block {
            let x = if scale == 0.0 { 0.0 } else { w * (1.0 / scale) };
            codes.push(CODE.windows(2).filter(|pair| x > (pair[0] + pair[1]) / 2.0).count() as u8);
        }
        scales.push(scale);
    }
    (codes, scales)
}

/// The weights of these codes.
pub fn nf4_decode(codes: &[u8], scales: &[f32]) -> Vec<f32> {
    let weight = |(i, &code): (usize, &u8)| CODE[usize::from(code)] * scales[i / 64];
    codes.iter().enumerate().map(weight).collect()
}

/// Codes of scales, and the number for every 256 of them that goes with their mean `offset`.
pub fn nf4_nested(scales: &[f32], offset: f32) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut largest) = (vec![], vec![]);
    for block in scales.chunks(256) {
        let most = block.iter().fold(0.0f32, |most, s| most.max((s - offset).abs()));
        for s in block {
            let y = if most == 0.0 { 0.0 } else { (s - offset) * (1.0 / most) };
            let far = |i: &usize| (NESTED_CODE[*i] - y).abs();
            codes.push((0..256).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(0) as u8);
        }
        largest.push(most);
    }
    (codes, largest)
}
