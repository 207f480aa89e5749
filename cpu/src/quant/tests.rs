use super::*;

/// Bell-shaped weights around zero with standard deviation `0.577 * size`.
fn weights(seed: u64, n: usize, size: f32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * size).collect()
}

fn encoded(ty: BlockType, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xa5; ty.row_bytes(x.len())];
    encode_row(ty, &mut bytes, x);
    bytes
}

fn decoded(ty: BlockType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / ty.block_bytes() * ty.block_len()];
    decode_row(ty, &mut out, bytes);
    out
}

/// Bits of a code.
fn code_bits(ty: BlockType) -> u32 {
    match ty {
        BlockType::Q2_K => 2,
        BlockType::Q3_K => 3,
        BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4_K => 4,
        BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5_K => 5,
        BlockType::Q6_K => 6,
        BlockType::Q8_0 => 8,
    }
}

/// The same block with every code set to `code`, scales kept.
fn with_codes(ty: BlockType, block: &[u8], code: u8) -> Vec<u8> {
    let mut block = block.to_vec();
    let bit = |n: u32| if code >> n & 1 == 1 { 0xff } else { 0 };
    let (halves, quarters) = ((code & 15) * 0x11, (code & 3) * 0x55);
    match ty {
        BlockType::Q4_0 => block[q4_0::Q4_0_QS..].fill(halves),
        BlockType::Q4_1 => block[q4_0::Q4_1_QS..].fill(halves),
        BlockType::Q5_0 => {
            block[q5_0::Q5_0_QH..][..4].fill(bit(4));
            block[q5_0::Q5_0_QH + 4..].fill(halves);
        }
        BlockType::Q5_1 => {
            block[q5_0::Q5_1_QH..][..4].fill(bit(4));
            block[q5_0::Q5_1_QH + 4..].fill(halves);
        }
        BlockType::Q8_0 => block[q8_0::QS..].fill(code),
        BlockType::Q2_K => block[q2_k::QS..q2_k::D].fill(quarters),
        BlockType::Q3_K => {
            block[q3_k::HMASK..q3_k::QS].fill(bit(2));
            block[q3_k::QS..q3_k::SCALES].fill(quarters);
        }
        BlockType::Q4_K => block[q4_k::QS..].fill(halves),
        BlockType::Q5_K => {
            block[q5_k::QH..q5_k::QS].fill(bit(4));
            block[q5_k::QS..].fill(halves);
        }
        BlockType::Q6_K => {
            block[q6_k::QL..q6_k::QH].fill(halves);
            block[q6_k::QH..q6_k::SCALES].fill((code >> 4) * 0x55);
        }
    }
    block
}

#[test]
fn sizes_ids_and_names() {
    let table = [
        (BlockType::Q4_0, "Q4_0", 2, 32, 18),
        (BlockType::Q4_1, "Q4_1", 3, 32, 20),
        (BlockType::Q5_0, "Q5_0", 6, 32, 22),
        (BlockType::Q5_1, "Q5_1", 7, 32, 24),
        (BlockType::Q8_0, "Q8_0", 8, 32, 34),
        (BlockType::Q2_K, "Q2_K", 10, 256, 84),
        (BlockType::Q3_K, "Q3_K", 11, 256, 110),
        (BlockType::Q4_K, "Q4_K", 12, 256, 144),
        (BlockType::Q5_K, "Q5_K", 13, 256, 176),
        (BlockType::Q6_K, "Q6_K", 14, 256, 210),
    ];
    assert_eq!(table.map(|row| row.0), BlockType::ALL);
    for (ty, name, id, len, bytes) in table {
        assert_eq!(
            (ty.name(), ty.ggml_id(), ty.block_len(), ty.block_bytes()),
            (name, id, len, bytes)
        );
        assert_eq!(BlockType::from_ggml_id(id), Some(ty));
        assert_eq!(BlockType::from_name(name), Some(ty));
        assert_eq!(BlockType::from_name(&name.to_lowercase()), Some(ty));
        assert_eq!(ty.row_bytes(0), 0);
        assert_eq!(ty.row_bytes(3 * len), 3 * bytes);
    }
}

#[test]
fn other_ids_and_names_are_none() {
    for id in [0, 1, 4, 5, 9, 15, 16, 30, 31, 36, u32::MAX] {
        assert_eq!(BlockType::from_ggml_id(id), None, "{id}");
    }
    for name in ["", "Q4", "Q4_K_M", "Q8_K", "F16", " Q4_0", "Q4_0 "] {
        assert_eq!(BlockType::from_name(name), None, "{name:?}");
    }
}

#[test]
#[should_panic(expected = "whole number of blocks")]
fn a_row_is_whole_blocks() {
    BlockType::Q4_K.row_bytes(255);
}

#[test]
#[should_panic(expected = "bytes for")]
fn decode_checks_the_bytes() {
    decode_row(BlockType::Q8_0, &mut [0.0; 32], &[0; 33]);
}

#[test]
#[should_panic(expected = "bytes for")]
fn encode_checks_the_bytes() {
    encode_row(BlockType::Q8_0, &mut [0; 35], &[0.0; 32]);
}

#[test]
fn an_empty_row_is_a_row() {
    for ty in BlockType::ALL {
        encode_row(ty, &mut [], &[]);
        decode_row(ty, &mut [], &[]);
    }
}

