//! Numbers of either type that training stores, on the device: beside `puna_cpu::testing::Stored`.

use half::bf16;
use puna::cuda::{Floats, FloatsMut, Gpu};
use puna_cpu::testing::Storage;

use crate::support::{Guarded, from_bf16, guarded, to_bf16};

/// What stands in front of the numbers where their alignment is broken.
const FRONT: f32 = 7.0;

enum Buffer<'g> {
    F32(Guarded<'g, f32>),
    Bf16(Guarded<'g, bf16>),
}

/// Numbers behind `skip` others, followed by sentinels.
pub struct OnDevice<'g> {
    buffer: Buffer<'g>,
    skip: usize,
}

impl<'g> OnDevice<'g> {
    /// The numbers, rounded to the type.
    pub fn new(gpu: &'g Gpu, storage: Storage, values: &[f32], skip: usize) -> OnDevice<'g> {
        let all = [vec![FRONT; skip], values.to_vec()].concat();
        let buffer = match storage {
            Storage::F32 => Buffer::F32(guarded(gpu, &all)),
            Storage::Bf16 => Buffer::Bf16(guarded(gpu, &to_bf16(&all))),
        };
        OnDevice { buffer, skip }
    }

    pub fn floats(&self) -> Floats<'_> {
        let all = match &self.buffer {
            Buffer::F32(x) => Floats::F32(x.slice()),
            Buffer::Bf16(x) => Floats::Bf16(x.slice()),
        };
        all.range(self.skip..all.len())
    }

    pub fn floats_mut(&mut self) -> FloatsMut<'_> {
        let all = match &mut self.buffer {
            Buffer::F32(x) => FloatsMut::F32(x.slice_mut()),
            Buffer::Bf16(x) => FloatsMut::Bf16(x.slice_mut()),
        };
        let len = all.len();
        all.range_mut(self.skip..len)
    }

    /// The numbers, after a look at what surrounds them.
    pub fn get(&self) -> Vec<f32> {
        let mut all = match &self.buffer {
            Buffer::F32(x) => x.check(),
            Buffer::Bf16(x) => from_bf16(&x.check()),
        };
        let front = all.iter().take(self.skip).position(|&x| x != FRONT);
        assert_eq!(front, None, "elements in front of a buffer written");
        all.split_off(self.skip)
    }
}

/// Every pair of types.
pub fn pairs() -> [(Storage, Storage); 4] {
    let [a, b] = Storage::ALL;
    [(a, a), (a, b), (b, a), (b, b)]
}
