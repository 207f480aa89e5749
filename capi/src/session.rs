//! Sessions. A handle is a session with its cancel handle beside it: to cancel, another thread looks
//! at the one while this thread works on the other, so neither is ever borrowed as a whole.

use crate::model::{PunaModel, kv_type};
use crate::status::{Fault, Outcome, Status, borrow, borrow_mut, elements, enter, string};
use puna::infer::{CancelHandle, FinishReason, SamplerConfig, Session, SessionOptions, step_all};
use std::ffi::{c_char, c_void};
use std::io::{self, Write};
use std::sync::Arc;

/// `puna_session` of the header.
#[repr(C)]
pub struct PunaSession {
    /// First, so that a handle is also a pointer to the session.
    session: Session,
    cancel: CancelHandle,
}

/// `puna_session_options` of the header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs)]
pub struct PunaSessionOptions {
    pub ctx: usize,
    pub kv_type: u32,
    pub top_k: u32,
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub seed: u64,
    pub stream: u64,
    pub max_new_tokens: usize,
    pub end_ids: *const u32,
    pub n_end_ids: usize,
    pub stop: *const *const c_char,
    pub n_stop: usize,
    pub text: u32,
}

impl PunaSessionOptions {
    fn usual() -> PunaSessionOptions {
        let SessionOptions { ctx, sampler, stream, max_new_tokens, .. } = SessionOptions::default();
        PunaSessionOptions {
            ctx,
            kv_type: 0,
            top_k: sampler.top_k as u32,
            temperature: sampler.temperature,
            top_p: sampler.top_p,
            min_p: sampler.min_p,
            repetition_penalty: sampler.repetition_penalty,
            seed: sampler.seed,
            stream,
            max_new_tokens,
            end_ids: std::ptr::null(),
            n_end_ids: 0,
            stop: std::ptr::null(),
            n_stop: 0,
            text: 0,
        }
    }

