//! Attention over caches on the device against f64: every type of cache, every width, edges of pages
//! and chunks, windows, grouped heads, pages in any order; bits that depend on nothing else.

use half::{bf16, f16};
use puna::cuda::attention::{Plan, Scores, Segment, Settings, Split, Workspace, append, attend};
use puna::cuda::kv::{KvPages, KvShape, KvType, PAGE};
use puna::cuda::{Floats, FloatsMut, Gpu};
use puna::error::Error;
use puna::rng::Rng;
use puna_cpu::reference::{self, AttentionShape};

use crate::support::{EPS_BF16, Failures, Guarded, from_bf16, gpu, guarded, normals, to_bf16};

/// The machine epsilon of f32, twice a rounding: tensor cores may cut off what does not fit.
const EPS: f64 = f32::EPSILON as f64;
/// What one rounding to f16 loses, relative.
const EPS_F16: f64 = 1.0 / 2048.0;
/// Half the smallest f16 above 0: what one rounding of a small number loses.
const TINY_F16: f64 = 1.0 / (1 << 25) as f64;

#[derive(Clone, Debug)]
pub struct Case {
    kv_type: KvType,
    heads: [usize; 2],
    head_dim: usize,
    window: Option<usize>,
    /// Position of the first row and number of rows, of each sequence.
    rows: Vec<(usize, usize)>,
    split: Split,
    /// Whether q and out are bf16.
    low: bool,
    /// Factor of the queries.
    size: f32,
}

pub fn case(kv_type: KvType, heads: [usize; 2], head_dim: usize, rows: &[(usize, usize)]) -> Case {
    let (rows, split) = (rows.to_vec(), Split::Auto);
    Case { kv_type, heads, head_dim, window: None, rows, split, low: false, size: 1.0 }
}

/// Queries, keys and values of all positions of one sequence.
#[derive(Clone)]
pub struct Sequence {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Case {
    pub fn shape(&self) -> KvShape {
        KvShape { n_kv_heads: self.heads[1], head_dim: self.head_dim, kv_type: self.kv_type }
    }

    fn scores(&self) -> Scores {
        Scores { scale: 1.0 / (self.head_dim as f32).sqrt(), window: self.window }
    }

    pub fn settings(&self) -> Settings {
        Settings { n_heads: self.heads[0], room: 0, split: self.split }
    }

    pub fn dims(&self) -> [usize; 2] {
        self.heads.map(|heads| heads * self.head_dim)
    }

    /// Queries that every 16-bit type holds exactly.
    pub fn sequence(&self, seed: u64, len: usize) -> Sequence {
        let mut rng = Rng::new(seed, 0);
        let [q, kv] = self.dims();
        let sized: Vec<f32> = normals(&mut rng, len * q).iter().map(|x| x * self.size).collect();
        Sequence {
            q: from_bf16(&to_bf16(&sized)),
            k: normals(&mut rng, len * kv),
            v: normals(&mut rng, len * kv),
        }
    }

    fn sequences(&self, seed: u64) -> Vec<Sequence> {
        let ends = self.rows.iter().enumerate();
        ends.map(|(i, &(first, n))| self.sequence(seed * 100 + i as u64, first + n)).collect()
    }

    /// A cache for `len` positions that holds NaN everywhere; for a `table`, with its pages there
    /// and one more, which no sequence has.
    pub fn cache(&self, gpu: &Gpu, len: usize, shuffled: bool) -> KvPages {
        let pages = len.div_ceil(PAGE);
        let room = if shuffled { pages + 1 } else { pages };
        let mut cache = KvPages::new(gpu, self.shape(), room * PAGE).unwrap();
        let fill = |bytes: &mut [u8]| -> Result<(), Error> {
            bytes.fill(0xff);
            Ok(())
        };
        cache.restore(gpu, room * PAGE, &mut { fill }).unwrap();
        if !shuffled {
            return cache;
        }
        // The last page first, then every other; page 0 is nobody's.
        let (odd, even): (Vec<u32>, Vec<u32>) = (1..=pages as u32).rev().partition(|i| i % 2 == 1);
        cache.with_table(gpu, &[odd, even].concat()).unwrap()
    }
}

/// Numbers of one of the types, with sentinels behind.
enum Block<'g> {
    F32(Guarded<'g, f32>),
    Bf16(Guarded<'g, bf16>),
}

impl<'g> Block<'g> {
    fn new(gpu: &'g Gpu, low: bool, x: &[f32]) -> Self {
        if low { Block::Bf16(guarded(gpu, &to_bf16(x))) } else { Block::F32(guarded(gpu, x)) }
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Block::F32(x) => Floats::F32(x.slice()),
            Block::Bf16(x) => Floats::Bf16(x.slice()),
        }
    }

    fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Block::F32(x) => FloatsMut::F32(x.slice_mut()),
            Block::Bf16(x) => FloatsMut::Bf16(x.slice_mut()),
        }
    }

    fn check(&self) -> Vec<f32> {
        match self {
            Block::F32(x) => x.check(),
            Block::Bf16(x) => from_bf16(&x.check()),
        }
    }
}

