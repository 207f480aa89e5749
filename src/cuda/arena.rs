//! Where blocks lie in a device's memory: address arithmetic that asks no device.
//!
//! Memory comes from the driver in *regions*, one of the planned size before the first step
//! ([`super::Gpu::reserve`]), others as they are needed. A block is cut from the smallest free extent
//! that holds it, of several from the one that lies first, and from that one's beginning; a block that
//! is given back is joined with its free neighbours. Nothing ever moves, and the choice depends on
//! nothing but the requests: the same sequence of them gets the same places. Regions are counted in
//! the order in which they came, so where the driver puts them decides nothing either.
//!
//! ```text
//! region 0 |#####|..........|###|......|   # block  . free extent, never two side by side
//! region 1 |###############|............|  extents of two regions are never joined
//! ```
//!
//! Best fit with coalescing: Knuth, The Art of Computer Programming, volume 1, section 2.5.

use std::collections::{BTreeMap, BTreeSet};

/// Every block begins at a multiple of it, counted from its region's beginning; the driver's begin at
/// multiples of at least as much.
pub const ALIGNMENT: usize = 256;

/// Regions are multiples of it: the driver maps memory in pages of 2 MiB.
const PAGE: usize = 2 << 20;
/// A region that is added without being asked for by name has at least so much...
const LEAST_REGION: usize = 32 << 20;
/// ...and, unless one block needs more, at most so much.
const MOST_REGION: usize = 1 << 30;

/// What a device's buffers take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of the buffers that there are, and of what recorded graphs work in.
    pub used_bytes: usize,
    /// The most that it was.
    pub peak_bytes: usize,
    /// Bytes that were taken from the driver and are kept for buffers to come.
    pub kept_bytes: usize,
    /// How often the driver was asked for more.
    pub n_allocations: usize,
}

/// A place in a region, which is counted as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    region: usize,
    offset: usize,
}

/// Free extents, no two of them side by side.
#[derive(Debug, Default)]
struct Extents {
    /// Bytes of each.
    by_place: BTreeMap<Place, usize>,
    /// The same by size.
    by_size: BTreeSet<(usize, Place)>,
}

impl Extents {
    fn insert(&mut self, place: Place, len: usize) {
        self.by_place.insert(place, len);
        self.by_size.insert((len, place));
    }

    fn remove(&mut self, place: Place, len: usize) {
        self.by_place.remove(&place);
        self.by_size.remove(&(len, place));
    }

    /// Cuts `len` bytes from the smallest extent that has them.
    fn take(&mut self, len: usize) -> Option<Place> {
        let first = Place { region: 0, offset: 0 };
        let &(found, place) = self.by_size.range((len, first)..).next()?;
        self.remove(place, found);
        if found > len {
            let rest = Place { offset: place.offset + len, ..place };
            self.insert(rest, found - len);
        }
        Some(place)
    }

    /// Adds an extent, joined with those that touch it.
    fn give(&mut self, place: Place, len: usize) {
        let (mut place, mut len) = (place, len);
        let before = self.by_place.range(..place).next_back().map(|(&p, &len)| (p, len));
        if let Some((p, bytes)) = before
            && p.region == place.region
        {
            assert!(p.offset + bytes <= place.offset, "{place:?} was given back twice");
            if p.offset + bytes == place.offset {
                self.remove(p, bytes);
                (place, len) = (p, bytes + len);
            }
        }
        let after = self.by_place.range(place..).next().map(|(&p, &len)| (p, len));
        if let Some((p, bytes)) = after
            && p.region == place.region
        {
            assert!(place.offset + len <= p.offset, "{place:?} was given back twice");
            if place.offset + len == p.offset {
                self.remove(p, bytes);
                len += bytes;
            }
        }
        self.insert(place, len);
    }
}

#[derive(Debug)]
struct Region {
    start: u64,
    len: usize,
}

/// Regions, their free extents and what is in use.
#[derive(Debug, Default)]
pub(super) struct Arena {
    regions: BTreeMap<usize, Region>,
    /// The region that begins at an address.
    starts: BTreeMap<u64, usize>,
    n_regions_ever: usize,
    region_bytes: usize,
    free: Extents,
    /// While a graph is recorded: what the recording gave back, which it alone gets again.
    apart: Option<Extents>,
    usage: MemoryUse,
}

