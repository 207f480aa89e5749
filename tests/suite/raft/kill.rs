//! Runs that are killed or interrupted, and gone on with.

use super::*;

fn start(mut command: Command, stderr: Stdio) -> Child {
    command.stdout(Stdio::null()).stderr(stderr).spawn().expect("the program starts")
}

/// Waits until it is time; whether the run was still going on then.
fn wait_until(child: &mut Child, due: &dyn Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !due() {
        let ended = child.try_wait().expect("a child").is_some();
        if ended || begun.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// Starts a run and kills it (SIGKILL) when it is time; whether that ended it.
fn kill(command: Command, due: &dyn Fn() -> bool) -> bool {
    let mut child = start(command, Stdio::null());
    let in_time = wait_until(&mut child, due);
    // One that has ended by itself cannot be killed.
    let _ = child.kill();
    let status = child.wait().expect("a dead child");
    in_time && status.code().is_none()
}

/// Answers to one prompt after the other, a checkpoint a step, eight steps an iteration.
const SLOW: &[&str] = &[
    "--num-raft-iteration=2",
    "--raft-batch-size=4",
    "--top-reward-percentage=0.25",
    "--max-new-tokens=24",
    "--inference-batch-size=4",
    "--batch-size=1",
    "--save-steps=1",
    "--learning-rate=0.01",
    "--seed=7",
    "--quiet",
    LENGTH,
];

#[test]
fn kill_9_at_any_moment_changes_nothing() {
    let place = Place::new(&prompts("text2text"));
    let begun = Instant::now();
    place.run("raft", "whole", SLOW).done();
    let whole = begun.elapsed();
    let args = with(SLOW, &["--resume"]);
    let mut n_kills = 0;

    // While it draws, after a checkpoint, while one is written, and so on in the next iteration.
    let dir = place.path("out");
    let first = place.drawn("out");
    let second = dir.join("iterations/0002/drawn.jsonl");
    let moments: [&dyn Fn() -> bool; 5] = [
        &|| n_lines(&first) >= 2,
        &|| has(&dir, "checkpoint-"),
        &|| has(&dir, ".checkpoint-"),
        &|| n_lines(&second) >= 1,
        &|| dir.join("train_set_1.json").exists(),
    ];
    for due in moments {
        n_kills += u32::from(kill(place.command("raft", "out", &args), due));
    }
    place.run("raft", "out", &args).done();
    assert_same(&place, "out", "whole");

    for share in [0.3, 0.6, 0.45] {
        let (begun, wait) = (Instant::now(), whole.mul_f64(share));
        let due = || begun.elapsed() >= wait;
        n_kills += u32::from(kill(place.command("raft", "late", &args), &due));
    }
    place.run("raft", "late", &args).done();
    assert_same(&place, "late", "whole");
    assert!(n_kills >= 4, "only {n_kills} kills came in time");
}

#[test]
fn a_line_of_answers_that_was_cut_off_is_drawn_again() {
    let place = Place::new(&prompts("text2text"));
    place.write("score.sh", "exit 3\n");
    let flag = format!("--reward-command=sh '{}'", place.text("score.sh"));
    let args = with(RAFT, &[flag.as_str()]);
    assert_eq!(place.run("raft", "out", &args).status, Some(1));
    let drawn = place.drawn("out");
    let text = fs::read_to_string(&drawn).unwrap();
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    assert_eq!(ends.len(), 4);
    // Two whole lines, and a half.
    let middle = (ends[1] + ends[2]) / 2;
    let cut = (ends[1]..=middle).rev().find(|&at| text.is_char_boundary(at)).unwrap();
    fs::write(&drawn, &text[..cut]).unwrap();
    place.write("score.sh", &format!("{COUNT}\n"));
    place.run("raft", "out", &with(&args, &["--resume"])).done();
    let lines = place.iterations("out");
    assert!(number(&lines[0], "sample_tok_per_s") > 0.0, "{}", lines[0]);
    place.run("raft", "whole", &args).done();
    assert_same(&place, "out", "whole");
}

#[test]
fn ppo_that_was_killed_keeps_its_values_and_its_weight() {
    let place = Place::new(&prompts("text2text"));
    let args = [
        "--iterations=2",
        "--num-prompts=4",
        "--max-new-tokens=8",
        "--batch-size=2",
        "--save-steps=1",
        "--learning-rate=0.001",
        "--kl-target=1",
        "--kl-horizon=40",
        "--seed=3",
        "--quiet",
        LENGTH,
    ];
    place.run("ppo", "whole", &args).done();
    let resume = with(&args, &["--resume"]);
    let dir = place.path("out");
    let second = dir.join("iterations/0002/samples.jsonl");
    let moments: [&dyn Fn() -> bool; 2] = [&|| has(&dir, "checkpoint-"), &|| second.exists()];
    let mut n_kills = 0;
    for due in moments {
        n_kills += u32::from(kill(place.command("ppo", "out", &resume), due));
    }
    assert!(n_kills >= 1, "no kill came in time");
    place.run("ppo", "out", &resume).done();
    assert_same(&place, "out", "whole");
}

/// Sends Ctrl-C and waits for the end.
fn interrupt(child: Child) -> Output {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    child.wait_with_output().expect("a child")
}

#[test]
fn ctrl_c_while_rewards_are_waited_for_and_while_it_learns_loses_nothing() {
    let place = Place::new(&prompts("text2text"));
    let flag = format!("--reward-command=sh '{}'", place.text("score.sh"));
    let more = ["--batch-size=1", "--save-steps=1", "--learning-rate=0.01", &flag];
    let args = with(RAFT, &more);
    let resume = with(&args, &["--resume"]);
    place.write("score.sh", &format!("{COUNT}\n"));
    place.run("raft", "whole", &args).done();

    let (started, out) = (place.path("started"), place.path("out"));
    place.write("score.sh", &format!("touch '{}'\nsleep 60\n", started.display()));
    let mut child = start(place.command("raft", "out", &args), Stdio::piped());
    assert!(wait_until(&mut child, &|| started.exists()), "the program was not started");
    let begun = Instant::now();
    let end = interrupt(child);
    let said = String::from_utf8_lossy(&end.stderr);
    assert_eq!(end.status.code(), Some(130), "{said}");
    assert!(said.contains("--resume goes on"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited for the program");
    assert_eq!(n_lines(&place.drawn("out")), 4);
    assert!(!out.join("adapter_model.safetensors").exists());

    place.write("score.sh", &format!("{COUNT}\n"));
    let mut child = start(place.command("raft", "out", &resume), Stdio::piped());
    let in_time = wait_until(&mut child, &|| has(&out, "checkpoint-"));
    assert!(in_time, "no checkpoint came");
    let end = interrupt(child);
    let said = String::from_utf8_lossy(&end.stderr);
    assert_eq!(end.status.code(), Some(130), "{said}");
    assert!(said.contains("--resume goes on"), "{said}");
    assert!(has(&out, "checkpoint-") && !out.join("train_results.json").exists());

    place.run("raft", "out", &resume).done();
    assert_same(&place, "out", "whole");
}