/// Every weight gets the code that lies nearest to it under the scales of its block. The plain
/// formats choose codes before the scale (and minimum) is rounded to half precision, relative
/// error 2^-11 each, so there two codes may be confused that lie that close to equally near.
#[test]
fn every_code_is_the_nearest() {
    for ty in BlockType::ALL {
        let x = weights(7, 16 * ty.block_len(), 0.1);
        let bytes = encoded(ty, &x);
        let values = decoded(ty, &bytes);
        let (len, size) = (ty.block_len(), ty.block_bytes());
        for (b, block) in bytes.chunks_exact(size).enumerate() {
            // code -128 of Q8_0 is never used
            let codes = (0..1u32 << code_bits(ty)).filter(|&c| (ty, c) != (BlockType::Q8_0, 128));
            let grids: Vec<Vec<f32>> =
                codes.map(|c| decoded(ty, &with_codes(ty, block, c as u8))).collect();
            for i in 0..len {
                let (x, value) = (x[b * len + i], values[b * len + i]);
                let grid: Vec<f32> = grids.iter().map(|values| values[i]).collect();
                let end = grid.iter().fold(0.0f32, |a, v| a.max(v.abs()));
                let nearest = grid.iter().fold(f32::MAX, |a, v| a.min((v - x).abs()));
                let slack = if len == BLOCK { end / 512.0 } else { end * 4.0 * f32::EPSILON };
                assert!(grid.contains(&value), "{ty:?} block {b} weight {i}: {value}");
                assert!(
                    (value - x).abs() <= nearest + slack,
                    "{ty:?} block {b} weight {i}: {x} {value}"
                );
            }
        }
    }
}

/// |x - w| for the plain formats: half a step, a whole one at the clipped end of the symmetric
/// formats, and the half precision rounding (2^-11) of scale and minimum.
#[test]
fn plain_formats_stay_within_their_step() {
    const F16: f32 = 1.0 / 2048.0;
    for (ty, steps, half_steps) in [
        (BlockType::Q4_0, 8.0, 2.0),
        (BlockType::Q4_1, 15.0, 1.0),
        (BlockType::Q5_0, 16.0, 2.0),
        (BlockType::Q5_1, 31.0, 1.0),
        (BlockType::Q8_0, 127.0, 1.0),
    ] {
        let x = weights(11, 64 * BLOCK, 1.0);
        let bytes = encoded(ty, &x);
        let values = decoded(ty, &bytes);
        for (i, (x, value)) in x.iter().zip(&values).enumerate() {
            let block = &bytes[i / BLOCK * ty.block_bytes()..];
            let d = f16_at(block, 0).abs();
            let m = if matches!(ty, BlockType::Q4_1 | BlockType::Q5_1) {
                f16_at(block, 2).abs()
            } else {
                0.0
            };
            let bound = d * half_steps / 2.0 + (steps * d + m) * F16 * 1.01;
            assert!((x - value).abs() <= bound, "{ty:?} weight {i}: {x} {value} {bound}");
        }
    }
}

#[test]
fn zeros_and_constants() {
    for ty in BlockType::ALL {
        let zeros = vec![0.0; 2 * ty.block_len()];
        assert!(decoded(ty, &encoded(ty, &zeros)).iter().all(|&v| v == 0.0), "{ty:?}");
        for c in [0.75, -0.75] {
            let bytes = encoded(ty, &vec![c; 2 * ty.block_len()]);
            // at most one part in 31 (the coarsest scale of scales) and the half precision scale
            assert!(decoded(ty, &bytes).iter().all(|v| (v / c - 1.0).abs() < 0.04), "{ty:?} {c}");
        }
    }
}

#[test]
fn scaling_by_a_power_of_two_scales_the_result() {
    for ty in BlockType::ALL {
        let x = weights(3, 4 * ty.block_len(), 1.0);
        let doubled: Vec<f32> = x.iter().map(|v| v * 4.0).collect();
        let values = decoded(ty, &encoded(ty, &x));
        let doubled = decoded(ty, &encoded(ty, &doubled));
        assert!(values.iter().zip(&doubled).all(|(a, b)| a * 4.0 == *b), "{ty:?}");
    }
}

#[test]
fn encoding_and_decoding_overwrite_everything() {
    for ty in BlockType::ALL {
        let x = weights(5, 2 * ty.block_len(), 0.5);
        let mut bytes = vec![0xff; ty.row_bytes(x.len())];
        encode_row(ty, &mut bytes, &x);
        let mut again = vec![0; bytes.len()];
        encode_row(ty, &mut again, &x);
        assert_eq!(bytes, again, "{ty:?}");
        assert!(decoded(ty, &bytes).iter().all(|v| v.is_finite()), "{ty:?}");
    }
}

#[test]
fn a_bad_block_leaves_its_neighbours_alone() {
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -1e-39];
    for ty in BlockType::ALL {
        let len = ty.block_len();
        let x = weights(9, 3 * len, 1.0);
        let good = encoded(ty, &x);
        for fill in bad {
            for every in [1, 2, 17] {
                let mut x = x.clone();
                x[len..2 * len].iter_mut().step_by(every).for_each(|v| *v = fill);
                let bytes = encoded(ty, &x);
                let size = ty.block_bytes();
                assert_eq!(bytes[..size], good[..size], "{ty:?} {fill}");
                assert_eq!(bytes[2 * size..], good[2 * size..], "{ty:?} {fill}");
                decoded(ty, &bytes);
            }
        }
    }
}

#[test]
fn tiny_blocks_are_zeros() {
    for ty in BlockType::ALL {
        for size in [1e-12, 1e-30, 1e-38, 1e-39, 1e-44] {
            let x = weights(1, ty.block_len(), size);
            assert!(decoded(ty, &encoded(ty, &x)).iter().all(|&v| v == 0.0), "{ty:?} {size}");
        }
    }
}
