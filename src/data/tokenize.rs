//! The work behind `prepare`: instances to rows in a file.

use super::cache::{Key, Writer};
use super::layout::{Arranger, Cut, Layout, cut};
use super::order::below;
use super::prepare::{Holdout, Notes, Plan, Progress, Report, Stage};
use super::record::{Kind, Record};
use super::render::{Rendered, Renderer};
use super::rows::{Document, Row, n_targets};
use super::source::{Instance, Place, Source};
use crate::error::{Error, Result};
use crate::rng::Rng;
use rayon::prelude::*;
use std::path::PathBuf;

/// Instances that are rendered together.
const BATCH_INSTANCES: usize = 1024;

/// Bytes of data after which a batch ends, however few instances it has.
const BATCH_BYTES: u64 = 8 << 20;

/// Reasons for skipped instances that are kept.
const REASONS: usize = 5;

/// Random stream of the choice of instances that are held back.
const HOLDOUT_STREAM: u64 = 0x686f_6c64_0000_0000;

/// Chooses `wanted` of `left` instances as they come, each set of them equally likely (Knuth, The
/// Art of Computer Programming, volume 2, 3.4.2, algorithm S).
struct Draw {
    rng: Rng,
    left: u32,
    wanted: u32,
}

impl Draw {
    fn next(&mut self) -> bool {
        let chosen = below(&mut self.rng, self.left) < self.wanted;
        self.left = self.left.saturating_sub(1);
        self.wanted -= u32::from(chosen);
        chosen
    }
}

/// One of the two files.
struct Part {
    writer: Writer,
    arranger: Arranger,
    n_tokens: u64,
    n_scored: u64,
}

impl Part {
    /// Takes a document, or with `None` the end of the data.
    fn push(&mut self, document: Option<Document>) -> Result<()> {
        let Part { writer, arranger, n_tokens, n_scored } = self;
        let mut emit = |row: Row| {
            *n_tokens += row.ids.len() as u64;
            *n_scored += row.n_scored() as u64;
            writer.push(&row)
        };
        match document {
            Some(document) => arranger.push(document, &mut emit),
            None => arranger.finish(&mut emit),
        }
    }
}

/// An instance in a batch.
struct Item {
    record: Record,
    place: Place,
    source: u32,
    held_out: bool,
}

/// What became of an instance.
enum Outcome {
    Pieces { cut: Cut, n_tokens: usize, without_tools: bool },
    Nothing(String),
}

/// Makes the files.
pub(super) struct Builder<'a> {
    source: &'a Source,
    plan: &'a Plan<'a>,
    paths: &'a [PathBuf; 2],
    key: Key,
    progress: &'a mut dyn FnMut(Progress),
    draw: Option<Draw>,
    /// Known from the first instance on.
    work: Option<Work<'a>>,
    batch: Vec<Item>,
    batch_start_bytes: u64,
    firsts: Vec<u64>,
    report: Report,
    n_without_tools: u64,
    n_too_long: u64,
}

