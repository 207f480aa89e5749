//! Logits: a row of them, where they were computed.

use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::rows::copy_row;
use crate::kernels::sample;
use crate::model::llama::Workspace;
use crate::tensor::{DType, Pool, Rows};
use std::sync::OnceLock;

pub use crate::kernels::sample::Choice;

/// Logits of one position, to read or to choose from.
#[derive(Clone, Copy)]
pub enum Logits<'a> {
    /// In the machine's memory, `[vocab_size]`.
    Here(&'a [f32]),
    /// Where a pass left them: row of a workspace.
    Pass(&'a Workspace, usize),
    /// Where somebody keeps them.
    Kept(&'a Kept),
}

impl<'a> Logits<'a> {
    /// The numbers; a GPU's are copied the first time.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn read(self) -> Result<&'a [f32]> {
        match self {
            Logits::Here(logits) => Ok(logits),
            Logits::Pass(ws, row) => ws.logits(row),
            Logits::Kept(kept) => kept.read(),
        }
    }

    /// The token that `choice` takes, with `seen` the ids that its penalty is for; `None` where the
    /// logits are in the machine's memory, whose owner chooses by itself.
    ///
    /// # Errors
    /// Logits that are not numbers, or nothing but minus infinity; a GPU that failed.
    pub fn choose(self, choice: impl FnOnce() -> Choice, seen: &[bool]) -> Result<Option<u32>> {
        let (device, rows, row) = match self {
            Logits::Pass(ws, row) => match ws.on_gpu() {
                Some((device, rows)) => (device, rows, row),
                None => return Ok(None),
            },
            Logits::Kept(Kept::There { device, row, .. }) => (&**device, row, 0),
            Logits::Here(_) | Logits::Kept(Kept::Here(_)) => return Ok(None),
        };
        let mut tokens = Vec::with_capacity(1);
        let chosen = sample::sample(device, &mut tokens, rows, &[(row, choice(), seen)])?;
        Ok(chosen.then(|| tokens[0]))
    }
}

impl<'a> From<&'a [f32]> for Logits<'a> {
    fn from(logits: &'a [f32]) -> Self {
        Logits::Here(logits)
    }
}

impl<'a, const N: usize> From<&'a [f32; N]> for Logits<'a> {
    fn from(logits: &'a [f32; N]) -> Self {
        Logits::Here(logits)
    }
}

/// Logits that outlive the pass that they come from, where that left them.
pub enum Kept {
    /// In the machine's memory.
    Here(Vec<f32>),
    /// On a GPU: [1, vocab_size], and their copy here, once it was asked for.
    There {
        /// Where.
        device: std::sync::Arc<Device>,
        /// The row.
        row: Rows,
        /// Its copy.
        copy: OnceLock<Vec<f32>>,
    },
}

impl Kept {
    /// Room for `vocab` logits of a model on this device.
    ///
    /// # Errors
    /// When a GPU has no room.
    pub fn new(device: &std::sync::Arc<Device>, vocab: usize) -> Result<Kept> {
        if !device.is_gpu() {
            return Ok(Kept::Here(vec![0.0; vocab]));
        }
        let row = Pool::at(device.home()).take(DType::F32, 1, vocab)?;
        Ok(Kept::There { device: std::sync::Arc::clone(device), row, copy: OnceLock::new() })
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Kept::Here(logits) => logits.len(),
            Kept::There { row, .. } => row.width(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Becomes those of a row of a pass.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn keep(&mut self, ws: &Workspace, from: usize) -> Result<()> {
        match self {
            Kept::Here(logits) => logits.copy_from_slice(ws.logits(from)?),
            Kept::There { device, row, copy } => {
                copy.take();
                if let Some((_, rows)) = ws.on_gpu() {
                    return copy_row(device, row, rows, from);
                }
                row.write(ws.logits(from)?)?;
            }
        }
        Ok(())
    }

    /// Becomes what `read` gives, one after the other.
    ///
    /// # Errors
    /// The first of `read`; when a GPU failed.
    pub fn fill(&mut self, mut read: impl FnMut() -> Result<f32>) -> Result<()> {
        match self {
            Kept::Here(logits) => {
                logits.iter_mut().try_for_each(|x| read().map(|found| *x = found))
            }
            Kept::There { row, copy, .. } => {
                copy.take();
                let found = (0..row.width()).map(|_| read()).collect::<Result<Vec<f32>>>()?;
                row.write(&found)
            }
        }
    }

    /// The numbers; a GPU's are copied the first time.
    ///
    /// # Errors
    /// When a GPU failed.
    pub fn read(&self) -> Result<&[f32]> {
        match self {
            Kept::Here(logits) => Ok(logits),
            Kept::There { row, copy, .. } => read_once(row, copy),
        }
    }

    /// A copy.
    ///
    /// # Errors
    /// When a GPU has no room, or failed.
    pub fn fork(&self) -> Result<Kept> {
        match self {
            Kept::Here(logits) => Ok(Kept::Here(logits.clone())),
            Kept::There { device, row, .. } => {
                let mut fork = Kept::new(device, row.width())?;
                if let Kept::There { row: to, .. } = &mut fork {
                    copy_row(device, to, row, 0)?;
                }
                Ok(fork)
            }
        }
    }
}

/// The numbers of f32 rows, those of a GPU by way of a copy that is made once.
pub(super) fn read_once<'a>(rows: &'a Rows, copy: &'a OnceLock<Vec<f32>>) -> Result<&'a [f32]> {
    if let Some(copy) = copy.get() {
        return Ok(copy);
    }
    if rows.is_host() {
        return Ok(rows.f32());
    }
    let mut numbers = vec![];
    rows.read(&mut numbers)?;
    Ok(copy.get_or_init(|| numbers))
}