/// The rows of a pass, one sequence after the other, of numbers of `dim` a position.
fn gather<'a>(of: impl Iterator<Item = (&'a [f32], (usize, usize))>, dim: usize) -> Vec<f32> {
    of.flat_map(|(x, (first, n))| &x[first * dim..(first + n) * dim]).copied().collect()
}

pub fn segments(rows: &[(usize, usize)]) -> Vec<Segment> {
    rows.iter().map(|&(first_pos, n_rows)| Segment { first_pos, n_rows }).collect()
}

/// Appends rows to the caches.
pub fn write(
    gpu: &Gpu,
    case: &Case,
    of: &[&Sequence],
    rows: &[(usize, usize)],
    caches: &[&KvPages],
) {
    let plan = Plan::new(gpu, case.settings(), &segments(rows), caches).unwrap();
    let [_, dim] = case.dims();
    let pick = |x: fn(&Sequence) -> &[f32]| {
        let rows = of.iter().map(|of| x(of)).zip(rows.iter().copied());
        guarded(gpu, &gather(rows, dim))
    };
    let (k, v) = (pick(|of| &of.k), pick(|of| &of.v));
    append(gpu, &plan, 0, Floats::F32(k.slice()), Floats::F32(v.slice())).unwrap();
}

/// One pass: appends the rows and attends over what there is then.
fn pass(
    gpu: &Gpu,
    case: &Case,
    of: &[&Sequence],
    rows: &[(usize, usize)],
    caches: &[&KvPages],
) -> Vec<f32> {
    write(gpu, case, of, rows, caches);
    let plan = Plan::new(gpu, case.settings(), &segments(rows), caches).unwrap();
    let queries = of.iter().map(|of| &of.q[..]).zip(rows.iter().copied());
    let q = gather(queries, case.dims()[0]);
    // What an overwriting kernel must not leave.
    let mut out = Block::new(gpu, case.low, &vec![777.0; q.len()]);
    let q = Block::new(gpu, case.low, &q);
    let mut workspace = Workspace::new();
    attend(gpu, &plan, 0, out.floats_mut(), q.floats(), case.scores(), &mut workspace).unwrap();
    assert_eq!(workspace.bytes(), 4 * plan.workspace());
    out.check()
}

/// The case's rows, everything before them appended in a pass of its own.
fn run(gpu: &Gpu, case: &Case, sequences: &[Sequence], shuffled: bool) -> Vec<f32> {
    let ends = case.rows.iter().map(|&(first, n)| first + n);
    let caches: Vec<KvPages> = ends.map(|end| case.cache(gpu, end, shuffled)).collect();
    let (caches, of): (Vec<_>, Vec<_>) = (caches.iter().collect(), sequences.iter().collect());
    let before: Vec<(usize, usize)> = case.rows.iter().map(|&(first, _)| (0, first)).collect();
    write(gpu, case, &of, &before, &caches);
    pass(gpu, case, &of, &case.rows, &caches)
}

/// What a cache makes of numbers: the type's own rounding.
fn stored(case: &Case, x: &[f32]) -> Vec<f32> {
    let q8 = |x: &[f32]| -> Vec<f32> {
        let scale = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
        x.iter().map(|x| (x * (1.0 / scale)).round_ties_even() * scale).collect()
    };
    match case.kv_type {
        KvType::F16 => x.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        KvType::Bf16 => from_bf16(&to_bf16(x)),
        KvType::F32 => x.to_vec(),
        KvType::Q8_0 => x.chunks(case.head_dim).flat_map(|h| h.chunks(32).flat_map(q8)).collect(),
    }
}