    /// # Safety
    /// The pointers are as the header says.
    unsafe fn read(&self) -> Outcome<SessionOptions> {
        let end_ids = match self.end_ids.is_null() {
            true => None,
            // SAFETY: this function's contract.
            false => Some(unsafe { elements(self.end_ids, self.n_end_ids, "end_ids") }?.to_vec()),
        };
        // SAFETY: as above.
        let stops = unsafe { elements(self.stop, self.n_stop, "stop") }?;
        // SAFETY: as above, for each of the strings.
        let own = |&stop: &*const c_char| unsafe { string(stop, "stop") }.map(str::to_owned);
        Ok(SessionOptions {
            ctx: self.ctx,
            kv_type: kv_type(self.kv_type)?,
            sampler: SamplerConfig {
                temperature: self.temperature,
                top_k: self.top_k as usize,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            stream: self.stream,
            max_new_tokens: self.max_new_tokens,
            end_ids,
            stop: stops.iter().map(own).collect::<Outcome<_>>()?,
            text: self.text != 0,
        })
    }
}

fn boxed(session: Session) -> *mut PunaSession {
    let cancel = session.cancel_handle();
    Box::into_raw(Box::new(PunaSession { session, cancel }))
}

/// The session of a handle, apart from the cancel handle.
///
/// # Safety
/// `handle` is NULL, or lives and is used by no other thread for `'a` but to cancel.
unsafe fn own<'a>(handle: *mut PunaSession) -> Outcome<&'a mut Session> {
    // SAFETY: the session is the first field of a handle; this function's contract.
    unsafe { borrow_mut(handle.cast::<Session>(), "session") }
}

/// The same, to read.
///
/// # Safety
/// As [`own`].
unsafe fn look<'a>(handle: *const PunaSession) -> Outcome<&'a Session> {
    // SAFETY: the session is the first field of a handle; this function's contract.
    unsafe { borrow(handle.cast::<Session>(), "session") }
}

fn finish_code(finish: Option<FinishReason>) -> u32 {
    match finish {
        None => 0,
        Some(FinishReason::Stop) => 1,
        Some(FinishReason::Length | FinishReason::Cancelled) => 2,
    }
}

/// See the header.
///
/// # Safety
/// `options` is NULL or the caller's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_options_init(options: *mut PunaSessionOptions) {
    enter(|| {
        // SAFETY: this function's contract.
        *unsafe { borrow_mut(options, "options") }? = PunaSessionOptions::usual();
        Ok(())
    });
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_new(
    model: *const PunaModel,
    options: *const PunaSessionOptions,
    session: *mut *mut PunaSession,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (model, to) = unsafe { (borrow(model, "model")?, borrow_mut(session, "session")?) };
        // SAFETY: as above.
        let options = match unsafe { options.as_ref() } {
            // SAFETY: as above.
            Some(options) => unsafe { options.read() }?,
            None => SessionOptions::default(),
        };
        *to = boxed(Session::new(Arc::clone(&model.0), options)?);
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// `session` is NULL or came from this library, is not freed yet, and is not in use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_free(session: *mut PunaSession) {
    if !session.is_null() {
        enter(|| {
            // SAFETY: it came out of a box in `boxed`, by this function's contract.
            drop(unsafe { Box::from_raw(session) });
            Ok(())
        });
    }
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_prefill(
    session: *mut PunaSession,
    ids: *const u32,
    n_ids: usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, ids) = unsafe { (own(session)?, elements(ids, n_ids, "ids")?) };
        Ok(session.prefill(ids)?)
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_prompt(
    session: *mut PunaSession,
    ids: *const u32,
    n_ids: usize,
    n_reused: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, ids) = unsafe { (own(session)?, elements(ids, n_ids, "ids")?) };
        let reused = session.prompt(ids)?;
        // SAFETY: as above; it may be NULL.
        if let Some(to) = unsafe { n_reused.as_mut() } {
            *to = reused;
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_step(
    session: *mut PunaSession,
    id: *mut u32,
    finish: *mut u32,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, to) = unsafe { (own(session)?, borrow_mut(id, "id")?) };
        *to = session.step()?;
        // SAFETY: as above; it may be NULL.
        if let Some(to) = unsafe { finish.as_mut() } {
            *to = finish_code(session.finish());
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_step_all(
    sessions: *mut *mut PunaSession,
    n_sessions: usize,
    n_stepped: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let handles = unsafe { elements(sessions, n_sessions, "sessions") }?;
        for (i, handle) in handles.iter().enumerate() {
            if handle.is_null() || handles[..i].contains(handle) {
                let what = format!("session {i} is NULL or comes twice");
                return Err(Fault::new(Status::Invalid, what));
            }
        }
        let list: &mut [&mut Session] = match n_sessions {
            0 => &mut [],
            // SAFETY: as many handles as `elements` took, each the address of a session (the first
            // field), none NULL and none twice by the check above, so each may become an exclusive
            // reference, which has a pointer's layout; the array is the library's meanwhile.
            n => unsafe { std::slice::from_raw_parts_mut(sessions.cast::<&mut Session>(), n) },
        };
        let stepped = step_all(list)?;
        // SAFETY: as above; it may be NULL.
        if let Some(to) = unsafe { n_stepped.as_mut() } {
            *to = stepped;
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_logits(
    session: *mut PunaSession,
    logits: *mut *const f32,
    n_logits: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, to) = unsafe { (own(session)?, borrow_mut(logits, "logits")?) };
        // SAFETY: as above.
        let n = unsafe { borrow_mut(n_logits, "n_logits") }?;
        let found = session.logits()?;
        (*to, *n) = (found.as_ptr(), found.len());
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_tokens(
    session: *const PunaSession,
    ids: *mut *const u32,
    n_ids: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, to) = unsafe { (look(session)?, borrow_mut(ids, "ids")?) };
        // SAFETY: as above.
        let n = unsafe { borrow_mut(n_ids, "n_ids") }?;
        (*to, *n) = (session.tokens().as_ptr(), session.tokens().len());
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_text(
    session: *const PunaSession,
    text: *mut *const c_char,
    n_bytes: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, to) = unsafe { (look(session)?, borrow_mut(text, "text")?) };
        // SAFETY: as above.
        let n = unsafe { borrow_mut(n_bytes, "n_bytes") }?;
        (*to, *n) = (session.text().as_ptr().cast(), session.text().len());
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_truncate(session: *mut PunaSession, n_ids: usize) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        unsafe { own(session) }?.truncate(n_ids);
        Ok(())
    })
}

/// The cancel handle of a session that may be in use.
///
/// # Safety
/// `handle` is NULL or lives for `'a`.
unsafe fn cancel_of<'a>(handle: *const PunaSession) -> Outcome<&'a CancelHandle> {
    if handle.is_null() {
        return Err(Fault::new(Status::Invalid, "session is NULL"));
    }
    // SAFETY: not NULL, and it lives by this function's contract. Only the place of the one field is
    // formed; nobody writes that field while the handle lives.
    Ok(unsafe { &(*handle).cancel })
}

/// See the header.
///
/// # Safety
/// `session` is NULL or lives; other threads may use it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_cancel(session: *const PunaSession) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        unsafe { cancel_of(session) }?.cancel();
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// `session` is NULL or lives; other threads may use it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_resume(session: *const PunaSession) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        unsafe { cancel_of(session) }?.resume();
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_fork(
    session: *const PunaSession,
    copy: *mut *mut PunaSession,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, to) = unsafe { (look(session)?, borrow_mut(copy, "copy")?) };
        *to = boxed(session.fork()?);
        Ok(())
    })
}

/// A buffer of the caller's: what does not fit is counted only.
struct Room {
    to: *mut u8,
    capacity: usize,
    n: usize,
}

impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.n.saturating_add(bytes.len());
        if end <= self.capacity && !self.to.is_null() {
            // SAFETY: the caller of `puna_session_save` has room for `capacity` bytes, and these
            // end within them by the check above.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.to.add(self.n), bytes.len())
            };
        }
        self.n = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_save(
    session: *const PunaSession,
    bytes: *mut c_void,
    capacity: usize,
    n_bytes: *mut usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, n) = unsafe { (look(session)?, borrow_mut(n_bytes, "n_bytes")?) };
        let mut room = Room { to: bytes.cast(), capacity, n: 0 };
        session.save(&mut room)?;
        *n = room.n;
        if room.to.is_null() || room.n > capacity {
            let what = format!("room for {capacity} bytes, wanted {}", room.n);
            return Err(Fault::new(Status::TooSmall, what));
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// The pointers are as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn puna_session_restore(
    session: *mut PunaSession,
    bytes: *const c_void,
    n_bytes: usize,
) -> Status {
    enter(|| {
        // SAFETY: this function's contract.
        let (session, mut bytes) =
            unsafe { (own(session)?, elements(bytes.cast::<u8>(), n_bytes, "bytes")?) };
        Ok(session.restore(&mut bytes)?)
    })
}
