//! How fast a team reads memory: the bound of whatever reads its operands once.

use super::median;
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector};
use crate::team::{Team, part};
use std::hint::black_box;
use std::time::Instant;

/// Bytes to read for the speed of memory: far beyond every cache.
pub const READ_BYTES: usize = 2 << 30;
/// Runs whose median counts, after one that does not.
const RUNS: usize = 5;
/// Bytes that one run reads at least; a small block is read again and again.
const RUN_BYTES: usize = 256 << 20;
/// Numbers that one member takes at once: a page of 4 KiB.
const PAGE: usize = 1024;

/// Memory to be read, all of it written before so that every page is there.
pub struct ReadTest {
    data: Buffer<f32>,
}

impl ReadTest {
    /// `bytes`, rounded up to whole pages. Each member of the team writes the part that it will
    /// read, so that on machines with several memories the part lies near its core.
    pub fn new(team: &Team, bytes: usize) -> ReadTest {
        let pages = bytes.div_ceil(PAGE * size_of::<f32>()).max(1);
        let mut data = Buffer::<f32>::zeroed(pages * PAGE);
        // Not zeros: of these the system could keep one page for all.
        team.split_rows(&mut data, PAGE, 1, &|_, part| part.fill(1.0));
        ReadTest { data }
    }

    /// How much memory it is.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Bytes a second that the team reads: the median of five runs, in the faster of two orders
    /// (a member's share from its start to its end, or four quarters of it side by side).
    pub fn bytes_per_s(&self, isa: Isa, team: &Team) -> f64 {
        let passes = RUN_BYTES.div_ceil(self.bytes()).max(1);
        let members = team.len();
        let run = |streams: usize| {
            let start = Instant::now();
            team.run(&|member| {
                let pages = part(self.data.len() / PAGE, 1, member, members);
                let mine = &self.data[pages.start * PAGE..pages.end * PAGE];
                for _ in 0..passes {
                    black_box(simd::run(isa, Read { x: black_box(mine), streams }));
                }
            });
            (self.bytes() * passes) as f64 / start.elapsed().as_secs_f64().max(1e-9)
        };
        let rate = |streams| median((0..=RUNS).map(|_| run(streams)).skip(1).collect());
        rate(1).max(rate(4))
    }
}

/// Bytes a second that the team reads of a block of `bytes`; [`READ_BYTES`] for the memory's own
/// speed, less for a cache's.
pub fn read_bandwidth(isa: Isa, team: &Team, bytes: usize) -> f64 {
    ReadTest::new(team, bytes).bytes_per_s(isa, team)
}

/// Reads whole pages in one stream or four; its result is the largest number.
struct Read<'a> {
    x: &'a [f32],
    streams: usize,
}

impl Kernel for Read<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        match self.streams {
            4 => read::<V, 4, 2>(self.x),
            _ => read::<V, 1, 8>(self.x),
        }
    }
}

#[inline(always)]
fn read<V: Vector, const STREAMS: usize, const UNROLL: usize>(x: &[f32]) -> f32 {
    let step = UNROLL * V::LANES;
    // A page is a multiple of every STREAMS * step, so nothing is left over.
    let each = x.len() / STREAMS / step * step;
    let mut largest = [[V::splat(0.0); UNROLL]; STREAMS];
    let mut at = 0;
    while at < each {
        for s in 0..STREAMS {
            for u in 0..UNROLL {
                // SAFETY: at + step <= each, so the vector ends before (s + 1) * each <= x.len().
                let v = unsafe { V::load(x.as_ptr().add(s * each + at + u * V::LANES)) };
                largest[s][u] = v.max(largest[s][u]);
            }
        }
        at += step;
    }
    let mut all = V::splat(0.0);
    for s in 0..STREAMS {
        for u in 0..UNROLL {
            all = all.max(largest[s][u]);
        }
    }
    all.max_lane()
}
