//! Between flags and model: loading, the template, prompts to ids, sizes of contexts, decoding
//! defaults.

use super::args::{Common, ModelArgs, Sampling, model_path};
use super::failure::Failure;
use super::terminal::Log;
use crate::error::{Error, Result};
use crate::infer::{GenerateOptions, SamplerConfig};
use crate::model::checkpoint::GenerationDefaults;
use crate::model::config::{Config, RopeScaling};
use crate::model::llama::{LoadOptions, Model, Workspace};
use crate::text::{ChatTemplate, Message, TextParts, Tokenizer};
use std::time::Instant;

/// A model ready to run.
pub struct Session {
    /// The model.
    pub model: Model,
    /// Its buffers.
    pub workspace: Workspace,
    /// How long it took to load.
    pub load_ms: f64,
    /// The name that the user gave.
    pub name: String,
    /// How loud to be.
    pub log: Log,
}

impl Session {
    /// Loads the model that the flags name.
    ///
    /// # Errors
    /// No model named, a device that this build cannot use, a reward model, and what loading
    /// returns.
    pub fn load(args: &ModelArgs, threads: usize, common: &Common) -> Result<Session, Failure> {
        let session = Session::load_any(args, threads, common)?;
        session.model.check_speaks()?;
        Ok(session)
    }

