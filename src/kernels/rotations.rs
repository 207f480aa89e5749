//! Angles of rotary position embedding, made by the host and read by any device.

use super::Device;
use crate::error::Result;

pub use puna_cpu::rope::Pairing;

#[cfg(feature = "cuda")]
use crate::cuda::{DeviceBuffer, Gpu, rope::Angles};
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

/// Angles of some rows' rotations, each [m, half].
#[derive(Default)]
pub struct Rotations {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// Values of a row: rotated dimensions / 2.
    pub half: usize,
    /// The same on a GPU, once a kernel there has asked for them.
    #[cfg(feature = "cuda")]
    copies: OnceLock<[DeviceBuffer<f32>; 2]>,
    /// Room of copies that were made before.
    #[cfg(feature = "cuda")]
    room: Option<[DeviceBuffer<f32>; 2]>,
}

impl Rotations {
    /// These angles, `half` a row.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>, half: usize) -> Rotations {
        Rotations {
            cos,
            sin,
            half,
            #[cfg(feature = "cuda")]
            copies: OnceLock::new(),
            #[cfg(feature = "cuda")]
            room: None,
        }
    }

    /// No rows; `half` values each from now on.
    pub fn clear(&mut self, half: usize) {
        self.cos.clear();
        self.sin.clear();
        self.half = half;
        #[cfg(feature = "cuda")]
        if let Some(copies) = self.copies.take() {
            self.room = Some(copies);
        }
    }

    /// Makes the copy of a device that wants one, in the place of the last one if it has the size.
    /// Returns whether it is there.
    ///
    /// # Errors
    /// When the GPU has no room, or failed.
    pub fn bring(&mut self, device: &Device) -> Result<bool> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = device.gpu() {
            let n = self.cos.len();
            let room = self.room.take().filter(|room| room.iter().all(|room| room.len() == n));
            let fits = room.is_some();
            let [mut cos, mut sin] = match room {
                Some(room) => room,
                None => [gpu.alloc(n)?, gpu.alloc(n)?],
            };
            gpu.write(&mut cos.slice_mut(), &self.cos)?;
            gpu.write(&mut sin.slice_mut(), &self.sin)?;
            self.copies = OnceLock::from([cos, sin]);
            return Ok(fits);
        }
        let _ = device;
        Ok(true)
    }

    /// The angles on a GPU: copied for the first kernel that asks, so not to be changed after it
    /// but by [`Rotations::clear`].
    ///
    /// # Errors
    /// When the GPU has no room, or failed.
    #[cfg(feature = "cuda")]
    pub fn on(&self, gpu: &Gpu) -> Result<Angles<'_>> {
        if self.copies.get().is_none() {
            // Of two threads that come here at once one copy is dropped.
            let _ = self.copies.set([gpu.upload(&self.cos)?, gpu.upload(&self.sin)?]);
        }
        let [cos, sin] = self.copies.get().expect("set just before");
        Ok(Angles { cos: cos.slice(), sin: sin.slice(), half: self.half })
    }
}
