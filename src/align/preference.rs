//! Losses of pairs of answers, as functions of summed log-probabilities, with their derivatives.
//!
//! For a pair let `c`, `r` be the sums under the policy of the chosen and the rejected answer, `c0`,
//! `r0` under the reference, `n_c`, `n_r` their scored tokens, `m` the pair's margin, and
//!
//! ```text
//! h = (c - r) - (c0 - r0) - L        L = length_penalty (n_c - n_r)
//! p = sigmoid(beta h)
//! ```
//!
//! | loss | value |
//! |---|---|
//! | sigmoid | -(1 - e) log p - e log(1 - p), e the label smoothing |
//! | robust | (-(1 - e) log p + e log(1 - p)) / (1 - 2e) |
//! | hinge | max(0, 1 - beta h) |
//! | ipo | (h - 1 / (2 beta))², h of means over tokens (of sums where LMFlow is followed) |
//! | cross_entropy | -log sigmoid(beta (c - c0)) |
//! | raft | -c |
//! | kl | p log(p / g) + (1 - p) log((1 - p) / (1 - g)), p at most 0.999, g = e^m / (1 + e^m + 0.001) |
//! | rev_kl | -s log p - (1 - s) log(1 - p), s = sigmoid(m) |
//! | tv | abs(p - s) |
//! | hellinger | ((√p - √s)² + (√(1 - p) - √(1 - s))²) / 2, p at most 0.999 |
//! | orpo | -c / n_c - beta log sigmoid(o), o the log-ratio of the odds of the mean probabilities |
//! | simpo | -log sigmoid(beta (c / n_c - r / n_r) - gamma) |
//!
//! Sources: Rafailov et al. 2023 (arXiv 2305.18290) for sigmoid, Chowdhury et al. 2024 (2403.00409)
//! for robust, Liu et al. 2023 (2309.06657) for hinge, Azar et al. 2023 (2310.12036) for ipo, Hong et
//! al. 2024 (2403.07691) for orpo, Meng et al. 2024 (2405.14734) for simpo; the others are LMFlow's.

use crate::error::{Error, Result};

/// What a pair costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Direct preference optimisation.
    Sigmoid,
    /// The same, unbiased where a known share of preferences is flipped.
    Robust,
    /// A margin of `1 / beta`.
    Hinge,
    /// A difference of `1 / (2 beta)`.
    Ipo,
    /// The chosen answer alone, against the reference.
    CrossEntropy,
    /// The chosen answer's likelihood.
    Raft,
    /// Divergence of the preference from that of the margin.
    Kl,
    /// The same, the other way round.
    RevKl,
    /// Its total variation.
    Tv,
    /// Its Hellinger distance.
    Hellinger,
    /// Likelihood and odds, without a reference.
    Orpo,
    /// Mean log-probabilities, without a reference.
    Simpo,
}

impl Loss {
    /// All of them.
    pub const ALL: [Loss; 12] = [
        Loss::Sigmoid,
        Loss::Robust,
        Loss::Hinge,
        Loss::Ipo,
        Loss::CrossEntropy,
        Loss::Raft,
        Loss::Kl,
        Loss::RevKl,
        Loss::Tv,
        Loss::Hellinger,
        Loss::Orpo,
        Loss::Simpo,
    ];

    /// The name in commands and files.
    pub const fn name(self) -> &'static str {
        match self {
            Loss::Sigmoid => "sigmoid",
            Loss::Robust => "robust",
            Loss::Hinge => "hinge",
            Loss::Ipo => "ipo",
            Loss::CrossEntropy => "cross_entropy",
            Loss::Raft => "raft",
            Loss::Kl => "kl",
            Loss::RevKl => "rev_kl",
            Loss::Tv => "tv",
            Loss::Hellinger => "hellinger",
            Loss::Orpo => "orpo",
            Loss::Simpo => "simpo",
        }
    }

    /// Whether the reference's log-probabilities enter it.
    pub const fn needs_reference(self) -> bool {
        !matches!(self, Loss::Raft | Loss::Orpo | Loss::Simpo)
    }
}

/// A loss and its constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Which.
    pub loss: Loss,
    /// Sharpness; orpo's weight of the odds.
    pub beta: f64,
    /// Share of preferences taken to be flipped: sigmoid and robust.
    pub label_smoothing: f64,
    /// Margin of simpo.
    pub gamma: f64,
    /// Cost of a token that the chosen answer has more than the rejected one, in `h`.
    pub length_penalty: f64,
    /// Whether ipo compares sums, as LMFlow does, instead of means over tokens.
    pub ipo_of_sums: bool,
}

/// One pair as the losses see it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pair {
    /// Summed log-probabilities under the policy: chosen, rejected.
    pub policy: [f64; 2],
    /// The same under the reference.
    pub reference: [f64; 2],
    /// Scored tokens of each, at least 1.
    pub tokens: [f64; 2],
    /// By how much the first is preferred.
    pub margin: f64,
}

/// What a pair costs and how that changes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// The loss.
    pub value: f64,
    /// Its derivatives with respect to [`Pair::policy`].
    pub d: [f64; 2],
    /// What the policy holds of each answer, as the loss measures it; the chosen one's should be
    /// higher.
    pub rewards: [f64; 2],
}

/// Probabilities above this are cut where a loss would run away.
const MOST: f64 = 0.999;
/// The largest mean log-probability that odds are taken of.
const MOST_LOG: f64 = -1e-7;

/// `1 / (1 + e^-x)`.
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `log(sigmoid(x))`, without overflow.
pub(super) fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

