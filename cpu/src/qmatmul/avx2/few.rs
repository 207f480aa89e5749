//! The few-row kernel: a panel's blocks are unpacked in registers, eight rows at a time.

use super::codec::Codec;
use super::{FEW, begin, fold, sums};
use crate::qmatmul::acts::{BlockMeta, QActs};
use crate::qmatmul::fetch_ahead;
use crate::qmatmul::layout::{BLOCK, ROWS, id_of};
use crate::quant::BlockType;
use std::arch::x86_64::*;

/// One panel times `M` rows of activations; `out[m]` are the panel's sixteen results of row m.
#[target_feature(enable = "avx2,fma,f16c")]
fn few<const B: u8, const M: usize>(
    out: &mut [[f32; ROWS]; FEW],
    panel: &[u8],
    acts: &QActs,
    first: usize,
) {
    let layout = Codec::<B>::LAYOUT;
    let n_blocks = acts.n_blocks();
    assert!(panel.len() >= layout.panel_bytes(n_blocks));
    let codes: [&[i8]; M] = std::array::from_fn(|m| acts.codes(first + m));
    let metas: [&[BlockMeta]; M] = std::array::from_fn(|m| acts.meta(first + m));
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    for b in 0..n_blocks {
        // SAFETY: b < n_blocks, so codes, scales and header of block b lie inside the panel, and
        // 32 codes and a meta inside each row of activations; the features are enabled here.
        unsafe {
            let p = panel.as_ptr();
            let at = layout.at(n_blocks, b);
            fetch_ahead(&layout, p, b);
            for v in 0..2 {
                let w = Codec::<B>::codes(p.add(at.codes), v);
                let (scale, min) = Codec::<B>::scales(p.add(at.scales), p.add(at.header), v);
                for m in 0..M {
                    let meta = metas[m].get_unchecked(b);
                    let sums = sums::<B>(&w, codes[m].as_ptr().add(b * BLOCK));
                    let sums = begin::<B>(sums, meta);
                    acc[m][v] = fold::<B>(acc[m][v], sums, scale, min, meta);
                }
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: `out` is twice eight f32.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), acc[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(ROWS / 2), acc[1]);
        }
    }
}

/// `m` (at most [`FEW`]) rows from `first` on, one panel.
///
/// # Safety
/// AVX2, FMA and F16C.
pub unsafe fn panel_few(
    block: BlockType,
    out: &mut [[f32; ROWS]; FEW],
    panel: &[u8],
    acts: &QActs,
    first: usize,
    m: usize,
) {
    macro_rules! by_type {
        ($($t:ident),*) => {
            match block {
                $(BlockType::$t => {
                    const B: u8 = id_of(BlockType::$t);
                    // SAFETY: the caller vouches for the features.
                    unsafe {
                        match m {
                            1 => few::<B, 1>(out, panel, acts, first),
                            2 => few::<B, 2>(out, panel, acts, first),
                            3 => few::<B, 3>(out, panel, acts, first),
                            4 => few::<B, 4>(out, panel, acts, first),
                            _ => panic!("{m} rows, wanted 1 to {FEW}"),
                        }
                    }
                })*
            }
        };
    }
    by_type!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K);
}
