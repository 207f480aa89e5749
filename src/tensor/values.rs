//! Numbers that stay for a whole run: parameters, their gradients, an optimiser's moments; in the
//! machine's memory or on a GPU.

use super::view::{Floats, FloatsMut};
use crate::error::{Error, Result};
use half::bf16;
use puna_cpu::buffer::Buffer;
use puna_cpu::floats as host;
use std::borrow::Cow;
use std::ops::Range;

#[cfg(feature = "cuda")]
use crate::cuda::{self, DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu};
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Where numbers are to live.
#[derive(Clone, Debug, Default)]
pub enum Home {
    /// In the machine's memory.
    #[default]
    Host,
    /// On a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(Arc<Gpu>),
}

mod stored {
    /// What the memories of this build ask of an element.
    #[cfg(not(feature = "cuda"))]
    pub trait Stored: puna_cpu::buffer::Plain {}
    /// What the memories of this build ask of an element.
    #[cfg(feature = "cuda")]
    pub trait Stored: puna_cpu::buffer::Plain + crate::cuda::Element {}
    impl Stored for f32 {}
    impl Stored for half::bf16 {}
}

/// Element type of [`Numbers`]: f32 or bf16.
pub trait Number: stored::Stored + Default {
    /// As kernels of the CPU take them.
    fn host(x: &[Self]) -> host::Floats<'_>;
    /// The same, to write.
    fn host_mut(x: &mut [Self]) -> host::FloatsMut<'_>;
    /// As kernels of a GPU take them.
    #[cfg(feature = "cuda")]
    fn cuda(x: DeviceSlice<'_, Self>) -> cuda::Floats<'_>;
    /// The same, to write.
    #[cfg(feature = "cuda")]
    fn cuda_mut(x: DeviceSliceMut<'_, Self>) -> cuda::FloatsMut<'_>;
}

impl Number for f32 {
    fn host(x: &[f32]) -> host::Floats<'_> {
        host::Floats::F32(x)
    }

    fn host_mut(x: &mut [f32]) -> host::FloatsMut<'_> {
        host::FloatsMut::F32(x)
    }

    #[cfg(feature = "cuda")]
    fn cuda(x: DeviceSlice<'_, f32>) -> cuda::Floats<'_> {
        x.into()
    }

    #[cfg(feature = "cuda")]
    fn cuda_mut(x: DeviceSliceMut<'_, f32>) -> cuda::FloatsMut<'_> {
        x.into()
    }
}

impl Number for bf16 {
    fn host(x: &[bf16]) -> host::Floats<'_> {
        host::Floats::Bf16(x)
    }

    fn host_mut(x: &mut [bf16]) -> host::FloatsMut<'_> {
        host::FloatsMut::Bf16(x)
    }

