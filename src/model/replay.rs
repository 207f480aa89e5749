//! Passes that repeat. On a GPU a pass whose kernels would be launched just as they were the last time
//! is recorded, and from then on replayed as one thing: a token costs the host one call in place of
//! hundreds. What differs from token to token (ids, angles, positions, where caches are) lies in
//! device memory that is written before.

use crate::cuda::{Gpu, Graph};
use crate::error::{Error, Result};
use crate::kernels::attention::{Cache, Pass, Span};
use crate::model::llama::{Batch, Model, Segment, Workspace, own};
use crate::tensor::Rows;

/// Turns recording off: `PUNA_CUDA_GRAPHS=0`.
const SWITCH: &str = "PUNA_CUDA_GRAPHS";

/// The last pass of a workspace, and its recording.
pub(super) struct Replay {
    pub(super) attention: Pass,
    /// Rows with logits of the last pass.
    wanted: Vec<usize>,
    /// Of the workspace's pools: blocks that were freed since may be somebody else's.
    generations: [usize; 2],
    /// Passes in a row that were launched alike.
    alike: usize,
    graph: Option<Recorded>,
    /// Passes that were replayed.
    pub(super) count: usize,
    off: bool,
}

struct Recorded {
    graph: Graph,
    logits: Option<Rows>,
}

impl Default for Replay {
    fn default() -> Self {
        Replay {
            attention: Pass::default(),
            wanted: vec![],
            generations: [0; 2],
            alike: 0,
            graph: None,
            count: 0,
            off: std::env::var(SWITCH).is_ok_and(|value| value == "0"),
        }
    }
}

impl Model {
    /// The pass on a GPU, whose lists have been made; returns the logits asked for.
    pub(super) fn run_on_gpu<B: Batch + ?Sized>(
        &self,
        gpu: &Gpu,
        ws: &mut Workspace,
        batch: &mut B,
    ) -> Result<Option<Rows>> {
        if batch.cancelled() {
            return Err(Error::Cancelled);
        }
        let alike = self.bring(gpu, ws, batch)?;
        let replay = &mut ws.replay;
        replay.alike = if alike { replay.alike + 1 } else { 0 };
        if !alike || replay.graph.as_ref().is_some_and(|one| one.graph.is_stale(gpu)) {
            replay.graph = None;
        }
        if replay.graph.is_none() && replay.alike > 0 && !replay.off {
            self.record(gpu, ws, batch)?;
        }
        if let Some(Recorded { graph, logits }) = &ws.replay.graph {
            graph.launch(gpu)?;
            ws.replay.count += 1;
            return Ok(logits.clone());
        }
        self.run(ws, batch)
    }

    /// Copies what the pass reads to the GPU. Returns whether it would be launched as the last one.
    fn bring<B: Batch + ?Sized>(
        &self,
        gpu: &Gpu,
        ws: &mut Workspace,
        batch: &mut B,
    ) -> Result<bool> {
        let mut alike = ws.tokens.bring(&self.device)?;
        alike &= own(&mut ws.wanted).bring(gpu)?;
        alike &= own(&mut ws.angles).bring(&self.device)?;
        let segments: Vec<Segment<'_>> = batch.segments().collect();
        let spans: Vec<Span> = segments
            .iter()
            .map(|s| Span { first_pos: s.cache.len(), n_rows: s.tokens.len() })
            .collect();
        let layers = 0..self.config.n_layers;
        let caches: Vec<&Cache> =
            layers.flat_map(|layer| segments.iter().map(move |s| &s.cache.layers[layer])).collect();
        alike &= ws.replay.attention.prepare(gpu, self.config.n_heads, &spans, &caches)?;
        let generations = [ws.pool.generation(), ws.heads.generation()];
        let replay = &mut ws.replay;
        alike &= replay.wanted == ws.wanted.rows() && replay.generations == generations;
        replay.wanted.clear();
        replay.wanted.extend_from_slice(ws.wanted.rows());
        replay.generations = generations;
        Ok(alike)
    }

    /// Records the pass, where that can be done.
    fn record<B: Batch + ?Sized>(
        &self,
        gpu: &Gpu,
        ws: &mut Workspace,
        batch: &mut B,
    ) -> Result<()> {
        let mut logits = None;
        let recorded = gpu.record(|| {
            logits = self.run(ws, batch)?;
            Ok(())
        });
        match recorded {
            Ok(graph) => ws.replay.graph = Some(Recorded { graph, logits }),
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            // Without a recording the pass runs as ever, and tells what is wrong if anything is.
            Err(_) => ws.replay.alike = 0,
        }
        Ok(())
    }
}
