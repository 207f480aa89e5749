//! A control loop that asks a model for short completions by a deadline, and what each token took.
//!
//! ```sh
//! cargo run --release --example latency -- [MODEL] [--requests 200] [--tokens 16]
//!     [--prompt-tokens 48] [--period-ms 50] [--deadline-ms 40] [--threads 2] [--spin-us 200]
//!     [--warm-up 10] [--compete]
//! ```
//!
//! Every period the loop has a new observation: a prompt that shares its beginning with the one
//! before. What is not written by the deadline is cancelled from a watching thread, within one block
//! of the model. `--compete` keeps another process busy on every core meanwhile.

use puna::infer::{Percentiles, Session, SessionOptions};
use puna::model::llama::{LoadOptions, Model, TeamOptions};
use puna::rng::Rng;
use puna::{Error, Result};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// The argument that turns this program into the competing process.
const BUSY: &str = "--busy";

struct Args {
    model: PathBuf,
    requests: usize,
    tokens: usize,
    prompt_tokens: usize,
    period: Duration,
    deadline: Duration,
    threads: usize,
    spin: Duration,
    warm_up: usize,
    compete: bool,
}

fn parse() -> Result<Args> {
    let mut args = Args {
        model: "builtin".into(),
        requests: 200,
        tokens: 16,
        prompt_tokens: 48,
        period: Duration::from_millis(50),
        deadline: Duration::from_millis(40),
        threads: 2,
        spin: TeamOptions::default().spin,
        warm_up: 10,
        compete: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<usize> {
            let value = words.next().unwrap_or_default();
            value.parse().map_err(|_| Error::Config {
                field: word.clone(),
                value,
                why: "wanted a whole number".into(),
            })
        };
        match word.as_str() {
            "--requests" => args.requests = number()?,
            "--tokens" => args.tokens = number()?,
            "--prompt-tokens" => args.prompt_tokens = number()?.max(8),
            "--period-ms" => args.period = Duration::from_millis(number()? as u64),
            "--deadline-ms" => args.deadline = Duration::from_millis(number()? as u64),
            "--threads" => args.threads = number()?,
            "--spin-us" => args.spin = Duration::from_micros(number()? as u64),
            "--warm-up" => args.warm_up = number()?,
            "--compete" => args.compete = true,
            model if !model.starts_with('-') => args.model = model.into(),
            other => {
                let why = "no such flag; the head of examples/latency.rs lists them";
                return Err(Error::config("argument", other, why));
            }
        }
    }
    Ok(args)
}

/// The competing process, ended when this is dropped.
struct Competitor(Child);

impl Competitor {
    fn start() -> Result<Competitor> {
        let this = std::env::current_exe().map_err(|source| Error::io("this program", source))?;
        let child = Command::new(&this).arg(BUSY).spawn();
        Ok(Competitor(child.map_err(|source| Error::io(this, source))?))
    }
}

