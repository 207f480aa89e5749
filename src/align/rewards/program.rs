//! Answers under a program of the user's.
//!
//! Each call starts it once, by the shell. It reads all answers from standard input, one JSON
//! object a line, and prints their scores in the same order, one a line:
//!
//! ```text
//! {"prompt": text, "response": answer, "answer": reference or null, "messages": [...]}
//! 0.5
//! {"score": 0.5}
//! ```
//!
//! `messages`, with `role` and `content`, is there for conversations only. Blank lines do not
//! count. A call that fails in whatever way is made once more, as programs that ask a server fail.

use super::{Asked, Reward};
use crate::data::Question;
use crate::error::{Error, Result};
use crate::text::Message;
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait looks at the clock and for an interrupt.
const POLL: Duration = Duration::from_millis(50);
/// The same for a process that has closed its pipes, and so is about to end.
const SHORT_POLL: Duration = Duration::from_millis(1);
/// How long to go on after a wrong line, as the process may end and say why; and how long to wait
/// for pipes that are held by others than the process, which has ended.
const GRACE: Duration = Duration::from_secs(1);
/// Longest line, in bytes.
const LONGEST_LINE: usize = 1 << 20;
/// How much of standard error is kept, in bytes.
const TAIL_BYTES: usize = 1 << 14;
/// Lines of it that are shown.
const TAIL_LINES: usize = 5;
/// Characters of a line that are shown.
const SHOWN: usize = 200;
/// Pieces read that wait to be looked at; the program waits when there are more.
const N_WAITING: usize = 16;

/// A program that scores answers.
#[derive(Clone, Debug)]
pub struct Program {
    command: String,
    timeout: Duration,
}

/// Why there are no scores.
enum Stop {
    Cancelled,
    Fault(String),
}

impl Program {
    /// A command for the shell, which is ended when a call lasts longer than `timeout`.
    pub fn new(command: impl Into<String>, timeout: Duration) -> Program {
        Program { command: command.into(), timeout }
    }

    /// One call.
    fn ask(&self, input: &Arc<[u8]>, wanted: usize, cancel: &AtomicBool) -> Result<Vec<f64>, Stop> {
        let began = Instant::now();
        let cannot = |error: io::Error| Stop::Fault(format!("cannot be started: {error}"));
        let mut process = Process::start(&self.command).map_err(cannot)?;
        let heard = process.listen(Arc::clone(input)).map_err(cannot)?;
        let (mut numbers, mut tail) = (Numbers::new(wanted), Tail::default());
        let mut is_open = true;
        let mut end: Option<(ExitStatus, Instant)> = None;
        let status = loop {
            if is_open {
                match heard.recv_timeout(POLL) {
                    Ok(Heard::Output(bytes)) => numbers.take(&bytes),
                    Ok(Heard::Error(bytes)) => tail.take(&bytes),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => is_open = false,
                }
            } else {
                thread::sleep(SHORT_POLL);
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(Stop::Cancelled);
            }
            if end.is_none() {
                let status = process.child.try_wait();
                let status = status.map_err(|error| tail.behind(format!("is lost: {error}")))?;
                end = status.map(|status| (status, Instant::now()));
            }
            match (end, &numbers.fault) {
                (Some((status, at)), _) if !is_open || at.elapsed() >= GRACE => break status,
                (None, Some((what, at))) if at.elapsed() >= GRACE => {
                    return Err(tail.behind(what.clone()));
                }
                (None, _) if began.elapsed() >= self.timeout => {
                    let (n, limit) = (numbers.scores.len(), self.timeout.as_secs_f64());
                    let what = format!("no end after {limit} s, with {n} of {wanted} scores");
                    return Err(tail.behind(what));
                }
                _ => {}
            }
        };
        // Where others hold its pipes they are ended, or threads would wait for them for ever.
        process.is_over = !is_open;
        if !status.success() {
            let line = numbers.fault.map(|(what, _)| format!("; {what}")).unwrap_or_default();
            return Err(tail.behind(format!("ended with {status}, wanted exit status: 0{line}")));
        }
        numbers.finish().map_err(|what| tail.behind(what))
    }
}

impl Reward for Program {
    fn name(&self) -> String {
        self.command.clone()
    }

