//! Memory and queueing: what is recorded and launched again, what goes to and fro while work goes on,
//! and what a device that is full says.

use puna::cuda::elementwise::{add_acc, fill};
use puna::cuda::rms_norm::rms_norm;
use puna::cuda::{DeviceBuffer, Floats, FloatsMut, Gpu, Graph};
use puna::rng::Rng;
use puna::{Error, Result};

use crate::support::{Failures, gpu, normals};

const EPS: f32 = 1e-5;
const ROWS: usize = 3;
const DIM: usize = 264;
const N: usize = ROWS * DIM;

fn read(gpu: &Gpu, x: &DeviceBuffer<f32>) -> Vec<f32> {
    let mut got = vec![f32::NAN; x.len()];
    gpu.download(&x.slice(), &mut got).unwrap();
    got
}

/// Inputs, a weight and a result.
struct Step {
    x: DeviceBuffer<f32>,
    y: DeviceBuffer<f32>,
    w: DeviceBuffer<f32>,
    out: DeviceBuffer<f32>,
}

impl Step {
    fn new(gpu: &Gpu, rng: &mut Rng) -> Step {
        let mut upload = |n: usize| gpu.upload(&normals(rng, n)).unwrap();
        let (x, y, w) = (upload(N), upload(N), upload(DIM));
        Step { x, y, w, out: gpu.upload(&[-1.0; N]).unwrap() }
    }

    /// `out = rms_norm(0 + x + y) * w`, through two intermediate buffers of which the second may lie
    /// where the first lay: a copy, zeroes and three kernels.
    fn run(&mut self, gpu: &Gpu) -> Result<()> {
        let mut copied = gpu.alloc::<f32>(N)?;
        gpu.copy(&mut copied.slice_mut(), &self.x.slice())?;
        add_acc(gpu, FloatsMut::F32(copied.slice_mut()), Floats::F32(self.y.slice()))?;
        gpu.copy(&mut self.out.slice_mut(), &copied.slice())?;
        drop(copied);
        let mut sum = gpu.alloc::<f32>(N)?;
        gpu.fill_zero(&mut sum.slice_mut())?;
        add_acc(gpu, FloatsMut::F32(sum.slice_mut()), Floats::F32(self.out.slice()))?;
        let out = FloatsMut::F32(self.out.slice_mut());
        rms_norm(gpu, out, Floats::F32(sum.slice()), self.w.slice(), EPS)
    }

    /// Other inputs; gives what `run` makes of them.
    fn change(&mut self, gpu: &Gpu, rng: &mut Rng) -> Vec<f32> {
        gpu.write(&mut self.x.slice_mut(), &normals(rng, N)).unwrap();
        gpu.write(&mut self.y.slice_mut(), &normals(rng, N)).unwrap();
        self.run(gpu).unwrap();
        let wanted = read(gpu, &self.out);
        gpu.write(&mut self.out.slice_mut(), &[-1.0; N]).unwrap();
        wanted
    }
}

/// A step that has run once, and its graph.
fn recorded(gpu: &Gpu, rng: &mut Rng) -> (Step, Graph) {
    let mut step = Step::new(gpu, rng);
    step.run(gpu).unwrap();
    gpu.write(&mut step.out.slice_mut(), &[-1.0; N]).unwrap();
    let graph = gpu.record(|| step.run(gpu)).unwrap();
    (step, graph)
}

#[test]
fn a_graph_works_on_what_its_buffers_hold_when_it_is_launched() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(1, 0);
    let (mut step, graph) = recorded(&gpu, &mut rng);
    let mut failures = Failures::default();
    failures.compare_bits("recording does nothing", &read(&gpu, &step.out), &[-1.0; N]);
    for round in 0..3 {
        let wanted = step.change(&gpu, &mut rng);
        failures.compare_bits("not launched yet", &read(&gpu, &step.out), &[-1.0; N]);
        graph.launch(&gpu).unwrap();
        failures.compare_bits(&format!("launch {round}"), &read(&gpu, &step.out), &wanted);
        // A launch reads its inputs anew and leaves nothing behind.
        graph.launch(&gpu).unwrap();
        failures.compare_bits(&format!("again {round}"), &read(&gpu, &step.out), &wanted);
    }
    assert!(!graph.is_stale(&gpu));
    failures.end();
}

