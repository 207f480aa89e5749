//! The header, the libraries and the example hold together: what the header declares is what the
//! library exports, with the same layouts, and a program in C links with it and runs. Without a C
//! compiler the parts that need one say SKIPPED.
//!
//! One test after the other, without a harness: the counting allocator is global, and nobody else may
//! allocate while it counts.

mod allocations;

use puna_c::{PunaLoadOptions, PunaMemory, PunaSessionOptions, Status};
use std::collections::BTreeSet;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// The header without its comments.
fn header() -> String {
    let text = std::fs::read_to_string(root().join("include/puna.h")).expect("the header is there");
    let mut code = String::new();
    let mut rest = &text[..];
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").expect("comments end").1;
    }
    code + rest
}

/// Names of functions: what stands before an opening parenthesis.
fn functions(code: &str) -> BTreeSet<String> {
    code.match_indices('(')
        .filter_map(|(at, _)| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let name = code[..at].rsplit(|c: char| !is_name(c)).next()?;
            name.starts_with("puna_").then(|| name.to_owned())
        })
        .collect()
}

/// A library of this build. Cargo leaves it beside the tests, or one folder up.
fn library(name: &str) -> PathBuf {
    let deps = std::env::current_exe().expect("a path").parent().expect("a folder").to_path_buf();
    let places = [deps.join(name), deps.parent().expect("a folder").join(name)];
    let found = places.iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is in neither of {places:?}")).clone()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn cc() -> Option<Command> {
    if cfg!(not(target_os = "linux")) || !has("cc") {
        println!("SKIPPED: no C compiler here");
        return None;
    }
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"]).arg(root().join("include"));
    Some(command)
}

fn the_header_declares_what_the_sources_define() {
    let mut defined = BTreeSet::new();
    for file in ["model.rs", "session.rs", "status.rs"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let source = std::fs::read_to_string(path).expect("a source");
        for entry in source.split("#[unsafe(no_mangle)]").skip(1) {
            let signature = entry.split_once('(').expect("a function").0;
            defined.insert(signature.rsplit(' ').next().expect("a name").to_owned());
        }
    }
    assert!(defined.len() > 20, "only {defined:?}");
    assert_eq!(functions(&header()), defined);
}

