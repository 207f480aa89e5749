//! A run that was killed, interrupted or ran out of disk goes on as if nothing had happened: the
//! same bits in the end, and nothing lost that was saved before.

use crate::support::program::finish;
use crate::support::train::{Place, Row};
use crate::support::{fixture, train};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Rows of many lengths.
fn rows(n: usize, salt: usize) -> Vec<Row> {
    let row = |i: usize| {
        let len = 4 + (i * 5 + salt) % 23;
        let id = |j: usize| ((i * 31 + j * j * 17 + j * 5 + salt) % 317 + 3) as u32;
        let ids: Vec<u32> = (0..len).map(id).collect();
        let labels = ids.iter().map(|&id| i64::from(id)).collect();
        (ids, labels)
    };
    (0..n).map(row).collect()
}

/// All that is random or kept between steps takes part: order, dropout, moments, the best
/// evaluation, a checkpoint a step.
const LORA: &[&str] = &[
    "--method=lora",
    "--lora-target-modules=all-linear",
    "--learning-rate=0.01",
    "--batch-size=2",
    "--gradient-accumulation-steps=2",
    "--max-steps=12",
    "--save-steps=1",
    "--save-total-limit=2",
    "--validation-split-percentage=20",
    "--eval-steps=3",
    "--load-best-model-at-end",
    "--seed=11",
    "--quiet",
];
const FULL: &[&str] = &[
    "--method=full",
    "--learning-rate=0.001",
    "--batch-size=4",
    "--max-steps=8",
    "--save-steps=1",
    "--save-total-limit=2",
    "--weight-decay=0.1",
    "--seed=12",
    "--quiet",
];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().chain(more).copied().collect()
}

/// The result's bytes, and the metrics without what a clock or the memory decides.
fn result(place: &Place, out: &str) -> (Vec<u8>, Vec<String>) {
    let dir = place.path(out);
    let names = ["adapter_model.safetensors", "model.safetensors"];
    let file = names.iter().map(|name| dir.join(name)).find(|file| file.exists());
    let file = file.unwrap_or_else(|| panic!("{} holds no result", dir.display()));
    let mut metrics = place.metrics(out);
    for line in &mut metrics {
        let line = line.as_object_mut().expect("an object");
        line.remove("tok_per_s");
        line.remove("peak_bytes");
    }
    (fs::read(file).expect("a result"), metrics.iter().map(ToString::to_string).collect())
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}

/// A checkpoint is being written, or deleted.
fn is_saving(dir: &Path) -> bool {
    entries(dir).iter().any(|name| name.starts_with(".checkpoint-"))
}

/// Numbers that look random and are the same every time.
struct Draws(u64);

impl Draws {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below.max(1)
    }
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
}

/// When to kill.
enum When {
    After(Duration),
    /// While a checkpoint is being written, the n-th time it is seen.
    Saving(u64),
}