    #[cfg(feature = "cuda")]
    fn cuda(x: DeviceSlice<'_, bf16>) -> cuda::Floats<'_> {
        x.into()
    }

    #[cfg(feature = "cuda")]
    fn cuda_mut(x: DeviceSliceMut<'_, bf16>) -> cuda::FloatsMut<'_> {
        x.into()
    }
}

#[derive(Debug)]
enum Data<T: Number> {
    Host(Buffer<T>),
    #[cfg(feature = "cuda")]
    Cuda(DeviceBuffer<T>, Arc<Gpu>),
}

/// A fixed number of elements, wherever they live.
#[derive(Debug)]
pub struct Numbers<T: Number> {
    data: Data<T>,
    version: u64,
}

/// Numbers of a parameter, a gradient or a moment.
pub type Values = Numbers<f32>;
/// A parameter's bf16 copy.
pub type Halves = Numbers<bf16>;

impl<T: Number> Numbers<T> {
    fn of(data: Data<T>) -> Self {
        Numbers { data, version: 0 }
    }

    /// Rises whenever the numbers may have changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What is about to change.
    fn data_mut(&mut self) -> &mut Data<T> {
        self.version += 1;
        &mut self.data
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// When a GPU has no room for them, or failed.
    pub fn zeros(home: &Home, len: usize) -> Result<Self> {
        Ok(Numbers::of(match home {
            Home::Host => Data::Host(Buffer::zeroed(len)),
            #[cfg(feature = "cuda")]
            Home::Cuda(gpu) => {
                let mut buffer = gpu.alloc::<T>(len)?;
                gpu.fill_zero(&mut buffer.slice_mut())?;
                Data::Cuda(buffer, Arc::clone(gpu))
            }
        }))
    }

    /// These numbers: in the machine's memory without a copy.
    ///
    /// # Errors
    /// As [`Numbers::zeros`].
    pub fn from_host(home: &Home, buffer: Buffer<T>) -> Result<Self> {
        Ok(Numbers::of(match home {
            Home::Host => Data::Host(buffer),
            #[cfg(feature = "cuda")]
            Home::Cuda(gpu) => Data::Cuda(gpu.upload(&buffer)?, Arc::clone(gpu)),
        }))
    }

    /// Where they live, for what is to live beside them.
    pub fn home(&self) -> Home {
        match &self.data {
            Data::Host(_) => Home::Host,
            #[cfg(feature = "cuda")]
            Data::Cuda(_, gpu) => Home::Cuda(Arc::clone(gpu)),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Host(x) => x.len(),
            #[cfg(feature = "cuda")]
            Data::Cuda(x, _) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, for a kernel.
    pub fn floats(&self) -> Floats<'_> {
        match &self.data {
            Data::Host(x) => Floats::Host(T::host(x)),
            #[cfg(feature = "cuda")]
            Data::Cuda(x, _) => Floats::Cuda(T::cuda(x.slice())),
        }
    }

    /// All of them, for a kernel that writes.
    pub fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self.data_mut() {
            Data::Host(x) => FloatsMut::Host(T::host_mut(x)),
            #[cfg(feature = "cuda")]
            Data::Cuda(x, _) => FloatsMut::Cuda(T::cuda_mut(x.slice_mut())),
        }
    }

    /// Those of the machine's memory.
    pub fn host(&self) -> Option<&[T]> {
        match &self.data {
            Data::Host(x) => Some(x),
            #[cfg(feature = "cuda")]
            Data::Cuda(..) => None,
        }
    }

    /// Those of the machine's memory, to write.
    pub fn host_mut(&mut self) -> Option<&mut [T]> {
        match self.data_mut() {
            Data::Host(x) => Some(x),
            #[cfg(feature = "cuda")]
            Data::Cuda(..) => None,
        }
    }

    /// Those of a CUDA device.
    #[cfg(feature = "cuda")]
    pub fn cuda(&self) -> Option<DeviceSlice<'_, T>> {
        match &self.data {
            Data::Host(_) => None,
            Data::Cuda(x, _) => Some(x.slice()),
        }
    }

    /// Those of a CUDA device, to write.
    #[cfg(feature = "cuda")]
    pub fn cuda_mut(&mut self) -> Option<DeviceSliceMut<'_, T>> {
        match self.data_mut() {
            Data::Host(_) => None,
            Data::Cuda(x, _) => Some(x.slice_mut()),
        }
    }

    /// The numbers as the host reads them: those of a GPU are copied.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn read(&self) -> Result<Cow<'_, [T]>> {
        match &self.data {
            Data::Host(x) => Ok(Cow::Borrowed(x)),
            #[cfg(feature = "cuda")]
            Data::Cuda(x, gpu) => {
                let mut copy = vec![T::default(); x.len()];
                gpu.download(&x.slice(), &mut copy)?;
                Ok(Cow::Owned(copy))
            }
        }
    }

