//! Rows by number on the device: look-ups bit for bit, the table's gradient with the CPU's bits.

use half::f16;
use puna::cuda::embedding::{
    Occurrences, Table, embedding_bwd_acc, gather, scatter_rows, select_rows,
};
use puna::rng::Rng;
use puna_cpu::embedding::embedding_bwd_acc as on_cpu;
use puna_cpu::isa::Isa;
use puna_cpu::testing::{Storage, Stored};

use crate::stored::{OnDevice, pairs};
use crate::support::{Failures, gpu, guarded, normals};

/// Rows of the table, their width, ids: tails of a thread's eight, rows of several blocks.
const SIZES: &[(usize, usize, usize)] =
    &[(5, 8, 0), (1, 1, 1), (3, 7, 5), (7, 16, 40), (50, 33, 9), (4, 1031, 3), (9, 2056, 12)];

fn some_ids(rng: &mut Rng, n_rows: usize, n: usize) -> Vec<u32> {
    (0..n).map(|_| rng.next_u32() % n_rows as u32).collect()
}

fn rows_at(x: &[f32], dim: usize, ids: &[u32]) -> Vec<f32> {
    ids.iter().flat_map(|&id| x[id as usize * dim..][..dim].to_vec()).collect()
}

#[test]
fn look_ups_copy_rows() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&(n_rows, dim, n), skip) in SIZES.iter().flat_map(|size| [(size, 0), (size, 1)]) {
        let mut rng = Rng::new(12, (n_rows * dim * n) as u64);
        let table = normals(&mut rng, n_rows * dim);
        let ids = some_ids(&mut rng, n_rows, n);
        let device_ids = guarded(&gpu, &ids);
        let case = format!("[{n_rows}, {dim}] x {n} +{skip}");
        for (to, from) in pairs() {
            let on_device = OnDevice::new(&gpu, from, &table, skip);
            let mut out = OnDevice::new(&gpu, to, &vec![3.0; n * dim], skip);
            let of = Table::Floats(on_device.floats());
            gather(&gpu, out.floats_mut(), of, dim, device_ids.slice()).unwrap();
            let stored = Stored::new(from, &table).to_f32();
            let want = Stored::new(to, &rows_at(&stored, dim, &ids)).to_f32();
            failures.compare_bits(&format!("{from:?} to {to:?} {case}"), &out.get(), &want);
            if to == from {
                let mut out = OnDevice::new(&gpu, to, &vec![3.0; n * dim], skip);
                let x = on_device.floats();
                select_rows(&gpu, out.floats_mut(), x, dim, device_ids.slice()).unwrap();
                failures.compare_bits(&format!("select {case}"), &out.get(), &want);
            }
        }
        let half: Vec<f16> = table.iter().map(|&x| f16::from_f32(x)).collect();
        let widened: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
        let on_device = guarded(&gpu, &[vec![f16::ONE; skip], half].concat());
        let of = || Table::F16(on_device.slice().range(skip..skip + n_rows * dim));
        for to in Storage::ALL {
            let mut out = OnDevice::new(&gpu, to, &vec![3.0; n * dim], skip);
            gather(&gpu, out.floats_mut(), of(), dim, device_ids.slice()).unwrap();
            let want = Stored::new(to, &rows_at(&widened, dim, &ids)).to_f32();
            failures.compare_bits(&format!("f16 to {to:?} {case}"), &out.get(), &want);
        }
        device_ids.check();
    }
    failures.end();
}

#[test]
fn an_id_outside_of_the_table_gives_nan_and_reads_nothing() {
    let Some(gpu) = gpu() else { return };
    let table = OnDevice::new(&gpu, Storage::F32, &[1.0; 27], 0);
    let ids = gpu.upload(&[2u32, 3, u32::MAX]).unwrap();
    let mut out = OnDevice::new(&gpu, Storage::F32, &[5.0; 27], 0);
    gather(&gpu, out.floats_mut(), Table::Floats(table.floats()), 9, ids.slice()).unwrap();
    let got = out.get();
    assert!(got[..9].iter().all(|&x| x == 1.0) && got[9..].iter().all(|x| x.is_nan()), "{got:?}");
}

