//! A value of a forward pass.

use super::cx::NodeId;
use super::saved::Saved;
use crate::tensor::Rows;

/// Rows, and where on the tape they came from.
#[derive(Clone)]
pub struct Var<'w> {
    /// The values [rows, width].
    pub rows: Rows,
    /// The node that made them; `None` where no gradient is wanted.
    pub node: Option<NodeId>,
    /// How to compute the values again from others that the tape keeps anyway.
    pub(crate) again: Option<Saved<'w>>,
}

impl<'w> Var<'w> {
    /// Rows that no gradient flows into.
    pub fn fixed(rows: Rows) -> Self {
        Var { rows, node: None, again: None }
    }

    /// Rows that a node made.
    pub fn new(rows: Rows, node: Option<NodeId>) -> Self {
        Var { rows, node, again: None }
    }

    /// The same, with a cheaper way to keep them for a backward pass.
    pub fn with_recipe(rows: Rows, node: Option<NodeId>, again: Saved<'w>) -> Self {
        Var { rows, node, again: Some(again) }
    }

    /// What a node keeps of this value.
    pub fn save(&self) -> Saved<'w> {
        self.again.clone().unwrap_or_else(|| Saved::Rows(self.rows.clone()))
    }
}