    fn scores(&mut self, asked: &[Asked<'_>], cancel: &AtomicBool) -> Result<Vec<f64>> {
        if asked.is_empty() {
            return Ok(vec![]);
        }
        let input: Arc<[u8]> = lines(asked).into_bytes().into();
        let mut first: Option<String> = None;
        loop {
            let what = match self.ask(&input, asked.len(), cancel) {
                Ok(scores) => return Ok(scores),
                Err(Stop::Cancelled) => return Err(Error::Cancelled),
                Err(Stop::Fault(what)) => what,
            };
            let what = match first {
                None => {
                    first = Some(what);
                    continue;
                }
                Some(first) if first == what => format!("twice: {what}"),
                Some(first) => format!("{what}; the time before: {first}"),
            };
            let place = format!("the reward command `{}`", self.command);
            return Err(Error::Data { place, what });
        }
    }
}

/// What the program reads.
fn lines(asked: &[Asked<'_>]) -> String {
    let mut all = String::new();
    for Asked { prompt, answer } in asked {
        let (text, reference) = (&prompt.text, &prompt.answer);
        let mut line = json!({"prompt": text, "response": answer, "answer": reference});
        if let Question::Conversation(conversation) = &prompt.question {
            let message =
                |one: &Message| json!({"role": one.role.as_str(), "content": one.content.as_str()});
            let messages: Vec<Value> = conversation.with_system().iter().map(message).collect();
            line["messages"] = Value::Array(messages);
        }
        all.push_str(&line.to_string());
        all.push('\n');
    }
    all
}

/// What came out of a pipe.
enum Heard {
    Output(Vec<u8>),
    Error(Vec<u8>),
}

/// A process and all that it starts. What is not over is ended when this goes.
struct Process {
    child: Child,
    is_over: bool,
}

impl Process {
    fn start(command: &str) -> io::Result<Process> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, by which what the shell starts is ended with it.
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            shell.process_group(0);
        }
        Ok(Process { child: shell.spawn()?, is_over: false })
    }

    /// Writes `input` and reads both outputs, in threads that end with the pipes: none of them may
    /// wait for another, and nobody waits for them.
    fn listen(&mut self, input: Arc<[u8]>) -> io::Result<Receiver<Heard>> {
        let (sender, receiver) = sync_channel(N_WAITING);
        if let Some(mut stdin) = self.child.stdin.take() {
            // A program need not read all. If it should have, its scores will tell.
            spawn(move || drop(stdin.write_all(&input)))?;
        }
        if let Some(stdout) = self.child.stdout.take() {
            let sender = sender.clone();
            spawn(move || forward(stdout, Heard::Output, &sender))?;
        }
        if let Some(stderr) = self.child.stderr.take() {
            spawn(move || forward(stderr, Heard::Error, &sender))?;
        }
        Ok(receiver)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // The standard library ends single processes only; the shell knows groups. Nothing is to be
        // done where that fails, as where all have ended meanwhile.
        #[cfg(unix)]
        {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("kill -s KILL -- -{}", self.child.id())]);
            shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let _ = shell.status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("reward command".to_owned()).spawn(work).map(drop)
}

/// Hands on what is read until the pipe ends or nobody listens.
fn forward(mut pipe: impl Read, kind: fn(Vec<u8>) -> Heard, to: &SyncSender<Heard>) {
    let mut buffer = [0; 1 << 13];
    loop {
        let n = match pipe.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        if n == 0 || to.send(kind(buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}

/// Scores that come line by line.
struct Numbers {
    wanted: usize,
    scores: Vec<f64>,
    /// Lines that ended, blank ones too.
    n_lines: usize,
    /// What came of the next one.
    line: Vec<u8>,
    /// What was wrong first, and when. Nothing is read after it.
    fault: Option<(String, Instant)>,
}

impl Numbers {
    fn new(wanted: usize) -> Numbers {
        Numbers { wanted, scores: vec![], n_lines: 0, line: vec![], fault: None }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.fault.is_some() {
                return;
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.end_line();
            } else if self.line.len() > LONGEST_LINE {
                let what = format!("more than {LONGEST_LINE} bytes, wanted a number");
                self.fail(format!("line {}: {what}", self.n_lines + 1));
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.n_lines += 1;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        match number(text) {
            Err(wanted) => {
                self.fail(format!("line {}: {:?}, wanted {wanted}", self.n_lines, shown(text)));
            }
            Ok(_) if self.scores.len() == self.wanted => {
                self.fail(format!("more than {0} lines, wanted {0}, one an answer", self.wanted));
            }
            Ok(score) => self.scores.push(score),
        }
    }

    fn fail(&mut self, what: String) {
        self.fault = Some((what, Instant::now()));
    }

    /// The scores, or what is wrong.
    fn finish(mut self) -> Result<Vec<f64>, String> {
        if self.fault.is_none() && !self.line.is_empty() {
            self.end_line();
        }
        let n = self.scores.len();
        match self.fault {
            Some((what, _)) => Err(what),
            None if n < self.wanted => {
                Err(format!("{n} lines, wanted {}, one an answer", self.wanted))
            }
            None => Ok(self.scores),
        }
    }
}

/// The number of a line, or what was wanted.
fn number(text: &str) -> Result<f64, &'static str> {
    let of_object = || serde_json::from_str::<Value>(text).ok()?.get("score")?.as_f64();
    match text.parse::<f64>().ok().or_else(of_object) {
        Some(score) if score.is_finite() => Ok(score),
        Some(_) => Err("a finite number"),
        None => Err("a number or {\"score\": number}"),
    }
}

/// The beginning of a long text.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// The end of standard error.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn take(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let n_over = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..n_over);
    }

    /// A fault with the last lines behind it.
    fn behind(&self, what: String) -> Stop {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        if last.is_empty() {
            return Stop::Fault(what);
        }
        let last = last.iter().map(|line| shown(line.trim())).collect::<Vec<_>>().join(" | ");
        // Colours and the like have no place in a message.
        let last: String = last.chars().filter(|c| !c.is_control()).collect();
        Stop::Fault(format!("{what}; it said: {last}"))
    }
}
