//! What this machine can do at most: bytes read a second, operations a second on registers.
//! Benchmarks print their results as shares of these. Holds no kernel of a model.

mod peak;
mod read;
#[cfg(target_arch = "x86_64")]
mod registers;

pub use peak::{Unit, peak};
pub use read::{READ_BYTES, ReadTest, read_bandwidth};

/// The middle one of some samples (of an even number the upper of the two); 0 of none.
fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::team::Team;

    #[test]
    fn every_level_has_a_peak_and_only_units_that_it_has() {
        let team = Team::new(2).unwrap();
        for isa in Isa::available() {
            for unit in Unit::ALL {
                let rate = peak(isa, &team, unit);
                assert!(rate.is_none_or(|rate| rate.is_finite() && rate > 0.0), "{isa} {unit}");
                match unit {
                    Unit::F32 => assert!(rate.is_some(), "{isa}"),
                    Unit::Bf16 => assert_eq!(rate.is_some(), isa.has_bf16(), "{isa}"),
                    Unit::Int8 => assert_eq!(rate.is_some(), isa != Isa::PORTABLE, "{isa}"),
                }
            }
        }
    }

    /// Low precision has twice and four times the lanes. Other work on the machine may hide that in
    /// one measurement, not in each of five.
    #[test]
    fn narrower_numbers_are_faster() {
        let team = Team::new(1).unwrap();
        for isa in Isa::available() {
            let faster = |unit: Unit| match peak(isa, &team, unit) {
                Some(rate) => Some(rate) > peak(isa, &team, Unit::F32),
                None => true,
            };
            for unit in [Unit::Bf16, Unit::Int8] {
                assert!((0..5).any(|_| faster(unit)), "{isa} {unit}");
            }
        }
    }

    #[test]
    fn memory_is_read_at_every_level_by_any_team() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads).unwrap();
            for isa in Isa::available() {
                let rate = read_bandwidth(isa, &team, 1 << 20);
                assert!(rate.is_finite() && rate > 0.0, "{isa}, {threads} threads: {rate}");
            }
        }
        let team = Team::new(1).unwrap();
        assert!(read_bandwidth(Isa::best(), &team, 0) > 0.0, "no size is too small");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 4.0);
        assert_eq!(median(vec![]), 0.0);
    }
}
