//! Opening a model for training: weights as parameters, or a frozen base with an adapter.

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::format::hf_config::HfConfig;
use crate::format::peft::{AdapterFile, SCORE_KEY, Target};
use crate::kernels::{Device, Scratch, linear};
use crate::model::adapter::{init_lora, read_adapter};
use crate::model::builtin::is_builtin;
use crate::model::checkpoint::{Checkpoint, GenerationDefaults};
use crate::model::config::{Config, Head};
use crate::model::llama::Model;
use crate::model::names::{BlockWeight, Layout, Weight};
use crate::model::source::WeightSource;
use crate::model::text::text_parts;
use crate::model::tune::{Precision, TuneMethod, TuneModel, TuneOptions};
use crate::model::weights::{Block, Weights};
use crate::ops::{Linear, Lora};
use crate::rng::Rng;
use crate::tensor::{
    Bytes, DType, Home, Low, Matrix, MatrixData, Param, ParamId, Params, Pool, Values, Vector,
};
use crate::text::TextParts;
use puna_cpu::buffer::Buffer;
use puna_cpu::convert;
use puna_cpu::matmul::Dense;
use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::model::weights_cuda::{encode_layers, move_weights};

/// Stream of a seed that random weights are drawn from, one a weight from here on.
const INIT_STREAM: u64 = 1 << 41;
/// Standard deviation of random weights where the configuration does not say.
const INIT_DEVIATION: f64 = 0.02;

/// The value head among the parameters, under TRL's name.
const VALUE_NAME: &str = "v_head.summary.weight";

impl TuneModel {
    /// Opens a model for training on the CPU. A directory with a `config.json` but no weights, or
    /// the `config.json` itself, starts from random weights.
    ///
    /// # Errors
    /// When the checkpoint or the adapter is broken or not there, or an adapter is asked for on
    /// random weights.
    pub fn open(path: &Path, options: &TuneOptions) -> Result<TuneModel> {
        TuneModel::open_on(path, options, Device::new(options.threads)?)
    }

    /// [`TuneModel::open`] for a device that is there already: what is trained lives where it
    /// computes, and the threads of the options do not count.
    ///
    /// # Errors
    /// As [`TuneModel::open`]; when a GPU has no room.
    pub fn open_on(path: &Path, options: &TuneOptions, device: Device) -> Result<TuneModel> {
        if let Some(config_path) = lone_config(path) {
            return TuneModel::random(&config_path, options, device);
        }
        let home = device.home();
        let checkpoint = Checkpoint::open(path)?;
        let text = text_parts(&checkpoint)?;
        let mut params = Params::default();
        let mut trained = None;
        let mut config = checkpoint.config.clone();
        if config.head == Head::Score && !options.score {
            let what = format!("{}: a reward model, which has no tokens to tune", path.display());
            return Err(Error::Unsupported(what));
        }
        if options.score {
            config.head = Head::Score;
        }
        let weights = match &options.method {
            TuneMethod::Full => {
                let source = Scored::new(&checkpoint, &config, options.seed)?;
                full(&source, &config, &home, &mut params)?
            }
            TuneMethod::Lora { spec, adapter } | TuneMethod::QLora { spec, adapter, .. } => {
                let file = match adapter {
                    Some(dir) => read_adapter(dir, &checkpoint.config)?,
                    None => init_lora(spec, &checkpoint.config, options.seed)?,
                };
                if let (Some(_), false, Some(dir)) = (&file.score, options.score, adapter) {
                    let what = "the adapter of a reward model, which has no tokens to tune";
                    return Err(Error::Unsupported(format!("{}: {what}", dir.display())));
                }
                let narrow = matches!(options.precision, Precision::Bf16);
                let nf4 = match options.method {
                    TuneMethod::QLora { double_quant, .. } => Some(double_quant),
                    _ => None,
                };
                let mut weights = frozen(&device, &checkpoint, narrow, nf4)?;
                attach(&mut weights, &mut params, &file, &home)?;
                if options.score {
                    let source = Scored::new(&checkpoint, &config, options.seed)?;
                    let known = file.score.as_deref();
                    let score = score_param(&source, known, &home, &mut params)?;
                    weights.lm_head = Linear::new(score, None);
                }
                trained = Some(file);
                weights
            }
        };
        let Checkpoint { generation, .. } = checkpoint;
        let mut model =
            TuneModel::new(path, config, text, generation, params, weights, options, device)?;
        if let Some(file) = trained {
            model.adapter_places = file.pairs.iter().map(|p| (p.layer, p.target)).collect();
            model.adapter = Some(file.spec);
        }
        Ok(model)
    }