/// Holds `got` to the reference; `exact`: the cache's type holds the queries.
///
/// A score of absolute terms A is off by (head_dim + 2) EPS A, and a weight by that of its score, of
/// its row's normaliser, and EPS A for each of the two subtractions; sums over n terms add n EPS. On
/// tensor cores weights are also off by a rounding where they meet values and ones: of numerator and
/// of denominator. A rounded query, and a rounded key of q8_0, moves a score by a rounding of A, which
/// weight and normaliser both have; a rounded value of q8_0 adds one more. So does an output of bf16.
fn check(failures: &mut Failures, case: &Case, sequences: &[Sequence], got: &[f32], exact: bool) {
    let norm = |x: &[f32]| {
        let norms = x.chunks(case.head_dim).map(|x| x.iter().map(|&x| f64::from(x).powi(2)).sum());
        norms.fold(0.0, f64::max).sqrt()
    };
    let (rounding, tiny) = match case.kv_type {
        KvType::F32 => (0.0, 0.0),
        KvType::F16 => (EPS_F16, TINY_F16),
        KvType::Bf16 | KvType::Q8_0 => (EPS_BF16, 0.0),
    };
    let q8 = if case.kv_type == KvType::Q8_0 { 1.0 } else { 0.0 };
    let moved = q8 + if exact { 0.0 } else { 1.0 };
    let Scores { scale, window } = case.scores();
    let [dim, _] = case.dims();
    let mut start = 0;
    for (of, &(first_pos, n)) in sequences.iter().zip(&case.rows) {
        let (k, v) = (stored(case, &of.k), stored(case, &of.v));
        let q = &of.q[first_pos * dim..][..n * dim];
        let [n_heads, n_kv_heads] = case.heads;
        let head_dim = case.head_dim;
        let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale, window, first_pos };
        let want = reference::attention(&shape, q, &k, &v);
        let positive: Vec<f32> = v.iter().map(|v| v.abs()).collect();
        let size = reference::attention(&shape, q, &k, &positive);
        let a = norm(q) * norm(&k) * f64::from(scale);
        let terms = (first_pos + n).min(window.unwrap_or(usize::MAX)) as f64;
        let rel = EPS * (4.0 * (head_dim + 4) as f64 * a + 2.0 * (terms + head_dim as f64) + 32.0)
            + rounding * (1.0 + q8 + 2.0 * moved * a);
        let most = positive.iter().fold(0.0, |m: f32, &v| m.max(v));
        let out = if case.low { EPS_BF16 } else { 0.0 };
        let tol = |i: usize| {
            rel * size[i]
                + (rounding + out) * want[i].abs()
                + terms * tiny * f64::from(most)
                + 1e-30
        };
        let name = format!("{case:?}, rows from {first_pos} on");
        failures.compare(&name, &got[start..start + n * dim], &want, tol);
        if n > 0 && want.iter().enumerate().all(|(i, want)| want.abs() <= tol(i)) {
            failures.note(format!("{name}: zeros would do"));
        }
        start += n * dim;
    }
}

fn check_all(cases: impl IntoIterator<Item = Case>) {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (seed, case) in cases.into_iter().enumerate() {
        let sequences = case.sequences(seed as u64);
        let got = run(&gpu, &case, &sequences, seed % 2 == 1);
        check(&mut failures, &case, &sequences, &got, true);
    }
    failures.end();
}

#[test]
fn attention_agrees_with_the_reference_for_every_type_and_width() {
    // Few rows of one sequence, many of another: both forms of a block.
    let widths = [8, 12, 24, 33, 40, 64, 72, 80, 96, 120, 128, 160, 256];
    check_all(widths.into_iter().flat_map(|width| {
        let low = width % 16 == 0;
        KvType::ALL
            .map(|kv_type| Case { low, ..case(kv_type, [2, 1], width, &[(70, 1), (50, 17)]) })
    }));
}

