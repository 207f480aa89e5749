//! Which tile a product takes on which device: constants. Nothing is measured at run time, so the
//! choice, like the bits, is a function of device and shape alone (and no bit depends on it, see
//! [`super::matmul`]).
//!
//! No row has been measured yet: the numbers follow from how many multiprocessors a device has and
//! how often a tile reads shared memory for an instruction.

/// How the factors of a product are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Both as they are.
    Nn,
    /// The second transposed: `x wᵀ`.
    Nt,
    /// The first transposed: `dyᵀ x`.
    Tn,
    /// Both transposed.
    Tt,
}

impl Form {
    /// The form of factors that are or are not transposed.
    pub fn of(a: bool, b: bool) -> Form {
        match (a, b) {
            (false, false) => Form::Nn,
            (false, true) => Form::Nt,
            (true, false) => Form::Tn,
            (true, true) => Form::Tt,
        }
    }
}

/// One device's numbers.
struct Device {
    /// Compute capability, times ten.
    sm: u32,
    /// By [`Form`]: from so many tiles of 128 x 128 on they are faster than four times as many of
    /// 64 x 64. A small tile's warps load a fragment for every instruction, a large one's 3 for 8,
    /// so half of the multiprocessors with large tiles do as much as all with small ones.
    large_from: [usize; 4],
    /// Columns from which a skinny product's blocks of 32 columns occupy the device; below it
    /// blocks have 8.
    wide_from: usize,
}

/// Devices by capability, rising. Multiprocessors of the largest part: A100 108, GA102 84, AD102
/// 144, H100 132, B200 148, GB202 188.
const DEVICES: &[Device] = &[
    Device { sm: 80, large_from: [54; 4], wide_from: 3456 },
    Device { sm: 86, large_from: [42; 4], wide_from: 2688 },
    Device { sm: 89, large_from: [72; 4], wide_from: 4096 },
    Device { sm: 90, large_from: [66; 4], wide_from: 4096 },
    Device { sm: 100, large_from: [74; 4], wide_from: 4736 },
    Device { sm: 120, large_from: [94; 4], wide_from: 6016 },
];

/// The row of a device: the last whose capability it has.
fn device(sm: u32) -> &'static Device {
    DEVICES.iter().rev().find(|d| d.sm <= sm).unwrap_or(&DEVICES[0])
}

/// Whether a product [m, n] takes large tiles.
pub fn is_large(sm: u32, form: Form, m: usize, n: usize) -> bool {
    m.div_ceil(128).saturating_mul(n.div_ceil(128)) >= device(sm).large_from[form as usize]
}

/// Whether a product of few rows with `n` columns takes wide blocks.
pub fn is_wide(sm: u32, n: usize) -> bool {
    n >= device(sm).wide_from
}

/// Whether operations may choose the kernels of warp groups, of which none has run on a GPU yet:
/// where the variable `PUNA_CUDA_WGMMA` is 1 when a device is opened.
pub fn groups_are_chosen() -> bool {
    std::env::var("PUNA_CUDA_WGMMA").is_ok_and(|value| value == "1")
}

/// Whether a product [m, n] is one for the tiles of warp groups (compute capability 9.0), of
/// 128 x 256. Half of H100's multiprocessors with them do what all do with smaller ones, whose
/// instructions reach about half of its rate.
pub fn is_for_groups(m: usize, n: usize) -> bool {
    m.div_ceil(128).saturating_mul(n.div_ceil(256)) >= 66
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_rise_and_unknown_ones_take_their_neighbour() {
        assert!(DEVICES.windows(2).all(|d| d[0].sm < d[1].sm));
        assert_eq!(device(75).sm, 80);
        assert_eq!(device(87).sm, 86);
        assert_eq!(device(103).sm, 100);
        assert_eq!(device(999).sm, 120);
    }

    #[test]
    fn large_products_take_large_tiles() {
        assert!(is_large(90, Form::Nt, 4096, 4096));
        assert!(!is_large(90, Form::Tn, 16, 4096));
        assert!(is_wide(90, 4096) && !is_wide(90, 1024));
        assert!(is_for_groups(2048, 4096) && !is_for_groups(512, 4096));
    }
}
