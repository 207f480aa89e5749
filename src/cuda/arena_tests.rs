//! The arena against a list of what is in use, without a device.

use super::*;
use crate::rng::Rng;

const MIB: usize = 1 << 20;

/// A driver that gives regions at addresses of its own choosing, and the blocks that are in use.
struct Model {
    arena: Arena,
    rng: Rng,
    regions: BTreeMap<u64, usize>,
    /// Regions end above and begin below.
    above: u64,
    below: u64,
    live: BTreeMap<u64, usize>,
}

impl Model {
    fn new(seed: u64) -> Model {
        Model {
            arena: Arena::default(),
            rng: Rng::new(seed, 0),
            regions: BTreeMap::new(),
            above: 1 << 40,
            below: 1 << 40,
            live: BTreeMap::new(),
        }
    }

    fn random(&mut self, n: usize) -> usize {
        ((self.rng.uniform() * n as f64) as usize).min(n - 1)
    }

    /// Beside another one, which must not join them, or far from it, above or below.
    fn add_region(&mut self, len: usize) {
        let gap = (self.random(1000) * PAGE) as u64;
        let start = match self.random(4) {
            0 => self.above,
            1 => self.above + gap,
            2 => self.below - len as u64,
            _ => self.below - len as u64 - gap,
        };
        self.above = self.above.max(start + len as u64);
        self.below = self.below.min(start);
        self.regions.insert(start, len);
        self.arena.add_region(start, len);
    }

    fn take(&mut self, bytes: usize) -> u64 {
        let block = Arena::block_bytes(bytes);
        if let Some(address) = self.arena.take(block, false) {
            self.note(address, block);
            return address;
        }
        self.add_region(self.arena.growth(block));
        let address = self.arena.take(block, false).expect("the new region has room");
        self.note(address, block);
        address
    }

    fn note(&mut self, address: u64, block: usize) {
        assert!(address.is_multiple_of(ALIGNMENT as u64), "{address:#x}");
        let end = address + block as u64;
        let (&start, &len) = self.regions.range(..=address).next_back().expect("in a region");
        assert!(end <= start + len as u64, "a block ends behind its region");
        if let Some((&other, &other_len)) = self.live.range(..end).next_back() {
            assert!(other + other_len as u64 <= address, "{address:#x} overlaps {other:#x}");
        }
        self.live.insert(address, block);
    }

    fn drop_one(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let at = self.random(self.live.len());
        let (&address, &block) = self.live.iter().nth(at).expect("one of them");
        self.live.remove(&address);
        self.arena.give_back(address, block, false);
    }

    /// A size from 1 to 2^25, all magnitudes alike.
    fn size(&mut self) -> usize {
        let exponent = self.rng.uniform() * 25.0;
        exponent.exp2() as usize
    }

    /// Checks the counts against the list.
    fn check(&self) {
        let used: usize = self.live.values().sum();
        let all: usize = self.regions.values().sum();
        let usage = self.arena.usage();
        assert_eq!((usage.used_bytes, usage.kept_bytes), (used, all - used));
        assert_eq!(self.arena.free.by_place.values().sum::<usize>(), all - used);
        assert_eq!(self.arena.free.by_size.len(), self.arena.free.by_place.len());
        assert_eq!(usage.n_allocations, self.regions.len());
    }
}

#[test]
fn a_block_loses_at_most_a_thirty_second() {
    assert_eq!(Arena::block_bytes(0), 256);
    assert_eq!(Arena::block_bytes(256), 256);
    assert_eq!(Arena::block_bytes(257), 512);
    assert_eq!(Arena::block_bytes(usize::MAX), usize::MAX);
    for bytes in [1, 255, 4096, 4097, 65_535, 65_537, 1 << 20, (1 << 20) + 1, 123_456_789] {
        let block = Arena::block_bytes(bytes);
        assert!(block >= bytes && block - bytes < (bytes / 32).max(256), "{bytes}: {block}");
        assert_eq!(Arena::block_bytes(block), block, "{bytes}");
        assert_eq!(block % ALIGNMENT, 0, "{bytes}");
    }
}

#[test]
fn random_requests_never_overlap_and_all_joins_in_the_end() {
    for seed in 0..20 {
        let mut model = Model::new(seed);
        if seed % 2 == 0 {
            model.add_region(256 * MIB);
        }
        for step in 0..2000 {
            // Fuller and emptier by turns.
            let rising = step / 250 % 2 == 0;
            if model.rng.uniform() < if rising { 0.6 } else { 0.4 } {
                let bytes = model.size();
                model.take(bytes);
            } else {
                model.drop_one();
            }
            if step % 50 == 0 {
                model.check();
            }
        }
        while !model.live.is_empty() {
            model.drop_one();
        }
        model.check();
        // One extent a region, each the whole of it.
        assert_eq!(model.arena.free.by_place.len(), model.regions.len(), "seed {seed}");
        let mut handed_back = model.arena.drain();
        handed_back.sort_unstable();
        assert!(handed_back.iter().eq(model.regions.keys()), "seed {seed}");
        assert_eq!(model.arena.usage().kept_bytes, 0);
        assert_eq!(model.arena.take(256, false), None);
    }
}

