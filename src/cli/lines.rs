//! Lines from standard input, read by a thread of their own so that Ctrl-C can be noticed while
//! none comes.

use super::interrupt;
use std::io::BufRead;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// How often a waiting program looks for Ctrl-C.
const POLL: Duration = Duration::from_millis(50);

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A line without its end.
    Line(String),
    /// Ctrl-C.
    Interrupt,
    /// No more lines.
    End,
}

/// Lines of standard input.
pub struct Lines {
    receiver: Receiver<String>,
}

impl Lines {
    /// Starts reading. Bytes that are not UTF-8 become replacement characters.
    pub fn of_stdin() -> Lines {
        let (sender, receiver) = channel();
        // The thread ends with the input, or with the process: it only ever waits.
        thread::spawn(move || {
            let mut stdin = std::io::stdin().lock();
            let mut bytes = vec![];
            while matches!(stdin.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
                let line = String::from_utf8_lossy(&bytes);
                if sender.send(line.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        Lines { receiver }
    }

    /// The next line; waits for it.
    pub fn next(&self) -> Input {
        loop {
            match self.receiver.recv_timeout(POLL) {
                Ok(line) => return Input::Line(line),
                Err(RecvTimeoutError::Disconnected) => return Input::End,
                Err(RecvTimeoutError::Timeout) if interrupt::take() => return Input::Interrupt,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
