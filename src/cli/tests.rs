//! The command line as a whole: its definition, its help and its refusals.

use super::*;

fn run_words(words: &[&str]) -> Result<(), Failure> {
    run(std::iter::once("puna").chain(words.iter().copied()).map(Into::into).collect())
}

fn lines(words: &[&str]) -> (u8, Vec<String>) {
    match run_words(words) {
        Ok(()) => (0, vec![]),
        Err(failure) => (failure.status(), failure.lines()),
    }
}

#[test]
fn the_definition_is_sound() {
    definition().debug_assert();
}

/// Help of a command as a terminal of 80 columns shows it.
fn help(path: &[&str]) -> String {
    let mut command = definition().term_width(80);
    let words = std::iter::once("puna").chain(path.iter().copied()).chain(["--help"]);
    match command.try_get_matches_from_mut(words) {
        Err(error) if error.kind() == ErrorKind::DisplayHelp => error.render().to_string(),
        other => format!("no help: {other:?}"),
    }
}

#[test]
fn every_help_fits_a_screen_and_shows_an_example() {
    let cases: [(&[&str], usize); 24] = [
        (&[], 26),
        (&["info"], 26),
        (&["generate"], 44),
        (&["chat"], 32),
        (&["eval"], 24),
        (&["eval", "nll"], 30),
        (&["eval", "choice"], 36),
        (&["eval", "accuracy"], 36),
        (&["eval", "ppl"], 28),
        (&["eval", "diversity"], 18),
        (&["eval", "reward"], 30),
        (&["train"], 92),
        (&["dpo"], 98),
        (&["reward"], 92),
        (&["iterative-dpo"], 104),
        (&["raft"], 102),
        (&["ppo"], 106),
        (&["grpo"], 102),
        (&["bench"], 40),
        (&["convert"], 24),
        (&["quantize"], 24),
        (&["merge"], 24),
        (&["vocab"], 24),
        (&["vocab", "train"], 24),
    ];
    let mut failures = vec![];
    for (path, most) in cases {
        let text = help(path);
        let n_lines = text.trim_end().lines().count();
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let example = path.is_empty() || text.contains("Example: puna ");
        if n_lines > most || widest > 80 || !example || !text.contains("Usage: puna") {
            failures.push(format!("{path:?}: {n_lines} lines of {widest}\n{text}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(WELCOME.lines().count() <= 24);
}

#[test]
fn wrong_usage_is_one_line_and_a_hint_with_status_2() {
    let cases: [(&[&str], &str, &str); 7] = [
        (&["generat"], "unrecognized subcommand 'generat'", "did you mean generate?"),
        (&["generate", "m", "--tempratur", "1"], "'--tempratur'", "did you mean --temperature?"),
        (&["convert"], "no model named", "name what is to be written"),
        (&["generate"], "nothing to continue", "give -p TEXT"),
        (&["eval"], "a command is missing", "--help"),
        (&["bench", "m", "-p", "0", "-n", "0"], "nothing to measure", "-p and -n"),
        (&["info", "--device", "gpu", "m"], "wanted auto, cpu or cuda[:N]", "--help"),
    ];
    for (words, message, hint) in cases {
        let (status, lines) = lines(words);
        assert_eq!(status, 2, "{words:?}: {lines:?}");
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(message), "{lines:?}");
        assert!(lines[1].starts_with("hint: ") && lines[1].contains(hint), "{lines:?}");
    }
}

#[test]
fn failures_have_status_1_and_name_the_thing() {
    let (status, lines) = lines(&["generate", "/no/such/model", "-p", "x"]);
    assert_eq!(status, 1);
    assert!(lines[0].contains("/no/such/model"), "{lines:?}");
    let (status, lines) = self::lines(&["bench", "/no/such/model", "--device", "cuda:1"]);
    assert_eq!(status, 1);
    assert!(lines[0].contains("device cuda:1"), "{lines:?}");
}