#[test]
fn scalars_are_those_of_the_recording() {
    let Some(gpu) = gpu() else { return };
    let mut x = gpu.upload(&[0f32; 70]).unwrap();
    let mut value = 2.5;
    let graph = gpu.record(|| fill(&gpu, FloatsMut::F32(x.slice_mut()), value)).unwrap();
    value += 1.0;
    graph.launch(&gpu).unwrap();
    assert_eq!((read(&gpu, &x), value), (vec![2.5; 70], 3.5));
}

#[test]
fn nobody_gets_the_memory_of_intermediate_buffers() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(2, 0);
    let (mut step, graph) = recorded(&gpu, &mut rng);
    let before = gpu.memory_use().used_bytes;
    // As many as would get it if anybody did.
    let ours: Vec<_> = (0..8).map(|i| gpu.upload(&[i as f32; N]).unwrap()).collect();
    let wanted = step.change(&gpu, &mut rng);
    graph.launch(&gpu).unwrap();
    let mut failures = Failures::default();
    failures.compare_bits("the step", &read(&gpu, &step.out), &wanted);
    for (i, x) in ours.iter().enumerate() {
        failures.compare_bits("a buffer", &read(&gpu, x), &[i as f32; N]);
    }
    failures.end();
    drop(ours);
    assert_eq!(gpu.memory_use().used_bytes, before);
    drop(graph);
    // Two intermediate buffers on the harness, one place for both in an arena.
    let freed = before - gpu.memory_use().used_bytes;
    assert!((4 * N..=8 * N).contains(&freed), "{freed} bytes came back with the graph");
}

#[test]
fn a_recording_that_fails_leaves_all_as_it_was() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(3, 0);
    let mut step = Step::new(&gpu, &mut rng);
    let wanted = step.change(&gpu, &mut rng);
    let used = gpu.memory_use().used_bytes;
    let fault = || Error::Unsupported("the closure's own".into());
    let failed = gpu.record(|| step.run(&gpu).and(Err(fault())));
    assert_eq!(failed.unwrap_err().to_string(), fault().to_string());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = gpu.record(|| {
            step.run(&gpu).unwrap();
            panic!("within a recording");
        });
    }));
    assert!(panicked.is_err());
    assert_eq!(gpu.memory_use().used_bytes, used);
    assert_eq!(read(&gpu, &step.out), [-1.0; N], "nothing of it was done");
    step.run(&gpu).unwrap();
    assert_eq!(read(&gpu, &step.out), wanted);
    let graph = gpu.record(|| step.run(&gpu)).unwrap();
    graph.launch(&gpu).unwrap();
    assert_eq!(read(&gpu, &step.out), wanted);
}

#[test]
fn what_a_graph_cannot_hold_is_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    let mut x = gpu.upload(&[1f32; 8]).unwrap();
    let graph = gpu.record(|| Ok(())).unwrap();
    graph.launch(&gpu).unwrap();
    let under_way = gpu.download_async(&x.slice()).unwrap();
    let mut under_way = Some(under_way);
    type Work<'a> = &'a mut dyn FnMut(&mut DeviceBuffer<f32>) -> Result<()>;
    let cases: [(&str, Work<'_>); 12] = [
        ("copying to the device", &mut |x| gpu.write(&mut x.slice_mut(), &[2.0; 8])),
        ("copying to the device", &mut |_| gpu.upload(&[1f32; 2]).map(|_| ())),
        ("copying to the device", &mut |x| {
            gpu.upload_pieces(&mut x.slice_mut(), 4, |_, _: &mut [f32]| Ok(()))
        }),
        ("copying from the device", &mut |x| gpu.download(&x.slice(), &mut [0.0; 8])),
        ("copying from the device", &mut |x| gpu.download_async(&x.slice()).map(|_| ())),
        ("waiting for numbers", &mut |_| under_way.take().unwrap().wait(&mut [0.0; 8])),
        ("waiting for the device", &mut |_| gpu.sync()),
        ("timing", &mut |_| gpu.time(|| Ok(())).map(|_| ())),
        ("giving memory back", &mut |_| gpu.trim()),
        ("reserving memory", &mut |_| gpu.reserve(1 << 20)),
        ("recording a graph", &mut |_| gpu.record(|| Ok(())).map(|_| ())),
        ("launching a graph", &mut |_| graph.launch(&gpu)),
    ];
    for (what, work) in cases {
        let error = gpu.record(|| work(&mut x)).unwrap_err().to_string();
        assert!(error.starts_with(what) && error.contains("while a graph is recorded"), "{error}");
        // A closure that goes on after a refusal still has its graph.
        let refused = gpu.record(|| {
            assert!(what == "waiting for numbers" || work(&mut x).is_err());
            fill(&gpu, FloatsMut::F32(x.slice_mut()), 7.0)
        });
        refused.unwrap().launch(&gpu).unwrap();
        assert_eq!(read(&gpu, &x), [7.0; 8], "{what}");
    }
    assert!(!graph.is_stale(&gpu));
}