impl Drop for Competitor {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Keeps every core busy until it is killed, at most ten minutes.
fn be_busy() {
    let end = Instant::now() + Duration::from_secs(600);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let work = move || {
        while Instant::now() < end {
            std::hint::black_box((0..10_000u64).fold(0, |a, b| a ^ b.wrapping_mul(a | 1)));
        }
    };
    let threads: Vec<_> = (0..cores).map(|_| std::thread::spawn(work)).collect();
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

/// What the loop saw.
#[derive(Default)]
struct Seen {
    /// Each token but the first of its request, in milliseconds.
    token_ms: Vec<f64>,
    /// From the observation to the first token.
    first_ms: Vec<f64>,
    /// From the observation to the last token.
    request_ms: Vec<f64>,
    missed: usize,
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// One request: the prompt, then tokens until there are enough or the deadline cancels.
fn request(session: &mut Session, prompt: &[u32], tokens: usize, seen: &mut Seen) -> Result<()> {
    let start = Instant::now();
    session.prompt(prompt)?;
    let mut last = start;
    for i in 0..tokens {
        session.step()?;
        if i == 0 {
            seen.first_ms.push(ms(start));
        } else {
            seen.token_ms.push(ms(last));
        }
        last = Instant::now();
    }
    seen.request_ms.push(ms(start));
    Ok(())
}

fn control(session: &mut Session, args: &Args) -> Result<Seen> {
    let vocab = session.model().config.vocab_size as u32;
    let mut rng = Rng::new(1, 0);
    let mut observation: Vec<u32> =
        (0..args.prompt_tokens).map(|_| rng.next_u32() % vocab).collect();
    // The watching thread gets a deadline for each request, and cancels it if it still runs then.
    let handle = session.cancel_handle();
    // The number of the request that runs. Who cancels holds it, so that no cancellation comes late
    // and hits the next request.
    let running = Arc::new(Mutex::new(0u64));
    let set = |number| *running.lock().unwrap_or_else(PoisonError::into_inner) = number;
    let ended = Arc::new(AtomicBool::new(false));
    let (deadlines, watched) = mpsc::channel::<(u64, Instant)>();
    let watch = std::thread::spawn({
        let (running, ended) = (Arc::clone(&running), Arc::clone(&ended));
        move || {
            for (number, deadline) in watched {
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                if ended.load(Ordering::Acquire) {
                    break;
                }
                let running = running.lock().unwrap_or_else(PoisonError::into_inner);
                if *running == number {
                    handle.cancel();
                }
            }
        }
    });
    let mut seen = Seen::default();
    let mut next = Instant::now();
    for number in 1..=(args.warm_up + args.requests) as u64 {
        if number == args.warm_up as u64 + 1 {
            seen = Seen::default();
            seen.token_ms.reserve(args.requests * args.tokens);
        }
        // A quarter of the observation is new.
        for id in observation.iter_mut().skip(args.prompt_tokens * 3 / 4) {
            *id = rng.next_u32() % vocab;
        }
        set(number);
        // The receiver lives until this sender is dropped.
        let _ = deadlines.send((number, Instant::now() + args.deadline));
        match request(session, &observation, args.tokens, &mut seen) {
            Ok(()) => {}
            Err(Error::Cancelled) => seen.missed += 1,
            Err(error) => return Err(error),
        }
        set(0);
        session.resume();
        next += args.period;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    ended.store(true, Ordering::Release);
    drop(deadlines);
    // It ends with the channel.
    let _ = watch.join();
    Ok(seen)
}

/// Twelve lines from the fastest to the slowest, each a quarter longer than the one before.
fn histogram(ms: &[f64]) {
    if ms.is_empty() {
        return;
    }
    let least = ms.iter().copied().fold(f64::INFINITY, f64::min);
    let mut from = least;
    for line in 0..12 {
        let to = if line == 11 { f64::INFINITY } else { from * 1.25 };
        let n = ms.iter().filter(|&&x| x >= from && x < to).count();
        let bar = "#".repeat((60 * n).div_ceil(ms.len()));
        println!("{from:9.3} ms {n:8}  {bar}");
        from = to;
    }
}

fn report(name: &str, ms: &mut [f64]) {
    let Some(p) = Percentiles::of(ms) else { return };
    println!(
        "{name:16} p50 {:8.3}  p99 {:8.3}  p99.9 {:8.3}  max {:8.3} ms  p99/p50 {:.2}",
        p.p50_ms,
        p.p99_ms,
        p.p999_ms,
        p.max_ms,
        p.p99_ms / p.p50_ms
    );
}

fn run() -> Result<()> {
    let args = parse()?;
    let team = TeamOptions { threads: args.threads, spin: args.spin, ..TeamOptions::default() };
    let options = LoadOptions { team, ..LoadOptions::default() };
    let model = Arc::new(Model::load(&args.model, &options)?);
    let ctx = args.prompt_tokens + args.tokens;
    let options = SessionOptions { ctx, end_ids: Some(vec![]), ..SessionOptions::default() };
    let memory = model.memory(options.ctx, options.kv_type)?;
    println!("memory: {:.1} MB, declared before it is taken", memory.total_bytes() as f64 / 1e6);
    let mut session = Session::new(model, options)?;
    let competitor = args.compete.then(Competitor::start).transpose()?;
    let mut seen = control(&mut session, &args)?;
    drop(competitor);
    histogram(&seen.token_ms);
    report("token", &mut seen.token_ms);
    report("first token", &mut seen.first_ms);
    report("request", &mut seen.request_ms);
    println!("deadline of {:?} missed: {} of {}", args.deadline, seen.missed, args.requests);
    Ok(())
}

fn main() {
    if std::env::args().nth(1).is_some_and(|word| word == BUSY) {
        return be_busy();
    }
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