/// How far into a region blocks ever reach, beside the most that was in use: blocks of all magnitudes
/// that come and go at random are the worst that a step could ask for, since nothing of it repeats.
#[test]
fn fragmentation_is_bounded() {
    for seed in 0..10 {
        let mut model = Model::new(100 + seed);
        model.add_region(8 << 30);
        let start = *model.regions.keys().next().expect("the one");
        let (mut reach, mut peak) = (0, 0);
        for step in 0..6000 {
            // Fuller and emptier by a half, so that what is left of one time is in the other's way.
            if model.live.len() > if step / 1000 % 2 == 0 { 400 } else { 200 } {
                model.drop_one();
                model.drop_one();
            }
            let bytes = model.size();
            model.take(bytes);
            let (&last, &len) = model.live.iter().next_back().expect("just taken");
            reach = reach.max((last - start) as usize + len);
            peak = peak.max(model.arena.usage().used_bytes);
        }
        assert_eq!(model.regions.len(), 1);
        // A quarter beside what was in use: seen are 7 to 17 in a hundred.
        assert!(reach <= peak + peak / 4, "seed {seed}: {reach} reached, {peak} in use");
    }
}

#[test]
fn the_same_requests_get_the_same_places_wherever_regions_lie() {
    let places = |regions: [u64; 4]| {
        let (mut arena, mut given, mut live) = (Arena::default(), 0, vec![]);
        let mut rng = Rng::new(7, 0);
        let mut seen = vec![];
        for _ in 0..500 {
            if rng.uniform() < 0.55 || live.is_empty() {
                let block = Arena::block_bytes((rng.uniform() * 8e6) as usize);
                let address = arena.take(block, false).unwrap_or_else(|| {
                    arena.add_region(regions[given], 256 * MIB);
                    given += 1;
                    arena.take(block, false).expect("room")
                });
                let place = arena.place(address);
                seen.push(place);
                live.push((address, block));
            } else {
                let at = (rng.uniform() * live.len() as f64) as usize;
                let (address, block) = live.swap_remove(at);
                arena.give_back(address, block, false);
            }
        }
        seen
    };
    let far = 1 << 40;
    let rising = places([far, 2 * far, 3 * far, 4 * far]);
    assert_eq!(rising, places([4 * far, 3 * far, 2 * far, far]));
    // Side by side, where extents could be joined over a border.
    let len = (256 * MIB) as u64;
    assert_eq!(rising, places([far + len, far, far + 3 * len, far + 2 * len]));
}

#[test]
fn a_repeated_step_gets_the_addresses_of_the_first() {
    let mut model = Model::new(3);
    model.add_region(64 * MIB);
    let weights = model.take(10 * MIB);
    let mut step = || {
        let addresses = [4 * MIB, 300, MIB, 70_000].map(|bytes| model.take(bytes));
        for address in addresses {
            let block = model.live.remove(&address).expect("just taken");
            model.arena.give_back(address, block, false);
        }
        addresses
    };
    let first = step();
    assert_eq!((step(), step()), (first, first));
    assert_eq!(model.live.keys().collect::<Vec<_>>(), [&weights]);
    assert_eq!(model.arena.usage().n_allocations, 1);
}

#[test]
fn regions_grow_with_what_there_is() {
    let mut arena = Arena::default();
    assert_eq!(arena.growth(1), LEAST_REGION);
    assert_eq!(arena.growth(LEAST_REGION + 1), LEAST_REGION + PAGE);
    arena.add_region(1 << 40, 400 * MIB);
    assert_eq!(arena.growth(1), 100 * MIB);
    arena.add_region(1 << 41, 64 << 30);
    assert_eq!((arena.growth(1), arena.growth(3 << 30)), (MOST_REGION, 3 << 30));
    assert_eq!(arena.growth(usize::MAX), usize::MAX);
    assert_eq!(arena.largest(), 64 << 30);
}

#[test]
fn a_region_in_use_is_not_handed_back() {
    let mut arena = Arena::default();
    arena.add_region(1 << 40, 4 * MIB);
    arena.add_region(1 << 41, 4 * MIB);
    let block = arena.take(512, false).expect("room");
    assert_eq!(block, 1 << 40, "of two that fit alike the first");
    assert_eq!(arena.drain(), [1 << 41]);
    assert_eq!(arena.drain(), [0; 0]);
    arena.give_back(block, 512, false);
    assert_eq!(arena.drain(), [1 << 40]);
    assert_eq!(arena.usage().n_allocations, 2);
}

#[test]
fn a_recording_keeps_what_it_gave_back() {
    let mut arena = Arena::default();
    arena.add_region(1 << 40, 4 * MIB);
    let before = arena.take(4096, false).expect("room");
    arena.set_apart();
    let a = arena.take(1024, true).expect("room");
    arena.give_back(a, 1024, true);
    // The recording itself gets it again, others do not.
    let other = arena.take(1024, false).expect("room");
    assert_ne!(other, a);
    let b = arena.take(1024, true).expect("room");
    assert_eq!(b, a);
    arena.give_back(b, 1024, true);
    arena.give_back(before, 4096, true);
    let held = arena.end_apart();
    // Side by side, so they are one.
    assert_eq!(held, [(before, 5120)]);
    assert_eq!(arena.usage().used_bytes, 5120 + 1024);
    assert_ne!(arena.take(1024, false), Some(a));
    for (address, len) in held {
        arena.give_back(address, len, false);
    }
    assert_eq!(arena.take(4096, false), Some(before));
}

#[test]
#[should_panic(expected = "given back twice")]
fn giving_back_twice_is_noticed() {
    let mut arena = Arena::default();
    arena.add_region(1 << 40, 4 * MIB);
    let (a, _b) = (arena.take(512, false).expect("room"), arena.take(512, false));
    arena.give_back(a, 512, false);
    arena.usage.used_bytes += 512;
    arena.give_back(a, 512, false);
}
