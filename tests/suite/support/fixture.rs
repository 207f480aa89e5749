//! The reference models under `tests/fixtures` and the values that others computed for them.

use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder of a reference model.
pub fn dir(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

/// A JSON file of a reference model.
pub fn json(model: &str, file: &str) -> Value {
    let path = dir(model).join(file);
    let text = std::fs::read_to_string(&path).expect("a fixture is part of the checkout");
    serde_json::from_str(&text).expect("a fixture is JSON")
}

/// A list of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list of ids").iter();
    list.map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// A list of numbers.
pub fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list of numbers").iter();
    list.map(|number| number.as_f64().expect("a number")).collect()
}