/// Kills the run (SIGKILL) when it is time; whether it was still running.
fn kill(mut child: Child, out: &Path, when: &When) -> bool {
    let begun = Instant::now();
    let mut n_seen = 0;
    let mut was_saving = false;
    loop {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        let due = match when {
            When::After(time) => begun.elapsed() >= *time,
            When::Saving(n) => {
                let saving = is_saving(out);
                n_seen += u64::from(saving && !was_saving);
                was_saving = saving;
                saving && n_seen >= *n
            }
        };
        if due {
            // On unix this is SIGKILL.
            child.kill().expect("a child to kill");
            child.wait().expect("a dead child");
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn kill_9_at_any_moment_changes_nothing() {
    let model = fixture::dir("mini-gqa");
    let mut draws = Draws(2026);
    let (mut n_kills, mut n_while_saving) = (0, 0);
    for (n_chains, args) in [(8, LORA), (8, FULL)] {
        let place = Place::new(&rows(20, 0));
        let begun = Instant::now();
        place.train(&model, "whole", args).done();
        let whole_ms = begun.elapsed().as_millis() as u64;
        let wanted = result(&place, "whole");
        for chain in 0..n_chains {
            let out = format!("out{chain}");
            let dir = place.path(&out);
            let args = with(args, &["--resume"]);
            for turn in 0..4 {
                let when = match (chain + turn) % 2 {
                    0 => When::Saving(1 + draws.next(3)),
                    _ => When::After(Duration::from_millis(draws.next(whole_ms * 2 / 3))),
                };
                let child = start(place.command(&model, &out, &args));
                if kill(child, &dir, &when) {
                    n_kills += 1;
                    n_while_saving += u32::from(is_saving(&dir));
                }
            }
            place.train(&model, &out, &args).done();
            assert!(result(&place, &out) == wanted, "chain {chain}");
            let left = entries(&dir);
            let hidden: Vec<_> = left.iter().filter(|name| name.starts_with('.')).collect();
            assert!(hidden.is_empty(), "{hidden:?}");
            let n_checkpoints = left.iter().filter(|n| n.starts_with("checkpoint-")).count();
            assert!(n_checkpoints <= 3, "{left:?}");
        }
    }
    assert!(n_kills >= 20, "only {n_kills} kills came in time");
    assert!(
        n_while_saving >= 5,
        "only {n_while_saving} of {n_kills} while a checkpoint was written"
    );
}

/// Waits until the run has a checkpoint.
fn wait_for_checkpoint(child: &mut Child, out: &Path) {
    let begun = Instant::now();
    while !entries(out).iter().any(|name| name.starts_with("checkpoint-")) {
        assert!(child.try_wait().expect("a child").is_none(), "it ended too early");
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint in a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The steps of the checkpoints in `dir`.
fn checkpoints(dir: &Path) -> Vec<usize> {
    let step = |name: &String| name.strip_prefix("checkpoint-")?.parse().ok();
    let mut steps: Vec<usize> = entries(dir).iter().filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// A run without checkpoints of its own, stopped by Ctrl-C after some steps.
fn interrupted(place: &Place, model: &Path, out: &str, args: &[&str]) -> usize {
    let mut child = start(place.command(model, out, args));
    wait_for_checkpoint(&mut child, &place.path(out));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    *checkpoints(&place.path(out)).last().expect("a checkpoint")
}

#[test]
fn ctrl_c_saves_and_a_full_disk_loses_nothing() {
    let model = fixture::dir("mini-gqa");
    let place = Place::new(&rows(20, 1));
    // Long enough that it is still running when the signal comes.
    let args = with(FULL, &["--max-steps=40"]);
    let args: Vec<&str> = args.into_iter().filter(|arg| *arg != "--max-steps=8").collect();
    place.train(&model, "whole", &args).done();
    let wanted = result(&place, "whole");
    let step = interrupted(&place, &model, "out", &args);
    assert!(step < 40, "{step}");
    let out = place.path("out");

    // Files of at most a megabyte: the weights fit, the moments do not. A process that ignores the
    // signal for it is told as if the disk were full.
    let plain = place.command(&model, "out", &with(&args, &["--resume"]));
    let mut limited = Command::new("bash");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""]);
    limited.arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
    limited.env("XDG_CACHE_HOME", place.path("cache")).env_remove("PUNA_ISA");
    let run = finish(limited);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("optimizer.safetensors"), "{}", run.stderr);
    assert!(checkpoints(&out).contains(&step), "{:?}", checkpoints(&out));
    assert!(!is_saving(&out), "{:?}", entries(&out));

    place.train(&model, "out", &with(&args, &["--resume"])).done();
    assert!(result(&place, "out") == wanted);
}

#[test]
fn a_broken_checkpoint_is_named_and_passed_over() {
    let model = fixture::dir("mini-gqa");
    let place = Place::new(&rows(20, 2));
    let args: Vec<&str> =
        with(LORA, &["--verbose"]).into_iter().filter(|arg| *arg != "--quiet").collect();
    place.train(&model, "whole", &args).done();
    let wanted = result(&place, "whole");
    place.train(&model, "out", &args).done();
    let out = place.path("out");
    let steps = checkpoints(&out);
    let newest = *steps.last().expect("a checkpoint");
    assert!(steps.len() >= 2, "{steps:?}");
    // The sign that the run is done is taken away, and one byte of the newest checkpoint changed.
    fs::remove_file(out.join("train_results.json")).expect("it was done");
    let file = out.join(format!("checkpoint-{newest}/optimizer.safetensors"));
    let mut bytes = fs::read(&file).expect("moments");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).expect("moments");
    let run = place.train(&model, "out", &with(&args, &["--resume"])).done();
    assert!(run.stderr.contains(&format!("checkpoint-{newest} is broken")), "{}", run.stderr);
    assert!(run.stderr.contains("SHA-256"), "{}", run.stderr);
    assert!(result(&place, "out") == wanted);

    // None is whole: that is an error, not a fresh start.
    fs::remove_file(out.join("train_results.json")).expect("it was done");
    for step in checkpoints(&out) {
        fs::remove_file(out.join(format!("checkpoint-{step}/state.json"))).expect("a state");
    }
    let run = place.train(&model, "out", &with(&args, &["--resume"]));
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("none of") && run.stderr.contains("--overwrite"), "{}", run.stderr);
}

#[test]
fn a_second_run_needs_to_be_told() {
    let model = fixture::dir("mini-gqa");
    let place = Place::new(&rows(20, 3));
    place.train(&model, "out", LORA).done();
    let before = result(&place, "out");
    let run = place.train(&model, "out", LORA);
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(
        run.stderr.contains("--resume") && run.stderr.contains("--overwrite"),
        "{}",
        run.stderr
    );
    assert!(result(&place, "out") == before);
    // What is done stays done.
    let run = place.train(&model, "out", &with(LORA, &["--resume"])).done();
    assert!(run.stdout.contains("done already"), "{}", run.stdout);
    let run = place.train(&model, "out", &with(LORA, &["--resume", "--json"])).done();
    let found = &run.json()[0];
    assert_eq!((&found["end"], &found["steps"]), (&json!("already_done"), &json!(12)));
    // Anything that changes the numbers is refused by name, with both values.
    let changed: [(&[&str], &[&str]); 5] = [
        (&["--lora-alpha=16"], &["lora_alpha = 16", "begun with 32"]),
        (&["--weight-decay=0.5"], &["optimizer_settings", "weight_decay"]),
        (&["--lr-scheduler-type=cosine"], &["lr_scheduler = Cosine", "Linear"]),
        (&["--no-shuffle"], &["shuffle = false", "begun with true"]),
        (&["--dtype=bf16"], &["dtype = bf16", "begun with f32"]),
    ];
    for (flags, parts) in changed {
        let run = place.train(&model, "out", &with(LORA, &with(flags, &["--resume"])));
        assert_eq!(run.status, Some(1), "{flags:?}: {}", run.stderr);
        assert!(parts.iter().all(|part| run.stderr.contains(part)), "{flags:?}: {}", run.stderr);
    }
    place.write("data", &rows(20, 4));
    let run = place.train(&model, "out", &with(LORA, &["--resume"]));
    assert!(run.status == Some(1) && run.stderr.contains("data = "), "{}", run.stderr);
    place.train(&model, "out", &with(LORA, &["--overwrite"])).done();
    assert!(result(&place, "out") != before);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run() {
    let model = fixture::dir("mini-gqa");
    let place = Place::new(&rows(20, 5));
    let args = [
        "--learning-rate=1e30",
        "--max-grad-norm=0",
        "--batch-size=4",
        "--save-steps=1",
        "--quiet",
    ];
    let run = place.train(&model, "out", &args);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    for part in ["step ", "wanted a finite number", "rows.jsonl", "last good checkpoint"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let out: PathBuf = place.path("out");
    assert!(!out.join("model.safetensors").exists());
    for step in checkpoints(&out) {
        let file = out.join(format!("checkpoint-{step}/trained.safetensors"));
        let finite = train::tensors(&file).values().flatten().all(|value| value.is_finite());
        assert!(finite, "checkpoint-{step}");
    }
    assert!(out.join("report.html").exists());
}
