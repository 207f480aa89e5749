//! A fixed team of threads: the only place that makes threads for kernels.
//!
//! [`Team::run`] calls one function once per member and returns when all calls are back. Work is
//! split by the member's index alone, so who computes what never depends on timing. Members spin
//! for a bounded time after a job and then park; a team of one makes no thread.
//!
//! The workers are threads of the team's own ([`Team::with`]), or threads that the caller lends
//! ([`Team::lent`]). The share of a seat where nobody works is computed by the calling thread, so
//! the results are the same bits. A job must therefore not wait for another member's part.

mod options;

pub use options::{TeamOptions, pin_current_thread};

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Rounds of the pause instruction between two looks at the clock: about ten microseconds.
const ROUNDS_A_LOOK: u32 = 256;
/// Rounds after which a member yields once, even within its budget: with more members than free
/// cores it may be waiting for the one whose core it holds.
const ROUNDS_A_YIELD: u32 = 4096;

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// What a worker shows the calling thread.
#[derive(Default)]
struct Worker {
    /// Whether a thread works here; changed only while `busy` is held.
    present: AtomicBool,
    asleep: AtomicBool,
    /// Set before `asleep` is for the first time.
    thread: OnceLock<Thread>,
}

/// What the members share. `job` is written only between jobs, by the thread that holds `busy`.
struct Shared {
    busy: AtomicBool,
    epoch: AtomicU64,
    job: UnsafeCell<Option<*const Job<'static>>>,
    remaining: AtomicUsize,
    stop: AtomicBool,
    workers: Vec<Worker>,
    spin: Duration,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is only written by the caller of `run` while `remaining` is 0 (no worker reads
// it), and read by workers only after they have seen the epoch that was released after the write.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is dereferenced only while the closure it points to is
// borrowed by `run`, which does not return before every worker is done with it.
unsafe impl Send for Shared {}

impl Shared {
    fn lock(&self) {
        while self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            thread::yield_now();
        }
    }

    fn unlock(&self) {
        self.busy.store(false, Ordering::Release);
    }
}

/// A bounded time of spinning.
struct Spin {
    budget: Duration,
    rounds: u32,
    since: Option<Instant>,
    spent: bool,
}

impl Spin {
    fn new(budget: Duration) -> Spin {
        Spin { budget, rounds: 0, since: None, spent: budget.is_zero() }
    }

    /// Pauses once; whether the budget lasts.
    fn round(&mut self) -> bool {
        if self.spent {
            return false;
        }
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds.is_multiple_of(ROUNDS_A_LOOK) {
            let since = *self.since.get_or_insert_with(Instant::now);
            self.spent = since.elapsed() >= self.budget;
        }
        match self.rounds.is_multiple_of(ROUNDS_A_YIELD) {
            true => thread::yield_now(),
            false => std::hint::spin_loop(),
        }
        true
    }
}

/// A team of threads, the calling thread being member 0.
pub struct Team {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

/// A worker's place in a team of lent threads.
pub struct Seat {
    shared: Arc<Shared>,
    index: usize,
}

impl Seat {
    /// Works on the calling thread until the team is dropped.
    ///
    /// ```
    /// # use puna_cpu::team::{Team, TeamOptions};
    /// let (team, seats) = Team::lent(&TeamOptions::threads(2)).unwrap();
    /// let mine: Vec<_> = seats
    ///     .into_iter()
    ///     .map(|seat| std::thread::spawn(move || seat.work()))
    ///     .collect();
    /// team.run(&|member| println!("member {member} of a team of two"));
    /// drop(team);
    /// mine.into_iter().for_each(|thread| thread.join().unwrap());
    /// ```
    pub fn work(self) {
        let seen = self.sit_down();
        work(&self.shared, self.index, seen);
    }

    /// Takes part from the next job on; the epoch of the last one.
    fn sit_down(&self) -> u64 {
        let worker = &self.shared.workers[self.index];
        // Nobody else sits here: a seat is used once.
        let _ = worker.thread.set(thread::current());
        self.shared.lock();
        let seen = self.shared.epoch.load(Ordering::Acquire);
        worker.present.store(true, Ordering::Relaxed);
        self.shared.unlock();
        seen
    }
}

impl Team {
    /// Makes a team of `threads` members (at least 1); spawns `threads - 1` threads named
    /// `puna-1`, `puna-2`, ...
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> io::Result<Team> {
        Team::with(&TeamOptions::threads(threads))
    }

