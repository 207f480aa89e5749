//! Lists that the host makes and kernels of any device read: token ids, numbers of rows.
//!
//! A kernel of a GPU takes a plain slice too, and copies it on the way. What is copied before a pass
//! begins ([`List::bring`]) always lies at the same address, so a pass that was recorded reads what
//! is there when it is replayed.

use super::Device;
use crate::error::Result;

#[cfg(feature = "cuda")]
use crate::cuda::{DeviceBuffer, DeviceSlice, Gpu};
#[cfg(feature = "cuda")]
use std::borrow::Cow;

/// A number that kernels take as one of 32 bits.
pub trait Number: Copy {
    /// The number.
    ///
    /// # Errors
    /// When it takes more bits.
    fn number(self) -> Result<u32>;
}

impl Number for u32 {
    fn number(self) -> Result<u32> {
        Ok(self)
    }
}

impl Number for usize {
    fn number(self) -> Result<u32> {
        u32::try_from(self).map_err(|_| crate::Error::Shape {
            op: "a list of rows".into(),
            expected: format!("numbers of at most {}", u32::MAX),
            got: self.to_string(),
        })
    }
}

/// A list, and its copy on a GPU if that was made before.
#[derive(Clone, Copy)]
pub struct Listed<'a, T> {
    /// The numbers.
    pub list: &'a [T],
    #[cfg(feature = "cuda")]
    there: Option<DeviceSlice<'a, u32>>,
}

impl<'a, T> From<&'a [T]> for Listed<'a, T> {
    fn from(list: &'a [T]) -> Self {
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
impl<'a, T: Number> Listed<'a, T> {
    pub(super) fn on(self, gpu: &Gpu) -> Result<There<'a>> {
        match self.there {
            Some(there) => Ok(There::Before(there)),
            None => Ok(There::Made(gpu.upload(&numbers(self.list)?)?)),
        }
    }
}

#[cfg(feature = "cuda")]
fn numbers<T: Number>(list: &[T]) -> Result<Cow<'_, [u32]>> {
    Ok(list.iter().map(|&x| x.number()).collect::<Result<Vec<u32>>>()?.into())
}

/// A list that is made anew for every pass.
#[derive(Default)]
pub struct List<T> {
    list: Vec<T>,
    /// Room on a GPU, and how much of it is the list's copy.
    #[cfg(feature = "cuda")]
    there: Option<(DeviceBuffer<u32>, usize)>,
}

impl<T: Number> List<T> {
    /// The numbers, to be changed; a copy is forgotten.
    pub fn edit(&mut self) -> &mut Vec<T> {
        #[cfg(feature = "cuda")]
        if let Some((_, len)) = &mut self.there {
            *len = 0;
        }
        &mut self.list
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[T] {
        &self.list
    }

    /// Makes the copy of a device that wants one. Returns whether it lies where the last one lay.
    ///
    /// # Errors
    /// When the GPU has no room, or failed.
    pub fn bring(&mut self, device: &Device) -> Result<bool> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = device.gpu() {
            let numbers = numbers(&self.list)?;
            let len = numbers.len();
            let fits = self.there.as_ref().is_some_and(|(room, _)| room.len() >= len);
            if !fits {
                self.there = Some((gpu.alloc(len.next_power_of_two())?, 0));
            }
            if let Some((room, used)) = &mut self.there {
                gpu.write(&mut room.slice_mut().range_mut(0..len), &numbers)?;
                *used = len;
            }
            return Ok(fits);
        }
        let _ = device;
        Ok(true)
    }

    /// To be handed to a kernel.
    pub fn listed(&self) -> Listed<'_, T> {
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
