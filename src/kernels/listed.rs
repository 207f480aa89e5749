//! Lists that the host makes and kernels of any device read: token ids.
//!
//! A kernel of a GPU takes a plain slice too, and copies it on the way. What is copied before a pass
//! begins ([`List::bring`]) always lies at the same address, so a pass that was recorded reads what
//! is there when it is replayed.

use super::Device;
use crate::error::Result;

#[cfg(feature = "cuda")]
use crate::cuda::{DeviceBuffer, DeviceSlice, Gpu};

/// A list, and its copy on a GPU if that was made before.
#[derive(Clone, Copy)]
pub struct Listed<'a> {
    /// The numbers.
    pub list: &'a [u32],
    #[cfg(feature = "cuda")]
    there: Option<DeviceSlice<'a, u32>>,
}

impl<'a> From<&'a [u32]> for Listed<'a> {
    fn from(list: &'a [u32]) -> Self {
        Listed {
            list,
            #[cfg(feature = "cuda")]
            there: None,
        }
    }
}

/// A copy on a GPU, made now or before.
#[cfg(feature = "cuda")]
pub(super) enum There<'a> {
    Made(DeviceBuffer<u32>),
    Before(DeviceSlice<'a, u32>),
}

#[cfg(feature = "cuda")]
impl There<'_> {
    pub(super) fn slice(&self) -> DeviceSlice<'_, u32> {
        match self {
            There::Made(buffer) => buffer.slice(),
            There::Before(slice) => *slice,
        }
    }
}

#[cfg(feature = "cuda")]
impl<'a> Listed<'a> {
    pub(super) fn on(self, gpu: &Gpu) -> Result<There<'a>> {
        match self.there {
            Some(there) => Ok(There::Before(there)),
            None => Ok(There::Made(gpu.upload(self.list)?)),
        }
    }
}

/// A list that is made anew for every pass.
#[derive(Default)]
pub struct List {
    list: Vec<u32>,
    /// Room on a GPU, and how much of it is the list's copy.
    #[cfg(feature = "cuda")]
    there: Option<(DeviceBuffer<u32>, usize)>,
}

impl List {
    /// The numbers, to be changed; a copy is forgotten.
    pub fn edit(&mut self) -> &mut Vec<u32> {
        #[cfg(feature = "cuda")]
        if let Some((_, len)) = &mut self.there {
            *len = 0;
        }
        &mut self.list
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[u32] {
        &self.list
    }

    /// Makes the copy of a device that wants one. Returns whether it lies where the last one lay.
    ///
    /// # Errors
    /// When the GPU has no room, or failed.
    pub fn bring(&mut self, device: &Device) -> Result<bool> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = device.gpu() {
            let len = self.list.len();
            let fits = self.there.as_ref().is_some_and(|(room, _)| room.len() >= len);
            if !fits {
                self.there = Some((gpu.alloc(len.next_power_of_two())?, 0));
            }
            if let Some((room, used)) = &mut self.there {
                gpu.write(&mut room.slice_mut().range_mut(0..len), &self.list)?;
                *used = len;
            }
            return Ok(fits);
        }
        let _ = device;
        Ok(true)
    }

    /// To be handed to a kernel.
    pub fn listed(&self) -> Listed<'_> {
        Listed {
            list: &self.list,
            #[cfg(feature = "cuda")]
            there: self
                .there
                .as_ref()
                .filter(|(_, len)| *len == self.list.len())
                .map(|(room, len)| room.slice().range(0..*len)),
        }
    }

    /// Numbers that there is room for here.
    pub fn capacity(&self) -> usize {
        self.list.capacity()
    }
}
