//! The order in which rows are trained on: a permutation for each epoch, recomputable from seed
//! and epoch alone, so that a resumed run needs only its position.

use crate::rng::Rng;
use std::sync::{Arc, Mutex, PoisonError};

/// First of the random streams that belong to epochs; the other uses of a seed have small numbers.
const FIRST_STREAM: u64 = 0x6f72_6465_0000_0000;

/// A uniform draw from `0..n`, without bias: a product's upper half, drawn again where the lower
/// half falls into the part of 2^32 that `n` does not divide (Lemire 2019, "Fast Random Integer
/// Generation in an Interval"). `n` is at least 1.
pub(crate) fn below(rng: &mut Rng, n: u32) -> u32 {
    let n = u64::from(n.max(1));
    let least = (1u64 << 32) % n;
    loop {
        let product = u64::from(rng.next_u32()) * n;
        if product & 0xffff_ffff >= least {
            return (product >> 32) as u32;
        }
    }
}

/// The order of rows over all epochs.
#[derive(Debug)]
pub struct Epochs {
    n_rows: usize,
    seed: u64,
    shuffle: bool,
    /// The permutation that was asked for last.
    last: Mutex<Option<(u64, Arc<[u32]>)>>,
}

impl Epochs {
    /// An order of `n_rows` rows; without `shuffle` that of the data. Shuffled sets have at most
    /// 2^32 - 1 rows.
    ///
    /// # Panics
    /// When there are more.
    pub fn new(n_rows: usize, seed: u64, shuffle: bool) -> Epochs {
        assert!(!shuffle || u32::try_from(n_rows).is_ok(), "{n_rows} rows, at most 2^32 - 1");
        Epochs { n_rows, seed, shuffle, last: Mutex::new(None) }
    }

    /// Rows of an epoch.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The row at a position of an epoch.
    ///
    /// # Panics
    /// When `position` is not below the number of rows.
    pub fn index(&self, epoch: u64, position: usize) -> usize {
        assert!(position < self.n_rows, "position {position} of {} rows", self.n_rows);
        match self.shuffle {
            true => self.permutation(epoch)[position] as usize,
            false => position,
        }
    }

    /// Number of batches of an epoch; the last one may be short.
    pub fn n_batches(&self, batch_size: usize) -> usize {
        self.n_rows.div_ceil(batch_size.max(1))
    }

    /// The rows of a batch, at most `batch_size`; empty beyond the epoch's last batch.
    pub fn batch(&self, epoch: u64, batch: usize, batch_size: usize) -> Vec<usize> {
        let start = batch.saturating_mul(batch_size).min(self.n_rows);
        let end = start.saturating_add(batch_size).min(self.n_rows);
        (start..end).map(|position| self.index(epoch, position)).collect()
    }

    /// Fisher and Yates' shuffle with the epoch's own random stream.
    fn permutation(&self, epoch: u64) -> Arc<[u32]> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, order)) = &*last
            && *of == epoch
        {
            return order.clone();
        }
        let mut order: Vec<u32> = (0..self.n_rows as u32).collect();
        let mut rng = Rng::new(self.seed, FIRST_STREAM.wrapping_add(epoch));
        for i in (1..order.len()).rev() {
            order.swap(i, below(&mut rng, i as u32 + 1) as usize);
        }
        let order: Arc<[u32]> = order.into();
        *last = Some((epoch, order.clone()));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(epochs: &Epochs, epoch: u64) -> Vec<usize> {
        (0..epochs.n_rows()).map(|position| epochs.index(epoch, position)).collect()
    }

    #[test]
    fn every_row_once_an_epoch_and_epochs_differ() {
        let epochs = Epochs::new(101, 5, true);
        let first = epoch(&epochs, 0);
        let second = epoch(&epochs, 1);
        for order in [&first, &second] {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..101).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_ne!(first, (0..101).collect::<Vec<_>>());
        assert_ne!(first, epoch(&Epochs::new(101, 6, true), 0), "another seed");
        // A resumed run asks for the middle of a later epoch first.
        assert_eq!(Epochs::new(101, 5, true).index(1, 50), second[50]);
        assert_eq!(epoch(&epochs, 0), first);
    }

    #[test]
    fn without_shuffling_the_order_of_the_data() {
        assert_eq!(epoch(&Epochs::new(5, 1, false), 3), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_last_short_batch_is_kept() {
        let epochs = Epochs::new(10, 5, true);
        assert_eq!(epochs.n_batches(4), 3);
        let batches: Vec<Vec<usize>> = (0..3).map(|b| epochs.batch(2, b, 4)).collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        assert_eq!(batches.concat(), epoch(&epochs, 2));
        assert!(epochs.batch(2, 3, 4).is_empty());
        assert_eq!(Epochs::new(0, 5, true).n_batches(4), 0);
    }

    #[test]
    fn draws_are_uniform() {
        // Where each of three rows comes to stand: six orders, 6000 epochs, a thousand each within
        // five standard deviations of a binomial, 5 * sqrt(6000 * 1/6 * 5/6) = 144.
        let epochs = Epochs::new(3, 9, true);
        let mut counts = std::collections::HashMap::new();
        for e in 0..6000 {
            *counts.entry(epoch(&epochs, e)).or_insert(0i32) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|n| (n - 1000).abs() < 144), "{counts:?}");
        let mut rng = Rng::new(0, 0);
        assert!((0..1000).all(|_| below(&mut rng, 7) < 7));
        assert_eq!(below(&mut rng, 1), 0);
    }
}
