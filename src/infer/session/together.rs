//! Several sessions stepped in one pass: their rows share every read of the weights.

use super::Session;
use crate::error::{Error, Result};
use crate::model::llama::{Batch, LogitsFor, Model, Segment};
use std::sync::Arc;

/// The last tokens of the sessions that take part.
struct Together<'a, 'b>(&'a mut [&'b mut Session]);

impl Batch for Together<'_, '_> {
    fn segments(&mut self) -> impl Iterator<Item = Segment<'_>> {
        self.0.iter_mut().filter(|session| session.in_pass).map(|session| {
            let Session { ids, cache, .. } = &mut **session;
            let tokens = &ids[cache.len()..];
            Segment { tokens, cache, logits: LogitsFor::Last, rope_len: None }
        })
    }

    fn cancelled(&self) -> bool {
        self.0.iter().any(|session| session.in_pass && session.is_cancelled())
    }
}

/// Steps every session that goes on, in as few passes of the model as there can be; returns how
/// many were stepped. Each gets the token that [`Session::step`] would give it, the last of its
/// [`Session::tokens`]. Sessions that have ended, were cancelled or are empty are passed over; one
/// that is cancelled meanwhile drops out within a block, and the others' pass begins again.
///
/// ```
/// use puna::infer::{Session, SessionOptions, step_all};
/// use puna::model::llama::{LoadOptions, Model};
/// use std::sync::Arc;
///
/// let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
/// let options = SessionOptions { ctx: 32, max_new_tokens: 4, ..Default::default() };
/// let mut one = Session::new(Arc::clone(&model), options.clone())?;
/// let mut other = Session::new(Arc::clone(&model), options)?;
/// one.prefill(&[5, 6, 7])?;
/// other.prefill(&[9])?;
/// while step_all(&mut [&mut one, &mut other])? > 0 {}
/// assert_eq!((one.tokens().len(), other.tokens().len()), (7, 5));
/// # Ok::<(), puna::Error>(())
/// ```
///
/// # Errors
/// Sessions of different models, and as [`Session::step`], but for cancellation; a session whose
/// step did not come to its end is as it was before.
pub fn step_all(sessions: &mut [&mut Session]) -> Result<usize> {
    let Some(first) = sessions.first() else { return Ok(0) };
    let model = Arc::clone(&first.model);
    if sessions.iter().any(|session| !Arc::ptr_eq(&session.model, &model)) {
        let why = "all sessions of one step must be of the same model";
        return Err(Error::config("sessions", "of several models", why));
    }
    let mut n_stepped = 0;
    for sessions in sessions.chunks_mut(Model::MAX_ROWS) {
        while !run_last_tokens(&model, sessions)? {}
        for session in sessions.iter_mut().filter(|session| session.in_pass) {
            session.in_pass = false;
            session.choose()?;
            n_stepped += 1;
        }
    }
    Ok(n_stepped)
}

/// Has the logits after the last token of every session that goes on, and marks those; `false`
/// where one was cancelled meanwhile.
fn run_last_tokens(model: &Model, sessions: &mut [&mut Session]) -> Result<bool> {
    let goes_on = |session: &Session| {
        session.finish.is_none() && !session.is_cancelled() && !session.ids.is_empty()
    };
    for session in sessions.iter_mut() {
        session.in_pass = goes_on(session) && !session.is_ready();
        if session.in_pass {
            // Where everything has run but the logits are gone, the last token runs again.
            session.cache.truncate(session.ids.len() - 1);
        }
    }
    if sessions.iter().any(|session| session.in_pass) {
        let ws = sessions.iter_mut().find_map(|session| session.ws.take());
        let mut ws = ws.unwrap_or_else(|| model.workspace());
        let pass = model.forward_batch(&mut ws, &mut Together(sessions));
        if pass.is_ok() {
            let taking_part = sessions.iter_mut().filter(|session| session.in_pass);
            for (row, session) in taking_part.enumerate() {
                session.logits.keep(&ws, row)?;
                session.logits_after = session.ids.len();
            }
        }
        if let Some(session) = sessions.iter_mut().find(|session| session.ws.is_none()) {
            session.ws = Some(ws);
        }
        match pass {
            Err(Error::Cancelled) => return Ok(false),
            other => other?,
        }
    }
    for session in sessions.iter_mut() {
        session.in_pass = session.finish.is_none() && session.is_ready() && !session.is_cancelled();
    }
    Ok(true)
}
