//! A sequence that lives: its cache, how it chooses, when it ends, on a model that others share.
//!
//! A [`Session`] takes prompts ([`Session::prefill`]) and gives tokens ([`Session::step`]). It can be
//! cancelled from another thread, cut back, copied ([`Session::fork`]), written down and read again
//! (`state`), and stepped together with others ([`step_all`]). What it computes has the same bits
//! whichever of these ways it went.
//!
//! A token that was chosen runs through the model when the next one is asked for: so it is there
//! one pass earlier, and nothing is computed that nobody asks for.

mod state;
mod text;
mod together;

pub use together::step_all;

use super::sampler::{Sampler, SamplerConfig};
use super::sequence::FinishReason;
use crate::error::{Error, Result};
use crate::model::llama::{Kept, KvCache, KvType, Logits, LogitsFor, Model, Segment, Workspace};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use text::Text;

/// What a session is made with.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Positions of the cache: prompt and answer together. [`Model::memory`] tells what they take.
    pub ctx: usize,
    /// Format of cached keys and values.
    pub kv_type: KvType,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Which random stream of the sampler's seed: another one for each of several sequences.
    pub stream: u64,
    /// Tokens after a prompt at most.
    pub max_new_tokens: usize,
    /// Tokens that end the sequence; `None`: those of [`Model::end_ids`].
    pub end_ids: Option<Vec<u32>>,
    /// Strings that end the sequence; they are not part of its text.
    pub stop: Vec<String>,
    /// Keep the text of what is chosen, for [`Session::text`]; stop strings do so by themselves.
    pub text: bool,
}

impl Default for SessionOptions {
    /// 2048 positions in F16, always the likeliest token, ended by the model's end tokens alone.
    fn default() -> Self {
        SessionOptions {
            ctx: 2048,
            kv_type: KvType::F16,
            sampler: SamplerConfig::GREEDY,
            stream: 0,
            max_new_tokens: usize::MAX,
            end_ids: None,
            stop: vec![],
            text: false,
        }
    }
}