#[test]
fn attention_agrees_with_the_reference_at_the_edges_of_pages_and_chunks() {
    let lens = [1, 63, 64, 65, 255, 256, 257, 520];
    for split in [Split::Always, Split::Never] {
        check_all(KvType::ALL.map(|kv_type| {
            let rows = lens.map(|len| (len - 1, 1));
            Case { split, ..case(kv_type, [2, 1], 64, &rows) }
        }));
        let rows = [(250, 40), (0, 34)];
        check_all(KvType::ALL.map(|t| Case { split, ..case(t, [1, 1], 64, &rows) }));
    }
}

#[test]
fn attention_agrees_with_the_reference_for_every_ratio_of_heads() {
    let ratios = [[3, 3], [3, 1], [8, 2], [7, 1], [14, 2], [17, 1]];
    check_all(ratios.into_iter().flat_map(|heads| {
        [KvType::F32, KvType::F16].map(|kv_type| case(kv_type, heads, 16, &[(20, 1), (30, 13)]))
    }));
}

#[test]
fn attention_agrees_with_the_reference_for_every_window() {
    let windows = [1, 2, 63, 64, 65, 100, 256, 300, usize::MAX];
    for split in [Split::Always, Split::Never] {
        check_all(windows.into_iter().flat_map(|window| {
            let rows = [(519, 1), (290, 34)];
            [KvType::F32, KvType::Bf16].map(|kv_type| {
                let window = Some(window);
                Case { window, split, ..case(kv_type, [1, 1], 32, &rows) }
            })
        }));
    }
}

#[test]
fn attention_neither_overflows_nor_loses_rows_of_large_scores() {
    check_all(KvType::ALL.into_iter().flat_map(|kv_type| {
        let of = case(kv_type, [2, 1], 16, &[(270, 1), (280, 20)]);
        [Case { size: 1e-3, ..of.clone() }, Case { size: 1e-3, split: Split::Always, ..of }]
    }));
    // Scores of some hundreds: sharp rows, whose weights f32 arithmetic still resolves.
    check_all([Split::Always, Split::Never].map(|split| Case {
        size: 100.0,
        split,
        ..case(KvType::F32, [2, 1], 16, &[(270, 1), (280, 20)])
    }));
}

#[test]
fn attention_rounds_queries_once() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for kv_type in KvType::ALL {
        let case = case(kv_type, [2, 1], 40, &[(30, 1), (20, 20)]);
        let mut sequences = case.sequences(3);
        let mut rng = Rng::new(8, 0);
        for of in &mut sequences {
            of.q = normals(&mut rng, of.q.len());
        }
        let got = run(&gpu, &case, &sequences, false);
        check(&mut failures, &case, &sequences, &got, false);
    }
    failures.end();
}

/// The bits of a whole sequence's rows, computed in passes of these lengths.
fn in_passes(gpu: &Gpu, case: &Case, of: &Sequence, passes: &[usize], shuffled: bool) -> Vec<f32> {
    let cache = case.cache(gpu, passes.iter().sum(), shuffled);
    let (mut first, mut all) = (0, vec![]);
    for &n in passes {
        all.extend(pass(gpu, case, &[of], &[(first, n)], &[&cache]));
        first += n;
    }
    all
}

#[test]
fn attention_gives_a_row_the_same_bits_however_a_prompt_is_cut() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let widths = [(KvType::F32, 24), (KvType::F16, 64), (KvType::Bf16, 80), (KvType::Q8_0, 40)];
    let shapes = widths.map(|(kv_type, width)| (kv_type, width, None));
    let wide = [(KvType::Bf16, 256, Some(100)), (KvType::F32, 136, Some(300))];
    for (kv_type, head_dim, window) in shapes.into_iter().chain(wide) {
        let of = |split| Case { split, window, ..case(kv_type, [2, 1], head_dim, &[]) };
        let sequence = of(Split::Auto).sequence(5, 300);
        let whole = in_passes(&gpu, &of(Split::Never), &sequence, &[300], false);
        let mut same = |what: &str, split, passes: &[usize], shuffled: bool| {
            let got = in_passes(&gpu, &of(split), &sequence, passes, shuffled);
            let name = format!("{kv_type}, {head_dim}, {what}");
            failures.compare_bits(&name, &got, &whole);
        };
        same("partial results", Split::Always, &[300], false);
        same("cut", Split::Never, &[33, 1, 16, 206, 1, 43], false);
        same("cut, pages in disorder, partial results", Split::Always, &[250, 5, 1, 1, 43], true);
    }
    failures.end();
}

