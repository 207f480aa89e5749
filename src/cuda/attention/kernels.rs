//! The kernels of attention over caches, by cache type, width of a head and form of a block.

use crate::cuda::kv::{KvShape, KvType};
use crate::cuda::{Function, Modules, params};
use crate::{Error, Result};

/// What a block of a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Few packed rows: all warps share them.
    Narrow,
    /// Many.
    Wide,
}

/// A kernel, and what a block of it takes.
pub(crate) struct Kernel {
    pub function: Function,
    /// Packed rows.
    pub rows: u32,
    pub shared_bytes: u32,
}

/// The kernels for heads of one width.
pub(crate) struct Instance {
    /// Of a tile's rows: heads are at most as wide.
    pub width: u32,
    narrow: Kernel,
    wide: Kernel,
}

impl Instance {
    pub fn kernel(&self, form: Form) -> &Kernel {
        match form {
            Form::Narrow => &self.narrow,
            Form::Wide => &self.wide,
        }
    }
}

/// The kernels that read caches of one type, and the one that writes them.
struct OfType {
    /// Narrow to wide.
    instances: Vec<Instance>,
    append: Function,
}

/// The kernels.
pub(crate) struct Attention {
    f32: OfType,
    f16: OfType,
    bf16: OfType,
    q8_0: OfType,
    pub merge: Function,
}

/// Names of the narrow and of the wide kernel by width.
type Names = &'static [(u32, [&'static str; 2])];

const F32: Names = &[
    (64, ["attend_f32_narrow_64", "attend_f32_wide_64"]),
    (128, ["attend_f32_narrow_128", "attend_f32_wide_128"]),
    // Tiles of as many rows as in the narrow form are what shared memory has room for.
    (256, ["attend_f32_narrow_256", "attend_f32_narrow_256"]),
];
const F16: Names = &[
    (64, ["attend_f16_narrow_64", "attend_f16_wide_64"]),
    (80, ["attend_f16_narrow_80", "attend_f16_wide_80"]),
    (96, ["attend_f16_narrow_96", "attend_f16_wide_96"]),
    (128, ["attend_f16_narrow_128", "attend_f16_wide_128"]),
    (256, ["attend_f16_narrow_256", "attend_f16_wide_256"]),
];
const BF16: Names = &[
    (64, ["attend_bf16_narrow_64", "attend_bf16_wide_64"]),
    (80, ["attend_bf16_narrow_80", "attend_bf16_wide_80"]),
    (96, ["attend_bf16_narrow_96", "attend_bf16_wide_96"]),
    (128, ["attend_bf16_narrow_128", "attend_bf16_wide_128"]),
    (256, ["attend_bf16_narrow_256", "attend_bf16_wide_256"]),
];
const Q8_0: Names = &[
    (64, ["attend_q8_0_narrow_64", "attend_q8_0_wide_64"]),
    (80, ["attend_q8_0_narrow_80", "attend_q8_0_wide_80"]),
    (96, ["attend_q8_0_narrow_96", "attend_q8_0_wide_96"]),
    (128, ["attend_q8_0_narrow_128", "attend_q8_0_wide_128"]),
    (256, ["attend_q8_0_narrow_256", "attend_q8_0_wide_256"]),
];

impl Attention {
    pub fn load(modules: &Modules) -> Result<Self> {
        let of_type = |kv_type, names: Names, append| -> Result<OfType> {
            let instance = |&(width, names): &(u32, [&'static str; 2])| -> Result<Instance> {
                let kernel = |form, name| -> Result<Kernel> {
                    let (rows, shared_bytes) = block(kv_type, width, form);
                    Ok(Kernel { function: modules.function(name)?, rows, shared_bytes })
                };
                let narrow = kernel(Form::Narrow, names[0])?;
                Ok(Instance { width, narrow, wide: kernel(Form::Wide, names[1])? })
            };
            let instances = names.iter().map(instance).collect::<Result<_>>()?;
            Ok(OfType { instances, append: modules.function(append)? })
        };
        Ok(Attention {
            f32: of_type(KvType::F32, F32, "attention_append_f32")?,
            f16: of_type(KvType::F16, F16, "attention_append_f16")?,
            bf16: of_type(KvType::Bf16, BF16, "attention_append_bf16")?,
            q8_0: of_type(KvType::Q8_0, Q8_0, "attention_append_q8_0")?,
            merge: modules.function("attention_merge")?,
        })
    }

    fn of_type(&self, kv_type: KvType) -> &OfType {
        match kv_type {
            KvType::F32 => &self.f32,
            KvType::F16 => &self.f16,
            KvType::Bf16 => &self.bf16,
            KvType::Q8_0 => &self.q8_0,
        }
    }

    /// The narrowest instance for caches of this shape.
    pub fn instance(&self, shape: KvShape) -> Result<&Instance> {
        let instances = &self.of_type(shape.kv_type).instances;
        instances.iter().find(|instance| instance.width as usize >= shape.head_dim).ok_or_else(
            || Error::Unsupported(format!("heads of {} on a GPU: at most 256", shape.head_dim)),
        )
    }

    /// What writes to caches of this type.
    pub fn append(&self, kv_type: KvType) -> &Function {
        &self.of_type(kv_type).append
    }
}

/// Packed rows and shared memory of a block; the sizes are those of `cuda/include/attention_mma.cuh`
/// and `cuda/attention_f32.cu`.
fn block(kv_type: KvType, width: u32, form: Form) -> (u32, u32) {
    let (page, large) = (params::ATTENTION_PAGE, width > 128);
    if kv_type == KvType::F32 {
        let rows = match form {
            Form::Wide if !large => params::ATTENTION_F32_WIDE,
            _ => params::ATTENTION_F32_NARROW,
        };
        let keys = params::ATTENTION_F32_KEYS;
        let pitch = width + params::FLASH_F32_PAD;
        return (rows, 4 * ((rows + 2 * keys) * pitch + rows * (keys + 1)));
    }
    // Packed rows, and warps that share 16 of them.
    let (rows, share) = match form {
        Form::Narrow => (params::ATTENTION_NARROW, 4),
        Form::Wide if large => (params::ATTENTION_WIDE_256, 2),
        Form::Wide => (params::ATTENTION_WIDE, 1),
    };
    let stages = if large { params::ATTENTION_STAGES_256 } else { params::ATTENTION_STAGES };
    let exchanged = if share > 1 { rows * page * 2 + share * rows * 4 } else { 0 };
    let (page_bytes, unpacked) = if kv_type == KvType::Q8_0 {
        let scales = 4 * width.div_ceil(params::ATTENTION_GROUP);
        (page * (width + scales), page * width * 2)
    } else {
        (page * width * 2, 0)
    };
    (rows, rows * width * 2 + exchanged + unpacked + stages * 2 * page_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a block may have on the smallest of the GPUs that there are kernels for (8.6 and 8.9).
    const LEAST_SHARED: u32 = 99 << 10;

    #[test]
    fn every_block_fits_into_the_shared_memory_of_every_gpu() {
        for kv_type in KvType::ALL {
            for width in [64, 80, 96, 128, 256] {
                for form in [Form::Narrow, Form::Wide] {
                    let (rows, bytes) = block(kv_type, width, form);
                    assert!(bytes <= LEAST_SHARED, "{kv_type} {width} {form:?}: {bytes}");
                    assert!(rows.is_multiple_of(8), "{kv_type} {width} {form:?}: {rows}");
                }
            }
        }
    }
}