    /// Makes a team with threads of its own; when it returns, all of them are ready.
    ///
    /// ```
    /// # use puna_cpu::team::{Team, TeamOptions};
    /// # use std::time::Duration;
    /// let options = TeamOptions {
    ///     threads: 2,
    ///     name: "control".into(),
    ///     spin: Duration::from_micros(50),
    ///     ..TeamOptions::default()
    /// };
    /// let team = Team::with(&options).unwrap();
    /// assert_eq!(team.len(), 2);
    /// ```
    ///
    /// # Errors
    /// When the options do not fit together, or the system refuses a thread or a core.
    pub fn with(options: &TeamOptions) -> io::Result<Team> {
        let (mut team, seats) = Team::lent(options)?;
        let (ready, answers) = mpsc::channel();
        for seat in seats {
            let (name, ready) = (format!("{}-{}", options.name, seat.index + 1), ready.clone());
            let core = options.cores.as_ref().map(|cores| cores[seat.index]);
            let handle = thread::Builder::new().name(name).spawn(move || {
                let pinned = core.map_or(Ok(()), pin_current_thread);
                let seen = pinned.is_ok().then(|| seat.sit_down());
                // Only a team that was given up does not listen any more.
                let _ = ready.send(pinned);
                drop(ready);
                if let Some(seen) = seen {
                    work(&seat.shared, seat.index, seen);
                }
            })?;
            team.handles.push(handle);
        }
        drop(ready);
        // Each thread answers once; the iterator ends with the last of them.
        answers.into_iter().collect::<io::Result<Vec<()>>>()?;
        Ok(team)
    }

    /// Makes a team whose workers are threads of the caller's, each in [`Seat::work`], for as long
    /// as the team lives. Names and cores are the caller's to choose; of the options only `threads`
    /// and `spin` count. Until a thread sits down, and where a seat was dropped, the thread that
    /// calls [`Team::run`] does that share too.
    ///
    /// # Errors
    /// When the options do not fit together.
    pub fn lent(options: &TeamOptions) -> io::Result<(Team, Vec<Seat>)> {
        options.check()?;
        let shared = Arc::new(Shared {
            busy: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            remaining: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            workers: (0..options.workers()).map(|_| Worker::default()).collect(),
            spin: options.spin,
            panic: Mutex::new(None),
        });
        let seat = |index| Seat { shared: Arc::clone(&shared), index };
        let seats = (0..options.workers()).map(seat).collect();
        Ok((Team { shared, handles: vec![] }, seats))
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.shared.workers.len() + 1
    }

    /// A team is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Calls `f(0)` on this thread and `f(1)`, `f(2)`, ... on the workers; returns when all are
    /// done. Callers on several threads take turns. `f` must not call `run` of the same team.
    /// Allocates nothing and waits for no lock that a worker holds.
    ///
    /// # Panics
    /// With the payload of the first member that panicked.
    pub fn run(&self, f: &Job<'_>) {
        let shared = &*self.shared;
        if shared.workers.is_empty() {
            f(0);
            return;
        }
        shared.lock();
        let job: *const Job<'_> = f;
        // SAFETY: only the lifetime changes; this function returns after `remaining` is back at
        // 0, that is after the last use of the pointer.
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: `busy` is held and `remaining` is 0, so no worker reads `job` now.
        unsafe { *shared.job.get() = Some(job) };
        // Nobody sits down while `busy` is held: who is present now takes part, and nobody else.
        let present = |worker: &&Worker| worker.present.load(Ordering::Relaxed);
        let n_present = shared.workers.iter().filter(present).count();
        shared.remaining.store(n_present, Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in &shared.workers {
            if worker.asleep.load(Ordering::SeqCst)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| {
            f(0);
            if n_present < shared.workers.len() {
                let vacant = |index: &usize| !present(&&shared.workers[*index]);
                (0..shared.workers.len()).filter(vacant).for_each(|index| f(index + 1));
            }
        }));
        let mut spin = Spin::new(shared.spin);
        while shared.remaining.load(Ordering::Acquire) != 0 {
            if !spin.round() {
                thread::yield_now();
            }
        }
        let theirs = shared.panic.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        shared.unlock();
        if let Err(payload) = mine {
            resume_unwind(payload);
        }
        if let Some(payload) = theirs {
            resume_unwind(payload);
        }
    }