#[test]
fn attention_gives_a_row_the_same_bits_in_any_batch() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for kv_type in KvType::ALL {
        for split in [Split::Always, Split::Never] {
            let rows = [(280, 1), (0, 40), (64, 2), (100, 18), (0, 0), (300, 1)];
            let batch = Case { split, ..case(kv_type, [4, 2], 24, &rows) };
            let sequences = batch.sequences(6);
            let together = run(&gpu, &batch, &sequences, true);
            let mut start = 0;
            for (i, row) in rows.iter().enumerate() {
                let alone = Case { rows: vec![*row], split: Split::Auto, ..batch.clone() };
                let alone = run(&gpu, &alone, &sequences[i..=i], false);
                let got = &together[start..start + alone.len()];
                failures.compare_bits(&format!("{kv_type}, {split:?}, {row:?}"), got, &alone);
                start += alone.len();
            }
        }
    }
    failures.end();
}

#[test]
fn a_plan_that_is_updated_reads_what_is_new() {
    let Some(gpu) = gpu() else { return };
    for split in [Split::Always, Split::Never] {
        let case = Case { split, ..case(KvType::Bf16, [4, 2], 32, &[]) };
        let of = [case.sequence(1, 300), case.sequence(2, 300)];
        let of: Vec<_> = of.iter().collect();
        let caches = [case.cache(&gpu, 300, false), case.cache(&gpu, 300, true)];
        // Two layers: the second has the caches in the other order.
        let caches = [&caches[0], &caches[1], &caches[1], &caches[0]];
        let before = [(0, 300), (0, 300)];
        write(&gpu, &case, &of, &before, &caches[..2]);
        let settings = Settings { room: 300, ..case.settings() };
        let mut plan = Plan::new(&gpu, settings, &segments(&[(9, 1), (3, 1)]), &caches).unwrap();
        assert_eq!((plan.rows(), plan.layers(), plan.room()), (2, 2, 512));
        let now = [(299, 1), (250, 1)];
        plan.update(&gpu, &segments(&now), &caches).unwrap();
        let [dim, kv] = case.dims();
        let pick = |x: fn(&Sequence) -> &[f32], dim| {
            guarded(&gpu, &gather(of.iter().map(|of| x(of)).zip(now), dim))
        };
        let (k, v) = (pick(|of| &of.k, kv), pick(|of| &of.v, kv));
        append(&gpu, &plan, 0, Floats::F32(k.slice()), Floats::F32(v.slice())).unwrap();
        let q = pick(|of| &of.q, dim);
        let mut workspace = Workspace::new();
        let mut layer = |layer| {
            let mut out = guarded(&gpu, &vec![777.0; 2 * dim]);
            let to = FloatsMut::F32(out.slice_mut());
            attend(&gpu, &plan, layer, to, Floats::F32(q.slice()), case.scores(), &mut workspace)
                .unwrap();
            out.check()
        };
        let got = [layer(0), layer(1)];
        let want = pass(&gpu, &case, &of, &now, &caches[..2]);
        assert_eq!(got[0], want, "{split:?}");
        assert_ne!(got[1], want, "{split:?}");
        assert!(layer_error(&gpu, &plan, q.slice().len()).contains("a layer below 2"));
        for (rows, what) in [
            (vec![(299, 1)], "segments of [1, 1] rows"),
            (vec![(298, 2), (1, 1)], "segments of [1, 1] rows"),
            (vec![(299, 1), (320, 1)], "positions below 320"),
        ] {
            let refused = plan.update(&gpu, &segments(&rows), &caches);
            let message = refused.expect_err("a refusal").to_string();
            assert!(message.contains(what), "{rows:?}: {message}");
        }
    }
}