/// Cancels a session from another thread.
#[derive(Clone, Debug)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Cancels: a call that is running returns [`Error::Cancelled`] within one block of the model,
    /// and so does every later one until [`Session::resume`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes a cancellation back.
    pub fn resume(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether it was cancelled and not resumed.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One sequence on a shared model. After the first prompt and step, a step allocates nothing, nor
/// does a prompt no longer than the longest before it.
///
/// ```
/// use puna::infer::{Session, SessionOptions};
/// use puna::model::llama::{LoadOptions, Model};
/// use std::sync::Arc;
///
/// let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
/// let options = SessionOptions { ctx: 64, max_new_tokens: 8, text: true, ..Default::default() };
/// let mut session = Session::new(Arc::clone(&model), options)?;
/// session.prefill(&model.tokenizer()?.encode("Once upon a time", true, false)?)?;
/// while session.finish().is_none() {
///     session.step()?;
/// }
/// assert!(!session.text().is_empty());
/// # Ok::<(), puna::Error>(())
/// ```
pub struct Session {
    model: Arc<Model>,
    cache: KvCache,
    /// `None` only while a pass of several sessions has it.
    ws: Option<Workspace>,
    sampler: Sampler,
    /// Prompt and answer; those from `cache.len()` on have not run yet.
    ids: Vec<u32>,
    logits: Kept, // [vocab_size]
    /// How many ids the logits come after; 0: there are none.
    logits_after: usize,
    /// Tokens chosen since the last prompt.
    n_new: usize,
    finish: Option<FinishReason>,
    cancel: Arc<AtomicBool>,
    max_new_tokens: usize,
    end_ids: Vec<u32>,
    text: Option<Text>,
    /// Whether it takes part in the running pass of several sessions.
    in_pass: bool,
}

impl Session {
    /// An empty session. Its cache is reserved whole; pages are taken as it grows.
    ///
    /// # Errors
    /// Settings out of range, a context of 0 or larger than the system gives, stop strings or text
    /// without a tokenizer.
    pub fn new(model: Arc<Model>, options: SessionOptions) -> Result<Session> {
        model.check_speaks()?;
        let vocab_size = model.config.vocab_size;
        let cache = model.new_cache(options.ctx, options.kv_type)?;
        let sampler = Sampler::new(options.sampler, vocab_size, options.stream)?;
        let text = match options.text || !options.stop.is_empty() {
            true => Some(Text::new(model.tokenizer()?, &options.stop, options.ctx)?),
            false => None,
        };
        Ok(Session {
            cache,
            ws: Some(model.workspace()),
            sampler,
            // One more than the cache holds: the last token of a full context never runs.
            ids: Vec::with_capacity(options.ctx + 1),
            logits: model.room_for_logits()?,
            logits_after: 0,
            n_new: 0,
            finish: None,
            cancel: Arc::default(),
            max_new_tokens: options.max_new_tokens,
            end_ids: options.end_ids.unwrap_or_else(|| model.end_ids()),
            text,
            in_pass: false,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Prompt and answer so far, all of them.
    pub fn tokens(&self) -> &[u32] {
        &self.ids
    }

    /// Positions of the cache.
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Why the sequence has ended; `None` while it goes on.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// What was chosen since the last prompt, as text: no half character, nothing of a stop string,
    /// nothing that may yet become one. Empty where the options did not ask for text.
    pub fn text(&self) -> &str {
        self.text.as_ref().map_or("", Text::shown)
    }

    /// Bytes held, written or not, but for the text; at most those that [`Model::memory`] declares.
    ///
    /// ```
    /// # use puna::infer::{Session, SessionOptions};
    /// # use puna::model::llama::{KvType, LoadOptions, Model};
    /// # use std::sync::Arc;
    /// # let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
    /// let declared = model.memory(32, KvType::F16)?;
    /// let options = SessionOptions { ctx: 32, ..Default::default() };
    /// let mut session = Session::new(model, options)?;
    /// session.prefill(&[5; 30])?;
    /// assert!(session.bytes() <= declared.cache_bytes + declared.workspace_bytes);
    /// # Ok::<(), puna::Error>(())
    /// ```
    pub fn bytes(&self) -> usize {
        let lists = 4 * (self.ids.capacity() + self.logits.len()) + self.sampler.bytes();
        self.cache.bytes() + self.ws.as_ref().map_or(0, Workspace::bytes) + lists
    }

    /// Appends tokens and runs them; the next [`Session::step`] chooses what comes after them. A
    /// sequence that had ended goes on. Where it fails, the session is as it was before.
    ///
    /// # Errors
    /// No tokens, an id beyond the vocabulary, no room, [`Error::Cancelled`].
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        super::generate::check_prompt(tokens, self.model.config.vocab_size, usize::MAX)?;
        let (before, needed) = (self.ids.len(), self.ids.len() + tokens.len());
        if needed > self.capacity() {
            return Err(Error::ContextFull { needed, capacity: self.capacity() });
        }
        self.ids.extend_from_slice(tokens);
        if let Err(error) = self.catch_up() {
            self.ids.truncate(before);
            return Err(error);
        }
        tokens.iter().for_each(|&id| self.sampler.observe(id));
        self.begin_answer();
        Ok(())
    }

    /// Makes the session's tokens those of `prompt`, and runs what the cache lacks of them; returns
    /// how many it had. Where that fails, the session holds the common beginning alone.
    ///
    /// ```
    /// # use puna::infer::{Session, SessionOptions};
    /// # use puna::model::llama::{LoadOptions, Model};
    /// # use std::sync::Arc;
    /// # let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
    /// let mut session = Session::new(model, SessionOptions { ctx: 32, ..Default::default() })?;
    /// assert_eq!(session.prompt(&[5, 6, 7, 8])?, 0);
    /// session.step()?;
    /// assert_eq!(session.prompt(&[5, 6, 7, 9, 10])?, 3);
    /// assert_eq!(session.tokens(), [5, 6, 7, 9, 10]);
    /// # Ok::<(), puna::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prompt(&mut self, prompt: &[u32]) -> Result<usize> {
        super::generate::check_prompt(prompt, self.model.config.vocab_size, self.capacity())?;
        let same = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token runs in any case: its logits are wanted.
        let kept = same.min(self.cache.len()).min(prompt.len() - 1);
        self.truncate(kept);
        self.prefill(&prompt[kept..])?;
        Ok(kept)
    }

    /// Chooses the next token, after the one before has run. Where it was cancelled, the session is
    /// as it was before, and the same call later gives the same token.
    ///
    /// # Errors
    /// Nothing to continue, a sequence that has ended, [`Error::Cancelled`], logits that are not
    /// numbers.
    pub fn step(&mut self) -> Result<u32> {
        if let Some(reason) = self.finish {
            return Err(Error::Data {
                place: "step".into(),
                what: format!(
                    "the sequence has ended ({}); prefill or truncate makes it go on",
                    reason.name()
                ),
            });
        }
        self.catch_up()?;
        self.choose()
    }

    /// Logits `[vocab_size]` after the last token, which runs first if it has not.
    ///
    /// ```
    /// # use puna::infer::{Session, SessionOptions};
    /// # use puna::model::llama::{LoadOptions, Model};
    /// # use std::sync::Arc;
    /// # let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
    /// // A caller's own way to choose.
    /// let mut session = Session::new(model, SessionOptions { ctx: 32, ..Default::default() })?;
    /// session.prefill(&[5, 6, 7])?;
    /// let logits = session.logits()?;
    /// let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    /// session.prefill(&[best as u32])?;
    /// assert_eq!(session.tokens().len(), 4);
    /// # Ok::<(), puna::Error>(())
    /// ```
    ///
    /// # Errors
    /// Nothing has been put in, no room for the last token, [`Error::Cancelled`].
    pub fn logits(&mut self) -> Result<&[f32]> {
        self.catch_up()?;
        self.logits.read()
    }

    /// The logits in hand, without running anything: after a prompt those that the next step chooses
    /// from, after a step those that it chose from. `None` before the first prompt and after
    /// [`Session::truncate`].
    ///
    /// ```
    /// # use puna::infer::{Session, SessionOptions, TokenLogprobs};
    /// # use puna::model::llama::{LoadOptions, Model};
    /// # use std::sync::Arc;
    /// # let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
    /// let mut session = Session::new(model, SessionOptions { ctx: 32, ..Default::default() })?;
    /// session.prefill(&[5, 6, 7])?;
    /// let id = session.step()?;
    /// let chosen = TokenLogprobs::of(session.last_logits()?.unwrap(), id, 1);
    /// assert_eq!(chosen.top[0], (id, chosen.logprob));
    /// # Ok::<(), puna::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a GPU that has them failed.
    pub fn last_logits(&self) -> Result<Option<&[f32]>> {
        match self.logits_after {
            0 => Ok(None),
            _ => self.logits.read().map(Some),
        }
    }

    /// A handle that cancels this session from any thread.
    ///
    /// ```
    /// # use puna::Error;
    /// # use puna::infer::{Session, SessionOptions};
    /// # use puna::model::llama::{LoadOptions, Model};
    /// # use std::sync::Arc;
    /// # let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
    /// let mut session = Session::new(model, SessionOptions { ctx: 32, ..Default::default() })?;
    /// let handle = session.cancel_handle();
    /// std::thread::spawn(move || handle.cancel()).join().unwrap();
    /// assert!(matches!(session.prefill(&[5, 6, 7]), Err(Error::Cancelled)));
    /// assert!(session.tokens().is_empty());
    /// session.resume();
    /// session.prefill(&[5, 6, 7])?;
    /// # Ok::<(), puna::Error>(())
    /// ```
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle(Arc::clone(&self.cancel))
    }

    /// Whether it was cancelled and not resumed.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Takes a cancellation back.
    pub fn resume(&mut self) {
        self.cancel.store(false, Ordering::Relaxed);
    }

    /// Keeps the first `n` tokens, as a prompt; all of them where there are no more. The random
    /// stream is not turned back.
    pub fn truncate(&mut self, n: usize) {
        self.ids.truncate(n);
        self.cache.truncate(n);
        if self.logits_after > n {
            self.logits_after = 0;
        }
        self.sampler.forget();
        self.ids.iter().for_each(|&id| self.sampler.observe(id));
        self.begin_answer();
    }

    /// Chooses in another way from now on, from the beginning of a random stream.
    ///
    /// # Errors
    /// Settings out of range; the session then goes on as before.
    pub fn set_sampler(&mut self, config: SamplerConfig, stream: u64) -> Result<()> {
        let mut sampler = Sampler::new(config, self.model.config.vocab_size, stream)?;
        self.ids.iter().for_each(|&id| sampler.observe(id));
        self.sampler = sampler;
        Ok(())
    }

    /// A copy that goes on by itself, with the same bits as this one: also its random stream is the
    /// same (see [`Session::set_sampler`]). It has a cancel handle of its own.
    ///
    /// ```
    /// # use puna::infer::{Session, SessionOptions};
    /// # use puna::model::llama::{LoadOptions, Model};
    /// # use std::sync::Arc;
    /// # let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1))?);
    /// let mut session = Session::new(model, SessionOptions { ctx: 32, ..Default::default() })?;
    /// session.prefill(&[5, 6, 7])?;
    /// let mut other = session.fork()?;
    /// assert_eq!(session.step()?, other.step()?);
    /// # Ok::<(), puna::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub fn fork(&self) -> Result<Session> {
        let mut ids = Vec::with_capacity(self.capacity() + 1);
        ids.extend_from_slice(&self.ids);
        Ok(Session {
            model: Arc::clone(&self.model),
            cache: self.cache.fork()?,
            ws: Some(self.model.workspace()),
            sampler: self.sampler.clone(),
            ids,
            logits: self.logits.fork()?,
            logits_after: self.logits_after,
            n_new: self.n_new,
            finish: self.finish,
            cancel: Arc::default(),
            max_new_tokens: self.max_new_tokens,
            end_ids: self.end_ids.clone(),
            text: self.text.clone(),
            in_pass: false,
        })
    }

    /// What follows is counted and shown anew.
    fn begin_answer(&mut self) {
        self.n_new = 0;
        self.finish = None;
        if let Some(text) = &mut self.text {
            text.restart();
        }
    }

    /// Whether the logits are those after the last token.
    fn is_ready(&self) -> bool {
        self.logits_after == self.ids.len() && !self.ids.is_empty()
    }

    fn check_begun(&self) -> Result<()> {
        if self.ids.is_empty() {
            let what = "the session is empty, wanted a prompt first".into();
            return Err(Error::Data { place: "session".into(), what });
        }
        Ok(())
    }

    /// Runs what has not run, and has the logits after it. Fails without a trace.
    fn catch_up(&mut self) -> Result<()> {
        self.check_begun()?;
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self.is_ready() {
            return Ok(());
        }
        let Session { model, cache, ws, ids, cancel, .. } = self;
        let ws = ws.get_or_insert_with(|| model.workspace());
        let (before, n) = (cache.len(), ids.len());
        // Where everything has run but the logits are gone, the last token runs again.
        cache.truncate(n - 1);
        while cache.len() < n {
            let begin = cache.len();
            let end = n.min(begin + Model::MAX_ROWS);
            let logits = if end == n { LogitsFor::Last } else { LogitsFor::None };
            let tokens = &ids[begin..end];
            let segment = Segment { tokens, cache: &mut *cache, logits, rope_len: Some(n) };
            if let Err(error) = model.forward_unless(ws, &mut [segment], cancel) {
                cache.truncate(before);
                return Err(error);
            }
        }
        self.logits.keep(ws, 0)?;
        self.logits_after = n;
        Ok(())
    }

    /// Chooses from the logits, which are those after the last token.
    fn choose(&mut self) -> Result<u32> {
        let id = self.sampler.choose(Logits::Kept(&self.logits))?;
        self.sampler.observe(id);
        self.ids.push(id);
        self.n_new += 1;
        self.finish = self.judge(id)?;
        Ok(id)
    }

    /// Whether the sequence ends with the token that was just appended.
    fn judge(&mut self, id: u32) -> Result<Option<FinishReason>> {
        if self.end_ids.contains(&id) {
            self.text.iter_mut().for_each(Text::finish);
            return Ok(Some(FinishReason::Stop));
        }
        if let Some(text) = &mut self.text
            && text.push(self.model.tokenizer()?, id)?
        {
            return Ok(Some(FinishReason::Stop));
        }
        if self.n_new >= self.max_new_tokens || self.ids.len() > self.cache.capacity() {
            self.text.iter_mut().for_each(Text::finish);
            return Ok(Some(FinishReason::Length));
        }
        Ok(None)
    }
}