#[test]
fn a_stale_graph_is_not_launched() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(4, 0);
    let older = gpu.upload(&[0f32; 100]).unwrap();
    let (_step, graph) = recorded(&gpu, &mut rng);
    let (_other_step, other) = recorded(&gpu, &mut rng);
    // Buffers that came later, another graph among their holders, do not matter.
    drop(gpu.upload(&[0f32; 100]).unwrap());
    drop(gpu.record(|| gpu.alloc::<f32>(10).map(|_| ())).unwrap());
    assert!(!graph.is_stale(&gpu) && !other.is_stale(&gpu));
    drop(older);
    for graph in [&graph, &other] {
        assert!(graph.is_stale(&gpu));
        let error = graph.launch(&gpu).unwrap_err().to_string();
        assert!(error.contains("record it again"), "{error}");
    }
    let (_step, graph) = recorded(&gpu, &mut rng);
    let generation = gpu.generation();
    gpu.trim().unwrap();
    assert_ne!(gpu.generation(), generation);
    assert!(graph.is_stale(&gpu) && graph.launch(&gpu).is_err());
}

#[test]
fn a_buffer_dropped_by_a_recording_is_the_graphs() {
    let Some(gpu) = gpu() else { return };
    let mut out = gpu.upload(&[0f32; 8]).unwrap();
    let mut input = Some(gpu.upload(&[3f32; 8]).unwrap());
    let one = gpu.upload(&[1f32; 8]).unwrap();
    let before = gpu.record(|| gpu.copy(&mut out.slice_mut(), &one.slice())).unwrap();
    let graph = gpu
        .record(|| {
            let input = input.take().unwrap();
            gpu.copy(&mut out.slice_mut(), &input.slice())
        })
        .unwrap();
    let _other = gpu.upload(&[9f32; 8]).unwrap();
    graph.launch(&gpu).unwrap();
    assert_eq!(read(&gpu, &out), [3.0; 8]);
    assert!(before.is_stale(&gpu), "which may have worked on it too");
}

#[test]
fn a_graph_is_its_own_devices() {
    let (Some(one), Some(two)) = (gpu(), gpu()) else { return };
    let graph = one.record(|| Ok(())).unwrap();
    assert!(graph.is_stale(&two) && !graph.is_stale(&one));
    let error = graph.launch(&two).unwrap_err().to_string();
    assert!(error.contains("on another device"), "{error}");
    graph.launch(&one).unwrap();
}

#[test]
fn a_recording_holds_nothing_of_other_threads() {
    let Some(gpu) = gpu() else { return };
    let mut mine = gpu.upload(&[0f32; 8]).unwrap();
    let mut theirs = gpu.upload(&[0f32; 8]).unwrap();
    let began = std::sync::Barrier::new(2);
    let graph = std::thread::scope(|scope| {
        scope.spawn(|| {
            began.wait();
            // Waits for the recording, then is done at once.
            fill(&gpu, FloatsMut::F32(theirs.slice_mut()), 5.0).unwrap();
        });
        gpu.record(|| {
            began.wait();
            std::thread::sleep(std::time::Duration::from_millis(50));
            fill(&gpu, FloatsMut::F32(mine.slice_mut()), 6.0)
        })
        .unwrap()
    });
    assert_eq!((read(&gpu, &mine), read(&gpu, &theirs)), (vec![0.0; 8], vec![5.0; 8]));
    gpu.fill_zero(&mut theirs.slice_mut()).unwrap();
    graph.launch(&gpu).unwrap();
    assert_eq!((read(&gpu, &mine), read(&gpu, &theirs)), (vec![6.0; 8], vec![0.0; 8]));
}

