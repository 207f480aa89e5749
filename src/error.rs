//! The one error type of the library: every refusal names the thing, the value found and the
//! value wanted. Nothing in the library prints or exits; the command line prints the chain.

use std::path::PathBuf;

/// What the library returns when it cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor or slice has the wrong shape for an operation.
    #[error("{op}: shape {got}, wanted {expected}")]
    Shape {
        /// The operation or tensor.
        op: String,
        /// What was needed.
        expected: String,
        /// What came.
        got: String,
    },
    /// A tensor has an element type that the operation cannot take.
    #[error("{op}: element type {got}, wanted {expected}")]
    DType {
        /// The operation or tensor.
        op: String,
        /// What was needed.
        expected: String,
        /// What came.
        got: String,
    },
    /// A device was asked for that is not there.
    #[error("device {wanted}: {why}")]
    Device {
        /// The device as the user named it.
        wanted: String,
        /// Why it cannot be used.
        why: String,
    },
    /// The driver refused a call, or a kernel failed.
    #[error("{what}: {why}")]
    Cuda {
        /// The kernel or the step.
        what: String,
        /// The driver's own reason.
        why: String,
    },
    /// A device's memory is full.
    #[error(
        "{device}: out of memory: {asked} bytes asked for beside {used} in use, {free} free of {total}; {}", hint.as_deref().unwrap_or("a shorter context, a smaller batch, --gradient-checkpointing or 4-bit weights need less")
    )]
    DeviceMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        asked: usize,
        /// Bytes that this program's buffers take.
        used: usize,
        /// Bytes free, nothing of them in one piece that is large enough.
        free: usize,
        /// Bytes of the device.
        total: usize,
        /// The setting that would fit, from whoever knows the settings: [`Error::with_hint`].
        hint: Option<String>,
    },
    /// The operating system refused to read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own reason.
        source: std::io::Error,
    },
    /// A file's content breaks its format.
    #[error("{}: {what}{}", path.display(), offset.map(|o| format!(" (at byte {o})")).unwrap_or_default())]
    Format {
        /// The file.
        path: PathBuf,
        /// Byte offset of the fault, where one is known.
        offset: Option<u64>,
        /// The thing, what was found and what was wanted.
        what: String,
    },
    /// A setting (file key or flag) has a value that cannot be used.
    #[error("{field} = {value}: {why}")]
    Config {
        /// The key or flag.
        field: String,
        /// The value found.
        value: String,
        /// What was wanted.
        why: String,
    },
    /// Tokenizer or chat template trouble.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template that cannot be rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// Input data (records, prompts) that cannot be used.
    #[error("{place}: {what}")]
    Data {
        /// File with index or line.
        place: String,
        /// The thing, what was found and what was wanted.
        what: String,
    },
    /// Something well-formed that this build does not do; refused, never computed wrongly.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The context window has no room for what was asked.
    #[error(
        "context full: {needed} tokens needed, {capacity} available; raise --ctx or shorten the prompt"
    )]
    ContextFull {
        /// Positions needed.
        needed: usize,
        /// Positions of the cache.
        capacity: usize,
    },
    /// Training came to a number that is not finite; nothing that it touched was saved.
    #[error(
        "step {step}: {what} is {value}, wanted a finite number; in the batch: {batch}; last good checkpoint: {checkpoint}"
    )]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Loss, gradient norm or parameter.
        what: String,
        /// Its value.
        value: f64,
        /// The instances of the step.
        batch: String,
        /// Directory of the last good checkpoint, or `none`.
        checkpoint: String,
    },
    /// The caller or the user cancelled the work.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Wraps an I/O error with its path.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// A format fault without a byte offset.
    pub fn format(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Error::Format { path: path.into(), offset: None, what: what.into() }
    }

    /// A format fault at a byte offset.
    pub fn format_at(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        Error::Format { path: path.into(), offset: Some(offset), what: what.into() }
    }

    /// The same error; where a device's memory is full and nobody has said yet what would fit, with
    /// what `hint` says. It is given the bytes that are free and those in use.
    #[must_use]
    pub fn with_hint(self, hint: impl FnOnce(usize, usize) -> Option<String>) -> Self {
        match self {
            Error::DeviceMemory { device, asked, used, free, total, hint: None } => {
                let hint = hint(free, used);
                Error::DeviceMemory { device, asked, used, free, total, hint }
            }
            error => error,
        }
    }

    /// A setting with a value that cannot be used.
    pub fn config(
        field: impl Into<String>,
        value: impl std::fmt::Display,
        why: impl Into<String>,
    ) -> Self {
        Error::Config { field: field.into(), value: value.to_string(), why: why.into() }
    }
}

/// Result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
