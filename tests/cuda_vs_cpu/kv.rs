//! Caches on the device: what is written into them against the host's cache, bit by bit; copies, bytes
//! that are kept and come back.

use puna::cuda::attention::{Plan, append};
use puna::cuda::kv::{KvPages, KvShape, KvType, PAGE};
use puna::cuda::{Floats, Gpu};
use puna::error::Error;
use puna_cpu::attention::KvLayer;
use puna_cpu::isa::Isa;

use crate::attention::{case, segments, write};
use crate::support::{Failures, from_bf16, gpu, guarded, to_bf16};

/// The bytes that a cache hands out.
fn saved(gpu: &Gpu, cache: &KvPages, len: usize) -> Vec<u8> {
    let mut bytes = vec![];
    let mut keep = |piece: &[u8]| -> Result<(), Error> {
        bytes.extend(piece);
        Ok(())
    };
    cache.save(gpu, len, &mut keep).unwrap();
    bytes
}

/// Keys, then values, of `len` positions of a host's cache, as [`KvPages::save`] orders them: the order
/// of the host's own is that of `KvLayer::save`.
fn of_host(cache: &KvLayer, len: usize) -> Vec<u8> {
    let KvShape { n_kv_heads, head_dim, kv_type } = cache.shape();
    let mut all = vec![];
    let mut keep = |piece: &[u8]| -> Result<(), ()> {
        all.push(piece.to_vec());
        Ok(())
    };
    cache.save(len, &mut keep).unwrap();
    let size = match kv_type {
        KvType::F32 => 4,
        KvType::F16 | KvType::Bf16 => 2,
        KvType::Q8_0 => 1,
    };
    let pitch = head_dim.next_multiple_of(16 / size);
    let mut bytes = vec![];
    // One plane of `dims` elements a position, transposed in blocks of 16 or row by row.
    let mut put = |plane: &[u8],
                   at: std::ops::Range<usize>,
                   [dims, row, size]: [usize; 3],
                   pad: usize| {
        for pos in at {
            for d in 0..dims {
                let i =
                    if row == 0 { (pos / 16 * dims + d) * 16 + pos % 16 } else { pos * row + d };
                bytes.extend(&plane[i * size..][..size]);
            }
            bytes.resize(bytes.len() + (pad - dims) * size, 0);
        }
    };
    let (width, groups) = (head_dim.next_multiple_of(16), head_dim.div_ceil(32));
    for page in (0..len).step_by(PAGE) {
        let at = page..len.min(page + PAGE);
        for (which, row) in [(0, 0), (1, width)] {
            for head in 0..n_kv_heads {
                let plane = &all[which * n_kv_heads + head];
                put(plane, at.clone(), [head_dim, row, size], pitch);
                if kv_type == KvType::Q8_0 {
                    let plane = &all[(2 + which) * n_kv_heads + head];
                    let row = if row == 0 { 0 } else { groups };
                    put(plane, at.clone(), [groups, row, 4], groups);
                }
            }
        }
    }
    bytes
}

#[test]
fn append_writes_the_bits_of_the_hosts_cache() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for kv_type in KvType::ALL {
        for head_dim in [1, 12, 40, 64, 100] {
            let case = case(kv_type, [2, 2], head_dim, &[(0, 70)]);
            let mut of = case.sequence(2, 70);
            let dim = case.dims()[1];
            // Groups of nothing but zeroes, of tiny, huge, equal and halfway numbers.
            of.k[..dim].fill(0.0);
            of.k[dim..2 * dim].fill(1e-38);
            of.v[..dim].fill(-3e38);
            for (i, x) in of.v[dim..2 * dim].iter_mut().enumerate() {
                *x = if i % 32 == 0 { 127.0 } else { i as f32 / 2.0 % 127.0 };
            }
            if kv_type == KvType::Q8_0 {
                of.k[2 * dim] = f32::INFINITY;
                of.v[2 * dim] = f32::NEG_INFINITY;
            }
            let mut host = KvLayer::new(case.shape(), 70);
            for pos in 0..70 {
                let at = pos * dim..(pos + 1) * dim;
                host.append(Isa::best(), pos, &of.k[at.clone()], &of.v[at]);
            }
            let cache = case.cache(&gpu, 70, true);
            write(&gpu, &case, &[&of], &[(0, 30)], &[&cache]);
            write(&gpu, &case, &[&of], &[(30, 40)], &[&cache]);
            let name = format!("{kv_type}, {head_dim}");
            failures.compare_bits(&name, &saved(&gpu, &cache, 70), &of_host(&host, 70));
            // Neither the positions behind nor the page that is not its own.
            let all = cache.with_table(&gpu, &[2, 1, 0]).unwrap();
            let bytes = saved(&gpu, &all, 3 * PAGE);
            let written = saved(&gpu, &cache, 70).len();
            let still = bytes.iter().filter(|&&byte| byte == 0xff).count();
            if still < bytes.len() - written {
                failures.note(format!("{name}: {still} of {} bytes untouched", bytes.len()));
            }
        }
    }
    failures.end();
}