    fn random(config_path: &Path, options: &TuneOptions, device: Device) -> Result<TuneModel> {
        let method = match options.method {
            TuneMethod::Full => None,
            TuneMethod::Lora { .. } => Some("lora"),
            TuneMethod::QLora { .. } => Some("qlora"),
        };
        if let Some(method) = method {
            let why = "an adapter needs weights to adapt; random weights are trained in full";
            return Err(Error::config("method", method, why));
        }
        let mut config = Config::from_hf(&HfConfig::read(config_path)?)?;
        if options.score {
            config.head = Head::Score;
        }
        let dir =
            config_path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let text = match dir.join("tokenizer.json").is_file() {
            true => Some(TextParts::from_hf_dir(dir)?),
            false => None,
        };
        let deviation = initializer_range(config_path)?;
        let random = Random { config: &config, seed: options.seed, deviation };
        let mut params = Params::default();
        let weights = full(&random, &config, &device.home(), &mut params)?;
        let generation = GenerationDefaults {
            eos_ids: config.eos_ids.clone(),
            bos_id: config.bos_id,
            ..GenerationDefaults::default()
        };
        TuneModel::new(dir, config, text, generation, params, weights, options, device)
    }

    #[allow(clippy::too_many_arguments)]
    fn new(
        base: &Path,
        config: Config,
        text: Option<TextParts>,
        generation: GenerationDefaults,
        params: Params,
        weights: Weights,
        options: &TuneOptions,
        device: Device,
    ) -> Result<TuneModel> {
        let (home, mut params) = (device.home(), params);
        #[cfg(feature = "cuda")]
        let weights = match &device.gpu {
            Some(gpu) => {
                let mut weights = weights;
                move_weights(&mut weights, gpu)?;
                weights
            }
            None => weights,
        };
        let mut value = None;
        if options.value {
            let (name, shape) = (VALUE_NAME.to_owned(), vec![1, config.dim]);
            let zeros = Values::zeros(&home, config.dim)?;
            let id = params.push(Param { name, shape, decay: true, value: zeros, low: None });
            value = Some(Matrix { n: 1, k: config.dim, data: MatrixData::Param(id) });
        }
        if linear::derivative_dtype(&device, options.precision) == DType::Bf16 {
            // A table that is only looked up is no factor.
            let table = weights.tok_emb.param().filter(|&id| weights.lm_head.w.param() != Some(id));
            let is_factor = |(id, param): &(usize, &mut Param)| {
                param.shape.len() == 2 && table.is_none_or(|table| table.index() != *id)
            };
            for (_, param) in params.0.iter_mut().enumerate().filter(is_factor) {
                param.low = Some(Low::new(&param.value)?);
            }
        }
        let device = Arc::new(device);
        let model = Model { config, text, generation, weights, params, device, exact: false };
        Ok(TuneModel {
            model,
            options: options.clone(),
            value,
            adapter: None,
            adapter_places: Vec::new(),
            base: base.to_owned(),
            pool: Pool::at(home),
            scratch: Scratch::default(),
            angles: None,
        })
    }
}

impl TuneModel {
    /// Whether the frozen weights are none of the checkpoint's: they were encoded at load.
    pub fn has_encoded_base(&self) -> bool {
        matches!(self.options.method, TuneMethod::QLora { .. })
    }