fn the_library_exports_what_the_header_declares() {
    if cfg!(not(target_os = "linux")) || !has("nm") {
        println!("SKIPPED: no nm here");
        return;
    }
    let library = library("libpuna_c.so");
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let symbols = String::from_utf8(symbols.stdout).expect("names");
    let exported: BTreeSet<String> = symbols
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .filter(|name| name.starts_with("puna_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(exported, functions(&header()));
}

fn layouts_and_numbers_are_those_of_the_header() {
    let Some(mut cc) = cc() else { return };
    let mut checks = String::from("#include <puna.h>\n");
    let mut equal = |c: &str, rust: usize| {
        checks += &format!("_Static_assert((size_t)({c}) == {rust}u, \"{c}\");\n");
    };
    macro_rules! layout {
        ($c:literal, $rust:ty, $($field:ident),+) => {
            equal(concat!("sizeof(", $c, ")"), size_of::<$rust>());
            $(equal(
                concat!("offsetof(", $c, ", ", stringify!($field), ")"),
                offset_of!($rust, $field),
            );)+
        };
    }
    layout!(
        "puna_load_options",
        PunaLoadOptions,
        threads,
        exact,
        cache_weights,
        team_name,
        cores,
        spin_us
    );
    layout!("puna_memory", PunaMemory, weights_bytes, cache_bytes, workspace_bytes);
    layout!(
        "puna_session_options",
        PunaSessionOptions,
        ctx,
        kv_type,
        top_k,
        temperature,
        top_p,
        min_p,
        repetition_penalty,
        seed,
        stream,
        max_new_tokens,
        end_ids,
        n_end_ids,
        stop,
        n_stop,
        text
    );
    for (name, status) in [
        ("PUNA_OK", Status::Ok),
        ("PUNA_INVALID", Status::Invalid),
        ("PUNA_IO", Status::Io),
        ("PUNA_FORMAT", Status::Format),
        ("PUNA_NO_ROOM", Status::NoRoom),
        ("PUNA_CANCELLED", Status::Cancelled),
        ("PUNA_TOO_SMALL", Status::TooSmall),
        ("PUNA_DEVICE", Status::Device),
        ("PUNA_INTERNAL", Status::Internal),
    ] {
        equal(name, status as usize);
    }
    equal("sizeof(puna_status)", size_of::<Status>());
    equal("PUNA_VERSION", puna_c::puna_version() as usize);
    for (code, kv_type) in puna::model::llama::KvType::ALL.iter().enumerate() {
        equal(&format!("PUNA_KV_{}", kv_type.name().to_uppercase()), code);
    }
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("layout.c");
    std::fs::write(&source, checks).expect("a small file");
    run(cc.arg("-c").arg(&source).arg("-o").arg(dir.path().join("layout.o")));
}

fn the_example_links_with_either_library_and_runs() {
    let Some(_) = cc() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("example.c");
    let mut stories = vec![];
    for (kind, file) in [("shared", "libpuna_c.so"), ("static", "libpuna_c.a")] {
        let library = library(file);
        let program = dir.path().join(kind);
        let mut cc = cc().expect("it was there a moment ago");
        run(cc.arg(&example).arg(&library).args(["-lpthread", "-ldl", "-lm", "-o"]).arg(&program));
        let folder = library.parent().expect("a folder");
        let output = run(Command::new(&program).env("LD_LIBRARY_PATH", folder));
        stories.push(String::from_utf8(output.stdout).expect("a story in UTF-8"));
    }
    assert!(stories[0].starts_with("Once upon a time") && stories[0].len() > 40, "{stories:?}");
    assert_eq!(stories[0], stories[1]);
}

fn null_and_nonsense_are_refused_with_a_text() {
    use puna_c::*;
    use std::ffi::CStr;
    use std::ptr::{null, null_mut};
    // SAFETY: NULL is allowed everywhere and refused; the error's text lives until the next one.
    unsafe {
        assert_eq!(puna_model_load(null(), null(), null_mut()), Status::Invalid);
        assert!(CStr::from_ptr(puna_last_error()).to_str().unwrap().contains("path is NULL"));
        let mut model = null_mut();
        let path = c"/nowhere/at/all.gguf".as_ptr();
        assert_eq!(puna_model_load(path, null(), &mut model), Status::Io);
        assert!(model.is_null());
        assert_eq!(puna_session_new(null(), null(), null_mut()), Status::Invalid);
        assert_eq!(puna_session_prefill(null_mut(), null(), 0), Status::Invalid);
        assert_eq!(puna_session_step_all(&mut null_mut(), 1, null_mut()), Status::Invalid);
        assert_eq!(puna_session_cancel(null()), Status::Invalid);
        assert_eq!(puna_model_vocab_size(null()), 0);
        puna_model_free(null_mut());
        puna_session_free(null_mut());
        puna_session_options_init(null_mut());
        let mut options = std::mem::zeroed::<PunaLoadOptions>();
        puna_load_options_init(&mut options);
        let cores = [1_000_000u32];
        (options.threads, options.cores) = (2, cores.as_ptr());
        let builtin = c"builtin".as_ptr();
        assert_eq!(puna_model_load(builtin, &options, &mut model), Status::Device);
        assert!(CStr::from_ptr(puna_last_error()).to_str().unwrap().contains("core 1000000"));
    }
}

fn main() {
    let tests: [(&str, fn()); 6] = [
        (
            "the_header_declares_what_the_sources_define",
            the_header_declares_what_the_sources_define,
        ),
        (
            "the_library_exports_what_the_header_declares",
            the_library_exports_what_the_header_declares,
        ),
        (
            "layouts_and_numbers_are_those_of_the_header",
            layouts_and_numbers_are_those_of_the_header,
        ),
        (
            "the_example_links_with_either_library_and_runs",
            the_example_links_with_either_library_and_runs,
        ),
        ("null_and_nonsense_are_refused_with_a_text", null_and_nonsense_are_refused_with_a_text),
        (
            "steps_and_prompts_from_c_allocate_nothing",
            allocations::steps_and_prompts_from_c_allocate_nothing,
        ),
    ];
    for (name, test) in tests {
        println!("test {name} ...");
        test();
    }
    println!("test result: ok. {} passed", tests.len());
}
