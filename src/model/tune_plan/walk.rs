//! A training pass in sizes: the operations of a model's pass and of its way back in their order,
//! each taking and letting go the same blocks of rows as `ops` and `autograd`, without a number
//! computed. A test holds the two together.

use super::ledger::{Block, Ledger};
use crate::format::peft::Target;
use crate::kernels::loss::HOST_LOGIT_BYTES;
use crate::model::config::Config;
use crate::ops::chunk_rows;
use crate::tensor::DType;

type Node = Option<usize>;

/// What of a model decides which blocks a pass takes.
pub struct Walk<'a> {
    pub config: &'a Config,
    /// Every weight is trained.
    pub full: bool,
    /// Rank and targets of the adapter that is trained.
    pub lora: Option<(usize, &'a [Target])>,
    /// Whether the adapter drops inputs.
    pub dropout: bool,
    /// Element type of activations.
    pub dtype: DType,
    pub checkpointing: bool,
    pub ledger: Ledger,
    tape: Option<Vec<Option<Op>>>,
}

struct Var {
    rows: Block,
    node: Node,
    again: Option<Kept>,
}

/// As `autograd::Saved`.
#[derive(Clone)]
enum Kept {
    Rows(Block),
    Norm(Block),
    Gated(Block, Block),
}

/// The nodes of the tape, with what they keep.
enum Op {
    Embedding,
    Norm { x: Block, node: Node },
    Linear { target: Target, x: Node, kept: Option<Kept>, u: Option<Block> },
    Rope { x: usize },
    Attention { q: Var, k: Var, v: Var, out: Block, lse: Block },
    Select { x: usize, m: usize },
    Add { x: Node, y: Node },
    SwiGlu { gate: Var, up: Var },
    CrossEntropy { x: usize, dx: Block },
    Checkpoint { input: Block, x: Node, keep: Option<usize> },
}

/// Outputs and inputs of a layer.
pub fn sizes(config: &Config, target: Target) -> (usize, usize) {
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    match target {
        Target::Wq => (q, config.dim),
        Target::Wk | Target::Wv => (kv, config.dim),
        Target::Wo => (config.dim, q),
        Target::W1 | Target::W3 => (config.hidden_dim, config.dim),
        Target::W2 => (config.dim, config.hidden_dim),
    }
}

impl Var {
    fn new(rows: Block, node: Node) -> Var {
        Var { rows, node, again: None }
    }

    fn save(&self) -> Kept {
        self.again.clone().unwrap_or_else(|| Kept::Rows(self.rows.clone()))
    }
}

