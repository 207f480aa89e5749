//! The small model inside the program: a LLaMA of four million parameters that writes simple English.
//! `builtin/README.md` says how it was made.

use std::path::Path;

/// The name by which commands take it.
pub const NAME: &str = "builtin";

/// The model as a GGUF file.
pub static GGUF: &[u8] = include_bytes!("../../builtin/builtin.gguf");

/// Whether a path names the built-in model. A directory of that name is reached as `./builtin`.
pub fn is_builtin(path: &Path) -> bool {
    path == Path::new(NAME)
}
