//! What a team is made of: how many threads, under which name, on which cores, how patient.

use std::io;
use std::time::Duration;

/// How long a waiting member spins by default: longer than the serial work between two kernels of a
/// token, shorter than anyone's notice.
const SPIN: Duration = Duration::from_micros(200);

/// How to make a team.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeamOptions {
    /// Members, the calling thread among them; 0 counts as 1.
    pub threads: usize,
    /// The workers are the threads `NAME-1`, `NAME-2`, ... of the process.
    pub name: String,
    /// The core that each worker stays on, `threads - 1` of them; `None` leaves it to the system.
    /// The calling thread is the caller's own: see [`pin_current_thread`].
    pub cores: Option<Vec<usize>>,
    /// How long a member that waits spins: a worker parks after that, the calling thread yields
    /// its core each round. Zero saves power and costs a wake-up, some 10 to 50 microseconds, for
    /// every kernel.
    pub spin: Duration,
}

impl Default for TeamOptions {
    fn default() -> Self {
        TeamOptions { threads: 1, name: "puna".into(), cores: None, spin: SPIN }
    }
}

impl TeamOptions {
    /// A team of `threads` members, all else as usual.
    pub fn threads(threads: usize) -> Self {
        TeamOptions { threads, ..TeamOptions::default() }
    }

    pub(super) fn workers(&self) -> usize {
        self.threads.max(1) - 1
    }

    pub(super) fn check(&self) -> io::Result<()> {
        let refuse = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if self.name.contains('\0') {
            return refuse(format!("the name {:?} of a team holds a zero byte", self.name));
        }
        match &self.cores {
            Some(cores) if cores.len() != self.workers() => refuse(format!(
                "{} cores for the workers of a team of {}, wanted {}",
                cores.len(),
                self.threads,
                self.workers()
            )),
            _ => Ok(()),
        }
    }
}

/// Binds the calling thread to one core.
///
/// # Errors
/// When the system refuses, or (everywhere but on Linux) always.
#[cfg(target_os = "linux")]
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    let refuse = |why: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("core {core}: {why}"))
    };
    if core >= libc::CPU_SETSIZE as usize {
        return Err(refuse(&format_args!("wanted less than {}", libc::CPU_SETSIZE)));
    }
    // SAFETY: a set of cores is plain bits; none is set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the core was just held to the size of the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set is as large as the size says; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } {
        0 => Ok(()),
        _ => Err(refuse(&io::Error::last_os_error())),
    }
}

/// Binds the calling thread to one core.
///
/// # Errors
/// When the system refuses, or (everywhere but on Linux) always.
#[cfg(not(target_os = "linux"))]
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    let what = format!("core {core}: threads are bound to cores on Linux only");
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}