#[test]
fn pieces_come_in_order_and_whole() {
    let Some(gpu) = gpu() else { return };
    let piece = 100;
    for len in [0, 1, piece - 1, piece, piece + 1, 2 * piece, 7 * piece + 3] {
        let mut x = gpu.upload(&vec![-1i32; len + 1]).unwrap();
        let mut seen = vec![];
        let mut to = x.slice_mut().range_mut(0..len);
        let filled = gpu.upload_pieces(&mut to, piece, |index, part: &mut [i32]| {
            seen.push((index, part.len()));
            // The device may be used meanwhile.
            assert_eq!(gpu.upload(&[1u8, 2, 3])?.len(), 3);
            part.iter_mut().enumerate().for_each(|(at, x)| *x = (index * piece + at) as i32);
            Ok(())
        });
        filled.unwrap();
        let mut got = vec![0; len + 1];
        gpu.download(&x.slice(), &mut got).unwrap();
        let wanted: Vec<i32> = (0..len as i32).chain([-1]).collect();
        assert_eq!(got, wanted, "{len}");
        let pieces = (0..len).step_by(piece).map(|first| piece.min(len - first));
        assert!(seen.into_iter().eq(pieces.enumerate()), "{len}");
    }
}

#[test]
fn pieces_that_fail_say_why() {
    let Some(gpu) = gpu() else { return };
    let mut x = gpu.upload(&[0u32; 10]).unwrap();
    let error = gpu.upload_pieces(&mut x.slice_mut(), 2, |index, part: &mut [u32]| {
        part.fill(1);
        match index {
            3 => Err(Error::Unsupported("the fourth piece".into())),
            _ => Ok(()),
        }
    });
    assert!(error.unwrap_err().to_string().contains("the fourth piece"));
    let mut got = [9; 10];
    gpu.download(&x.slice(), &mut got).unwrap();
    assert_eq!(got, [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
    let none = gpu.upload_pieces(&mut x.slice_mut(), 0, |_, _: &mut [u32]| Ok(()));
    assert!(none.unwrap_err().to_string().contains("at least one element"));
}

#[test]
fn what_is_written_may_change_at_once() {
    let Some(gpu) = gpu() else { return };
    // Each of another length, together several times what small writes have room for at once.
    let lens: Vec<usize> = (0..40).map(|i| 1 + 7919 * i).collect();
    let mut buffer: Vec<f32> = vec![];
    let written: Vec<_> = lens
        .iter()
        .enumerate()
        .map(|(i, &len)| {
            buffer.clear();
            buffer.extend((0..len).map(|at| (at + i) as f32));
            let x = gpu.upload(&buffer).unwrap();
            buffer.fill(-1.0);
            x
        })
        .collect();
    for (i, x) in written.iter().enumerate() {
        let got = read(&gpu, x);
        let wrong = got.iter().enumerate().find(|(at, x)| **x != (at + i) as f32);
        assert_eq!(wrong, None, "buffer {i}");
    }
}

#[test]
fn a_large_write_is_whole() {
    let Some(gpu) = gpu() else { return };
    for len in [(1 << 20) / 2 + 1, (17 << 20) / 2 + 3] {
        let mut numbers: Vec<u16> = (0..len).map(|at| (at * 31 % 65_521) as u16).collect();
        let x = gpu.upload(&numbers).unwrap();
        let wanted = numbers.clone();
        numbers.fill(0);
        gpu.download(&x.slice(), &mut numbers).unwrap();
        assert!(numbers == wanted, "{len}");
    }
}

#[test]
fn a_download_is_of_when_it_was_asked_for() {
    let Some(gpu) = gpu() else { return };
    let mut x = gpu.upload(&[1f32; 5000]).unwrap();
    let first = gpu.download_async(&x.slice()).unwrap();
    fill(&gpu, FloatsMut::F32(x.slice_mut()), 2.0).unwrap();
    let second = gpu.download_async(&x.slice().range(1..3)).unwrap();
    // One that nobody waits for takes nothing along.
    drop(gpu.download_async(&x.slice()).unwrap());
    fill(&gpu, FloatsMut::F32(x.slice_mut()), 3.0).unwrap();
    let mut got = vec![0.0; 5000];
    assert!(gpu.download_async(&x.slice()).unwrap().wait(&mut got[1..]).is_err());
    assert_eq!((second.len(), second.is_empty()), (2, false));
    let mut two = [0.0; 2];
    second.wait(&mut two).unwrap();
    assert_eq!(two, [2.0; 2]);
    first.wait(&mut got).unwrap();
    assert_eq!(got, [1.0; 5000]);
    let nothing = gpu.alloc::<f32>(0).unwrap();
    gpu.download_async(&nothing.slice()).unwrap().wait(&mut []).unwrap();
}

#[test]
fn use_is_counted() {
    let Some(gpu) = gpu() else { return };
    let before = gpu.memory_use();
    let (free, total) = gpu.memory_free().unwrap();
    assert!(free <= total && total <= gpu.properties().total_bytes);
    let x = gpu.alloc::<f32>(1000).unwrap();
    let during = gpu.memory_use();
    assert!((4000..4512).contains(&(during.used_bytes - before.used_bytes)));
    assert!(during.peak_bytes >= during.used_bytes);
    drop(x);
    let after = gpu.memory_use();
    assert_eq!((after.used_bytes, after.peak_bytes), (before.used_bytes, during.peak_bytes));
    gpu.reserve(3 << 20).unwrap();
    let reserved = gpu.memory_use();
    // In what was reserved there is room for all of this.
    let held = [1 << 20, 1 << 19, 1].map(|n| gpu.alloc::<u8>(n).unwrap());
    let is_host = gpu.properties().name == "host harness";
    assert_eq!(gpu.memory_use().n_allocations == reserved.n_allocations, !is_host);
    for x in &held {
        assert!(x.slice().address().is_multiple_of(256));
    }
    drop(held);
    gpu.trim().unwrap();
    assert_eq!(gpu.memory_use().kept_bytes, 0);
}

/// Numbers of the error of a full device.
#[cfg(feature = "cuda-host")]
fn full(error: Error) -> [usize; 4] {
    let Error::DeviceMemory { asked, used, free, total, .. } = error else { panic!("{error}") };
    [asked, used, free, total]
}

#[cfg(feature = "cuda-host")]
#[test]
fn a_full_device_says_what_there_was() {
    let mib = 1 << 20;
    let gpu = Gpu::host_with_memory(4 * mib).unwrap();
    assert_eq!(gpu.properties().total_bytes, 4 * mib);
    let held = gpu.alloc::<u8>(3 * mib).unwrap();
    assert_eq!(gpu.memory_free().unwrap(), (mib, 4 * mib));
    let error = gpu.alloc::<f32>(mib).unwrap_err();
    assert_eq!(full(error), [4 * mib, 3 * mib, mib, 4 * mib]);
    assert_eq!(full(gpu.reserve(2 * mib).unwrap_err()), [2 * mib, 3 * mib, mib, 4 * mib]);
    gpu.reserve(mib).unwrap();
    drop(held);
    let all = gpu.alloc::<f32>(mib).unwrap();
    assert_eq!(gpu.memory_free().unwrap().0, 0);
    drop(all);
    assert!(gpu.alloc::<u64>(usize::MAX / 4).is_err());

    let error = || gpu.alloc::<u8>(5 * mib).unwrap_err();
    let text = error().to_string();
    assert!(text.contains("5242880 bytes asked for beside 0 in use, 4194304 free"), "{text}");
    let told = error().with_hint(|free, used| Some(format!("{free} and {used}: --batch-size 1")));
    assert!(told.to_string().ends_with("; 4194304 and 0: --batch-size 1"), "{told}");
    // Whoever knew first knew best; other errors have no such hint.
    let again = told.with_hint(|_, _| Some("another".into()));
    assert!(again.to_string().ends_with("--batch-size 1"), "{again}");
    let other = Error::Cancelled.with_hint(|_, _| Some("another".into()));
    assert!(matches!(other, Error::Cancelled));
}
