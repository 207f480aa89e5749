//! The house rules that a compiler does not check: a room of `src/` imports only from floors below
//! its own, the kernels crate is used only where devices are named, and no file grows too long.
//!
//! The table below is the one of `ARCHITECTURE.md`, with the rooms that are still to come, so that
//! a new room finds its place already decided. Paths inside the sources are read by a small
//! scanner, not by a Rust parser: it blanks comments and literals and then looks for `crate::`.

use std::fs;
use std::path::{Path, PathBuf};

/// Floor and rooms. A room may import from lower floors only, never from its own floor's others.
const FLOORS: &[(u8, &[&str])] = &[
    (9, &["cli", "capi", "serve"]),
    (8, &["align"]),
    (7, &["infer", "train", "eval"]),
    (6, &["model"]),
    (5, &["ops"]),
    (4, &["autograd", "data", "dist"]),
    (3, &["kernels", "format", "text"]),
    (2, &["tensor"]),
    (1, &["cuda"]),
    (0, &["error", "rng"]),
];

/// Names that `lib.rs` re-exports at the root of the crate, and the rooms they live in.
const REEXPORTS: &[(&str, &str)] = &[("Error", "error"), ("Result", "error")];

/// Where `puna_cpu` may be named, as prefixes of paths: the switchboard and the storages it works
/// on, the loader's conversions, the model's team and buffers, and two sub-commands that report
/// facts about the machine (instruction sets, read bandwidth, arithmetic peaks). The launchers of
/// the GPU take the same settings as their twins (masks, shapes of attention, pairings, optimisers).
const CPU_CRATE_ALLOWED: &[&str] = &[
    "src/cuda/",
    "src/kernels/",
    "src/tensor/",
    "src/format/",
    "src/model/",
    "src/cli/bench",
    "src/cli/info",
    "src/cli/machine",
];

/// Files of the crate's root, which see every room.
const ROOT_FILES: &[&str] = &["src/lib.rs", "src/main.rs"];

/// Longest file, in lines. Split by job, never by length.
const MAX_LINES: usize = 600;

/// Folders under the length rule, and the kinds of file it counts.
const MEASURED_FOLDERS: &[&str] =
    &["src", "capi", "cpu/src", "cuda", "examples", "include", "tests", "benches"];
const MEASURED_KINDS: &[&str] = &["rs", "cu", "cuh", "h", "sh", "py"];

fn floor_of(room: &str) -> Option<u8> {
    FLOORS.iter().find(|(_, rooms)| rooms.contains(&room)).map(|(floor, _)| *floor)
}

/// The room of a path such as `src/text/template.rs` or `src/error.rs`.
fn room_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let first = inside.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

/// Every breach of the import rules in one source file, as `path:line: what`.
fn import_breaches(path: &str, source: &str) -> Vec<String> {
    if ROOT_FILES.contains(&path) {
        return vec![];
    }
    let Some((room, floor)) = room_of(path).and_then(|room| Some((room, floor_of(room)?))) else {
        return vec![format!("{path}: this room is on no floor; add it to the table")];
    };
    let code = blank_comments_and_literals(source);
    let mut breaches = vec![];
    let mut breach = |at: usize, what: String| {
        breaches.push(format!("{path}:{}: {what}", code[..at].matches('\n').count() + 1));
    };
    for at in words(&code, "crate") {
        let Some(rest) = code[at + "crate".len()..].trim_start().strip_prefix("::") else {
            continue;
        };
        for name in first_names(rest) {
            let name = REEXPORTS.iter().find(|(n, _)| *n == name).map_or(name, |(_, room)| *room);
            if name == room {
                continue;
            }
            match floor_of(name) {
                None => breach(at, format!("`crate::{name}` names no room of the table")),
                Some(other) if other > floor => breach(
                    at,
                    format!("upward import: {room} (floor {floor}) from {name} (floor {other})"),
                ),
                Some(other) if other == floor => {
                    breach(at, format!("sideways import: {room} from {name}, both floor {floor}"));
                }
                Some(_) => {}
            }
        }
    }
    if !CPU_CRATE_ALLOWED.iter().any(|prefix| path.starts_with(prefix)) {
        for at in words(&code, "puna_cpu") {
            breach(at, format!("{room} names puna_cpu; go through kernels or tensor"));
        }
    }
    breaches
}

/// Byte offsets at which `word` stands alone.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part)
    })
}

