//! Results as numbers, the text of the last error, and the one way into the library.

use puna::Error;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `puna_status` of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// An argument or a setting that cannot be used.
    Invalid = 1,
    /// The system refused to read or write.
    Io = 2,
    /// A file or a text that breaks its format, or is not supported.
    Format = 3,
    /// The context is full.
    NoRoom = 4,
    /// Cancelled by the caller.
    Cancelled = 5,
    /// A buffer that is too small.
    TooSmall = 6,
    /// Threads, cores or an instruction set that cannot be had.
    Device = 7,
    /// A fault of the library.
    Internal = 8,
}

/// What an entry failed with.
pub(crate) struct Fault {
    status: Status,
    message: String,
}

pub(crate) type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Fault {
        Fault { status, message: message.into() }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let status = match &error {
            Error::Io { .. } => Status::Io,
            Error::Format { .. }
            | Error::Tokenizer(_)
            | Error::Template(_)
            | Error::Unsupported(_) => Status::Format,
            Error::ContextFull { .. } => Status::NoRoom,
            Error::Cancelled => Status::Cancelled,
            Error::Device { .. } => Status::Device,
            _ => Status::Invalid,
        };
        Fault::new(status, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::new(CString::default());
}

fn remember(message: String) {
    let mut bytes = message.into_bytes();
    bytes.retain(|&byte| byte != 0);
    // The zeros have just been taken out.
    let message = CString::new(bytes).unwrap_or_default();
    LAST_ERROR.with(|last| *last.borrow_mut() = message);
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("internal fault: {}", text.unwrap_or("no message"))
}

/// Runs an entry: nothing unwinds out of it, and a failure is kept for [`puna_last_error`].
pub(crate) fn enter(f: impl FnOnce() -> Outcome) -> Status {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(fault)) => {
            remember(fault.message);
            fault.status
        }
        Err(panic) => {
            remember(text_of(&*panic));
            // Dropping what a panic carries may panic again.
            std::mem::forget(panic);
            Status::Internal
        }
    }
}

fn missing(what: &str) -> Fault {
    Fault::new(Status::Invalid, format!("{what} is NULL"))
}

/// A reference from C.
///
/// # Safety
/// `ptr` is NULL or points to a `T` that lives and is not written for `'a`.
pub(crate) unsafe fn borrow<'a, T>(ptr: *const T, what: &str) -> Outcome<&'a T> {
    // SAFETY: this function's contract.
    unsafe { ptr.as_ref() }.ok_or_else(|| missing(what))
}

/// A place of the caller's to write to.
///
/// # Safety
/// `ptr` is NULL or points to a `T` that nobody else uses for `'a`.
pub(crate) unsafe fn borrow_mut<'a, T>(ptr: *mut T, what: &str) -> Outcome<&'a mut T> {
    // SAFETY: this function's contract.
    unsafe { ptr.as_mut() }.ok_or_else(|| missing(what))
}

/// Elements from C; NULL is fine for none.
///
/// # Safety
/// `ptr` is NULL or points to `n` elements that live and are not written for `'a`.
pub(crate) unsafe fn elements<'a, T>(ptr: *const T, n: usize, what: &str) -> Outcome<&'a [T]> {
    if n == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() {
        return Err(missing(what));
    }
    if n > isize::MAX as usize / size_of::<T>() {
        return Err(Fault::new(Status::Invalid, format!("{what}: a length of {n}")));
    }
    // SAFETY: not NULL and of a length that can be, by the checks above; the rest is this
    // function's contract.
    Ok(unsafe { std::slice::from_raw_parts(ptr, n) })
}

/// A string of C.
///
/// # Safety
/// `ptr` is NULL or points to a string that ends with a zero, lives and is not written for `'a`.
pub(crate) unsafe fn string<'a>(ptr: *const c_char, what: &str) -> Outcome<&'a str> {
    if ptr.is_null() {
        return Err(missing(what));
    }
    // SAFETY: not NULL by the check above; the rest is this function's contract.
    let text = unsafe { CStr::from_ptr(ptr) }.to_str();
    text.map_err(|_| Fault::new(Status::Invalid, format!("{what} is not UTF-8")))
}

/// Copies `from` to a buffer of the caller's and stores how much there is, also where it does not
/// fit.
///
/// # Safety
/// `to` is NULL or has room for `capacity` elements that nobody else uses.
pub(crate) unsafe fn hand_out<T: Copy>(
    from: &[T],
    to: *mut T,
    capacity: usize,
    n: &mut usize,
) -> Outcome {
    *n = from.len();
    if from.is_empty() {
        return Ok(());
    }
    if to.is_null() || from.len() > capacity {
        let what = format!("room for {capacity}, wanted {}", from.len());
        return Err(Fault::new(Status::TooSmall, what));
    }
    // SAFETY: `to` has room for as many by the check above, and is the caller's own.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    Ok(())
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn puna_version() -> u32 {
    let part = |text: &str| text.parse::<u32>().unwrap_or(0);
    let [major, minor, patch] = [
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    ]
    .map(part);
    65536 * major + 256 * minor + patch
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn puna_last_error() -> *const c_char {
    // While a thread ends, what it kept is gone.
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