#[test]
fn rows_go_to_their_places_and_zeroes_elsewhere() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&(n_rows, dim, n), skip) in SIZES.iter().flat_map(|size| [(size, 0), (size, 1)]) {
        let mut rng = Rng::new(13, (n_rows * dim * n) as u64);
        let mut at = some_ids(&mut rng, n_rows, n);
        at.sort_unstable();
        at.dedup();
        let x = normals(&mut rng, at.len() * dim);
        let places = guarded(&gpu, &at);
        for storage in Storage::ALL {
            let device = OnDevice::new(&gpu, storage, &x, skip);
            let mut out = OnDevice::new(&gpu, storage, &vec![3.0; n_rows * dim], skip);
            scatter_rows(&gpu, out.floats_mut(), device.floats(), dim, places.slice()).unwrap();
            let x = Stored::new(storage, &x).to_f32();
            let mut want = vec![0.0; n_rows * dim];
            for (row, &at) in x.chunks(dim).zip(&at) {
                want[at as usize * dim..][..dim].copy_from_slice(row);
            }
            let case = format!("[{n_rows}, {dim}] x {} {storage:?} +{skip}", at.len());
            failures.compare_bits(&case, &out.get(), &want);
        }
        places.check();
    }
    failures.end();
}

#[test]
fn the_tables_gradient_has_the_cpus_bits() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (&(n_rows, dim, n), skip) in SIZES.iter().flat_map(|size| [(size, 0), (size, 1)]) {
        let mut rng = Rng::new(14, (n_rows * dim * n) as u64);
        let before = normals(&mut rng, n_rows * dim);
        let dout = normals(&mut rng, n * dim);
        // Most of them one id: a long sum beside short ones.
        let mut ids = some_ids(&mut rng, n_rows, n);
        ids.iter_mut().step_by(2).for_each(|id| *id = 0);
        let occurrences = Occurrences::new(&gpu, &ids).unwrap();
        for storage in Storage::ALL {
            let stored = Stored::new(storage, &dout);
            let device = OnDevice::new(&gpu, storage, &dout, skip);
            let mut want = before.clone();
            let content = [vec![0.0; skip], before.clone()].concat();
            let mut got = guarded(&gpu, &content);
            for _ in 0..2 {
                on_cpu(Isa::PORTABLE, &mut want, dim, &ids, stored.floats(0));
                let dtable = got.slice_mut().range_mut(skip..skip + before.len());
                embedding_bwd_acc(&gpu, dtable, dim, &occurrences, device.floats()).unwrap();
            }
            let case = format!("[{n_rows}, {dim}] x {n} {storage:?} +{skip}");
            failures.compare_bits(&case, &got.check()[skip..], &want);
        }
    }
    failures.end();
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut x = OnDevice::new(&gpu, Storage::F32, &[1.0; 8], 0);
    let low = OnDevice::new(&gpu, Storage::Bf16, &[1.0; 8], 0);
    let ids = gpu.upload(&[0u32, 1]).unwrap();
    let says = |result: puna::Result<()>, words: &str| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    let table = || Table::Floats(low.floats());
    says(gather(&gpu, x.floats_mut(), table(), 3, ids.slice()), "out: shape 8 elements, wanted 6");
    let six = x.floats_mut().range_mut(0..6);
    says(gather(&gpu, six, table(), 3, ids.slice()), "wanted rows of 3 elements");
    let out = x.floats_mut();
    says(select_rows(&gpu, out, low.floats(), 4, ids.slice()), "element type f32, wanted bf16");
    let out = x.floats_mut();
    says(scatter_rows(&gpu, out, low.floats(), 4, ids.slice()), "element type f32, wanted bf16");

    let occurrences = Occurrences::new(&gpu, &[0, 4]).unwrap();
    let mut dtable = gpu.upload(&[0f32; 16]).unwrap();
    let mut bwd =
        |dim: usize| embedding_bwd_acc(&gpu, dtable.slice_mut(), dim, &occurrences, low.floats());
    says(bwd(3), "dout: shape 8 elements, wanted 6");
    says(bwd(4), "token id = 4: the table has 4 rows");
}