    /// The frozen weights, shared, with the adapter in `dir` as it is there, for inference with
    /// f32 activations: what a policy started from whose base no file holds.
    ///
    /// # Errors
    /// As [`read_adapter`]; a model without an adapter of its own, whose weights are not frozen, and
    /// a reward model, whose head is not.
    pub fn base_with(&self, dir: &Path) -> Result<Model> {
        let Model { config, generation, weights, device, .. } = &self.model;
        if !self.has_adapter() || config.head != Head::Tokens {
            return Err(Error::Unsupported("sharing weights that are trained".into()));
        }
        let linear = |layer: &Linear| Linear::new(layer.w.clone(), layer.bias.clone());
        let block = |block: &Block| Block {
            attn_norm: block.attn_norm.clone(),
            wq: linear(&block.wq),
            wk: linear(&block.wk),
            wv: linear(&block.wv),
            wo: linear(&block.wo),
            ffn_norm: block.ffn_norm.clone(),
            w1: linear(&block.w1),
            w2: linear(&block.w2),
            w3: linear(&block.w3),
        };
        let mut weights = Weights {
            tok_emb: weights.tok_emb.clone(),
            blocks: weights.blocks.iter().map(block).collect(),
            out_norm: weights.out_norm.clone(),
            lm_head: linear(&weights.lm_head),
        };
        attach_fixed(&mut weights, &read_adapter(dir, config)?);
        Ok(Model {
            config: config.clone(),
            text: None,
            generation: generation.clone(),
            weights,
            params: Params::default(),
            device: Arc::clone(device),
            exact: true,
        })
    }
}

/// Weights that are not trained, as the device multiplies them; with `nf4`, those of linear layers
/// encoded, with or without double quantisation.
fn frozen(
    device: &Device,
    checkpoint: &Checkpoint,
    narrow: bool,
    nf4: Option<bool>,
) -> Result<Weights> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = &device.gpu {
        let mut weights = Weights::load_blocks(&device.cpu, checkpoint, narrow, nf4.is_some())?;
        if let Some(double_quant) = nf4 {
            encode_layers(&mut weights, gpu, checkpoint, double_quant)?;
        }
        return Ok(weights);
    }
    match nf4 {
        Some(double_quant) => Weights::load_nf4(&device.cpu, checkpoint, narrow, double_quant),
        None => Weights::load_as(&device.cpu, checkpoint, narrow),
    }
}

/// The configuration of a model without weights.
fn lone_config(path: &Path) -> Option<std::path::PathBuf> {
    if is_builtin(path) {
        return None;
    }
    if path.is_file() {
        return (path.extension()? == "json").then(|| path.to_owned());
    }
    let config = path.join("config.json");
    let has_weights = std::fs::read_dir(path).ok()?.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        [".safetensors", ".bin", ".pt", ".pth", "index.json"].iter().any(|end| name.ends_with(end))
    });
    (config.is_file() && !has_weights).then_some(config)
}

/// Every weight as a parameter.
fn full(
    source: &dyn WeightSource,
    config: &Config,
    home: &Home,
    params: &mut Params,
) -> Result<Weights> {
    let mut load = |weight: Weight| -> Result<Option<ParamId>> {
        if source.dtype(weight)?.is_none() {
            return Ok(None);
        }
        let shape = config.shape(weight);
        let mut value = Buffer::zeroed(shape.iter().product());
        source.rows(weight, 0..shape[0], &mut value)?;
        let value = Values::from_host(home, value)?;
        let (name, decay) = (weight.file_name(Layout::Hf), shape.len() == 2);
        Ok(Some(params.push(Param { name, shape, decay, value, low: None })))
    };
    let missing = |weight: Weight| Error::Unsupported(format!("a model without {weight}"));
    let mut must = |weight: Weight| load(weight)?.ok_or_else(|| missing(weight));
    let matrix = |weight: Weight, id: ParamId| {
        let shape = config.shape(weight);
        Matrix { n: shape[0], k: shape[1], data: MatrixData::Param(id) }
    };
    let tok_emb = matrix(Weight::TokEmb, must(Weight::TokEmb)?);
    let mut blocks = Vec::new();
    for layer in 0..config.n_layers {
        use BlockWeight::*;
        let block = |w| Weight::Block(layer, w);
        let mut linear = |w, b| -> Result<Linear> {
            let weight = matrix(block(w), must(block(w))?);
            let has_bias = source.dtype(block(b))?.is_some();
            let bias = if has_bias { Some(Vector::Param(must(block(b))?)) } else { None };
            Ok(Linear::new(weight, bias))
        };
        let (wq, wk, wv, wo) = (linear(Wq, Bq)?, linear(Wk, Bk)?, linear(Wv, Bv)?, linear(Wo, Bo)?);
        let (w1, w2, w3) = (linear(W1, B1)?, linear(W2, B2)?, linear(W3, B3)?);
        let attn_norm = Vector::Param(must(block(AttnNorm))?);
        let ffn_norm = Vector::Param(must(block(FfnNorm))?);
        blocks.push(Block { attn_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3 });
    }
    let out_norm = Vector::Param(must(Weight::OutNorm)?);
    let lm_head = match config.head {
        Head::Score => matrix(Weight::Score, must(Weight::Score)?),
        Head::Tokens if config.tie_embeddings => tok_emb.clone(),
        Head::Tokens => matrix(Weight::LmHead, must(Weight::LmHead)?),
    };
    Ok(Weights { tok_emb, blocks, out_norm, lm_head: Linear::new(lm_head, None) })
}