/// What depends on the type of the records.
struct Work<'a> {
    renderer: Renderer<'a>,
    kind: Kind,
    layout: Layout,
    block_size: usize,
    train: Part,
    held_out: Option<Part>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        source: &'a Source,
        plan: &'a Plan<'a>,
        paths: &'a [PathBuf; 2],
        key: Key,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Builder<'a>> {
        let mut builder = Builder {
            source,
            plan,
            paths,
            key,
            progress,
            draw: None,
            work: None,
            batch: vec![],
            batch_start_bytes: 0,
            firsts: vec![],
            report: Report::default(),
            n_without_tools: 0,
            n_too_long: 0,
        };
        if let Some(holdout) = plan.options.holdout {
            builder.draw = Some(builder.draw(holdout)?);
        }
        Ok(builder)
    }

    /// Reads everything and writes the files.
    pub(super) fn build(mut self) -> Result<()> {
        let source = self.source;
        source.for_each(&mut |instance| self.take(instance))?;
        self.render_batch()?;
        self.finish()
    }

    /// Counts the instances and decides how many are held back.
    fn draw(&mut self, holdout: Holdout) -> Result<Draw> {
        let mut n = 0u64;
        let total_bytes = self.plan.total_bytes;
        self.source.for_each(&mut |instance| {
            n += 1;
            if n.is_multiple_of(BATCH_INSTANCES as u64) {
                let done_bytes = instance.bytes_read;
                let stage = Stage::Counting;
                (self.progress)(Progress { stage, done_bytes, total_bytes, instances: n });
            }
            Ok(())
        })?;
        let (wanted, asked) = match holdout {
            Holdout::Count(count) => (count as u64, count.to_string()),
            // At least one; the cast saturates.
            Holdout::Percent(p) => (((n as f64 * p / 100.0).round() as u64).max(1), p.to_string()),
        };
        let too_many =
            || format!("would hold back {wanted} of {n} instances; wanted some for both");
        match (u32::try_from(n), u32::try_from(wanted)) {
            (Ok(left), Ok(wanted)) if wanted < left => {
                Ok(Draw { rng: Rng::new(self.plan.options.seed, HOLDOUT_STREAM), left, wanted })
            }
            _ => Err(Error::config("holdout", asked, too_many())),
        }
    }

    fn work(&self, record: &Record, place: Place) -> Result<Work<'a>> {
        let Plan { text, vocab_size, block_size, options, .. } = *self.plan;
        let kind = record.kind();
        let name = self.source.files()[place.file].display().to_string();
        let renderer = Renderer::new(&options.rules, text, kind, vocab_size, &name)?;
        // One line is one row: neither packed nor cut.
        let (layout, block_size) = match kind {
            Kind::Tokenized => (Layout::Blocks, usize::MAX),
            _ => (options.layout, block_size),
        };
        let part = |path: &PathBuf| -> Result<Part> {
            let run = options.group_texts_batch_size;
            let arranger = Arranger::new(layout, block_size, run, options.drop_remainder);
            let writer = Writer::create(path, self.key)?;
            Ok(Part { writer, arranger, n_tokens: 0, n_scored: 0 })
        };
        let train = part(&self.paths[0])?;
        let held_out = self.draw.as_ref().map(|_| part(&self.paths[1])).transpose()?;
        Ok(Work { renderer, kind, layout, block_size, train, held_out })
    }

    fn take(&mut self, instance: Instance) -> Result<()> {
        let Instance { record, place, bytes_read } = instance;
        if self.work.is_none() {
            self.work = Some(self.work(&record, place)?);
        }
        let number = self.report.instances;
        while self.firsts.len() <= place.file {
            self.firsts.push(number);
        }
        let source = u32::try_from(number).map_err(|_| Error::Data {
            place: self.source.name(place),
            what: "more than 2^32 instances".into(),
        })?;
        let held_out = self.draw.as_mut().is_some_and(Draw::next);
        self.report.instances += 1;
        self.report.held_out_instances += u64::from(held_out);
        self.batch.push(Item { record, place, source, held_out });
        if self.batch.len() == BATCH_INSTANCES || bytes_read > self.batch_start_bytes + BATCH_BYTES
        {
            self.batch_start_bytes = bytes_read;
            self.render_batch()?;
            let total_bytes = self.plan.total_bytes;
            let instances = self.report.instances;
            let stage = Stage::Tokenizing;
            (self.progress)(Progress { stage, done_bytes: bytes_read, total_bytes, instances });
        }
        Ok(())
    }

    /// Renders the instances that wait, on all threads, and puts them into rows in their order.
    fn render_batch(&mut self) -> Result<()> {
        let Some(work) = &mut self.work else { return Ok(()) };
        let side = self.plan.options.truncation_side;
        let (renderer, kind, layout, block) =
            (&work.renderer, work.kind, work.layout, work.block_size);
        let outcomes: Vec<Result<Outcome>> = self
            .batch
            .par_iter()
            .map(|item| {
                let rendered = renderer.render(&item.record)?;
                let without_tools =
                    matches!(rendered, Rendered::Document { without_tools: true, .. });
                let document = match rendered.into_document(item.source) {
                    Ok(document) => document,
                    Err(why) => return Ok(Outcome::Nothing(why)),
                };
                let n_tokens = document.ids.len();
                let cut = cut(document, kind == Kind::TextOnly, layout, block, side);
                if cut.n_lost > 0 && cut.pieces.iter().all(|piece| n_targets(&piece.labels) == 0) {
                    return Ok(Outcome::Nothing(format!(
                        "{n_tokens} tokens, of which none within block_size {block} is a scored target"
                    )));
                }
                Ok(Outcome::Pieces { cut, n_tokens, without_tools })
            })
            .collect();
        for (item, outcome) in self.batch.drain(..).zip(outcomes) {
            let at = |what: String| Error::Data { place: self.source.name(item.place), what };
            match outcome {
                Err(error) => return Err(at(error.to_string())),
                Ok(Outcome::Nothing(why)) if self.plan.options.skip_bad_instances => {
                    self.report.skipped += 1;
                    self.report.held_out_instances -= u64::from(item.held_out);
                    if self.report.skipped_first.len() < REASONS {
                        self.report.skipped_first.push(at(why).to_string());
                    }
                }
                Ok(Outcome::Nothing(why)) => {
                    return Err(at(format!(
                        "nothing to train on: {why} (--skip-bad-instances leaves such instances out)"
                    )));
                }
                Ok(Outcome::Pieces { cut, n_tokens, without_tools }) => {
                    let report = &mut self.report;
                    report.longest = report.longest.max(n_tokens as u64);
                    report.documents += cut.pieces.len() as u64;
                    report.split += u64::from(cut.pieces.len() > 1);
                    report.truncated += u64::from(cut.n_lost > 0);
                    report.truncated_tokens += cut.n_lost as u64;
                    self.n_without_tools += u64::from(without_tools);
                    self.n_too_long += u64::from(n_tokens > self.plan.model_max_len);
                    let part = match &mut work.held_out {
                        Some(part) if item.held_out => part,
                        _ => &mut work.train,
                    };
                    for piece in cut.pieces {
                        part.push(Some(piece))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        // The source has refused a set without instances.
        let Some(mut work) = self.work.take() else { return Ok(()) };
        self.firsts.resize(self.source.files().len(), self.report.instances);
        for part in [Some(&mut work.train), work.held_out.as_mut()].into_iter().flatten() {
            part.push(None)?;
            self.report.dropped_tokens += part.arranger.n_dropped as u64;
            self.report.rows_without_targets += part.arranger.n_without_targets as u64;
            if part.writer.n_rows() == 0 {
                return Err(self.nothing_left());
            }
        }
        let warnings = self.warnings(&work);
        let report = &mut self.report;
        report.kind = work.kind.name().into();
        report.block_size = if work.kind == Kind::Tokenized { 0 } else { work.block_size };
        report.rows = work.train.writer.n_rows() as u64;
        report.held_out_rows = work.held_out.as_ref().map_or(0, |p| p.writer.n_rows() as u64);
        report.warnings = warnings;
        let done_bytes = self.plan.total_bytes;
        (self.progress)(Progress {
            stage: Stage::Tokenizing,
            done_bytes,
            total_bytes: done_bytes,
            instances: report.instances,
        });
        // The rows to train on last: their file says that both are there.
        for part in work.held_out.into_iter().chain([work.train]) {
            let Part { writer, n_tokens, n_scored, .. } = part;
            let firsts = self.firsts.clone();
            let notes = Notes { report: self.report.clone(), firsts, n_tokens, n_scored };
            let notes = serde_json::to_vec(&notes)
                .map_err(|e| Error::format(&self.paths[0], format!("notes of the rows: {e}")))?;
            writer.finish(&notes)?;
        }
        Ok(())
    }

    fn nothing_left(&self) -> Error {
        let what = match self.report.skipped_first.first() {
            Some(first) => format!(
                "no row is left: {} of {} instances were skipped, the first: {first}",
                self.report.skipped, self.report.instances
            ),
            None => format!(
                "no row is left: all {} tokens are short of a block of {} and dropped",
                self.report.dropped_tokens, self.plan.block_size
            ),
        };
        Error::Data { place: self.source.path().display().to_string(), what }
    }

    fn warnings(&self, work: &Work<'_>) -> Vec<String> {
        let mut warnings = vec![];
        if work.kind == Kind::Tokenized {
            if self.n_too_long > 0 {
                warnings.push(format!(
                    "{} rows are longer than the model's maximum {}; tokenised rows are never cut",
                    self.n_too_long, self.plan.model_max_len
                ));
            }
        } else {
            warnings.extend(self.plan.warning.clone());
        }
        if work.renderer.lacks_eos() {
            warnings.push("the tokenizer names no EOS, so texts end without one".into());
        }
        if self.n_without_tools > 0 {
            warnings.push(format!(
                "the tools of {} conversations are left out: the template is not given tools",
                self.n_without_tools
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_wanted_number_is_drawn() {
        for seed in 0..50 {
            for (left, wanted) in [(10, 1), (10, 9), (1000, 50), (2, 1)] {
                let mut draw = Draw { rng: Rng::new(seed, HOLDOUT_STREAM), left, wanted };
                let n = (0..left).filter(|_| draw.next()).count();
                assert_eq!(n, wanted as usize);
            }
        }
    }
}