/// The first path segments after `crate::`: one name, or one per entry of a `{...}` group.
fn first_names(rest: &str) -> Vec<&str> {
    fn name(text: &str) -> &str {
        let text = text.trim_start();
        let text = text.strip_prefix("r#").unwrap_or(text);
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        // `*` and whatever else is no name is given back as it stands, to be refused.
        if end == 0 { text.get(..1).unwrap_or("") } else { &text[..end] }
    }
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut names, mut depth, mut start) = (vec![], 0usize, 0usize);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                // A trailing comma leaves an empty entry.
                if !group[start..at].trim().is_empty() {
                    names.push(name(&group[start..at]));
                }
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

/// `source` with comments and the insides of string and character literals replaced by spaces;
/// line breaks stay, so that line numbers stay true.
fn blank_comments_and_literals(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                source[i..].find('\n').map_or(bytes.len(), |n| i + n)
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => block_comment_end(bytes, i),
            b'"' => string_end(bytes, i),
            b'r' if i == 0 || !is_word(bytes[i - 1]) || is_byte_prefix(bytes, i) => {
                raw_string_end(source, i).unwrap_or(i)
            }
            b'\'' => char_end(source, i).unwrap_or(i),
            _ => i,
        };
        for byte in &mut out[i..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        i = end.max(i + 1);
    }
    // Whole literals and comments were blanked byte by byte, so what is left is still UTF-8.
    String::from_utf8(out).expect("only whole characters are blanked")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether the `r` at `i` belongs to the prefix `br` or `cr` of a raw string.
fn is_byte_prefix(bytes: &[u8], i: usize) -> bool {
    matches!(bytes[i - 1], b'b' | b'c') && (i == 1 || !is_word(bytes[i - 2]))
}

