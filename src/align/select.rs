//! Which answers RAFT learns from (Dong et al. 2023, arXiv 2304.06767).

use std::cmp::Ordering;

/// How answers are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The best of several answers to each prompt.
    Local,
    /// The best share of all answers, one to a prompt.
    Top,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 2] = [Strategy::Local, Strategy::Top];

    /// The name in commands and files.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Local => "local",
            Strategy::Top => "top",
        }
    }

    /// Prompts of an iteration and answers to each, of a batch of `batch` answers to be learnt from,
    /// which are this share of all.
    pub fn sizes(self, batch: usize, share: f64) -> (usize, usize) {
        match self {
            Strategy::Local => (batch, (1.0 / share) as usize),
            Strategy::Top => ((batch as f64 / share) as usize, 1),
        }
    }
}

/// Higher first, and of equal ones the earlier.
fn better(a: &(usize, f64), b: &(usize, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The best answer of each group of `k`; none of a group whose answers are all discarded (`None`).
/// Of equal rewards the first. The numbers rise.
pub fn local(rewards: &[Option<f64>], k: usize) -> Vec<usize> {
    let best = |(group, rewards): (usize, &[Option<f64>])| {
        let kept = rewards.iter().enumerate();
        let kept = kept.filter_map(|(at, reward)| Some((group * k + at, (*reward)?)));
        kept.min_by(better).map(|(at, _)| at)
    };
    rewards.chunks(k.max(1)).enumerate().filter_map(best).collect()
}

/// The best `share` of all answers, rounded down; discarded ones (`None`) are never among them, but
/// count. Of equal rewards the first. The numbers rise.
pub fn top(rewards: &[Option<f64>], share: f64) -> Vec<usize> {
    let n = (rewards.len() as f64 * share) as usize;
    let kept = rewards.iter().enumerate();
    let mut kept: Vec<(usize, f64)> =
        kept.filter_map(|(at, reward)| Some((at, (*reward)?))).collect();
    kept.sort_by(better);
    let mut chosen: Vec<usize> = kept.into_iter().take(n).map(|(at, _)| at).collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Rewards with many equal ones, a fifth discarded.
    fn rewards(n: usize, seed: u64) -> Vec<Option<f64>> {
        let mut rng = Rng::new(seed, 0);
        let mut one = || (rng.uniform() > 0.2).then(|| (rng.uniform() * 5.0).floor() - 2.0);
        (0..n).map(|_| one()).collect()
    }

    #[test]
    fn the_best_of_each_prompt_is_that_of_a_plain_search() {
        for seed in 0..50 {
            for k in [1, 2, 8] {
                let all = rewards(8 * k, seed);
                let mut wanted = vec![];
                for group in 0..8 {
                    let mut best: Option<usize> = None;
                    for at in group * k..(group + 1) * k {
                        let Some(reward) = all[at] else { continue };
                        if best.is_none_or(|b| reward > all[b].unwrap()) {
                            best = Some(at);
                        }
                    }
                    wanted.extend(best);
                }
                assert_eq!(local(&all, k), wanted, "seed {seed}, k {k}");
            }
        }
    }

    #[test]
    fn the_top_share_is_that_of_a_plain_search() {
        for seed in 0..50 {
            for share in [0.1, 0.2, 0.5, 1.0] {
                let all = rewards(33, seed);
                let (mut wanted, mut left) = (vec![], all.clone());
                for _ in 0..(33.0 * share) as usize {
                    let mut best: Option<usize> = None;
                    for at in 0..left.len() {
                        let Some(reward) = left[at] else { continue };
                        if best.is_none_or(|b| reward > left[b].unwrap()) {
                            best = Some(at);
                        }
                    }
                    if let Some(best) = best {
                        left[best] = None;
                        wanted.push(best);
                    }
                }
                wanted.sort_unstable();
                assert_eq!(top(&all, share), wanted, "seed {seed}, share {share}");
            }
        }
    }

    #[test]
    fn groups_without_an_answer_and_minus_infinity_are_told_apart() {
        let low = Some(f64::NEG_INFINITY);
        assert_eq!(local(&[None, None, low, None, Some(1.0), Some(1.0)], 2), [2, 4]);
        assert_eq!(top(&[None, low, None], 1.0), [1]);
        assert_eq!((local(&[], 3), top(&[], 0.5)), (vec![], vec![]));
    }

    #[test]
    fn sizes_are_those_of_lmflow() {
        assert_eq!(Strategy::Local.sizes(1024, 0.125), (1024, 8));
        assert_eq!(Strategy::Local.sizes(10, 0.3), (10, 3));
        assert_eq!(Strategy::Top.sizes(1024, 0.2), (5120, 1));
        assert_eq!(Strategy::Top.sizes(8, 1.0), (8, 1));
    }
}
