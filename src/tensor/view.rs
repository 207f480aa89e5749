//! Elements of activations, parameters or gradients, borrowed for one kernel, wherever they lie.

use crate::error::{Error, Result};
use puna_cpu::floats as host;
use std::ops::Range;

#[cfg(feature = "cuda")]
use crate::cuda;

/// Numbers to read.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// In the machine's memory.
    Host(host::Floats<'a>),
    /// On a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Floats<'a>),
}

/// Numbers to write.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// In the machine's memory.
    Host(host::FloatsMut<'a>),
    /// On a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(cuda::FloatsMut<'a>),
}

/// Operands of one kernel that lie on different devices.
#[cfg(feature = "cuda")]
fn elsewhere(wanted: &str) -> Error {
    let why = "an operand of the kernel lies in another memory".into();
    Error::Device { wanted: wanted.into(), why }
}

fn not_f32() -> Error {
    let (expected, got) = ("f32".into(), "bf16".into());
    Error::DType { op: "operand".into(), expected, got }
}

impl<'a> Floats<'a> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            Floats::Host(x) => x.len(),
            #[cfg(feature = "cuda")]
            Floats::Cuda(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range is not inside.
    pub fn slice(&self, range: Range<usize>) -> Floats<'a> {
        match self {
            Floats::Host(x) => Floats::Host(x.slice(range)),
            #[cfg(feature = "cuda")]
            Floats::Cuda(x) => Floats::Cuda(x.range(range)),
        }
    }

    /// Those of the machine's memory.
    ///
    /// # Errors
    /// When they lie on another device.
    pub fn host(self) -> Result<host::Floats<'a>> {
        match self {
            Floats::Host(x) => Ok(x),
            #[cfg(feature = "cuda")]
            Floats::Cuda(_) => Err(elsewhere("cpu")),
        }
    }

    /// Those of the machine's memory, which are single precision.
    ///
    /// # Errors
    /// When they lie on another device, or are bf16.
    pub fn host_f32(self) -> Result<&'a [f32]> {
        match self.host()? {
            host::Floats::F32(x) => Ok(x),
            host::Floats::Bf16(_) => Err(not_f32()),
        }
    }

    /// Those of a CUDA device.
    ///
    /// # Errors
    /// When they lie in the machine's memory.
    #[cfg(feature = "cuda")]
    pub fn cuda(self) -> Result<cuda::Floats<'a>> {
        match self {
            Floats::Cuda(x) => Ok(x),
            Floats::Host(_) => Err(elsewhere("cuda")),
        }
    }

    /// Those of a CUDA device, which are single precision.
    ///
    /// # Errors
    /// When they lie in the machine's memory, or are bf16.
    #[cfg(feature = "cuda")]
    pub fn cuda_f32(self) -> Result<cuda::DeviceSlice<'a, f32>> {
        match self.cuda()? {
            cuda::Floats::F32(x) => Ok(x),
            cuda::Floats::Bf16(_) => Err(not_f32()),
        }
    }
}

impl<'a> FloatsMut<'a> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            FloatsMut::Host(x) => x.len(),
            #[cfg(feature = "cuda")]
            FloatsMut::Cuda(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range is not inside.
    pub fn slice_mut(&mut self, range: Range<usize>) -> FloatsMut<'_> {
        match self {
            FloatsMut::Host(x) => FloatsMut::Host(x.slice_mut(range)),
            #[cfg(feature = "cuda")]
            FloatsMut::Cuda(x) => FloatsMut::Cuda(x.reborrow().range_mut(range)),
        }
    }

    /// Those of the machine's memory.
    ///
    /// # Errors
    /// When they lie on another device.
    pub fn host(self) -> Result<host::FloatsMut<'a>> {
        match self {
            FloatsMut::Host(x) => Ok(x),
            #[cfg(feature = "cuda")]
            FloatsMut::Cuda(_) => Err(elsewhere("cpu")),
        }
    }

    /// Those of the machine's memory, which are single precision.
    ///
    /// # Errors
    /// When they lie on another device, or are bf16.
    pub fn host_f32(self) -> Result<&'a mut [f32]> {
        match self.host()? {
            host::FloatsMut::F32(x) => Ok(x),
            host::FloatsMut::Bf16(_) => Err(not_f32()),
        }
    }

    /// Those of a CUDA device.
    ///
    /// # Errors
    /// When they lie in the machine's memory.
    #[cfg(feature = "cuda")]
    pub fn cuda(self) -> Result<cuda::FloatsMut<'a>> {
        match self {
            FloatsMut::Cuda(x) => Ok(x),
            FloatsMut::Host(_) => Err(elsewhere("cuda")),
        }
    }

    /// Those of a CUDA device, which are single precision.
    ///
    /// # Errors
    /// When they lie in the machine's memory, or are bf16.
    #[cfg(feature = "cuda")]
    pub fn cuda_f32(self) -> Result<cuda::DeviceSliceMut<'a, f32>> {
        match self.cuda()? {
            cuda::FloatsMut::F32(x) => Ok(x),
            cuda::FloatsMut::Bf16(_) => Err(not_f32()),
        }
    }
}

impl<'a> From<&'a [f32]> for Floats<'a> {
    fn from(x: &'a [f32]) -> Floats<'a> {
        Floats::Host(host::Floats::F32(x))
    }
}

impl<'a> From<&'a mut [f32]> for FloatsMut<'a> {
    fn from(x: &'a mut [f32]) -> FloatsMut<'a> {
        FloatsMut::Host(host::FloatsMut::F32(x))
    }
}