/// End of a block comment that begins at `i`; they nest.
fn block_comment_end(bytes: &[u8], mut i: usize) -> usize {
    let mut depth = 0;
    while i < bytes.len() {
        match (bytes[i], bytes.get(i + 1)) {
            (b'/', Some(b'*')) => (depth, i) = (depth + 1, i + 2),
            (b'*', Some(b'/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    bytes.len()
}

/// End of an ordinary string whose opening quote is at `i`.
fn string_end(bytes: &[u8], mut i: usize) -> usize {
    i += 1;
    while i < bytes.len() && bytes[i] != b'"' {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(bytes.len())
}

/// End of a raw string whose `r` is at `i`, if it is one.
fn raw_string_end(source: &str, i: usize) -> Option<usize> {
    let after = &source[i + 1..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let open = i + 1 + hashes + 1;
    Some(body.find(&close).map_or(source.len(), |n| open + n + close.len()))
}

/// End of a character literal whose opening quote is at `i`; `None` for a lifetime.
fn char_end(source: &str, i: usize) -> Option<usize> {
    let mut chars = source[i + 1..].char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        // Past the escaped character, then to the closing quote: '\'' and '\u{1F600}' alike.
        chars.next()?;
        return chars.find(|(_, c)| *c == '\'').map(|(n, _)| i + 1 + n + 1);
    }
    let (n, second) = chars.next()?;
    (second == '\'').then_some(i + 1 + n + 1)
}

/// Every file below `folder` with one of the kinds, `fixtures` and caches left out, sorted.
fn files_below(folder: &Path, kinds: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut files = vec![];
    for entry in entries {
        let path = entry.expect("an entry of a folder that was just opened").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !matches!(name, "fixtures" | "__pycache__") {
                files.extend(files_below(&path, kinds));
            }
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| kinds.contains(&e)) {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    let inside = path.strip_prefix(root()).expect("files are listed below the root");
    inside.to_string_lossy().replace('\\', "/")
}

#[test]
fn imports_go_downward_only() {
    let files = files_below(&root().join("src"), &["rs"]);
    assert!(files.len() > 10, "only {} sources found below src/", files.len());
    let mut breaches = vec![];
    for file in &files {
        let source = fs::read_to_string(file).expect("sources are UTF-8");
        breaches.extend(import_breaches(&relative(file), &source));
    }
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let mut long = vec![];
    for folder in MEASURED_FOLDERS {
        for file in files_below(&root().join(folder), MEASURED_KINDS) {
            let lines = fs::read_to_string(&file).expect("sources are UTF-8").lines().count();
            if lines > MAX_LINES {
                long.push(format!("{}: {lines} lines, at most {MAX_LINES}", relative(&file)));
            }
        }
    }
    assert!(long.is_empty(), "split these by job:\n{}", long.join("\n"));
}

#[test]
fn every_room_stands_on_one_floor() {
    let mut rooms: Vec<_> = FLOORS.iter().flat_map(|(_, rooms)| rooms.iter()).collect();
    let count = rooms.len();
    rooms.sort();
    rooms.dedup();
    assert_eq!(rooms.len(), count, "a room stands twice in the table");
    for (name, room) in REEXPORTS {
        assert!(floor_of(room).is_some(), "{name} is said to live in {room}, which is no room");
    }
}

/// (path, source, words that the only breach must hold; empty: no breach)
const CASES: &[(&str, &str, &str)] = &[
    ("src/model/a.rs", "use crate::kernels::matmul;\nuse crate::{Error, Result};\n", ""),
    ("src/text/a.rs", "use crate::text::presets;\n", ""),
    ("src/model/a.rs", "use crate::infer::generate;\n", "a.rs:1: upward import: model"),
    ("src/text/a.rs", "\n\nuse crate::format::gguf;\n", "a.rs:3: sideways import: text"),
    ("src/infer/a.rs", "fn f() { crate::eval::nll::run() }", "sideways import: infer from eval"),
    ("src/error.rs", "use crate::rng::Rng;", "sideways import: error from rng"),
    (
        "src/tensor/mod.rs",
        "use crate::{error::{Error, Result}, rng, model::{Model, kv::Cache},};",
        "upward import: tensor (floor 2) from model (floor 6)",
    ),
    (
        "src/data/a.rs",
        "use crate::{\n    text::Tokenizer,\n    cli,\n};",
        "data (floor 4) from cli",
    ),
    ("src/data/a.rs", "use crate::newroom::Thing;", "`crate::newroom` names no room"),
    ("src/data/a.rs", "use crate::*;", "`crate::*` names no room"),
    ("src/newroom/a.rs", "", "on no floor"),
    ("src/data/a.rs", "// crate::cli\n/* crate::cli /* crate::cli */ crate::cli */\n", ""),
    ("src/data/a.rs", "//! [`crate::cli`]\nconst S: &str = \"crate::cli \\\" crate::cli\";", ""),
    ("src/data/a.rs", "const S: &str = r#\"crate::cli \" crate::cli\"#;", ""),
    ("src/data/a.rs", "const Q: char = '\"'; use crate::cli::x;", "data (floor 4) from cli"),
    ("src/data/a.rs", "const Q: char = '\\''; use crate::cli::x;", "data (floor 4) from cli"),
    ("src/data/a.rs", "fn f<'a>(x: &'a str) -> &'a str { crate::cli::g(x) }", "data (floor 4)"),
    ("src/data/a.rs", "pub(crate) fn f() {} pub(in crate::data) fn g() {}", ""),
    ("src/data/a.rs", "use mycrate::cli; use crate_x::cli;", ""),
    ("src/lib.rs", "pub use crate::cli::main;", ""),
    ("src/kernels/a.rs", "use puna_cpu::isa::Isa;", ""),
    ("src/cli/bench.rs", "use puna_cpu::isa::Isa;", ""),
    ("src/infer/a.rs", "use puna_cpu::team::Team;", "a.rs:1: infer names puna_cpu"),
    ("src/cli/generate.rs", "let t = puna_cpu::team::Team::new(1);", "cli names puna_cpu"),
    ("src/text/a.rs", "/// As in `puna_cpu`.\nfn f() {}", ""),
];

#[test]
fn the_checker_finds_what_it_should_and_nothing_else() {
    let mut wrong = vec![];
    for (path, source, wanted) in CASES {
        let found = import_breaches(path, source);
        let right = match found.as_slice() {
            [] => wanted.is_empty(),
            [only] => !wanted.is_empty() && only.contains(wanted),
            _ => false,
        };
        if !right {
            wrong.push(format!("{path} {source:?}\n  wanted {wanted:?}\n  found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn blanking_keeps_length_and_lines() {
    let source =
        "let a = \"é\n\\\"\"; // ü\nlet b = br##\"\"# \"##; let c = '\\u{e9}'; 'outer: loop {}";
    let blank = blank_comments_and_literals(source);
    assert_eq!(blank.len(), source.len());
    assert_eq!(blank.matches('\n').count(), source.matches('\n').count());
    assert!(blank.ends_with("'outer: loop {}"), "{blank:?}");
    assert!(!blank.contains(['"', 'ü', 'é', '#', '\\']), "{blank:?}");
}
