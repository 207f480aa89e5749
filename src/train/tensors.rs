//! Named f32 tensors to and from a safetensors file, bit for bit, in pieces.

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::format::mmap::Access;
use crate::format::safetensors;
use crate::format::safetensors_write::{SafetensorsWriter, TensorSpec};
use crate::tensor::{Params, Values};
use std::path::Path;

/// Numbers converted at a time.
const PIECE: usize = 1 << 16;

/// A tensor to write.
pub struct View<'a> {
    /// Name.
    pub name: String,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// Its numbers, read when it is its turn.
    pub values: &'a Values,
}

/// Writes the tensors, of which at most one is copied to the host at a time.
///
/// # Errors
/// What the system and the format refuse; a GPU that failed.
pub fn write(path: &Path, tensors: &[View<'_>]) -> Result<()> {
    let spec = |t: &View<'_>| TensorSpec {
        name: t.name.clone(),
        dtype: FileDType::F32,
        shape: t.shape.clone(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let mut writer = SafetensorsWriter::start(path, &specs)?;
    let mut bytes = Vec::with_capacity(4 * PIECE);
    for tensor in tensors {
        for piece in tensor.values.read()?.chunks(PIECE) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
            writer.write(&bytes)?;
        }
    }
    writer.finish()
}

/// Hands every tensor of the file to `take`: name, shape, and a function that fills a slice of its
/// length.
///
/// # Errors
/// A file that cannot be read, a tensor that is not F32, and what `take` refuses.
pub fn read(
    path: &Path,
    mut take: impl FnMut(&str, &[usize], &dyn Fn(&mut [f32]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let file = safetensors::open(path, Access::Map)?;
    for tensor in file.tensors() {
        if tensor.dtype != FileDType::F32 {
            let what = format!("{}: element type {}, wanted F32", tensor.name, tensor.dtype.name());
            return Err(Error::format(path, what));
        }
        let fill = |out: &mut [f32]| -> Result<()> {
            if out.len() != tensor.n_elements() {
                let what = format!("{}: {} numbers", tensor.name, tensor.n_elements());
                return Err(Error::format(path, format!("{what}, wanted {}", out.len())));
            }
            let mut bytes = vec![0; 4 * PIECE.min(out.len())];
            for (index, piece) in out.chunks_mut(PIECE).enumerate() {
                let bytes = &mut bytes[..4 * piece.len()];
                file.read_at(tensor, 4 * PIECE * index, bytes)?;
                for (value, bytes) in piece.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Ok(())
        };
        take(&tensor.name, &tensor.shape, &fill)?;
    }
    Ok(())
}

/// Writes the parameters' exact values.
///
/// # Errors
/// As [`write`].
pub fn write_params(path: &Path, params: &Params) -> Result<()> {
    let views: Vec<View<'_>> = params
        .0
        .iter()
        .map(|p| View { name: p.name.clone(), shape: p.shape.clone(), values: &p.value })
        .collect();
    write(path, &views)
}

/// Reads them back.
///
/// # Errors
/// As [`read`]; a parameter that is missing, unknown, or of another shape.
pub fn read_params(path: &Path, params: &mut Params) -> Result<()> {
    let mut n_read = 0;
    read(path, |name, shape, fill| {
        let refuse = |what: String| Err(Error::format(path, format!("{name}: {what}")));
        let Some(param) = params.0.iter_mut().find(|param| param.name == name) else {
            return refuse("no parameter of this run".into());
        };
        if param.shape != shape {
            return refuse(format!("shape {shape:?}, wanted {:?}", param.shape));
        }
        // A copy in bf16 is then none of it, and made anew by the next pass.
        param.value.change(fill)?;
        n_read += 1;
        Ok(())
    })?;
    if n_read != params.0.len() {
        let what = format!("{n_read} parameters, wanted {}", params.0.len());
        return Err(Error::format(path, what));
    }
    Ok(())
}
