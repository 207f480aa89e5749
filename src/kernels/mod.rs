//! The device switchboard: free functions that check shapes and hand numbers to the kernels of
//! the device that holds them. Nothing above names a device's kernels.

pub mod attention;
mod device;
pub mod embedding;
pub mod flash;
pub mod linear;
mod listed;
pub mod loss;
pub mod matmul;
pub mod optim;
mod rotations;
pub mod rows;
pub mod sample;
mod selection;

pub use crate::tensor::{Floats, FloatsMut};
pub use device::{Device, GpuMemory, Place};
pub use listed::{List, Listed};
pub use puna_cpu::team::{Seat, Team, TeamOptions, pin_current_thread};

use crate::error::{Error, Result};
use puna_cpu::attention::{AttentionScratch, ScratchArgs};
use puna_cpu::isa::{Isa, Level};
use puna_cpu::products;

/// The CPU as a device: instruction set and worker team.
pub struct Cpu {
    /// Which kernels are used.
    pub isa: Isa,
    /// Who runs them.
    pub team: Team,
}

impl Cpu {
    /// A device with `threads` workers, as [`Cpu::with_options`] makes it.
    ///
    /// # Errors
    /// When the machine lacks the named level, or refuses a thread.
    pub fn new(threads: usize) -> Result<Cpu> {
        Cpu::with_options(&TeamOptions::threads(threads))
    }

    /// A device with a team of its own. The instruction set is the machine's best, or the one that
    /// the environment variable `PUNA_ISA` names.
    ///
    /// # Errors
    /// When the machine lacks the named level, or refuses a thread or a core.
    pub fn with_options(options: &TeamOptions) -> Result<Cpu> {
        let isa = chosen_isa()?;
        let team = Team::with(options).map_err(|source| Error::Device {
            wanted: format!("cpu with {} threads", options.threads),
            why: source.to_string(),
        })?;
        Ok(Cpu { isa, team })
    }

    /// A device with a team that is there already.
    ///
    /// # Errors
    /// When the machine lacks the named level.
    pub fn with_team(team: Team) -> Result<Cpu> {
        Ok(Cpu { isa: chosen_isa()?, team })
    }
}

/// Memory that kernels work in, grown on first use and then reused.
#[derive(Default)]
pub struct Scratch {
    matmul: products::Scratch,
    attention: AttentionScratch,
    gemm: puna_cpu::gemm::Scratch,
    flash: puna_cpu::flash::Scratch,
    partials: Vec<f32>,
    #[cfg(feature = "cuda")]
    flash_plan: Option<flash::Planned>,
}

/// The instruction set that `PUNA_ISA` names, else the best of this machine.
///
/// # Errors
/// When the name is unknown or the machine lacks that level.
pub fn chosen_isa() -> Result<Isa> {
    let Some(name) = std::env::var_os("PUNA_ISA").filter(|name| !name.is_empty()) else {
        return Ok(Isa::best());
    };
    let name = name.to_string_lossy();
    Isa::named(&name).ok_or_else(|| {
        let mut have: Vec<_> = Isa::available().iter().map(|isa| isa.level().name()).collect();
        have.dedup();
        let known = [Level::Portable, Level::Avx2, Level::Avx512].map(Level::name).join(", ");
        Error::Config {
            field: "PUNA_ISA".into(),
            value: name.into_owned(),
            why: format!("wanted one of {known}; this machine has {}", have.join(", ")),
        }
    })
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let training = self.gemm.bytes() + self.flash.bytes() + 4 * self.partials.capacity();
        training + self.matmul.bytes() + self.attention.bytes()
    }

    /// Bytes held at most while serving passes of up to `rows` rows with inputs of up to `k`
    /// values, over caches like `cache`; with `nf4` some of the weights are NF4.
    pub fn most_serving_bytes(
        cpu: &Cpu,
        rows: usize,
        k: usize,
        nf4: bool,
        cache: &ScratchArgs,
    ) -> usize {
        let members = cpu.team.len();
        let decoded = if nf4 { products::Scratch::most_nf4_bytes(rows, k, members) } else { 0 };
        products::Scratch::most_bytes(rows, k, members)
            + decoded
            + AttentionScratch::most_bytes(cpu.isa, cache, rows, members)
    }
}
