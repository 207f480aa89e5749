use super::*;

const KTO: Kto = Kto { beta: 0.5, desirable_weight: 1.0, undesirable_weight: 1.5 };

fn near(ours: (f64, f64), wanted: (f64, f64)) {
    let off = (ours.0 - wanted.0).abs().max((ours.1 - wanted.1).abs());
    assert!(off <= 1e-14, "{ours:?} {wanted:?}");
}

#[test]
fn losses_are_those_worked_out_by_hand() {
    // beta (r - z) = log 3: the sigmoid is 3/4, its derivative 3/16.
    let ratio = 0.25 + 2.0 * 3.0f64.ln();
    near(KTO.cost(ratio, true, 0.25), (0.25, -0.5 * 0.1875));
    near(KTO.cost(ratio, false, 0.25), (1.5 * 0.75, 1.5 * 0.5 * 0.1875));
    // At the baseline: half the weight, the steepest slope.
    near(KTO.cost(0.7, true, 0.7), (0.5, -0.125));
    near(KTO.cost(0.7, false, 0.7), (0.75, 0.1875));
}

#[test]
fn derivatives_are_those_of_the_values() {
    for desirable in [true, false] {
        for baseline in [0.0, 0.8] {
            for ratio in [-6.0, -0.5, 0.0, 0.8, 3.0] {
                let step = 1e-5;
                let at = |step: f64| KTO.cost(ratio + step, desirable, baseline).0;
                let slope = (at(step) - at(-step)) / (2.0 * step);
                let (_, d) = KTO.cost(ratio, desirable, baseline);
                // The third derivative times the step squared, and the rounding over the step.
                assert!((slope - d).abs() <= 1e-9, "{desirable} {ratio}: {slope} {d}");
            }
        }
    }
}

#[test]
fn answers_that_are_decided_cost_their_weight_or_nothing() {
    assert_eq!(KTO.cost(4000.0, true, 0.0), (0.0, -0.0));
    assert_eq!(KTO.cost(-4000.0, true, 0.0), (1.0, -0.0));
    assert_eq!(KTO.cost(4000.0, false, 0.0), (1.5, 0.0));
    assert_eq!(KTO.cost(-4000.0, false, 0.0), (0.0, 0.0));
    // Digits that 1 - sigmoid would not have.
    let (value, _) = KTO.cost(100.0, true, 0.0);
    assert!((value / (-50.0f64).exp() - 1.0).abs() < 1e-12, "{value}");
}

#[test]
fn the_baseline_is_a_mean_that_is_not_below_0() {
    assert_eq!(baseline(&[1.0, -0.5, 2.5]), 1.0);
    assert_eq!(baseline(&[-1.0, 0.5]), 0.0);
    assert_eq!(baseline(&[]), 0.0);
    assert!(baseline(&[f64::NAN, 1.0]).is_nan());
}

#[test]
fn constants_that_mean_nothing_are_refused() {
    assert!(KTO.check().is_ok());
    assert!(Kto { desirable_weight: 0.0, ..KTO }.check().is_ok());
    for wrong in [
        Kto { beta: 0.0, ..KTO },
        Kto { beta: f64::INFINITY, ..KTO },
        Kto { desirable_weight: -1.0, ..KTO },
        Kto { undesirable_weight: f64::NAN, ..KTO },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}
