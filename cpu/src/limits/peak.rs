//! How many operations a team reaches with nothing but registers: the bound of products.

use super::median;
use crate::isa::Isa;
use crate::team::Team;
use std::fmt;
use std::hint::black_box;
use std::time::Instant;

/// Runs whose median counts.
const RUNS: usize = 7;
/// Seconds that a run takes, about: long beside waking a team, short beside a user's patience.
const RUN_S: f64 = 0.012;
/// Seconds from which on a trial run tells how many rounds to take. Trials also bring the clock to
/// where it stays under such work.
const TRIAL_S: f64 = 0.003;

/// What multiplies and adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Fused multiply-add of f32.
    F32,
    /// Dot products of bf16 pairs (`vdpbf16ps`).
    Bf16,
    /// Dot products of bytes: `vpdpbusd` with VNNI, else `vpmaddubsw` with sums in i16, what a
    /// kernel that seldom widens its sums comes near.
    Int8,
}

impl Unit {
    /// Every unit.
    pub const ALL: [Unit; 3] = [Unit::F32, Unit::Bf16, Unit::Int8];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::F32 => "f32",
            Unit::Bf16 => "bf16",
            Unit::Int8 => "int8",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Operations a second of the whole team, a multiplication and an addition being two: the median
/// of seven runs. `None` where the level's kernels have no such unit.
pub fn peak(isa: Isa, team: &Team, unit: Unit) -> Option<f64> {
    let Rounds { ops, run } = rounds_of(isa, unit)?;
    let time = |rounds: usize| {
        let start = Instant::now();
        team.run(&|_| run(rounds));
        start.elapsed().as_secs_f64().max(1e-9)
    };
    let mut rounds = 10_000;
    let mut trial_s = time(rounds);
    while trial_s < TRIAL_S {
        rounds *= 4;
        trial_s = time(rounds);
    }
    let rounds = ((rounds as f64 * RUN_S / trial_s) as usize).max(1);
    let all_ops = (ops * rounds * team.len()) as f64;
    Some(median((0..RUNS).map(|_| all_ops / time(rounds)).collect()))
}

/// A loop on registers.
struct Rounds {
    /// Operations of a round.
    ops: usize,
    /// Runs so many rounds.
    run: fn(usize),
}

fn rounds_of(isa: Isa, unit: Unit) -> Option<Rounds> {
    #[cfg(target_arch = "x86_64")]
    use {super::registers, crate::isa::Level};
    let (ops, run): (usize, fn(usize)) = match (isa.level(), unit) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Unit::F32) => (registers::F32_WIDE_OPS, |n| {
            // SAFETY: chosen only for an Isa of this level, which exists only where it was detected.
            unsafe { registers::f32_wide(n) }
        }),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Unit::Bf16) if isa.has_bf16() => (registers::BF16_OPS, |n| {
            // SAFETY: likewise, and has_bf16 was asked.
            unsafe { registers::bf16(n) }
        }),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Unit::Int8) if isa.has_vnni() => (registers::INT8_OPS, |n| {
            // SAFETY: likewise, and has_vnni was asked.
            unsafe { registers::int8(n) }
        }),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Unit::F32) => (registers::F32_HALF_OPS, |n| {
            // SAFETY: as above.
            unsafe { registers::f32_half(n) }
        }),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2 | Level::Avx512, Unit::Int8) => (registers::INT8_HALF_OPS, |n| {
            // SAFETY: as above; AVX-512 includes AVX2.
            unsafe { registers::int8_half(n) }
        }),
        (_, Unit::F32) => (PLAIN_SUMS * 2, |n| {
            black_box(multiply_adds(n));
        }),
        _ => return None,
    };
    Some(Rounds { ops, run })
}

/// Sums that the plain loop keeps under way: as many as the compiler still keeps in registers.
const PLAIN_SUMS: usize = 32;

/// The loop where there are no instructions to name, as the compiler vectorises it.
fn multiply_adds(rounds: usize) -> f32 {
    let half = black_box(0.5f32);
    // They tend to 1, so nothing overflows or becomes subnormal.
    let mut sums = [half; PLAIN_SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * half + half;
        }
    }
    sums.iter().sum()
}
