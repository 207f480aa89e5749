//! Every token of every document in exactly one row, within the block size, for documents of all
//! lengths.

use super::*;
use crate::data::rows::NOT_SCORED;
use crate::rng::Rng;
use std::collections::HashMap;

/// A document whose tokens tell where they come from: `source * 1000 + position`.
fn document(source: u32, n: usize) -> Document {
    let ids: Vec<u32> = (0..n as u32).map(|at| source * 1000 + at).collect();
    let labels = ids.iter().map(|&id| id as i32).collect();
    Document { ids, labels, source }
}

fn random_lengths(seed: u64, n: usize, longest: u32) -> Vec<usize> {
    let mut rng = Rng::new(seed, 0);
    (0..n).map(|_| 2 + (rng.next_u32() % longest) as usize).collect()
}

struct Laid {
    rows: Vec<Row>,
    n_lost: usize,
    n_dropped: usize,
}

fn lay(
    lengths: &[usize],
    layout: Layout,
    block: usize,
    divisible: bool,
    run: usize,
    drop_remainder: bool,
) -> Laid {
    let mut arranger = Arranger::new(layout, block, run, drop_remainder);
    let mut rows = vec![];
    let mut emit = |row| {
        rows.push(row);
        Ok(())
    };
    let mut n_lost = 0;
    for (source, &n) in lengths.iter().enumerate() {
        let cut = cut(document(source as u32, n), divisible, layout, block, TruncationSide::Right);
        n_lost += cut.n_lost;
        for piece in cut.pieces {
            arranger.push(piece, &mut emit).unwrap();
        }
    }
    arranger.finish(&mut emit).unwrap();
    Laid { rows, n_lost, n_dropped: arranger.n_dropped }
}

fn check_rows(rows: &[Row], block: usize) {
    for row in rows {
        assert!((1..=block).contains(&row.ids.len()), "{} of {block}", row.ids.len());
        assert_eq!(row.labels.len(), row.ids.len());
        assert_eq!(row.spans.iter().sum::<u32>() as usize, row.ids.len());
        assert!(row.spans.iter().all(|&n| n > 0));
        for (i, (&id, &label)) in row.ids.iter().zip(&row.labels).enumerate() {
            assert!(label == id as i32 || (label == NOT_SCORED && i > 0), "{row:?}");
        }
    }
}

fn times_seen(rows: &[Row]) -> HashMap<u32, usize> {
    let mut seen = HashMap::new();
    for &id in rows.iter().flat_map(|row| &row.ids) {
        *seen.entry(id).or_insert(0) += 1;
    }
    seen
}

fn all_ids(lengths: &[usize]) -> Vec<u32> {
    lengths.iter().enumerate().flat_map(|(s, &n)| document(s as u32, n).ids).collect()
}

#[test]
fn packed_and_grouped_rows_hold_every_token_once() {
    for seed in 0..40 {
        let block = [2, 3, 7, 16, 64, 200][seed as usize % 6];
        let lengths = random_lengths(seed, 60, 100);
        let wanted = all_ids(&lengths);
        let packed = lay(&lengths, Layout::Packed, block, true, 7, false);
        let grouped = lay(&lengths, Layout::Group, block, true, 7, false);
        for laid in [&packed, &grouped] {
            check_rows(&laid.rows, block);
            assert_eq!((laid.n_lost, laid.n_dropped), (0, 0));
            let seen = times_seen(&laid.rows);
            assert_eq!(seen.len(), wanted.len(), "seed {seed}");
            assert!(wanted.iter().all(|id| seen.get(id) == Some(&1)), "seed {seed}");
        }
        for row in &packed.rows {
            // A document in a row is one stretch of one instance, not seen by the others.
            let mut start = 0;
            assert_eq!(row.spans.len(), row.source.len());
            for (&n, &source) in row.spans.iter().zip(&row.source) {
                let ids = &row.ids[start..start + n as usize];
                assert!(ids.windows(2).all(|w| w[1] == w[0] + 1));
                assert!(ids.iter().all(|id| id / 1000 == source));
                assert_eq!(row.labels[start] == NOT_SCORED, start > 0);
                start += n as usize;
            }
            assert!(row.source.is_sorted());
        }
        for row in &grouped.rows {
            assert_eq!(row.spans, [row.ids.len() as u32]);
            assert!(row.ids.iter().all(|id| row.source.contains(&(id / 1000))));
        }
        // Grouped rows hold the data in its order.
        let in_order: Vec<u32> = grouped.rows.iter().flat_map(|row| row.ids.clone()).collect();
        assert_eq!(in_order, wanted);
    }
}

#[test]
fn pieces_of_a_long_text_have_at_least_two_tokens() {
    for block in 3..20 {
        for n in 2..200 {
            let cut = cut(document(1, n), true, Layout::Packed, block, TruncationSide::Right);
            assert!(cut.pieces.iter().all(|p| (2..=block).contains(&p.ids.len())));
            let ids: Vec<u32> = cut.pieces.iter().flat_map(|p| p.ids.clone()).collect();
            assert_eq!(ids, document(1, n).ids);
        }
    }
}

