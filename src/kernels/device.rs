//! Where a model computes.

use super::{Cpu, Team, TeamOptions};
use crate::error::Result;
use crate::tensor::Home;

#[cfg(feature = "cuda")]
use crate::cuda::Gpu;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// The part of a GPU's memory that is left to its driver: code of kernels, their stacks.
#[cfg(feature = "cuda")]
const DRIVERS_SHARE: usize = 64;

/// Which device is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The CPU.
    #[default]
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
    /// CUDA's kernels, run on the CPU for tests.
    #[cfg(feature = "cuda-host")]
    Harness,
}

/// Memory of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// The maker's name of the device.
    pub name: String,
    /// Bytes that this program's buffers take.
    pub used: usize,
    /// Bytes that it could take beside them; a 64th of the device is left to the driver.
    pub free: usize,
    /// Bytes of the device.
    pub total: usize,
}

/// The CPU, and the GPU where a model lives on one: what is small and awkward stays on the CPU.
pub struct Device {
    /// Instruction set and team.
    pub cpu: Cpu,
    /// Where the numbers are, unless in the machine's memory.
    #[cfg(feature = "cuda")]
    pub gpu: Option<Arc<Gpu>>,
}

impl Device {
    /// The CPU with `threads` workers, as [`Cpu::with_options`] makes it.
    ///
    /// # Errors
    /// As [`Cpu::with_options`].
    pub fn new(threads: usize) -> Result<Device> {
        Ok(Cpu::new(threads)?.into())
    }

    /// The CPU with a team of its own.
    ///
    /// # Errors
    /// As [`Cpu::with_options`].
    pub fn with_options(options: &TeamOptions) -> Result<Device> {
        Ok(Cpu::with_options(options)?.into())
    }

    /// The CPU with a team that is there already.
    ///
    /// # Errors
    /// As [`Cpu::with_team`].
    pub fn with_team(team: Team) -> Result<Device> {
        Ok(Cpu::with_team(team)?.into())
    }

    /// The same, with the GPU that `place` names.
    ///
    /// # Errors
    /// When there is none, or this build has no kernels for it.
    pub fn at(self, place: Place) -> Result<Device> {
        match place {
            Place::Cpu => Ok(self),
            #[cfg(feature = "cuda")]
            Place::Cuda(index) => Ok(Device { gpu: Some(Arc::new(Gpu::open(index)?)), ..self }),
            #[cfg(feature = "cuda-host")]
            Place::Harness => Ok(Device { gpu: Some(Arc::new(Gpu::host()?)), ..self }),
            #[cfg(not(feature = "cuda"))]
            Place::Cuda(index) => Err(crate::error::Error::Device {
                wanted: format!("cuda:{index}"),
                why: "this build computes on the CPU only".into(),
            }),
        }
    }

    /// Where numbers are to live that this device computes with.
    pub fn home(&self) -> Home {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return Home::Cuda(Arc::clone(gpu));
        }
        Home::Host
    }

    /// What computes: the GPU by its maker's name, or the instruction set. Devices that differ in it
    /// round differently.
    pub fn name(&self) -> String {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu() {
            return gpu.properties().name.clone();
        }
        self.cpu.isa.to_string()
    }

    /// Waits until a GPU has done all that it was asked for: before a clock is read.
    ///
    /// # Errors
    /// When it failed.
    pub fn sync(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu() {
            return gpu.sync();
        }
        Ok(())
    }

    /// Whether numbers are on a GPU.
    pub fn is_gpu(&self) -> bool {
        !matches!(self.home(), Home::Host)
    }

    /// Memory of the GPU, where there is one.
    ///
    /// # Errors
    /// When it failed.
    pub fn memory(&self) -> Result<Option<GpuMemory>> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu() {
            let ((free, total), there) = (gpu.memory_free()?, gpu.memory_use());
            let free = (free + there.kept_bytes).saturating_sub(total / DRIVERS_SHARE);
            let name = gpu.properties().name.clone();
            return Ok(Some(GpuMemory { name, used: there.used_bytes, free, total }));
        }
        Ok(None)
    }

    /// Takes so much memory of a GPU in one piece, or what there is, for buffers to come: before the
    /// first step, so that no later one asks the driver. Does nothing on the CPU.
    ///
    /// # Errors
    /// When the GPU failed.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu() {
            let (free, total) = gpu.memory_free()?;
            return gpu.reserve(bytes.min(free.saturating_sub(total / DRIVERS_SHARE)));
        }
        let _ = bytes;
        Ok(())
    }

    /// The GPU, if numbers are there.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_deref()
    }
}

impl From<Cpu> for Device {
    fn from(cpu: Cpu) -> Device {
        Device {
            cpu,
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }
}