impl<'a> Walk<'a> {
    /// Before its first pass.
    pub fn new(config: &'a Config, dtype: DType) -> Walk<'a> {
        Walk {
            config,
            full: false,
            lora: None,
            dropout: false,
            dtype,
            checkpointing: false,
            ledger: Ledger::default(),
            tape: None,
        }
    }

    /// A first pass over `t` tokens, `scored` of them with a label, and its way back.
    pub fn run(&mut self, t: usize, scored: usize) {
        let dim = self.config.dim;
        self.ledger = Ledger::for_rows(t);
        self.tape = Some(vec![]);
        let mut x = self.embedding(t, dim);
        let last = self.config.n_layers.wrapping_sub(1);
        for layer in 0..self.config.n_layers {
            let keep = (layer == last).then_some(scored);
            x = if self.checkpointing { self.checkpoint(x, keep) } else { self.block(x, keep) };
        }
        let h = self.norm(&x);
        drop(x);
        let node = self.cross_entropy(&h);
        drop(h);
        if let Some(node) = node {
            let one = self.f32(1, 1);
            self.sweep(vec![(node, one)]);
        }
        self.tape = None;
    }

    fn take(&self, rows: usize, width: usize) -> Block {
        self.ledger.take(self.dtype, rows, width)
    }

    fn f32(&self, rows: usize, width: usize) -> Block {
        self.ledger.take(DType::F32, rows, width)
    }

    fn push(&mut self, op: Op) -> Node {
        let tape = self.tape.as_mut()?;
        tape.push(Some(op));
        Some(tape.len() - 1)
    }

    fn rank(&self, target: Target) -> Option<usize> {
        self.lora.filter(|(_, targets)| targets.contains(&target)).map(|(r, _)| r)
    }

    fn embedding(&mut self, t: usize, dim: usize) -> Var {
        let mut out = self.f32(t, dim);
        if self.dtype == DType::Bf16 {
            let wide = out;
            out = self.take(t, dim);
            drop(wide);
        }
        let node = if self.full { self.push(Op::Embedding) } else { None };
        Var::new(out, node)
    }

    fn norm(&mut self, x: &Var) -> Var {
        let [m, dim] = x.rows.dims2();
        let out = self.take(m, dim);
        if self.tape.is_none() {
            return Var::new(out, None);
        }
        let tracked = x.node.is_some() || self.full;
        let op = Op::Norm { x: x.rows.clone(), node: x.node };
        let node = if tracked { self.push(op) } else { None };
        Var { rows: out, node, again: Some(Kept::Norm(x.rows.clone())) }
    }

    fn linears<const N: usize>(&mut self, x: &Var, targets: [Target; N]) -> [Var; N] {
        let m = x.rows.dims2()[0];
        let outs = targets.map(|target| self.take(m, sizes(self.config, target).0));
        let nodes = targets.map(|target| self.linear_node(x, target));
        let mut nodes = nodes.into_iter();
        outs.map(|out| Var::new(out, nodes.next().flatten()))
    }

    fn linear_node(&mut self, x: &Var, target: Target) -> Node {
        let [m, width] = x.rows.dims2();
        let rank = self.rank(target);
        let u = rank.map(|r| {
            let _dropped = self.dropout.then(|| self.ledger.take(x.rows.dtype(), m, width));
            self.f32(m, r)
        });
        let trained = self.full || rank.is_some();
        if self.tape.is_none() || !(x.node.is_some() || trained) {
            return None;
        }
        let kept = trained.then(|| x.save());
        self.push(Op::Linear { target, x: x.node, kept, u })
    }

    fn rope(&mut self, x: Var) -> Var {
        let node = x.node.and_then(|x| self.push(Op::Rope { x }));
        Var::new(self.own(x.rows), node)
    }

    /// The rows, or a copy where others hold them too.
    fn own(&self, rows: Block) -> Block {
        if rows.is_unique() {
            return rows;
        }
        let [m, width] = rows.dims2();
        self.ledger.take(rows.dtype(), m, width)
    }

    fn attention(&mut self, [q, k, v]: [Var; 3]) -> Var {
        let [t, width] = q.rows.dims2();
        let out = self.take(t, width);
        let lse = self.f32(t, self.config.n_heads);
        let tracked = [&q, &k, &v].iter().any(|x| x.node.is_some());
        if !tracked || self.tape.is_none() {
            return Var::new(out, None);
        }
        let node = self.push(Op::Attention { q, k, v, out: out.clone(), lse });
        Var::new(out, node)
    }

    fn select(&mut self, x: Var, keep: usize) -> Var {
        let [m, width] = x.rows.dims2();
        if keep == m {
            return x;
        }
        let out = self.ledger.take(x.rows.dtype(), keep, width);
        let node = x.node.and_then(|x| self.push(Op::Select { x, m }));
        Var::new(out, node)
    }

    fn add(&mut self, x: Var, y: Var) -> Var {
        let (Var { rows: x, node: x_node, .. }, Var { rows: y, node: y_node, .. }) = (x, y);
        let sum = if y.is_unique() {
            y
        } else if x.is_unique() {
            x
        } else {
            let [m, width] = x.dims2();
            self.take(m, width)
        };
        let tracked = x_node.is_some() || y_node.is_some();
        let node = if tracked { self.push(Op::Add { x: x_node, y: y_node }) } else { None };
        Var::new(sum, node)
    }

    fn swiglu(&mut self, gate: Var, up: Var) -> Var {
        let [m, hidden] = gate.rows.dims2();
        let out = self.take(m, hidden);
        if self.tape.is_none() {
            return Var::new(out, None);
        }
        let again = Some(Kept::Gated(gate.rows.clone(), up.rows.clone()));
        let tracked = gate.node.is_some() || up.node.is_some();
        let node = if tracked { self.push(Op::SwiGlu { gate, up }) } else { None };
        Var { rows: out, node, again }
    }

    fn block(&mut self, x: Var, keep: Option<usize>) -> Var {
        let h = self.norm(&x);
        let [q, k, v] = self.linears(&h, [Target::Wq, Target::Wk, Target::Wv]);
        drop(h);
        let q = self.rope(q);
        let k = self.rope(k);
        let mut attended = self.attention([q, k, v]);
        let mut x = x;
        if let Some(keep) = keep {
            attended = self.select(attended, keep);
            x = self.select(x, keep);
        }
        let [out] = self.linears(&attended, [Target::Wo]);
        drop(attended);
        let x = self.add(x, out);
        let h = self.norm(&x);
        let [gate, up] = self.linears(&h, [Target::W1, Target::W3]);
        drop(h);
        let act = self.swiglu(gate, up);
        let [out] = self.linears(&act, [Target::W2]);
        drop(act);
        self.add(x, out)
    }

    fn checkpoint(&mut self, x: Var, keep: Option<usize>) -> Var {
        let Some(tape) = self.tape.take() else { return self.block(x, keep) };
        let (input, node) = (x.rows.clone(), x.node);
        let out = self.block(Var::new(x.rows, None), keep);
        self.tape = Some(tape);
        let node = self.push(Op::Checkpoint { input, x: node, keep });
        Var::new(out.rows, node)
    }

    fn cross_entropy(&mut self, x: &Var) -> Node {
        let ([m, dim], vocab) = (x.rows.dims2(), self.config.vocab_size);
        let chunk = chunk_rows(HOST_LOGIT_BYTES, vocab).min(m.max(1));
        let dx = x.node.map(|_| self.f32(m, dim));
        let _logits = self.f32(chunk, vocab);
        match (x.node, dx) {
            (Some(x), Some(dx)) => self.push(Op::CrossEntropy { x, dx }),
            _ => None,
        }
    }
}

/// As `autograd::Adjoints`.
struct Adjoints(Vec<Option<Block>>);

impl Adjoints {
    fn add(&mut self, walk: &Walk<'_>, node: Node, d: Block) {
        let Some(at) = node else { return };
        self.0[at] = Some(match self.0[at].take() {
            Some(known) => walk.own(known),
            None => d,
        });
    }