/// A checkpoint with the head of a reward model, its own or a random one.
struct Scored<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    random: Random<'a>,
}

impl<'a> Scored<'a> {
    fn new(checkpoint: &'a Checkpoint, config: &'a Config, seed: u64) -> Result<Scored<'a>> {
        let deviation = match checkpoint.path.join("config.json") {
            file if file.is_file() => initializer_range(&file)?,
            _ => INIT_DEVIATION,
        };
        Ok(Scored { checkpoint, config, random: Random { config, seed, deviation } })
    }

    /// Whether a weight comes from the checkpoint.
    fn is_there(&self, weight: Weight) -> bool {
        weight != Weight::Score || self.checkpoint.config.head == Head::Score
    }
}

impl WeightSource for Scored<'_> {
    fn config(&self) -> &Config {
        self.config
    }

    fn dtype(&self, weight: Weight) -> Result<Option<FileDType>> {
        match self.is_there(weight) {
            true => WeightSource::dtype(self.checkpoint, weight),
            false => self.random.dtype(weight),
        }
    }

    fn rows(&self, weight: Weight, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
        match self.is_there(weight) {
            true => self.checkpoint.rows(weight, rows, out),
            false => self.random.rows(weight, rows, out),
        }
    }

    fn raw_rows(&self, _: Weight, _: std::ops::Range<usize>, _: &mut [u8]) -> Result<bool> {
        Ok(false)
    }
}

/// The score head beside an adapter: `known`, or what the source has.
fn score_param(
    source: &Scored<'_>,
    known: Option<&[f32]>,
    home: &Home,
    params: &mut Params,
) -> Result<Matrix> {
    let shape = source.config.shape(Weight::Score);
    let mut value = Buffer::zeroed(shape.iter().product());
    match known {
        Some(known) => value.copy_from_slice(known),
        None => source.rows(Weight::Score, 0..1, &mut value)?,
    }
    let (n, k) = (shape[0], shape[1]);
    let (name, value) = (SCORE_KEY.to_owned(), Values::from_host(home, value)?);
    let id = params.push(Param { name, shape, decay: true, value, low: None });
    Ok(Matrix { n, k, data: MatrixData::Param(id) })
}

/// Normally distributed matrices, norms of one, biases of zero.
struct Random<'a> {
    config: &'a Config,
    seed: u64,
    deviation: f64,
}

/// Standard deviation of random weights, as transformers names it.
fn initializer_range(config_path: &Path) -> Result<f64> {
    let bytes = std::fs::read(config_path).map_err(|source| Error::io(config_path, source))?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let Some(found) = value.get("initializer_range") else { return Ok(INIT_DEVIATION) };
    match found.as_f64().filter(|x| (0.0..=10.0).contains(x)) {
        Some(deviation) => Ok(deviation),
        None => {
            let field = format!("{}: initializer_range", config_path.display());
            Err(Error::config(field, found, "wanted a number from 0 to 10"))
        }
    }
}

