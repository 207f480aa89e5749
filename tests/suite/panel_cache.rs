//! Weights kept beside the model (`LoadOptions::cache_weights`, `--cache-weights`): the same bits as
//! without, another file when the model's changes, an error where it cannot be written.

use crate::support::engine::append;
use crate::support::program::puna;
use puna::model::llama::{KvType, LoadOptions, Model};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

fn logits(model: &Path, cache_weights: bool) -> puna::Result<Vec<f32>> {
    let options = LoadOptions { cache_weights, ..LoadOptions::threads(2) };
    let model = Model::load(model, &options)?;
    let mut cache = model.new_cache(32, KvType::F16)?;
    Ok(append(&model, &mut model.workspace(), &mut cache, &[5, 6, 7, 8]))
}

/// The built-in model with weights of this type, and where its panels will lie.
fn quantised(dir: &Path, dtype: &str) -> (PathBuf, PathBuf) {
    let path = dir.join("m.gguf");
    let name = path.to_str().expect("UTF-8");
    puna(&["quantize", "builtin", name, "--type", dtype, "--overwrite", "--quiet"]).done();
    (path.clone(), dir.join("m.gguf.panels"))
}

#[test]
fn the_same_bits_with_and_without() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, panels) = quantised(dir.path(), "Q8_0");
    let plain = logits(&model, false).expect("it loads");
    assert!(!panels.exists(), "nobody asked for it");
    assert_eq!(logits(&model, true).expect("it loads"), plain);
    let written = fs::metadata(&panels).expect("it was written").modified().expect("a time");
    assert_eq!(logits(&model, true).expect("it loads"), plain);
    let later = fs::metadata(&panels).expect("it is there").modified().expect("a time");
    assert_eq!(written, later, "a cache that fits is not written again");

    // What is kept is used: other panels under a head that is sound are other weights.
    let mut bytes = fs::read(&panels).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0x11);
    fs::write(&panels, bytes).expect("it can be written");
    assert_ne!(logits(&model, true).expect("it loads"), plain);
    assert_eq!(logits(&model, false).expect("it loads"), plain);
}

#[test]
fn another_model_of_that_name_has_another_cache() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, panels) = quantised(dir.path(), "Q8_0");
    logits(&model, true).expect("it loads");
    quantised(dir.path(), "Q4_0");
    let plain = logits(&model, false).expect("it loads");
    assert_eq!(logits(&model, true).expect("it loads"), plain);
    assert_eq!(logits(&model, true).expect("it loads"), plain);

    // The same sizes, written at another time.
    let file = fs::File::options().write(true).open(&model).expect("it is there");
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).expect("it can be set");
    let before = fs::read(&panels).expect("it is there");
    assert_eq!(logits(&model, true).expect("it loads"), plain);
    assert_ne!(fs::read(&panels).expect("it is there"), before);

    fs::write(&panels, b"something else").expect("it can be written");
    assert_eq!(logits(&model, true).expect("it loads"), plain);
    assert!(fs::metadata(&panels).expect("it is there").len() > 1000);
}

#[test]
fn where_it_cannot_be_written_an_error_names_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, panels) = quantised(dir.path(), "Q8_0");
    // Root may write anywhere, but not over a folder.
    fs::create_dir(&panels).expect("a folder");
    let error = logits(&model, true).expect_err("a folder is in the way").to_string();
    assert!(error.contains("m.gguf.panels"), "{error}");
    let left: Vec<_> = fs::read_dir(dir.path()).expect("it is there").flatten().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn models_without_quantised_weights_have_none() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mini-gqa");
    assert_eq!(
        logits(&fixture, true).expect("it loads"),
        logits(&fixture, false).expect("it loads")
    );
    assert!(!fixture.with_file_name("mini-gqa.panels").exists());
    let builtin = Path::new("builtin");
    assert_eq!(logits(builtin, true).expect("it loads"), logits(builtin, false).expect("it loads"));
    assert!(!Path::new("builtin.panels").exists());
}