#[test]
fn append_takes_bf16_rows_as_they_are() {
    let Some(gpu) = gpu() else { return };
    for kv_type in KvType::ALL {
        let case = case(kv_type, [1, 1], 40, &[]);
        let mut of = case.sequence(4, 9);
        (of.k, of.v) = (from_bf16(&to_bf16(&of.k)), from_bf16(&to_bf16(&of.v)));
        let caches = [case.cache(&gpu, 9, false), case.cache(&gpu, 9, false)];
        write(&gpu, &case, &[&of], &[(0, 9)], &[&caches[0]]);
        let plan = Plan::new(&gpu, case.settings(), &segments(&[(0, 9)]), &[&caches[1]]).unwrap();
        let (k, v) = (guarded(&gpu, &to_bf16(&of.k)), guarded(&gpu, &to_bf16(&of.v)));
        append(&gpu, &plan, 0, Floats::Bf16(k.slice()), Floats::Bf16(v.slice())).unwrap();
        assert_eq!(saved(&gpu, &caches[0], 9), saved(&gpu, &caches[1], 9), "{kv_type}");
    }
}

#[test]
fn caches_are_copied_saved_and_restored() {
    let Some(gpu) = gpu() else { return };
    for kv_type in KvType::ALL {
        for shuffled in [false, true] {
            let case = case(kv_type, [2, 2], 20, &[]);
            let of = case.sequence(4, 150);
            let cache = case.cache(&gpu, 150, shuffled);
            write(&gpu, &case, &[&of], &[(0, 150)], &[&cache]);
            let bytes = saved(&gpu, &cache, 150);
            assert!(bytes.iter().any(|&byte| byte != bytes[0]));
            // Another capacity, another order of pages.
            let mut other = case.cache(&gpu, 300, !shuffled);
            other.copy_from(&gpu, &cache, 150).unwrap();
            assert_eq!(saved(&gpu, &other, 150), bytes, "{kv_type}");
            assert_eq!(saved(&gpu, &other, 65), saved(&gpu, &cache, 65), "{kv_type}");
            let mut other = case.cache(&gpu, 200, !shuffled);
            let mut rest = &bytes[..];
            let mut take = |piece: &mut [u8]| -> Result<(), Error> {
                let (mine, others) = rest.split_at(piece.len());
                piece.copy_from_slice(mine);
                rest = others;
                Ok(())
            };
            other.restore(&gpu, 150, &mut take).unwrap();
            assert!(rest.is_empty());
            assert_eq!(saved(&gpu, &other, 150), bytes, "{kv_type}");
            assert_eq!(
                KvPages::bytes_of(case.shape(), 200),
                2 * 2 * 4 * PAGE * bytes_of_row(kv_type)
            );
        }
    }
}

/// Of a head of 20, padded.
fn bytes_of_row(kv_type: KvType) -> usize {
    match kv_type {
        KvType::F32 => 80,
        KvType::F16 | KvType::Bf16 => 48,
        KvType::Q8_0 => 32 + 4,
    }
}