impl WeightSource for Random<'_> {
    fn config(&self) -> &Config {
        self.config
    }

    fn dtype(&self, weight: Weight) -> Result<Option<FileDType>> {
        let absent = match weight {
            Weight::Block(_, w) if w.is_attention_bias() => !self.config.attention_bias,
            Weight::Block(_, w) if w.is_mlp_bias() => !self.config.mlp_bias,
            Weight::LmHead => self.config.tie_embeddings || self.config.head != Head::Tokens,
            Weight::Score => self.config.head != Head::Score,
            _ => false,
        };
        Ok((!absent).then_some(FileDType::F32))
    }

    fn rows(&self, weight: Weight, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<()> {
        let is_norm = matches!(
            weight,
            Weight::OutNorm | Weight::Block(_, BlockWeight::AttnNorm | BlockWeight::FfnNorm)
        );
        let shape = self.config.shape(weight);
        if shape.len() == 1 {
            out.fill(if is_norm { 1.0 } else { 0.0 });
            return Ok(());
        }
        let place = Weight::all(self.config.n_layers).position(|w| w == weight).unwrap_or(0);
        let mut rng = Rng::new(self.seed, INIT_STREAM + place as u64);
        for _ in 0..rows.start * shape[1] {
            rng.normal();
        }
        out.fill_with(|| (rng.normal() * self.deviation) as f32);
        Ok(())
    }

    fn raw_rows(&self, _: Weight, _: std::ops::Range<usize>, _: &mut [u8]) -> Result<bool> {
        Ok(false)
    }
}

/// The linear layer of a block that an adapter's target is.
fn linear_of(block: &mut Block, target: Target) -> &mut Linear {
    match target {
        Target::Wq => &mut block.wq,
        Target::Wk => &mut block.wk,
        Target::Wv => &mut block.wv,
        Target::Wo => &mut block.wo,
        Target::W1 => &mut block.w1,
        Target::W2 => &mut block.w2,
        Target::W3 => &mut block.w3,
    }
}

/// Adds an adapter whose matrices are parameters.
fn attach(
    weights: &mut Weights,
    params: &mut Params,
    file: &AdapterFile,
    home: &Home,
) -> Result<()> {
    let r = file.spec.r;
    for (index, pair) in file.pairs.iter().enumerate() {
        let mut push = |half: &str, shape: [usize; 2], values: &[f32]| -> Result<ParamId> {
            Ok(params.push(Param {
                name: pair.target.key(pair.layer, half),
                shape: shape.to_vec(),
                decay: true,
                value: Values::from_host(home, Buffer::from_slice(values))?,
                low: None,
            }))
        };
        let linear = linear_of(&mut weights.blocks[pair.layer], pair.target);
        let (n, k) = (linear.w.n, linear.w.k);
        let a = Matrix { n: r, k, data: MatrixData::Param(push("lora_A", [r, k], &pair.a)?) };
        let b = Matrix { n, k: r, data: MatrixData::Param(push("lora_B", [n, r], &pair.b)?) };
        let (scale, dropout) = (file.spec.scale(), file.spec.dropout);
        linear.loras.push(Lora { a, b, scale, dropout, key: index as u64 + 1 });
    }
    Ok(())
}

/// Adds an adapter that stays as it is; one with a score head makes a reward model.
pub(super) fn attach_fixed(weights: &mut Weights, file: &AdapterFile) {
    let r = file.spec.r;
    let dense = |n: usize, k: usize, values: &[f32]| {
        let bytes = Bytes::new(convert::f32_bytes(values).to_vec());
        Matrix { n, k, data: MatrixData::Dense(bytes, Dense::F32) }
    };
    for pair in &file.pairs {
        let linear = linear_of(&mut weights.blocks[pair.layer], pair.target);
        let (n, k) = (linear.w.n, linear.w.k);
        let (a, b) = (dense(r, k, &pair.a), dense(n, r, &pair.b));
        linear.loras.push(Lora { a, b, scale: file.spec.scale(), dropout: 0.0, key: 0 });
    }
    if let Some(score) = &file.score {
        weights.lm_head = Linear::new(dense(1, score.len(), score), None);
    }
}
