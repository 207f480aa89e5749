//! Models: load, tokens, memory.

use crate::status::{
    Fault, Outcome, Status, borrow, borrow_mut, elements, enter, hand_out, string,
};
use puna::model::llama::{KvType, LoadOptions, Model, Place, TeamOptions};
use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// `puna_model` of the header.
pub struct PunaModel(pub(crate) Arc<Model>);

/// `puna_load_options` of the header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct PunaLoadOptions {
    pub threads: u32,
    pub exact: u32,
    pub cache_weights: u32,
    pub team_name: *const c_char,
    pub cores: *const u32,
    pub spin_us: u64,
}

/// `puna_memory` of the header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct PunaMemory {
    pub weights_bytes: usize,
    pub cache_bytes: usize,
    pub workspace_bytes: usize,
}

/// The type of a `puna_kv_type`.
pub(crate) fn kv_type(code: u32) -> Outcome<KvType> {
    let wanted = || Fault::new(Status::Invalid, format!("kv_type {code}, wanted a puna_kv_type"));
    KvType::ALL.get(code as usize).copied().ok_or_else(wanted)
}

/// See the header.
///
/// # Safety
/// `options` is NULL or the caller's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_load_options_init(options: *mut PunaLoadOptions) {
    let usual = TeamOptions::default();
    enter(|| {
        // SAFETY: this function's contract.
        *unsafe { borrow_mut(options, "options") }? = PunaLoadOptions {
            threads: usual.threads as u32,
            exact: 0,
            cache_weights: 0,
            team_name: std::ptr::null(),
            cores: std::ptr::null(),
            spin_us: usual.spin.as_micros() as u64,
        };
        Ok(())
    });
}

/// # Safety
/// The pointers in `options` are as the header says.
unsafe fn load_options(options: &PunaLoadOptions) -> Outcome<LoadOptions> {
    let mut team = TeamOptions::threads(options.threads as usize);
    team.spin = Duration::from_micros(options.spin_us);
    if !options.team_name.is_null() {
        // SAFETY: this function's contract.
        team.name = unsafe { string(options.team_name, "team_name") }?.to_owned();
    }
    if !options.cores.is_null() {
        let workers = team.threads.max(1) - 1;
        // SAFETY: this function's contract: one core for each thread but the calling one.
        let cores = unsafe { elements(options.cores, workers, "cores") }?;
        team.cores = Some(cores.iter().map(|&core| core as usize).collect());
    }
    let cache_weights = options.cache_weights != 0;
    Ok(LoadOptions {
        team,
        exact: options.exact != 0,
        adapters: vec![],
        cache_weights,
        place: Place::Cpu,
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_model_load(
    path: *const c_char,
    options: *const PunaLoadOptions,
    model: *mut *mut PunaModel,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (path, to) = unsafe { (string(path, "path")?, borrow_mut(model, "model")?) };
        // SAFETY: as above; it may be NULL.
        let options = match unsafe { options.as_ref() } {
            // SAFETY: as above.
            Some(options) => unsafe { load_options(options) }?,
            None => LoadOptions::default(),
        };
        let model = Model::load(Path::new(path), &options)?;
        *to = Box::into_raw(Box::new(PunaModel(Arc::new(model))));
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// `model` is NULL or came from `puna_model_load`, is not freed yet, and is not in use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_model_free(model: *mut PunaModel) {
    if !model.is_null() {
        enter(|| {
            // SAFETY: it came out of a box in `puna_model_load`, by this function's contract.
            drop(unsafe { Box::from_raw(model) });
            Ok(())
        });
    }
}

/// See the header.
///
/// # Safety
/// `model` is NULL or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_model_vocab_size(model: *const PunaModel) -> usize {
    // SAFETY: this function's contract.
    unsafe { model.as_ref() }.map_or(0, |model| model.0.config.vocab_size)
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_model_memory(
    model: *const PunaModel,
    ctx: usize,
    kv: u32,
    memory: *mut PunaMemory,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (model, to) = unsafe { (borrow(model, "model")?, borrow_mut(memory, "memory")?) };
        let memory = model.0.memory(ctx, kv_type(kv)?)?;
        *to = PunaMemory {
            weights_bytes: memory.weights_bytes,
            cache_bytes: memory.cache_bytes,
            workspace_bytes: memory.workspace_bytes,
        };
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_tokenize(
    model: *const PunaModel,
    text: *const c_char,
    n_bytes: usize,
    special: u32,
    ids: *mut u32,
    capacity: usize,
    n_ids: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (model, n) = unsafe { (borrow(model, "model")?, borrow_mut(n_ids, "n_ids")?) };
        // SAFETY: as above.
        let bytes = unsafe { elements(text.cast::<u8>(), n_bytes, "text") }?;
        let text = std::str::from_utf8(bytes)
            .map_err(|fault| Fault::new(Status::Invalid, format!("text: {fault}")))?;
        let special = special != 0;
        let found = model.0.tokenizer()?.encode(text, special, special)?;
        // SAFETY: as above.
        unsafe { hand_out(&found, ids, capacity, n) }
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_detokenize(
    model: *const PunaModel,
    ids: *const u32,
    n_ids: usize,
    text: *mut c_char,
    capacity: usize,
    n_bytes: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (model, n) = unsafe { (borrow(model, "model")?, borrow_mut(n_bytes, "n_bytes")?) };
        // SAFETY: as above.
        let ids = unsafe { elements(ids, n_ids, "ids") }?;
        let found = model.0.tokenizer()?.decode(ids, true)?;
        // SAFETY: as above.
        unsafe { hand_out(found.as_bytes(), text.cast::<u8>(), capacity, n) }
    })
}