    /// Copies some of them to the host.
    ///
    /// # Errors
    /// When `out` has another length, or a GPU failed.
    ///
    /// # Panics
    /// When the range is not inside.
    pub fn read_range(&self, range: Range<usize>, out: &mut [T]) -> Result<()> {
        expect_len(out.len(), range.len())?;
        match &self.data {
            Data::Host(x) => {
                out.copy_from_slice(&x[range]);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Data::Cuda(x, gpu) => gpu.download(&x.slice().range(range), out),
        }
    }

    /// Replaces all of them.
    ///
    /// # Errors
    /// When `from` has another length, or a GPU failed.
    pub fn write(&mut self, from: &[T]) -> Result<()> {
        expect_len(from.len(), self.len())?;
        match self.data_mut() {
            Data::Host(x) => {
                x.copy_from_slice(from);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Data::Cuda(x, gpu) => gpu.write(&mut x.slice_mut(), from),
        }
    }

    /// Lets the host change them: in place, or those of a GPU in a copy that goes back.
    ///
    /// # Errors
    /// What `change` refuses, or when a GPU failed.
    pub fn change(&mut self, change: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
        if let Some(numbers) = self.host_mut() {
            return change(numbers);
        }
        let mut copy = self.read()?.into_owned();
        change(&mut copy)?;
        self.write(&copy)
    }

    /// Sets all to zero.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn clear(&mut self) -> Result<()> {
        match self.data_mut() {
            Data::Host(x) => {
                x.fill(T::default());
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Data::Cuda(x, gpu) => gpu.fill_zero(&mut x.slice_mut()),
        }
    }
}

impl<T: Number> From<Buffer<T>> for Numbers<T> {
    fn from(buffer: Buffer<T>) -> Self {
        Numbers::of(Data::Host(buffer))
    }
}

fn expect_len(got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    let (expected, got) = (wanted.to_string(), got.to_string());
    Err(Error::Shape { op: "copy of numbers".into(), expected, got })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every memory that can be tested here.
    #[cfg(feature = "cuda-host")]
    fn homes() -> Vec<Home> {
        vec![Home::Host, Home::Cuda(Arc::new(Gpu::host().expect("the harness")))]
    }

    /// Every memory that can be tested here.
    #[cfg(not(feature = "cuda-host"))]
    fn homes() -> Vec<Home> {
        vec![Home::Host]
    }

    #[test]
    fn numbers_are_the_same_wherever_they_live() {
        for home in homes() {
            let mut values = Values::zeros(&home, 5).unwrap();
            assert_eq!((values.len(), values.is_empty()), (5, false));
            assert_eq!(*values.read().unwrap(), [0.0; 5]);
            values.write(&[1.0, -2.0, 3.5, 0.0, f32::MIN_POSITIVE]).unwrap();
            let add = |x: &mut [f32]| {
                x.iter_mut().for_each(|x| *x += 1.0);
                Ok(())
            };
            values.change(add).unwrap();
            assert_eq!(*values.read().unwrap(), [2.0, -1.0, 4.5, 1.0, 1.0]);
            let mut part = [0.0; 2];
            values.read_range(1..3, &mut part).unwrap();
            assert_eq!(part, [-1.0, 4.5]);
            assert_eq!((values.floats().len(), values.floats_mut().len()), (5, 5));
            for wrong in [&[1.0; 4][..], &[1.0; 6]] {
                assert!(values.write(wrong).unwrap_err().to_string().contains("wanted 5"));
            }
            assert!(values.read_range(0..3, &mut part).is_err());
            let version = values.version();
            assert!(values.host().is_none_or(|x| x.len() == 5) && values.version() == version);
            values.floats_mut();
            assert!(values.version() > version);
            values.clear().unwrap();
            assert_eq!(*values.read().unwrap(), [0.0; 5]);
            let beside = Values::zeros(&values.home(), 0).unwrap();
            assert_eq!(beside.host().is_some(), values.host().is_some());
            assert!(beside.is_empty() && beside.read().unwrap().is_empty());
        }
    }

    #[test]
    fn copies_come_from_the_host_as_they_are() {
        for home in homes() {
            let numbers = [0.5, -0.0, 3.0].map(bf16::from_f32);
            let halves = Halves::from_host(&home, Buffer::from_slice(&numbers)).unwrap();
            let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
            assert_eq!(bits(&halves.read().unwrap()), bits(&numbers));
        }
    }
}