impl Arena {
    /// Bytes of the block for `bytes`: a multiple of [`ALIGNMENT`], and from 64 KiB on of a
    /// thirty-second of the power of two below, so that buffers of nearly one size fit where the
    /// others lay.
    pub fn block_bytes(bytes: usize) -> usize {
        let below = 1usize << bytes.max(1).ilog2();
        let step = if bytes >= 64 << 10 { below / 32 } else { ALIGNMENT };
        bytes.max(1).checked_next_multiple_of(step).unwrap_or(usize::MAX)
    }

    /// An address with a whole block behind it, if a region has room. `apart`: for a recording,
    /// which looks first at what it gave back itself.
    pub fn take(&mut self, block: usize, apart: bool) -> Option<u64> {
        let own = if apart { self.apart.as_mut().and_then(|own| own.take(block)) } else { None };
        let place = own.or_else(|| self.free.take(block))?;
        self.count(block);
        Some(self.regions[&place.region].start + place.offset as u64)
    }

    /// A block, or part of one, comes back; `apart`: from a recording.
    pub fn give_back(&mut self, address: u64, block: usize, apart: bool) {
        self.forget(block);
        let place = self.place(address);
        match self.apart.as_mut().filter(|_| apart) {
            Some(own) => own.give(place, block),
            None => self.free.give(place, block),
        }
    }

    fn place(&self, address: u64) -> Place {
        let below = self.starts.range(..=address).next_back();
        let (&start, &region) = below.expect("an address of the arena lies in one of its regions");
        Place { region, offset: (address - start) as usize }
    }

    /// Begins to keep apart what a recording gives back.
    pub fn set_apart(&mut self) {
        self.apart = Some(Extents::default());
    }

    /// What the recording gave back and did not take again: it counts as used until it is given
    /// back once more.
    pub fn end_apart(&mut self) -> Vec<(u64, usize)> {
        let extents = self.apart.take().unwrap_or_default().by_place;
        let held = extents.into_iter().map(|(place, len)| {
            self.usage.used_bytes += len;
            (self.regions[&place.region].start + place.offset as u64, len)
        });
        held.collect()
    }

    /// Bytes of the region to ask for where no region has room for this block.
    pub fn growth(&self, block: usize) -> usize {
        let sensible = (self.region_bytes / 4).clamp(LEAST_REGION, MOST_REGION);
        Arena::region_of(block.max(sensible))
    }

    /// Bytes of a region that has so many.
    pub fn region_of(bytes: usize) -> usize {
        bytes.max(1).checked_next_multiple_of(PAGE).unwrap_or(usize::MAX)
    }

    /// A region that the driver has just given.
    pub fn add_region(&mut self, start: u64, len: usize) {
        let region = self.n_regions_ever;
        self.n_regions_ever += 1;
        self.regions.insert(region, Region { start, len });
        self.starts.insert(start, region);
        self.region_bytes += len;
        self.usage.n_allocations += 1;
        self.free.give(Place { region, offset: 0 }, len);
    }

    /// Takes out the regions that nothing uses, to be handed back to the driver.
    pub fn drain(&mut self) -> Vec<u64> {
        let whole = |(&region, known): (&usize, &Region)| {
            let place = Place { region, offset: 0 };
            (self.free.by_place.get(&place) == Some(&known.len)).then_some((region, known.len))
        };
        let unused: Vec<(usize, usize)> = self.regions.iter().filter_map(whole).collect();
        let mut starts = vec![];
        for (region, len) in unused {
            self.free.remove(Place { region, offset: 0 }, len);
            if let Some(Region { start, .. }) = self.regions.remove(&region) {
                self.starts.remove(&start);
                starts.push(start);
            }
            self.region_bytes -= len;
        }
        starts
    }

    /// Bytes of the largest free extent.
    pub fn largest(&self) -> usize {
        self.free.by_size.last().map_or(0, |(len, _)| *len)
    }

    /// Counts a block that no region has.
    #[cfg(feature = "cuda-host")]
    pub fn count_single(&mut self, block: usize) {
        self.usage.n_allocations += 1;
        self.count(block);
    }

    fn count(&mut self, block: usize) {
        self.usage.used_bytes += block;
        self.usage.peak_bytes = self.usage.peak_bytes.max(self.usage.used_bytes);
    }

    /// A block is in use no more.
    pub fn forget(&mut self, block: usize) {
        self.usage.used_bytes -= block;
    }

    pub fn usage(&self) -> MemoryUse {
        let kept_bytes = self.region_bytes.saturating_sub(self.usage.used_bytes);
        MemoryUse { kept_bytes, ..self.usage }
    }
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
