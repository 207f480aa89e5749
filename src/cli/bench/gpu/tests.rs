//! The rows on the harness, with its sizes.

use super::*;

#[test]
fn peaks_are_found_by_name() {
    assert_eq!(peak("NVIDIA H100 80GB HBM3"), Some(989e12));
    assert_eq!(peak("NVIDIA H100 PCIe"), Some(756e12));
    assert_eq!(peak("NVIDIA GeForce RTX 4090"), Some(165e12));
    assert_eq!(peak("host harness"), None);
}

#[cfg(feature = "cuda-host")]
#[test]
fn every_row_is_right_and_has_a_rate() {
    use crate::cli::bench::report::Format;
    let gpu = Gpu::host().unwrap();
    let sizes = Sizes::tiny();
    let mut report = Report::new(Format::Json, "bench_kernels", vec![]);
    let mut bench = Bench::new(&gpu, &sizes, 3, 1, &mut report).unwrap();
    bench.warm_up_ms = 0.0;
    rows::measure(&mut bench).unwrap();
    let rows = report.into_rows();
    let rows = rows.as_array().unwrap();
    for op in [
        "copy",
        "attention_forward",
        "attention_backward",
        "matmul nt",
        "matmul nn",
        "matmul tn",
        "quantised nf4",
        "quantised q4_k",
        "lora",
        "rms_norm",
        "swiglu",
        "cross_entropy",
        "adamw",
    ] {
        let named = |row: &&Value| row["op"].as_str().is_some_and(|name| name.starts_with(op));
        let found = rows.iter().find(named).unwrap_or_else(|| panic!("no row of {op}"));
        assert!(found["rate"].as_f64().is_some_and(|rate| rate > 0.0), "{found}");
    }
    // Names tell rows apart.
    let mut names: Vec<&str> = rows.iter().filter_map(|row| row["test"].as_str()).collect();
    let n = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), n);
    assert_eq!(rows[0]["percent"], 100.0);
}

#[cfg(feature = "cuda-host")]
#[test]
fn a_wrong_result_is_not_timed() {
    let wrong = numbers::expect("kernel", 3, 1.0, 2.0, 0.5).unwrap_err().to_string();
    assert!(wrong.contains("kernel") && wrong.contains("result 3 is 1e0, wanted 2e0"), "{wrong}");
    assert!(numbers::expect("kernel", 3, f64::NAN, 2.0, 0.5).is_err());
}
