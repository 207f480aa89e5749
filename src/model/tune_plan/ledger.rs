//! The pool of activations without its memory: the same size classes and the same reuse, so that a
//! pass can be planned block by block; and what is held at once, which is all that a GPU's arena
//! takes, where any block may lie where others lay.

use crate::tensor::{DType, size_class};
use std::cell::RefCell;
use std::rc::Rc;

/// Elements of a block are counted up to here, so that sizes can be added up.
const LONGEST: usize = usize::MAX >> 8;

/// A block's place in the pool.
#[derive(Clone, Copy)]
struct Slot {
    dtype: DType,
    class: usize,
    /// Elements written so far at most: what is not written takes no memory.
    written: usize,
}

#[derive(Default)]
struct State {
    free: Vec<Slot>,
    reserved: usize,
    written: usize,
    least_rows: usize,
    /// Bytes held now, and the most that it was.
    held: usize,
    peak: usize,
}

/// Blocks of a GPU are multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Counts what a pool would hold.
#[derive(Clone, Default)]
pub struct Ledger(Rc<RefCell<State>>);

struct Held {
    slot: Slot,
    rows: usize,
    width: usize,
    bytes: usize,
    state: Rc<RefCell<State>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.held -= self.bytes;
        state.free.push(self.slot);
    }
}

/// Rows that somebody holds; clones share them, and the last one gives them back.
#[derive(Clone)]
pub struct Block(Rc<Held>);

impl Ledger {
    /// Of a pool whose passes have so many rows.
    pub fn for_rows(rows: usize) -> Ledger {
        let ledger = Ledger::default();
        ledger.0.borrow_mut().least_rows = rows;
        ledger
    }

    /// As the pool's.
    pub fn take(&self, dtype: DType, rows: usize, width: usize) -> Block {
        let mut state = self.0.borrow_mut();
        let len = rows.saturating_mul(width).min(LONGEST);
        let room = rows.max(state.least_rows).saturating_mul(width).min(LONGEST);
        let class = size_class(room);
        let found = state.free.iter().rposition(|slot| slot.class == class && slot.dtype == dtype);
        let mut slot = match found {
            Some(at) => state.free.remove(at),
            None => {
                state.reserved = state.reserved.saturating_add(class.saturating_mul(dtype.bytes()));
                Slot { dtype, class, written: 0 }
            }
        };
        let more = len.saturating_sub(slot.written).saturating_mul(dtype.bytes());
        state.written = state.written.saturating_add(more);
        slot.written = slot.written.max(len);
        // Many of the largest blocks still add up to a number.
        let bytes = len.saturating_mul(dtype.bytes()).min(LONGEST).next_multiple_of(ALIGNMENT);
        state.held += bytes;
        state.peak = state.peak.max(state.held);
        Block(Rc::new(Held { slot, rows, width, bytes, state: Rc::clone(&self.0) }))
    }

    /// Bytes that the pool reserves.
    #[cfg(test)]
    pub fn reserved(&self) -> usize {
        self.0.borrow().reserved
    }

    /// Bytes of them that are written: what they take of the machine.
    pub fn written(&self) -> usize {
        self.0.borrow().written
    }
}

impl Ledger {
    /// The most bytes that were held at once.
    pub fn peak(&self) -> usize {
        self.0.borrow().peak
    }
}

impl Block {
    /// [rows, width].
    pub fn dims2(&self) -> [usize; 2] {
        [self.0.rows, self.0.width]
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.slot.dtype
    }

    /// Whether nobody else holds it.
    pub fn is_unique(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}