fn layer_error(gpu: &Gpu, plan: &Plan, n: usize) -> String {
    let (mut out, q) = (gpu.alloc::<f32>(n).unwrap(), gpu.alloc::<f32>(n).unwrap());
    let scores = Scores { scale: 1.0, window: None };
    let (out, q) = (FloatsMut::F32(out.slice_mut()), Floats::F32(q.slice()));
    let done = attend(gpu, plan, 2, out, q, scores, &mut Workspace::new());
    done.expect_err("a refusal").to_string()
}

#[test]
fn attention_refuses_what_it_cannot_compute() {
    let Some(gpu) = gpu() else { return };
    let of = case(KvType::F16, [4, 2], 16, &[]);
    let shape = of.shape();
    let message = |refused: Error| refused.to_string();
    let made = |shape, n| message(KvPages::new(&gpu, shape, n).expect_err("a refusal"));
    assert!(made(KvShape { head_dim: 257, ..shape }, 1).contains("heads of 257"));
    assert!(made(KvShape { n_kv_heads: 0, ..shape }, 1).contains("at least one head"));
    assert!(made(shape, 1 << 31).contains("2^31"));
    let cache = KvPages::new(&gpu, shape, 100).unwrap();
    assert_eq!(cache.capacity(), 128);
    let table = |table: &[u32]| message(cache.with_table(&gpu, table).expect_err("a refusal"));
    assert!(table(&[1, 1]).contains("page 1 twice"));
    assert!(table(&[0, 2]).contains("page 2"));
    let other = KvPages::new(&gpu, KvShape { head_dim: 8, ..shape }, 100).unwrap();
    let mut copy = KvPages::new(&gpu, shape, 60).unwrap();
    assert!(message(copy.copy_from(&gpu, &other, 1).unwrap_err()).contains("head_dim: 8"));
    assert!(message(copy.copy_from(&gpu, &cache, 65).unwrap_err()).contains("at most 64"));

    let plan = |n_heads, rows: &[(usize, usize)], caches: &[&KvPages]| {
        let settings = Settings { n_heads, room: 0, split: Split::Auto };
        message(Plan::new(&gpu, settings, &segments(rows), caches).expect_err("a refusal"))
    };
    assert!(plan(3, &[(0, 1)], &[&cache]).contains("3 heads over 2 KV heads"));
    assert!(plan(4, &[(0, 1)], &[]).contains("0 caches of 1 segments"));
    assert!(plan(4, &[(120, 9)], &[&cache]).contains("positions below 128"));
    assert!(plan(4, &[(usize::MAX, 2)], &[&cache]).contains("positions below 128"));
    assert!(plan(4, &[(0, 1), (0, 1)], &[&cache, &other]).contains("in every cache"));
    let view = cache.with_table(&gpu, &[1, 0]).unwrap();
    assert!(plan(4, &[(0, 1), (64, 1)], &[&cache, &view]).contains("two segments write"));
    let settings = of.settings();
    // Both may read a page that neither writes.
    let apart = segments(&[(0, 1), (0, 1)]);
    let plan = Plan::new(&gpu, settings, &apart, &[&cache, &view]).unwrap();

    let attempt = |n_out: usize, n_q: usize, scores: Scores| {
        let (mut out, q) = (gpu.alloc::<f32>(n_out).unwrap(), gpu.alloc::<bf16>(n_q).unwrap());
        let (out, q) = (FloatsMut::F32(out.slice_mut()), Floats::Bf16(q.slice()));
        let done = attend(&gpu, &plan, 0, out, q, scores, &mut Workspace::new());
        message(done.expect_err("a refusal"))
    };
    let good = of.scores();
    assert!(attempt(127, 128, good).contains("out"));
    assert!(attempt(128, 129, good).contains("q"));
    assert!(attempt(128, 128, Scores { window: Some(0), ..good }).contains("a window of 0"));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(attempt(128, 128, Scores { scale, ..good }).contains("scale"), "{scale}");
    }
    let (k, low) = (gpu.alloc::<f32>(64).unwrap(), gpu.alloc::<bf16>(64).unwrap());
    let k = Floats::F32(k.slice());
    let mixed = append(&gpu, &plan, 0, k, Floats::Bf16(low.slice()));
    assert!(message(mixed.unwrap_err()).contains("bf16, wanted f32"));
    assert!(
        message(append(&gpu, &plan, 0, k.range(0..63), k).unwrap_err()).contains("63 elements")
    );
}