    /// Likewise, a reward model too.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub fn load_any(args: &ModelArgs, threads: usize, common: &Common) -> Result<Session, Failure> {
        let path = model_path(args.model.as_deref());
        common.device.check_build()?;
        let log = common.log();
        let start = Instant::now();
        let options = LoadOptions {
            exact: args.exact,
            adapters: args.adapter.clone(),
            cache_weights: args.cache_weights,
            place: common.device.place(),
            ..LoadOptions::threads(threads)
        };
        let model = Model::load(path, &options)?;
        let load_ms = start.elapsed().as_secs_f64() * 1000.0;
        log.detail(format!(
            "{}: loaded in {load_ms:.0} ms, {threads} threads, {}",
            path.display(),
            model.device_name()
        ));
        let workspace = model.workspace();
        Ok(Session { model, workspace, load_ms, name: path.display().to_string(), log })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The model has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.parts().map(|parts| &parts.tokenizer)
    }

    fn parts(&self) -> Result<&TextParts> {
        self.model.text.as_ref().ok_or_else(|| no_tokenizer(&self.name))
    }

    /// Takes the chat template that was named, else the model's own.
    ///
    /// # Errors
    /// No tokenizer, or no such template.
    pub fn choose_template(&mut self, name: Option<&str>) -> Result<()> {
        let parts = self.model.text.as_mut().ok_or_else(|| no_tokenizer(&self.name))?;
        parts.template = Some(ChatTemplate::resolve(name, parts.template.take())?);
        Ok(())
    }

    /// Ids of a plain text, with the special tokens that the tokenizer's own configuration adds.
    ///
    /// # Errors
    /// No tokenizer, or a text that it refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode(text, true, true)
    }

    /// Ids of a conversation up to where the assistant begins to speak.
    ///
    /// # Errors
    /// No tokenizer or template, or messages that the template refuses.
    pub fn encode_messages(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let parts = self.parts()?;
        let template = parts
            .template
            .as_ref()
            .ok_or_else(|| Error::Template(format!("{} has none of its own", self.name)))?;
        template.encode(&parts.tokenizer, messages, true)
    }

    /// Text of ids, special tokens included; empty without a tokenizer.
    ///
    /// # Errors
    /// Ids that cannot be decoded.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.model.text {
            Some(parts) => parts.tokenizer.decode(ids, false),
            None => Ok(String::new()),
        }
    }

    /// Tokens that end an answer: the model's, and in a chat the template's.
    pub fn end_ids(&self, chat: bool) -> Vec<u32> {
        let mut ids = self.model.generation.eos_ids.clone();
        if let Some(parts) = &self.model.text {
            if ids.is_empty() {
                ids.extend(parts.tokenizer.eos_id());
            }
            if let (true, Some(template)) = (chat, &parts.template) {
                ids.extend(template.stop_ids(&parts.tokenizer));
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// What to generate, from the flags and the model's defaults.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn options(
        &self,
        sampling: &Sampling,
        common: &Common,
        chat: bool,
        max_new_tokens: usize,
    ) -> Result<GenerateOptions> {
        let sampler = sampler_config(sampling, &self.model.generation, common.seed);
        sampler.validate()?;
        Ok(GenerateOptions {
            sampler,
            max_new_tokens,
            stop: sampling.stop.clone(),
            end_ids: self.end_ids(chat),
            ignore_eos: sampling.ignore_eos,
            n: 1,
            logprobs: None,
        })
    }

    /// Prints the ids of a prompt on stderr.
    pub fn show_prompt(&self, ids: &[u32]) {
        let list: Vec<String> = ids.iter().map(u32::to_string).collect();
        self.log.always(format!("prompt, {} ids: {}", ids.len(), list.join(",")));
    }

    /// Positions for a context: what `--ctx` says, else `wanted`, but not more than the model
    /// was made for.
    pub fn capacity(&self, ctx: Option<usize>, wanted: usize) -> usize {
        let limit = context_limit(&self.model.config);
        match ctx {
            Some(ctx) => {
                if ctx > limit {
                    self.log.warn(format!(
                        "--ctx {ctx}: the model was made for {limit} positions, beyond them it may \
                         write nonsense"
                    ));
                }
                ctx
            }
            None => wanted.clamp(1, limit),
        }
    }

    /// Says that the context ran full.
    pub fn warn_full(&self, capacity: usize) {
        self.log.warn(format!(
            "context full at {capacity} positions, the text ends here; --ctx N sets another size"
        ));
    }
}

/// Longest context that the model was made for. Dynamic RoPE stretches itself to any length.
pub fn context_limit(config: &Config) -> usize {
    match config.rope.scaling {
        RopeScaling::Dynamic { .. } => usize::MAX,
        _ => config.max_seq_len,
    }
}

fn no_tokenizer(name: &str) -> Error {
    Error::Tokenizer(format!("{name} has none"))
}

/// Greedy unless a sampling flag is given or the model's own defaults say `do_sample`. Filters
/// that neither names are off. `--temperature 0` is greedy whatever the rest.
pub fn sampler_config(flags: &Sampling, model: &GenerationDefaults, seed: u64) -> SamplerConfig {
    let asked = flags.temperature.is_some()
        || flags.top_k.is_some()
        || flags.top_p.is_some()
        || flags.min_p.is_some();
    let sample = asked || model.do_sample == Some(true);
    let temperature = flags.temperature.or(model.temperature).unwrap_or(1.0);
    SamplerConfig {
        temperature: if sample { temperature } else { 0.0 },
        top_k: flags.top_k.or(model.top_k).unwrap_or(0),
        top_p: flags.top_p.or(model.top_p).unwrap_or(1.0),
        min_p: flags.min_p.or(model.min_p).unwrap_or(0.0),
        repetition_penalty: flags.repetition_penalty.or(model.repetition_penalty).unwrap_or(1.0),
        seed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(do_sample: Option<bool>) -> GenerationDefaults {
        GenerationDefaults {
            temperature: Some(0.6),
            top_k: None,
            top_p: Some(0.9),
            min_p: None,
            repetition_penalty: None,
            do_sample,
            eos_ids: vec![],
            bos_id: None,
        }
    }

    #[test]
    fn greedy_unless_asked_or_the_model_samples() {
        let none = Sampling::default();
        for quiet in [None, Some(false)] {
            assert!(sampler_config(&none, &model(quiet), 0).is_greedy());
        }
        let own = sampler_config(&none, &model(Some(true)), 3);
        assert_eq!((own.temperature, own.top_p, own.top_k, own.seed), (0.6, 0.9, 0, 3));

        let top_k = Sampling { top_k: Some(5), ..Sampling::default() };
        let asked = sampler_config(&top_k, &model(None), 0);
        assert_eq!((asked.temperature, asked.top_k), (0.6, 5));

        let zero = Sampling { temperature: Some(0.0), top_k: Some(5), ..Sampling::default() };
        assert!(sampler_config(&zero, &model(Some(true)), 0).is_greedy());

        let penalty = Sampling { repetition_penalty: Some(1.2), ..Sampling::default() };
        let greedy = sampler_config(&penalty, &model(None), 0);
        assert!(greedy.is_greedy() && greedy.repetition_penalty == 1.2);
    }
}