    /// What `target` and `put` do together.
    fn add_to(&mut self, walk: &Walk<'_>, node: usize, m: usize, width: usize) {
        self.0[node] = Some(match self.0[node].take() {
            Some(known) => walk.own(known),
            None => walk.f32(m, width),
        });
    }
}

impl Walk<'_> {
    fn sweep(&mut self, seeds: Vec<(usize, Block)>) -> Adjoints {
        let nodes = self.tape.take().unwrap_or_default();
        let mut adjoints = Adjoints((0..nodes.len()).map(|_| None).collect());
        for (node, d) in seeds {
            adjoints.add(self, Some(node), d);
        }
        for (at, op) in nodes.into_iter().enumerate().rev() {
            let Some(op) = op else { continue };
            if let Some(dout) = adjoints.0[at].take() {
                self.backward(op, &mut adjoints, dout);
            }
        }
        adjoints
    }

    fn backward(&mut self, op: Op, adjoints: &mut Adjoints, dout: Block) {
        match op {
            Op::Embedding => {}
            Op::Norm { x, node } => {
                let [m, dim] = x.dims2();
                match node {
                    Some(node) => adjoints.add_to(self, node, m, dim),
                    None => drop(self.f32(m, dim)),
                }
            }
            Op::Linear { target, x, kept, u } => {
                self.linear_backward(adjoints, dout, target, x, kept, u);
            }
            Op::Rope { x } => {
                let dx = self.own(dout);
                adjoints.add(self, Some(x), dx);
            }
            Op::Attention { q, k, v, out, lse } => {
                let like = |x: &Var| {
                    let [m, width] = x.rows.dims2();
                    self.f32(m, width)
                };
                let (dq, dk, dv) = (like(&q), like(&k), like(&v));
                for (node, d) in [(q.node, dq), (k.node, dk), (v.node, dv)] {
                    adjoints.add(self, node, d);
                }
                drop((q, k, v, out, lse));
            }
            Op::Select { x, m } => {
                let dx = self.f32(m, dout.dims2()[1]);
                adjoints.add(self, Some(x), dx);
            }
            Op::Add { x, y } => {
                adjoints.add(self, x, dout.clone());
                adjoints.add(self, y, dout);
            }
            Op::SwiGlu { gate, up } => {
                let [m, hidden] = gate.rows.dims2();
                let (dgate, dup) = (self.f32(m, hidden), self.f32(m, hidden));
                for (node, d) in [(gate.node, dgate), (up.node, dup)] {
                    adjoints.add(self, node, d);
                }
            }
            Op::CrossEntropy { x, dx } => adjoints.add(self, Some(x), dx),
            Op::Checkpoint { input, x, keep } => {
                self.tape = Some(vec![]);
                let leaf = x.and_then(|_| self.leaf());
                let out = self.block(Var::new(input, leaf), keep);
                let seeds = out.node.map(|node| (node, dout));
                drop(out.rows);
                let mut inner = self.sweep(seeds.into_iter().collect());
                if let Some(dx) = leaf.and_then(|leaf| inner.0[leaf].take()) {
                    adjoints.add(self, x, dx);
                }
            }
        }
    }

    fn leaf(&mut self) -> Node {
        let tape = self.tape.as_mut()?;
        tape.push(None);
        Some(tape.len() - 1)
    }

    fn linear_backward(
        &mut self,
        adjoints: &mut Adjoints,
        dout: Block,
        target: Target,
        node: Node,
        kept: Option<Kept>,
        u: Option<Block>,
    ) {
        let (m, k) = (dout.dims2()[0], sizes(self.config, target).1);
        let x = kept.map(|kept| match kept {
            Kept::Rows(rows) => rows,
            Kept::Norm(x) => self.take(x.dims2()[0], x.dims2()[1]),
            Kept::Gated(gate, _up) => self.take(gate.dims2()[0], gate.dims2()[1]),
        });
        if let Some(node) = node {
            adjoints.add_to(self, node, m, k);
        }
        let (Some(r), Some(_u)) = (self.rank(target), u) else { return };
        let _du = self.f32(m, r);
        if let Some(x) = x.as_ref().filter(|_| self.dropout) {
            drop(self.ledger.take(x.dtype(), m, k));
        }
        let Some(node) = node else { return };
        adjoints.add_to(self, node, m, k);
        if self.dropout {
            let (_part, _masked) = (self.f32(m, k), self.f32(m, k));
        }
    }
}
