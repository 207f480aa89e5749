//! `puna vocab train` makes a tokenizer that Puna reads, and nothing by accident.

use puna::text::TextParts;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const CORPUS: &str = "The cat has a red hat. The dog has a blue hat.\nThe cat and the dog play.\n";

/// Exit status, standard output and standard error of `puna vocab train` in `dir`.
fn train(dir: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_puna"));
    command.args(["vocab", "train", "--output", "tok"]).args(more).current_dir(dir);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_text_file_becomes_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("corpus.txt"), CORPUS).unwrap();
    let args = ["--dataset", "corpus.txt", "--vocab-size", "265", "--json"];
    let (status, stdout, stderr) = train(dir.path(), &args);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let line: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((line["vocab_size"].as_u64(), line["texts"].as_u64()), (Some(265), Some(2)));
    assert_eq!(line["bytes"].as_u64(), Some(CORPUS.len() as u64));
    let parts = TextParts::from_hf_dir(&dir.path().join("tok")).unwrap();
    assert_eq!(parts.tokenizer.vocab_size(), 265);
    let ids = parts.tokenizer.encode(CORPUS, true, true).unwrap();
    assert!(ids.len() < CORPUS.len(), "nothing was merged");
    assert_eq!(parts.tokenizer.decode(&ids, false).unwrap(), CORPUS);

    // What is there is replaced only when told.
    let (status, _, stderr) = train(dir.path(), &args);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("tok") && stderr.contains("--overwrite"), "{stderr}");
    let args = ["--dataset", "corpus.txt", "--vocab-size", "9999", "--overwrite"];
    let (status, _, stderr) = train(dir.path(), &args);
    assert_eq!(status, Some(0));
    assert!(stderr.contains("warning: ") && stderr.contains("not 9999"), "{stderr}");
    let parts = TextParts::from_hf_dir(&dir.path().join("tok")).unwrap();
    assert!(parts.tokenizer.vocab_size() > 265);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("corpus.txt"), CORPUS).unwrap();
    std::fs::write(dir.path().join("empty.txt"), "").unwrap();
    let cases: [(&[&str], i32, &str); 4] = [
        (&[], 2, "--dataset is missing"),
        (&["--dataset", "corpus.txt", "--vocab-size", "100"], 1, "at least 257"),
        (&["--dataset", "empty.txt"], 1, "no text"),
        (&["--dataset", "nowhere.txt"], 1, "nowhere.txt"),
    ];
    for (more, wanted, words) in cases {
        let (status, _, stderr) = train(dir.path(), more);
        assert_eq!(status, Some(wanted), "{more:?}: {stderr}");
        assert!(stderr.contains(words), "{more:?}: {stderr}");
        assert!(!dir.path().join("tok").exists(), "{more:?}");
    }
}
