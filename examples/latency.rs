//! A control loop that asks a model for short completions by a deadline, and what each token took.
//!
//! ```sh
//! cargo run --release --example latency -- [MODEL] [--requests 200] [--tokens 16]
//!     [--prompt-tokens 48] [--period-ms 50] [--deadline-ms 40] [--threads 2] [--spin-us 200]
//!     [--warm-up 10] [--compete] [--cores 0,1] [--rounds 1] [--peer PROGRAM]
//! ```
//!
//! Every period the loop has a new observation: a prompt that shares its beginning with the one
//! before. What is not written by the deadline is cancelled from a watching thread, within one block
//! of the model. `--compete` keeps another process busy on every core meanwhile. `--cores` names the
//! cores of the loop and its team.
//!
//! `--peer` is `benches/peers/latency_llama.c`, compiled against a llama.cpp of yours; each round it runs
//! after ours, with the same requests, and its times stand beside ours.

use puna::infer::{Percentiles, Session, SessionOptions};
use puna::model::llama::{LoadOptions, Model, TeamOptions, pin_current_thread};
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
    cores: Option<Vec<usize>>,
    rounds: usize,
    peer: Option<PathBuf>,
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
        cores: None,
        rounds: 1,
        peer: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let wrong = |field: &str, value: &str, why: &str| Err(Error::config(field, value, why));
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
            "--rounds" => args.rounds = number()?.max(1),
            "--peer" => args.peer = words.next().map(PathBuf::from),
            "--cores" => {
                let list = words.next().unwrap_or_default();
                let cores: std::result::Result<Vec<usize>, _> =
                    list.split(',').map(str::parse).collect();
                match cores {
                    Ok(cores) if cores.len() == args.threads => args.cores = Some(cores),
                    _ => return wrong("--cores", &list, "wanted one core for each thread"),
                }
            }
            model if !model.starts_with('-') => args.model = model.into(),
            other => {
                let why = "no such flag; the head of examples/latency.rs lists them";
                return wrong("argument", other, why);
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

impl Seen {
    fn add(&mut self, more: Seen) {
        self.token_ms.extend(more.token_ms);
        self.first_ms.extend(more.first_ms);
        self.request_ms.extend(more.request_ms);
        self.missed += more.missed;
    }

    fn report(&mut self) {
        report("token", &mut self.token_ms);
        report("first token", &mut self.first_ms);
        report("request", &mut self.request_ms);
    }
}

/// One round of the peer: three lines, each a name and its times.
fn peer_round(program: &PathBuf, args: &Args) -> Result<Seen> {
    let numbers = [
        args.requests.to_string(),
        args.tokens.to_string(),
        args.prompt_tokens.to_string(),
        args.period.as_millis().to_string(),
        args.threads.to_string(),
        args.warm_up.to_string(),
    ];
    let output = Command::new(program).arg(&args.model).args(numbers).output();
    let output = output.map_err(|source| Error::io(program, source))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |name: &str| -> Vec<f64> {
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_default().split_whitespace().filter_map(|x| x.parse().ok()).collect()
    };
    let (token_ms, first_ms, request_ms) = (line("token "), line("first_token "), line("request "));
    if !output.status.success() || request_ms.len() != args.requests {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::io(
            program,
            std::io::Error::other(format!("{}; {said}", output.status)),
        ));
    }
    Ok(Seen { token_ms, first_ms, request_ms, missed: 0 })
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
        "{name:17} p50 {:8.3}  p99 {:8.3}  p99.9 {:8.3}  max {:8.3} ms  p99/p50 {:.2}",
        p.p50_ms,
        p.p99_ms,
        p.p999_ms,
        p.max_ms,
        p.p99_ms / p.p50_ms
    );
}

/// Likewise of reading as many bytes as a token does, on one thread.
fn memory_ms(bytes: usize, n: usize) -> Vec<f64> {
    let block = vec![1u64; bytes / 8];
    let read = |_| {
        let start = Instant::now();
        std::hint::black_box(block.iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
        ms(start)
    };
    (0..n).map(read).collect()
}

/// How quiet is the machine? The times of arithmetic that touches no memory, on one thread, each
/// about as long as a token: what varies here varies in whatever runs.
fn machine_ms(like_ms: f64, n: usize) -> Vec<f64> {
    let work = |steps: u64| {
        let start = Instant::now();
        std::hint::black_box((0..steps).fold(1u64, |a, b| a.wrapping_mul(a | b)));
        ms(start)
    };
    let once = (0..20).map(|_| work(20_000)).fold(f64::INFINITY, f64::min).max(1e-6);
    let steps = (20_000.0 * like_ms / once) as u64;
    (0..n).map(|_| work(steps)).collect()
}

fn run() -> Result<()> {
    let args = parse()?;
    let mut team = TeamOptions { threads: args.threads, spin: args.spin, ..TeamOptions::default() };
    if let Some(cores) = &args.cores {
        // The calling thread is a member of the team, and pinned by itself.
        pin_current_thread(cores[0]).map_err(|source| Error::io("--cores", source))?;
        team.cores = Some(cores[1..].to_vec());
    }
    let options = LoadOptions { team, ..LoadOptions::default() };
    let model = Arc::new(Model::load(&args.model, &options)?);
    let ctx = args.prompt_tokens + args.tokens;
    let options = SessionOptions { ctx, end_ids: Some(vec![]), ..SessionOptions::default() };
    let memory = model.memory(options.ctx, options.kv_type)?;
    println!("memory: {:.1} MB, declared before it is taken", memory.total_bytes() as f64 / 1e6);
    let mut session = Session::new(model, options)?;
    let competitor = args.compete.then(Competitor::start).transpose()?;
    let (mut seen, mut theirs) = (Seen::default(), Seen::default());
    for _ in 0..args.rounds {
        seen.add(control(&mut session, &args)?);
        if let Some(program) = &args.peer {
            theirs.add(peer_round(program, &args)?);
        }
    }
    let like_ms = Percentiles::of(&mut seen.token_ms).map_or(1.0, |p| p.p50_ms);
    let n = seen.token_ms.len().min((5000.0 / like_ms) as usize);
    let mut machine = machine_ms(like_ms, n);
    let mut memory = memory_ms(session.model().bytes_per_token(), n);
    drop(competitor);
    histogram(&seen.token_ms);
    seen.report();
    println!(
        "deadline of {:?} missed: {} of {}",
        args.deadline,
        seen.missed,
        args.requests * args.rounds
    );
    report("arithmetic alone", &mut machine);
    report("reading alone", &mut memory);
    if args.peer.is_some() {
        println!("\nthe peer:");
        histogram(&theirs.token_ms);
        theirs.report();
    }
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
