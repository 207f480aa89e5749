//! Angles of rotary position embedding, made by the host and read by any device.

pub use puna_cpu::rope::Pairing;

#[cfg(feature = "cuda")]
use crate::cuda::{DeviceBuffer, Gpu, rope::Angles};
#[cfg(feature = "cuda")]
use crate::error::Result;
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
        }
    }

    /// No rows; `half` values each from now on.
    pub fn clear(&mut self, half: usize) {
        self.cos.clear();
        self.sin.clear();
        self.half = half;
        #[cfg(feature = "cuda")]
        self.copies.take();
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