    /// Splits `0..n` into one contiguous range per member, whole multiples of `grain` but for the
    /// end, and calls `f(member, range)` for the ranges that are not empty.
    pub fn split(&self, n: usize, grain: usize, f: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let members = self.len();
        if members == 1 || n <= grain {
            if n > 0 {
                f(0, 0..n);
            }
            return;
        }
        self.run(&|member| {
            let range = part(n, grain, member, members);
            if !range.is_empty() {
                f(member, range);
            }
        });
    }
}

impl Team {
    /// Shares the rows of `out` (each `width` values) among the members: `f(rows, values)` gets a
    /// range of rows and their values. Fewer than `min_rows` rows stay on this thread, where
    /// waking the others costs more than it saves.
    pub fn split_rows<T: Send>(
        &self,
        out: &mut [T],
        width: usize,
        min_rows: usize,
        f: &(dyn Fn(Range<usize>, &mut [T]) + Sync),
    ) {
        let n_rows = out.len().checked_div(width).unwrap_or(0);
        if n_rows < min_rows || self.len() == 1 {
            if n_rows > 0 {
                f(0..n_rows, out);
            }
            return;
        }
        let shared = SharedMut::new(out);
        self.split(n_rows, 1, &|_, rows| {
            // SAFETY: `split` hands every row to one member only.
            let values = unsafe { shared.slice(rows.start * width..rows.end * width) };
            f(rows, values);
        });
    }
}

/// Member `index`'s share of `0..n` among `members`, in whole grains but for the end.
pub fn part(n: usize, grain: usize, index: usize, members: usize) -> Range<usize> {
    let grains = n.div_ceil(grain);
    let start = (grains * index / members) * grain;
    let end = (grains * (index + 1) / members) * grain;
    start.min(n)..end.min(n)
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for thread in self.shared.workers.iter().filter_map(|worker| worker.thread.get()) {
            thread.unpark();
        }
        for handle in self.handles.drain(..) {
            // A worker catches its job's panics, so joining cannot fail with one.
            let _ = handle.join();
        }
    }
}

/// Runs every job after the epoch `seen`, until the team stops.
fn work(shared: &Shared, index: usize, mut seen: u64) {
    let asleep = &shared.workers[index].asleep;
    loop {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let mut spin = Spin::new(shared.spin);
        loop {
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != seen {
                seen = epoch;
                break;
            }
            if !spin.round() {
                asleep.store(true, Ordering::SeqCst);
                // A job published after the store sees the flag and unparks; one published
                // before it is seen here.
                if shared.epoch.load(Ordering::SeqCst) == seen {
                    thread::park();
                }
                asleep.store(false, Ordering::SeqCst);
            }
        }
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch was seen with Acquire after `run` wrote `job`, and `run` writes it
        // again only after this worker's decrement of `remaining`.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            // SAFETY: `run` keeps the closure borrowed until `remaining` is 0.
            let job = unsafe { &*job };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index + 1))) {
                *shared.panic.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(payload);
            }
        }
        shared.remaining.fetch_sub(1, Ordering::Release);
    }
}

/// A mutable slice that members of a team write disjoint parts of.
pub struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose contract demands disjoint ranges.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: it stands for a `&mut [T]`, which is Send for T: Send.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Takes the slice for as long as the value lives.
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedMut { ptr: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// Length of the whole slice.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the whole slice is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first element, for kernels that write strided tiles.
    pub fn as_ptr(&self) -> *mut T {
        self.ptr
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// When the range does not lie inside the slice.
    ///
    /// # Safety
    /// No two living results of this function may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "range {range:?} outside 0..{}",
            self.len
        );
        // SAFETY: inside the slice by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests;
