use super::*;
use serde_json::Value;

fn objective(loss: Loss) -> Objective {
    Objective {
        loss,
        beta: 0.5,
        label_smoothing: 0.0,
        gamma: 0.3,
        length_penalty: 0.0,
        ipo_of_sums: false,
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn losses_and_derivatives_equal_those_of_trl() {
    let text = std::fs::read_to_string("tests/fixtures/pairloss.json").unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let input = |name: &str| numbers(&file["dpo_inputs"][name]);
    let policy = [input("policy_chosen_logp"), input("policy_rejected_logp")];
    let reference = [input("ref_chosen_logp"), input("ref_rejected_logp")];
    let tokens = [input("chosen_len"), input("rejected_len")];
    let mut seen = 0;
    for (key, losses) in file["dpo"].as_object().unwrap() {
        let number = |name: &str| {
            let rest = key.split(&format!("{name}=")).nth(1).unwrap();
            rest.split(',').next().unwrap().parse::<f64>().unwrap()
        };
        for (name, wanted) in losses.as_object().unwrap() {
            let (loss, smooth) = match name.as_str() {
                "sigmoid" => (Loss::Sigmoid, 0.0),
                "sigmoid_label_smoothing" => (Loss::Sigmoid, number("label_smoothing")),
                "robust" => (Loss::Robust, number("label_smoothing")),
                "hinge" => (Loss::Hinge, 0.0),
                "ipo" => (Loss::Ipo, 0.0),
                other => panic!("a loss named {other}"),
            };
            let objective =
                Objective { beta: number("beta"), label_smoothing: smooth, ..objective(loss) };
            let n = policy[0].len();
            for i in 0..n {
                let of = |lists: &[Vec<f64>; 2]| [lists[0][i], lists[1][i]];
                let pair = Pair {
                    policy: of(&policy),
                    reference: of(&reference),
                    tokens: of(&tokens),
                    margin: 0.0,
                };
                let cost = objective.cost(&pair);
                let near = |ours: f64, theirs: f64, what: &str| {
                    // The references are f32 arithmetic on sums of a few hundred.
                    let bound = 2e-5 * theirs.abs().max(1.0);
                    assert!(
                        (ours - theirs).abs() <= bound,
                        "{key} {name} {what} {i}: {ours} {theirs}"
                    );
                };
                near(cost.value, numbers(&wanted["per_pair"])[i], "loss");
                let n = n as f64;
                near(cost.d[0], n * numbers(&wanted["dmean_dpolicy_chosen"])[i], "chosen");
                near(cost.d[1], n * numbers(&wanted["dmean_dpolicy_rejected"])[i], "rejected");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 6 * 5 * 12);
}

/// Pairs that are neither at a kink nor cut.
fn pairs() -> Vec<Pair> {
    let mut list = vec![];
    for (i, margin) in [0.0, 0.4, -0.7, 2.0].into_iter().enumerate() {
        for shift in [-1.5, 0.3, 2.0] {
            let i = i as f64;
            list.push(Pair {
                policy: [-6.0 + shift + 0.1 * i, -7.0 - 0.2 * i],
                reference: [-6.5, -6.25 - 0.1 * i],
                tokens: [5.0, 7.0],
                margin,
            });
        }
    }
    list
}

#[test]
fn derivatives_are_those_of_the_values() {
    for loss in Loss::ALL {
        for sums in [false, true] {
            let objective =
                Objective { ipo_of_sums: sums, length_penalty: 0.05, ..objective(loss) };
            for pair in pairs() {
                let cost = objective.cost(&pair);
                for side in 0..2 {
                    let at = |step: f64| {
                        let mut pair = pair;
                        pair.policy[side] += step;
                        objective.cost(&pair).value
                    };
                    let step = 1e-5;
                    let slope = (at(step) - at(-step)) / (2.0 * step);
                    let off = (slope - cost.d[side]).abs();
                    // Central differences: the third derivative times the step squared, and
                    // the rounding of f64 over the step.
                    assert!(
                        off <= 1e-7,
                        "{} {side} {pair:?}: {slope} {}",
                        loss.name(),
                        cost.d[side]
                    );
                }
            }
        }
    }
}

#[test]
fn distances_vanish_where_the_preference_is_that_of_the_margin() {
    // beta h = m: p is the margin's preference.
    let pair =
        Pair { policy: [-3.0, -5.4], reference: [-4.0, -4.0], tokens: [4.0, 4.0], margin: 1.2 };
    // tv has a kink there.
    for loss in [Loss::Tv, Loss::Hellinger] {
        assert!(objective(loss).cost(&pair).value.abs() < 1e-12);
    }
    for loss in [Loss::RevKl, Loss::Hellinger] {
        assert!(objective(loss).cost(&pair).d[0].abs() < 1e-12);
    }
    // LMFlow's kl has 0.001 in the divisor, so it is only near its least there.
    assert!(objective(Loss::Kl).cost(&pair).value < 1e-6);
}

#[test]
fn no_loss_is_infinite_for_a_pair_that_is_decided() {
    for loss in Loss::ALL {
        for gap in [-800.0f64, 800.0] {
            let pair = Pair {
                policy: [-1000.0 + gap.max(0.0), -1000.0 - gap.min(0.0)],
                reference: [-900.0, -900.0],
                tokens: [10.0, 10.0],
                margin: 1.0,
            };
            let cost = objective(loss).cost(&pair);
            assert!(cost.value.is_finite() && cost.d.iter().all(|d| d.is_finite()), "{cost:?}");
        }
        // An answer that is certain.
        let pair = Pair { policy: [0.0, 0.0], tokens: [1.0, 1.0], ..Pair::default() };
        let cost = objective(loss).cost(&pair);
        assert!(cost.value.is_finite() && cost.d.iter().all(|d| d.is_finite()), "{cost:?}");
    }
}

#[test]
fn constants_that_mean_nothing_are_refused() {
    for wrong in [
        Objective { beta: 0.0, ..objective(Loss::Sigmoid) },
        Objective { beta: f64::NAN, ..objective(Loss::Sigmoid) },
        Objective { label_smoothing: 0.5, ..objective(Loss::Robust) },
        Objective { label_smoothing: 0.1, ..objective(Loss::Hinge) },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
    assert!(objective(Loss::Sigmoid).check().is_ok());
}
