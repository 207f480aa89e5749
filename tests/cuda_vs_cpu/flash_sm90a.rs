//! Attention by the warp groups of compute capability 9.0 against f64, and its gradients from what it
//! left behind. On the harness it holds to our reading of the manual only.

use puna::cuda::flash::{Forward, Plan, forward_by};
use puna::cuda::{Floats, FloatsMut, Gpu};
use puna::error::Error;

use crate::flash::{Case, Inputs, Kind, Outputs, case, with_rows};
use crate::support::{Failures, gpu, hopper};

fn run(gpu: &Gpu, case: &Case, inputs: &Inputs) -> Outputs {
    case.run_by(gpu, inputs, Kind::Bf16, Forward::Wgmma)
}

fn check_all(cases: &[Case]) {
    let Some(gpu) = hopper() else { return };
    let mut failures = Failures::default();
    for (seed, case) in cases.iter().enumerate() {
        let inputs = case.inputs(seed as u64, Kind::Bf16);
        case.check(&mut failures, &inputs, Kind::Bf16, &run(&gpu, case, &inputs));
    }
    failures.end();
}

#[test]
fn flash_of_warp_groups_agrees_at_every_tail_of_a_tile() {
    check_all(&[
        case([1, 1], 64, None, &[1]),
        case([2, 1], 64, None, &[]),
        case([2, 2], 64, None, &[0, 17, 0]),
        case([1, 1], 64, None, &[63, 64, 65, 2]),
        case([1, 1], 128, None, &[127, 128, 129]),
        // More steps than there are places.
        case([1, 1], 64, None, &[600]),
    ]);
}

#[test]
fn flash_of_warp_groups_agrees_for_ratios_of_heads_and_windows() {
    check_all(&[
        case([3, 3], 64, None, &[7, 40]),
        case([6, 2], 128, None, &[70, 150]),
        case([8, 1], 64, None, &[135]),
        case([1, 1], 64, Some(1), &[150]),
        case([2, 1], 64, Some(60), &[300, 20]),
        case([1, 1], 128, Some(129), &[400]),
        case([1, 1], 64, Some(usize::MAX), &[130]),
        Case { size: 100.0, ..case([2, 1], 64, Some(30), &[190]) },
    ]);
}

#[test]
fn flash_of_warp_groups_gives_a_sequence_the_same_bits_alone_and_packed() {
    let Some(gpu) = hopper() else { return };
    let mut failures = Failures::default();
    let packed = case([2, 1], 64, None, &[70, 270, 50]);
    let (t, mine) = (packed.t(), 70..340);
    let alone = Case { spans: vec![270], ..packed.clone() };
    let cut = |x: &Vec<f32>| {
        let dim = x.len() / t;
        x[mine.start * dim..mine.end * dim].to_vec()
    };
    let inputs = packed.inputs(9, Kind::Bf16);
    let Inputs { q, k, v, dout } = &inputs;
    let own = Inputs { q: cut(q), k: cut(k), v: cut(v), dout: cut(dout) };
    let own = run(&gpu, &alone, &own);
    for value in [5.0, f32::NAN] {
        let other =
            |x: &Vec<f32>| with_rows(&with_rows(x, t, 0..mine.start, value), t, mine.end..t, value);
        let changed = Inputs { q: other(q), k: other(k), v: other(v), dout: other(dout) };
        let got = run(&gpu, &packed, &changed);
        let name = |what: &str| format!("beside {value}, {what}");
        failures.compare_bits(&name("out"), &cut(&got.out), &own.out);
        let lse: Vec<f32> = got.lse.chunks(t).flat_map(|x| x[mine.clone()].to_vec()).collect();
        failures.compare_bits(&name("lse"), &lse, &own.lse);
    }
    failures.end();
}

#[test]
fn flash_of_warp_groups_is_refused_by_name_where_it_is_not() {
    let Some(gpu) = gpu() else { return };
    for (head_dim, low) in [(64, true), (80, true), (64, false)] {
        let case = case([1, 1], head_dim, None, &[3]);
        let plan = Plan::new(&gpu, &case.shape(), low).unwrap();
        let (f32, bf16) = (gpu.alloc(3 * head_dim).unwrap(), gpu.alloc(3 * head_dim).unwrap());
        let x = if low { Floats::Bf16(bf16.slice()) } else { Floats::F32(f32.slice()) };
        let (mut out, mut low_out) =
            (gpu.alloc(3 * head_dim).unwrap(), gpu.alloc(3 * head_dim).unwrap());
        let out = match low {
            true => FloatsMut::Bf16(low_out.slice_mut()),
            false => FloatsMut::F32(out.slice_mut()),
        };
        let mut lse = gpu.alloc::<f32>(3).unwrap();
        let result = forward_by(&gpu, &plan, out, lse.slice_mut(), [x; 3], Forward::Wgmma);
        let takes = gpu.properties().capability == (9, 0) && head_dim == 64 && low;
        match result {
            Err(Error::Unsupported(why)) if !takes => assert!(why.contains("9.0"), "{why}"),
            other => assert!(other.is_ok() && takes, "{head_dim}: {other:?}"),
        }
    }
}
