//! A fixed team of worker threads: the only place that makes threads for kernels.
//!
//! [`Team::run`] calls one function once per member and returns when all calls are back. Work is
//! split by the member's index alone, so who computes what never depends on timing. Members spin
//! for a bounded time after a job and then park; a team of one makes no thread.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};

/// Rounds of the pause instruction before a waiting worker parks: about 0.2 ms, longer than the
/// serial work between two kernels of a token, shorter than anyone's notice.
const SPIN_ROUNDS: u32 = 20_000;

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// What the members share. `job` is written only between jobs, by the thread that holds `busy`.
struct Shared {
    epoch: AtomicU64,
    job: UnsafeCell<Option<*const Job<'static>>>,
    remaining: AtomicUsize,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is only written by the caller of `run` while `remaining` is 0 (no worker reads
// it), and read by workers only after they have seen the epoch that was released after the write.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is dereferenced only while the closure it points to is
// borrowed by `run`, which does not return before every worker is done with it.
unsafe impl Send for Shared {}

/// A team of `threads` members, the calling thread being member 0.
pub struct Team {
    shared: Arc<Shared>,
    busy: AtomicBool,
    workers: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
}

impl Team {
    /// Makes a team of `threads` members (at least 1); spawns `threads - 1` threads named
    /// `puna-1`, `puna-2`, ...
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let extra = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            remaining: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            asleep: (0..extra).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let mut team =
            Team { shared, busy: AtomicBool::new(false), workers: vec![], handles: vec![] };
        for index in 0..extra {
            let shared = Arc::clone(&team.shared);
            let handle = thread::Builder::new()
                .name(format!("puna-{}", index + 1))
                .spawn(move || work(&shared, index))?;
            team.workers.push(handle.thread().clone());
            team.handles.push(handle);
        }
        Ok(team)
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.workers.len() + 1
    }

    /// A team is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Calls `f(0)` on this thread and `f(1)`, `f(2)`, ... on the workers; returns when all are
    /// done. Callers on several threads take turns. `f` must not call `run` of the same team.
    ///
    /// # Panics
    /// With the payload of the first member that panicked.
    pub fn run(&self, f: &Job<'_>) {
        if self.workers.is_empty() {
            f(0);
            return;
        }
        while self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            thread::yield_now();
        }
        let shared = &*self.shared;
        let job: *const Job<'_> = f;
        // SAFETY: only the lifetime changes; this function returns after `remaining` is back at
        // 0, that is after the last use of the pointer.
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: `busy` is held and `remaining` is 0, so no worker reads `job` now.
        unsafe { *shared.job.get() = Some(job) };
        shared.remaining.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (asleep, worker) in shared.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::SeqCst) {
                worker.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| f(0)));
        let mut rounds = 0u32;
        while shared.remaining.load(Ordering::Acquire) != 0 {
            rounds = rounds.wrapping_add(1);
            // More members than free cores: let the others run.
            if rounds.is_multiple_of(4096) { thread::yield_now() } else { std::hint::spin_loop() }
        }
        let theirs = shared.panic.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        self.busy.store(false, Ordering::Release);
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
        for worker in &self.workers {
            worker.unpark();
        }
        for handle in self.handles.drain(..) {
            // A worker catches its job's panics, so joining cannot fail with one.
            let _ = handle.join();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0u64;
    loop {
        let mut rounds = 0u32;
        loop {
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != seen {
                seen = epoch;
                break;
            }
            if rounds < SPIN_ROUNDS {
                rounds += 1;
                std::hint::spin_loop();
            } else {
                shared.asleep[index].store(true, Ordering::SeqCst);
                // A job published after the store sees the flag and unparks; one published
                // before it is seen here.
                if shared.epoch.load(Ordering::SeqCst) == seen {
                    thread::park();
                }
                shared.asleep[index].store(false, Ordering::SeqCst);
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
mod tests {
    use super::*;

    #[test]
    fn every_member_runs_once_per_job() {
        for threads in [1, 2, 3, 5] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.len(), threads);
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..200 {
                team.run(&|member| {
                    counts[member].fetch_add(1, Ordering::Relaxed);
                });
            }
            for count in &counts {
                assert_eq!(count.load(Ordering::Relaxed), 200);
            }
        }
    }

    #[test]
    fn a_parked_team_wakes_up() {
        let team = Team::new(2).unwrap();
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            let hits = AtomicUsize::new(0);
            team.run(&|_| {
                hits.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(hits.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn a_panic_of_a_worker_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(3).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            team.run(&|member| assert_ne!(member, 2, "member two fails"));
        }));
        assert!(caught.is_err());
        team.run(&|_| {});
    }

    #[test]
    fn parts_cover_everything_once_in_whole_grains() {
        for n in [0, 1, 15, 16, 17, 100, 257] {
            for grain in [1, 16, 32] {
                for members in [1, 2, 3, 7] {
                    let mut next = 0;
                    for index in 0..members {
                        let range = part(n, grain, index, members);
                        assert_eq!(range.start, next.min(n));
                        assert!(range.end == n || range.end.is_multiple_of(grain));
                        next = range.end;
                    }
                    assert_eq!(next, n);
                }
            }
        }
    }
}
