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
        self.copy.take();
        &mut self.rows
    }

    /// The numbers on a GPU: copied for the first kernel that asks.
    ///
    /// # Errors
    /// When the GPU has no room, or failed; a number that kernels cannot count.
    #[cfg(feature = "cuda")]
    pub fn on(&self, gpu: &Gpu) -> Result<DeviceSlice<'_, u32>> {
        if self.copy.get().is_none() {
            let number = |&row: &usize| cuda::u32_of("rows of a selection", row);
            let rows = self.rows.iter().map(number).collect::<Result<Vec<u32>>>()?;
            // Of two threads that come here at once one copy is dropped.
            let _ = self.copy.set(gpu.upload(&rows)?);
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
