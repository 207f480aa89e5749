//! Which rows of a pass go on, listed by the host and read by any device.

#[cfg(feature = "cuda")]
use crate::cuda::{self, DeviceBuffer, DeviceSlice, Gpu};
#[cfg(feature = "cuda")]
use crate::error::Result;
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

/// Numbers of rows, ascending.
#[derive(Default)]
pub struct Selection {
    rows: Vec<usize>,
    /// The same on a GPU, once a kernel there has asked for them.
    #[cfg(feature = "cuda")]
    copy: OnceLock<DeviceBuffer<u32>>,
    /// Room of a copy that was made before.
    #[cfg(feature = "cuda")]
    room: Option<DeviceBuffer<u32>>,
}

impl Selection {
    /// The numbers.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of the host that it holds.
    pub fn bytes(&self) -> usize {
        size_of::<usize>() * self.rows.capacity()
    }

    /// The numbers, to be changed.
    pub fn rows_mut(&mut self) -> &mut Vec<usize> {
        #[cfg(feature = "cuda")]
        if let Some(copy) = self.copy.take() {
            self.room = Some(copy);
        }
        &mut self.rows
    }

    /// Makes the copy on a GPU, in the place of the last one if it has the size. Returns whether it is
    /// there.
    ///
    /// # Errors
    /// As [`Selection::on`].
    #[cfg(feature = "cuda")]
    pub fn bring(&mut self, gpu: &Gpu) -> Result<bool> {
        let rows = self.numbers()?;
        let room = self.room.take().filter(|room| room.len() == rows.len());
        let fits = room.is_some();
        let mut copy = match room {
            Some(room) => room,
            None => gpu.alloc(rows.len())?,
        };
        gpu.write(&mut copy.slice_mut(), &rows)?;
        self.copy = OnceLock::from(copy);
        Ok(fits)
    }

    #[cfg(feature = "cuda")]
    fn numbers(&self) -> Result<Vec<u32>> {
        let number = |&row: &usize| cuda::u32_of("rows of a selection", row);
        self.rows.iter().map(number).collect()
    }

    /// The numbers on a GPU: copied for the first kernel that asks.
    ///
    /// # Errors
    /// When the GPU has no room, or failed; a number that kernels cannot count.
    #[cfg(feature = "cuda")]
    pub fn on(&self, gpu: &Gpu) -> Result<DeviceSlice<'_, u32>> {
        if self.copy.get().is_none() {
            // Of two threads that come here at once one copy is dropped.
            let _ = self.copy.set(gpu.upload(&self.numbers()?)?);
        }
        Ok(self.copy.get().expect("set just before").slice())
    }
}

impl From<Vec<usize>> for Selection {
    fn from(rows: Vec<usize>) -> Selection {
        Selection {
            rows,
            #[cfg(feature = "cuda")]
            copy: OnceLock::new(),
        }
    }
}
