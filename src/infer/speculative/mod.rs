//! Speculative decoding: a draft guesses the next tokens, the model computes them all in one pass,
//! and as many are kept as it would have chosen itself.
//!
//! The usual scheme (Leviathan et al. 2023, arXiv 2211.17192) accepts a guess at random so that the
//! model's distribution is preserved. Here the model's own sampler draws at every position, from
//! its own logits and its own random stream, and a guess is right when it is that token. The
//! distribution is preserved for any sampler setting because nothing but the sampler ever chooses;
//! more than that, a seed gives the same tokens with speculation and without. A draft model draws
//! with the very random numbers that the model will use, so that equal distributions agree always
//! and similar ones mostly.

mod propose;
mod verify;

pub use propose::{Draft, DraftModel, PromptLookup};
pub use verify::generate_speculative;

/// What speculation did for a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speculation {
    /// Passes of the model after the prompt.
    pub steps: usize,
    /// Tokens that these passes gave.
    pub tokens: usize,
    /// Guesses made.
    pub proposed: usize,
    /// Guesses that were right.
    pub accepted: usize,
    /// Time of passes without a guess, and their number.
    plain_ms: f64,
    plain_steps: usize,
    /// Time of all passes with the guessing.
    total_ms: f64,
}

impl Speculation {
    /// Tokens a pass.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens as f64 / self.steps.max(1) as f64
    }

    /// How many times as fast as one token a pass, by the passes of this run that had no guess;
    /// `None` where every pass had one.
    pub fn speed_up(&self) -> Option<f64> {
        let plain = self.plain_ms / self.plain_steps as f64;
        (self.plain_steps > 0 && self.total_ms > 0.0)
            .then(|| self.tokens as f64 * plain / self.total_ms)
    }

    fn add(&mut self, proposed: usize, accepted: usize, tokens: usize, ms: f64) {
        self.steps += 1;
        self.tokens += tokens;
        self.proposed += proposed;
        self.accepted += accepted;
        self.total_ms += ms;
        if proposed == 0 {
            self.plain_ms += ms;
            self.plain_steps += 1;
        }
    }
}

/// How many tokens to guess: more after guesses that were all right, fewer after a wrong one, none
/// for a while where guessing does not help. A function of what was accepted alone, so that runs
/// repeat.
#[derive(Clone, Copy, Debug)]
struct Pace {
    most: usize,
    now: usize,
    /// Passes in a row without a right guess.
    misses: u32,
    /// Passes to go on without guessing.
    rest: usize,
}

/// Guesses to begin with.
const FIRST: usize = 4;
/// Passes without a right guess that are borne.
const PATIENCE: u32 = 4;
/// The longest rest.
const LONGEST_REST: usize = 64;

impl Pace {
    /// Begins with one pass without a guess, which is what others are compared with.
    fn new(most: usize) -> Pace {
        Pace { most, now: FIRST.min(most), misses: 0, rest: 1 }
    }

    /// Guesses for the next pass.
    fn next(&mut self) -> usize {
        if self.rest > 0 {
            self.rest -= 1;
            return 0;
        }
        self.now
    }

    /// Notes what came of a pass.
    fn note(&mut self, proposed: usize, accepted: usize) {
        if proposed == 0 {
            return;
        }
        if accepted == proposed {
            self.now = (self.now + 2).min(self.most);
        } else {
            self.now = (accepted + 1).min(self.most);
        }
        self.misses = if accepted > 0 { 0 } else { self.misses + 1 };
        if self.misses >= PATIENCE {
            let doublings = (self.misses - PATIENCE).min(8);
            self.rest = (4usize << doublings).min(LONGEST_REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_success() {
        let mut pace = Pace::new(8);
        assert_eq!((pace.next(), pace.next()), (0, 4), "one pass to compare with");
        pace.note(4, 4);
        assert_eq!(pace.next(), 6);
        pace.note(6, 6);
        pace.note(8, 8);
        assert_eq!(pace.next(), 8);
        pace.note(8, 2);
        assert_eq!(pace.next(), 3);
        pace.note(3, 0);
        assert_eq!(pace.next(), 1);
        for _ in 0..3 {
            pace.note(1, 0);
        }
        let lengths: Vec<usize> = (0..5).map(|_| pace.next()).collect();
        assert_eq!(lengths, [0, 0, 0, 0, 1], "four misses, four passes of rest");
        pace.note(1, 0);
        assert_eq!((0..20).take_while(|_| pace.next() == 0).count(), 8, "then twice as long");
        pace.note(1, 1);
        assert_eq!(pace.next(), 3);
        assert_eq!(Pace::new(1).now, 1);
    }

    #[test]
    fn the_speed_up_compares_with_passes_without_a_guess() {
        let mut done = Speculation::default();
        assert_eq!(done.speed_up(), None);
        done.add(0, 0, 1, 10.0);
        assert_eq!(done.speed_up(), Some(1.0));
        done.add(4, 2, 3, 10.0);
        assert_eq!((done.steps, done.tokens, done.proposed, done.accepted), (2, 4, 4, 2));
        assert_eq!((done.speed_up(), done.tokens_per_step()), (Some(2.0), 2.0));
    }
}