#[test]
fn too_long_documents_lose_the_asked_side() {
    let ends = [
        (TruncationSide::Right, vec![1000, 1001, 1002, 1003]),
        (TruncationSide::Left, vec![1006, 1007, 1008, 1009]),
    ];
    for (side, wanted) in ends {
        for (layout, divisible) in
            [(Layout::Blocks, true), (Layout::Blocks, false), (Layout::Packed, false)]
        {
            let cut = cut(document(1, 10), divisible, layout, 4, side);
            assert_eq!((cut.pieces.len(), cut.n_lost), (1, 6));
            assert_eq!(cut.pieces[0].ids, wanted);
            assert_eq!(cut.pieces[0].labels.len(), 4);
        }
    }
    let whole = cut(document(1, 10), false, Layout::Group, 4, TruncationSide::Right);
    assert_eq!((whole.pieces.len(), whole.n_lost), (1, 0));
}

#[test]
fn blocks_are_one_document_a_row() {
    let laid = lay(&[3, 9, 2], Layout::Blocks, 5, true, 1, false);
    assert_eq!(laid.rows.iter().map(|row| row.ids.len()).collect::<Vec<_>>(), [3, 5, 2]);
    assert_eq!(laid.rows.iter().flat_map(|row| row.source.clone()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(laid.n_lost, 4);
}

/// LMFlow's grouping, as its definition says: whole blocks of each run, the rest dropped.
#[test]
fn grouping_that_drops_is_lmflows() {
    for seed in 0..20 {
        let lengths = random_lengths(seed, 53, 30);
        let (block, run) = (16, 10);
        let laid = lay(&lengths, Layout::Group, block, true, run, true);
        let mut wanted = vec![];
        let mut n_dropped = 0;
        for first in (0..lengths.len()).step_by(run) {
            let sources = first..(first + run).min(lengths.len());
            let ids: Vec<u32> = sources.flat_map(|s| document(s as u32, lengths[s]).ids).collect();
            wanted.extend(ids.chunks_exact(block).map(<[u32]>::to_vec));
            n_dropped += ids.chunks_exact(block).remainder().len();
        }
        assert_eq!(laid.rows.iter().map(|row| row.ids.clone()).collect::<Vec<_>>(), wanted);
        assert_eq!(laid.n_dropped, n_dropped);
    }
}

#[test]
fn packing_fills_rows_and_keeps_the_order_of_the_data() {
    // 7+3, 6+4, 5+5 fill rows of 10 exactly.
    assert_eq!(best_fit(&[3, 6, 5, 7, 5, 4], 10), [vec![0, 3], vec![1, 5], vec![2, 4]]);
    // The fuller row is taken: 2 goes to the 8, not to the 7.
    assert_eq!(best_fit(&[7, 8, 2], 10), [vec![0], vec![1, 2]]);
    assert_eq!(best_fit(&[], 10), Vec::<Vec<usize>>::new());
    let lengths = random_lengths(3, 3000, 300);
    let n_rows = best_fit(&lengths, 1024).len();
    let least = lengths.iter().sum::<usize>().div_ceil(1024);
    // Short documents leave almost no room: within one row in fifty of the least possible.
    assert!(n_rows <= least + least / 50, "{n_rows} rows, at least {least}");
}

#[test]
fn a_window_ends_and_nothing_is_lost_at_its_border() {
    let lengths = vec![3; WINDOW_DOCUMENTS + 5];
    let mut arranger = Arranger::new(Layout::Packed, 6, 1, false);
    let (mut n_rows, mut n_tokens, mut n_before_end) = (0, 0, 0);
    let mut emit = |row: Row| {
        n_rows += 1;
        n_tokens += row.ids.len();
        Ok(())
    };
    for (source, &n) in lengths.iter().enumerate() {
        arranger.push(document(source as u32, n), &mut emit).unwrap();
        n_before_end = n_before_end.max(arranger.window.len());
    }
    arranger.finish(&mut emit).unwrap();
    assert_eq!(n_tokens, 3 * lengths.len());
    assert_eq!(n_rows, WINDOW_DOCUMENTS / 2 + 3);
    assert!(n_before_end < WINDOW_DOCUMENTS);
}

#[test]
fn rows_without_targets_are_counted() {
    let mut arranger = Arranger::new(Layout::Group, 2, 10, false);
    let labels = vec![NOT_SCORED, NOT_SCORED, NOT_SCORED, 4];
    let document = Document { ids: vec![1, 2, 3, 4], labels, source: 0 };
    arranger.push(document, &mut |_| Ok(())).unwrap();
    assert_eq!(arranger.n_without_targets, 1);
}
