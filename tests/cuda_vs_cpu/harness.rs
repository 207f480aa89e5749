//! The host harness finds what is planted in `cuda/host/planted*.cu`, each mistake in every order in
//! which it can be found, and nothing in the kernels that have none.
#![cfg(feature = "cuda-host")]

use puna::cuda::planted::{self, PLANTED};
use puna::cuda::{Gpu, host_sanitizer};

use crate::support::Failures;

const ORDERS: [u32; 10] = [0, 1, 2, 3, 4, 10, 11, 12, 13, 14];

/// What a run does with a mistake.
#[derive(Clone, Copy, Debug)]
enum Found {
    /// An error that says this.
    Says(&'static str),
    /// No error, but in one order or another a result that is not the right one.
    Wrong,
    /// Nothing: this build does not look for it.
    No,
}
use Found::{No, Says, Wrong};

/// Kernel; what a plain build finds, one with the race check, one with AddressSanitizer.
const PLANTED_MISTAKES: &[(&str, Found, Found, Found)] = &[
    ("planted_no_barrier", Wrong, Says("a race: "), Wrong),
    ("planted_no_second_barrier", Wrong, Says("a race: "), Wrong),
    ("planted_shuffle_as_barrier", No, Says("a race: "), No),
    ("planted_no_wait", Wrong, Says("a race: "), Wrong),
    ("planted_branch_barrier", same("never reach"), same("never reach"), same("never reach")),
    ("planted_two_barriers", DIFFERENT, DIFFERENT, DIFFERENT),
    ("planted_branch_shuffle", ENDED, ENDED, ENDED),
    ("planted_wrong_mask", MASK, MASK, MASK),
    ("planted_ended_lanes", ENDED, ENDED, ENDED),
    ("planted_two_blocks", No, Says("a race: a write by thread 0"), No),
    ("planted_reads_outside", Wrong, Says("a read outside of a buffer"), POISON),
    ("planted_writes_outside", Says("0 bytes behind its end"), OUTSIDE, POISON),
    ("planted_index_outside", INDEX, INDEX, INDEX),
    ("planted_dynamic_outside", Says("dynamic shared memory of 256 bytes"), OUTSIDE, POISON),
    ("planted_misaligned", VECTOR, VECTOR, VECTOR),
    ("planted_misaligned_cast", same("misaligned"), same("misaligned"), same("misaligned")),
    ("planted_misaligned_copy", VECTOR, VECTOR, VECTOR),
    ("planted_uninitialised", Wrong, Wrong, Wrong),
    ("planted_overflow", same("overflows"), same("overflows"), same("overflows")),
    ("planted_no_arrival", PHASE, PHASE, PHASE),
    ("planted_expected_bytes", PHASE, PHASE, PHASE),
    ("planted_arrivals", ARRIVALS, ARRIVALS, ARRIVALS),
    ("planted_no_barrier_made", NOT_MADE, NOT_MADE, NOT_MADE),
    ("planted_no_fence", FENCE, FENCE, FENCE),
    ("planted_no_turn", TURN, TURN, TURN),
];

const fn same(words: &'static str) -> Found {
    Says(words)
}
const DIFFERENT: Found = Says("different barriers");
const ENDED: Found = Says("a warp operation that not all lanes of its mask reach");
const MASK: Found = Says("not in its own mask");
const OUTSIDE: Found = Says("a write outside of a buffer");
const POISON: Found = Says("AddressSanitizer: use-after-poison");
const INDEX: Found = Says("an index outside of its array");
const VECTOR: Found = Says("an access of 16 bytes");
const PHASE: Found = Says("a phase of a barrier that never ends");
const ARRIVALS: Found = Says("more arrivals than");
const NOT_MADE: Found = Says("a barrier that was not initialised");
const FENCE: Found = Says("without fence_proxy_async");
const TURN: Found = Says("a named barrier that not all threads reach");

/// The result of a kernel, or the harness' error.
fn run(order: u32, name: &'static str, x: &[f32]) -> Result<Vec<f32>, String> {
    let gpu = Gpu::host_hopper_in_order(order).expect("the order is one of the list");
    let from = gpu.upload(x).expect("room");
    let mut out = gpu.upload(x).expect("room");
    let blocks = if name == "planted_two_blocks" { 2 } else { 1 };
    let launched = planted::launch(&gpu, name, blocks, out.slice_mut(), from.slice());
    launched.map_err(|e| e.to_string())?;
    let mut got = vec![0.0; x.len()];
    gpu.download(&out.slice(), &mut got).expect("the lengths are the same");
    Ok(got)
}

fn input() -> Vec<f32> {
    (1..=PLANTED).map(|i| i as f32).collect()
}

/// What the kernel would compute without its mistake.
fn right_result(name: &str, x: &[f32]) -> Vec<f32> {
    match name {
        "planted_shuffle_as_barrier" => (0..PLANTED).map(|i| x[i ^ 1]).collect(),
        // Whatever lies behind the end is wrong, so any number stands for it.
        "planted_reads_outside" => [&x[1..], &[0.0]].concat(),
        "planted_uninitialised" | "planted_two_blocks" => x.to_vec(),
        _ => x.iter().rev().copied().collect(),
    }
}

#[test]
fn every_planted_mistake_is_found() {
    let (x, mut failures) = (input(), Failures::default());
    for &(name, plain, race, address) in PLANTED_MISTAKES {
        let wanted = match host_sanitizer() {
            "race" => race,
            "address" => address,
            _ => plain,
        };
        let results = ORDERS.map(|order| run(order, name, &x));
        let right = right_result(name, &x);
        match wanted {
            Says(words) => {
                for (order, result) in ORDERS.iter().zip(&results) {
                    if !result.as_ref().is_err_and(|e| e.contains(words)) {
                        failures.note(format!("{name} in order {order}: {result:?}"));
                    }
                }
            }
            Wrong => {
                let found = results.iter().any(|r| r.as_ref().is_ok_and(|got| *got != right));
                if !found || results.iter().any(|r| r.is_err()) {
                    failures.note(format!("{name}: {results:?}"));
                }
            }
            No => {
                if let Some(error) = results.iter().find(|result| result.is_err()) {
                    failures.note(format!("{name}: {error:?}, but this build cannot know"));
                }
            }
        }
    }
    failures.end();
}

#[test]
fn nothing_is_found_where_nothing_is_planted() {
    let (x, mut failures) = (input(), Failures::default());
    for name in ["planted_nothing", "planted_nothing_either", "planted_phases", "planted_turns"] {
        for order in ORDERS {
            let result = run(order, name, &x);
            if result.as_ref().ok() != Some(&right_result(name, &x)) {
                failures.note(format!("{name} in order {order}: {result:?}"));
            }
        }
    }
    failures.end();
}

#[test]
fn errors_name_kernel_thread_and_place() {
    for name in ["planted_wrong_mask", "planted_misaligned", "planted_index_outside"] {
        let error = run(0, name, &input()).unwrap_err();
        let place = error.split("planted.cu:").nth(1).unwrap_or_default();
        let line: String = place.chars().take_while(char::is_ascii_digit).collect();
        assert!(!line.is_empty(), "no line: {error}");
        assert!(error.starts_with(name) && error.contains("block 0 thread "), "{error}");
    }
}

#[test]
fn a_launch_that_does_not_fit_the_kernel_is_refused() {
    let gpu = Gpu::host().expect("the default order");
    let error = planted::launch_with_an_argument_too_few(&gpu).unwrap_err().to_string();
    assert!(error.contains("takes 3 arguments, the launch has 2"), "{error}");
    let x = gpu.upload(&input()).expect("room");
    let mut out = gpu.upload(&input()).expect("room");
    let mut launch = |name, blocks| {
        let result = planted::launch(&gpu, name, blocks, out.slice_mut(), x.slice());
        result.unwrap_err().to_string()
    };
    assert!(launch("planted_no_such", 1).contains("no such kernel"));
    assert!(launch("planted_nothing", 0).contains("a grid of 1 to"));
    assert!(Gpu::host_in_order(5).is_err());
}

#[test]
fn after_an_error_the_next_launch_is_its_own() {
    let x = input();
    for order in ORDERS {
        assert!(run(order, "planted_ended_lanes", &x).is_err());
        let reversed: Vec<f32> = x.iter().rev().copied().collect();
        assert_eq!(run(order, "planted_nothing", &x), Ok(reversed));
    }
}