impl Objective {
    /// Refuses constants that mean nothing.
    ///
    /// # Errors
    /// The first: name, value, what was wanted.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: f64, wanted: &str| {
            Err(Error::config(name, value, format!("wanted {wanted}")))
        };
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return wrong("beta", self.beta, "a number above 0");
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return wrong("label_smoothing", self.label_smoothing, "0 to below 0.5");
        }
        let smooths = matches!(self.loss, Loss::Sigmoid | Loss::Robust);
        if self.label_smoothing > 0.0 && !smooths {
            let what = format!("0 with {}: only sigmoid and robust smooth", self.loss.name());
            return wrong("label_smoothing", self.label_smoothing, &what);
        }
        Ok(())
    }

    /// Whether the reference's log-probabilities are needed.
    pub fn needs_reference(&self) -> bool {
        self.loss.needs_reference()
    }

    /// The cost of a pair.
    pub fn cost(&self, pair: &Pair) -> Cost {
        let Pair { policy: [c, r], reference: [c0, r0], tokens: [n_c, n_r], margin } = *pair;
        let (beta, smooth) = (self.beta, self.label_smoothing);
        let h = (c - r) - (c0 - r0) - self.length_penalty * (n_c - n_r);
        let x = beta * h;
        let p = sigmoid(x);
        let rewards = match self.loss {
            Loss::Orpo | Loss::Simpo => [beta * c / n_c, beta * r / n_r],
            Loss::Raft => [beta * c, beta * r],
            _ => [beta * (c - c0), beta * (r - r0)],
        };
        // Most losses are functions of h: value and derivative.
        let of_h = |value: f64, dh: f64| Cost { value, d: [dh, -dh], rewards };
        match self.loss {
            Loss::Sigmoid => of_h(
                -(1.0 - smooth) * log_sigmoid(x) - smooth * log_sigmoid(-x),
                beta * (p - (1.0 - smooth)),
            ),
            Loss::Robust => {
                let value = -(1.0 - smooth) * log_sigmoid(x) + smooth * log_sigmoid(-x);
                let dx = -(1.0 - smooth) * (1.0 - p) - smooth * p;
                of_h(value / (1.0 - 2.0 * smooth), beta * dx / (1.0 - 2.0 * smooth))
            }
            Loss::Hinge => of_h((1.0 - x).max(0.0), if x < 1.0 { -beta } else { 0.0 }),
            Loss::Ipo if self.ipo_of_sums => {
                let off = h - 0.5 / beta;
                of_h(off * off, 2.0 * off)
            }
            Loss::Ipo => {
                let off = (c - c0) / n_c - (r - r0) / n_r - 0.5 / beta;
                Cost { value: off * off, d: [2.0 * off / n_c, -2.0 * off / n_r], rewards }
            }
            Loss::CrossEntropy => {
                let x = beta * (c - c0);
                Cost { value: -log_sigmoid(x), d: [-beta * sigmoid(-x), 0.0], rewards }
            }
            Loss::Raft => Cost { value: -c, d: [-1.0, 0.0], rewards },
            Loss::Kl => {
                let g = 1.0 / ((-margin).exp() + 1.0 + 1e-3 * (-margin).exp());
                let cut = p.min(MOST);
                let (value, dp) = kl(cut, g);
                of_h(value, if p > MOST { 0.0 } else { dp * beta * p * (1.0 - p) })
            }
            Loss::RevKl => {
                let s = sigmoid(margin);
                of_h(-s * log_sigmoid(x) - (1.0 - s) * log_sigmoid(-x), beta * (p - s))
            }
            Loss::Tv => {
                let off = p - sigmoid(margin);
                let sign = if off == 0.0 { 0.0 } else { off.signum() };
                of_h(off.abs(), sign * beta * p * (1.0 - p))
            }
            Loss::Hellinger => {
                let (s, cut) = (sigmoid(margin), p.min(MOST));
                let (a, b) = (cut.sqrt() - s.sqrt(), (1.0 - cut).sqrt() - (1.0 - s).sqrt());
                // d√p/dx = √p (1 - p) / 2 and d√(1 - p)/dx = -√(1 - p) p / 2: no division by p.
                let dx = 0.5 * (a * p.sqrt() * (1.0 - p) - b * (1.0 - p).sqrt() * p);
                of_h(0.5 * (a * a + b * b), if p > MOST { 0.0 } else { beta * dx })
            }
            Loss::Orpo => {
                let (c, r) = ((c / n_c).min(MOST_LOG), (r / n_r).min(MOST_LOG));
                let log_odds = |x: f64| x - (-x.exp_m1()).ln();
                let o = log_odds(c) - log_odds(r);
                let pull = beta * sigmoid(-o);
                // d log_odds / dx = 1 / (1 - e^x).
                let d = |x: f64| 1.0 / -x.exp_m1();
                Cost {
                    value: -c - beta * log_sigmoid(o),
                    d: [(-1.0 - pull * d(c)) / n_c, pull * d(r) / n_r],
                    rewards,
                }
            }
            Loss::Simpo => {
                let x = beta * (c / n_c - r / n_r) - self.gamma;
                let dx = -beta * sigmoid(-x);
                Cost { value: -log_sigmoid(x), d: [dx / n_c, -dx / n_r], rewards }
            }
        }
    }
}

/// Divergence of two chances, and its derivative with respect to the first. A chance of 0 adds
/// nothing.
fn kl(p: f64, g: f64) -> (f64, f64) {
    let part = |p: f64, g: f64| if p == 0.0 { 0.0 } else { p * (p / g).ln() };
    let slope = if p == 0.0 { 0.0 } else { (p / g).ln() - ((1.0 - p) / (1.0 - g)).ln() };
    (part(p, g) + part(1.0 - p, 1.0 - g), slope)
}

#[cfg(test)]
#[path = "preference_tests.rs"]
mod tests;
