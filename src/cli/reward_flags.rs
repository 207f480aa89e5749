//! Flags that say what answers are worth, for commands that sample and score them.

use super::args::positive;
use super::failure::Failure;
use super::session::context_limit;
use super::train_args::finite;
use crate::align::rewards::{Judge, Program, Reward, Rewards, Rule};
use crate::data::Rules;
use crate::error::{Error, Result};
use crate::model::builtin::is_builtin;
use crate::model::llama::{LoadOptions, Model};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Longest prompt with an answer that a reward model sees, if it takes so much.
const MAX_LENGTH: usize = 4096;
/// Seconds of a call of the command unless told otherwise.
const TIMEOUT: usize = 600;

/// Where rewards come from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Reward")]
pub struct RewardFlags {
    /// Reward model, made by `puna reward`
    #[arg(long, value_name = "PATH", alias = "reward-model-or-path")]
    pub reward_model: Option<PathBuf>,
    /// Adapter (PEFT) of the reward model
    #[arg(long, value_name = "DIR")]
    pub reward_adapter: Option<PathBuf>,
    /// Program: JSON lines in, numbers out
    #[arg(long, value_name = "CMD")]
    pub reward_command: Option<String>,
    /// Most for one call of it [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub reward_timeout: Option<usize>,
    /// length:A-B, regex:P, json, exact, exact:TYPE
    #[arg(long, value_name = "RULE", value_parser = Rule::parse)]
    pub reward_rule: Vec<Rule>,
    /// One each: model, command, rules [default: 1]
    #[arg(
        long,
        value_name = "W,W",
        value_delimiter = ',',
        allow_hyphen_values = true,
        value_parser = finite
    )]
    pub reward_weights: Vec<f64>,
}

fn refuse<T>(message: impl Into<String>, hint: &str) -> Result<T, Failure> {
    Err(Failure::Usage(message.into(), Some(hint.to_owned())))
}

impl RewardFlags {
    /// Refuses what can be refused before a model is loaded.
    ///
    /// # Errors
    /// No source; a flag without the one that it belongs to; weights that are not one a source; a
    /// reward model that is not there.
    pub fn check(&self) -> Result<(), Failure> {
        if self.reward_adapter.is_some() && self.reward_model.is_none() {
            let hint = "--reward-model PATH names the model that the adapter belongs to";
            return refuse("--reward-adapter without --reward-model", hint);
        }
        if self.reward_timeout.is_some() && self.reward_command.is_none() {
            let hint = "--reward-command CMD names the program that is waited for";
            return refuse("--reward-timeout without --reward-command", hint);
        }
        let n = self.n_sources();
        if n == 0 {
            let hint = "give --reward-model PATH, --reward-command CMD or --reward-rule RULE";
            return refuse("nothing says what an answer is worth", hint);
        }
        let n_weights = self.reward_weights.len();
        if n_weights != 0 && n_weights != n {
            let message = format!("--reward-weights: {n_weights} numbers, wanted {n}");
            return refuse(message, "one for each reward: the model, the command, the rules");
        }
        let paths = [&self.reward_model, &self.reward_adapter];
        for path in paths.into_iter().flatten().filter(|path| !is_builtin(path)) {
            std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
        }
        Ok(())
    }

    /// The rewards. A model computes with the team of `beside`, and reads texts by `rules`.
    ///
    /// # Errors
    /// Those of [`RewardFlags::check`]; a reward model that cannot be loaded or is none.
    pub fn rewards(&self, beside: &Model, rules: &Rules) -> Result<Rewards, Failure> {
        self.check()?;
        let mut sources: Vec<Box<dyn Reward>> = vec![];
        if let Some(path) = &self.reward_model {
            let adapters = self.reward_adapter.iter().cloned().collect();
            let options = LoadOptions { adapters, ..LoadOptions::default() };
            let model = beside.load_beside(path, &options)?;
            let max_length = context_limit(&model.config).min(MAX_LENGTH);
            let name = path.display().to_string();
            sources.push(Box::new(Judge::new(model, rules.clone(), max_length, name)?));
        }
        if let Some(command) = &self.reward_command {
            let timeout = Duration::from_secs(self.reward_timeout.unwrap_or(TIMEOUT) as u64);
            sources.push(Box::new(Program::new(command.clone(), timeout)));
        }
        for rule in &self.reward_rule {
            sources.push(Box::new(rule.clone()));
        }
        Ok(Rewards::new(sources.into_iter().zip(self.weights()).collect())?)
    }

    /// What decides the numbers, by name, for a run's identity.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string())
        };
        let command = self.reward_command.clone().unwrap_or_else(|| "none".to_owned());
        // Patterns may hold any sign, so that a list needs JSON's quotes.
        let rules: Vec<String> = self.reward_rule.iter().map(Rule::name).collect();
        vec![
            ("reward_model", path(&self.reward_model)),
            ("reward_adapter", path(&self.reward_adapter)),
            ("reward_command", command),
            ("reward_rules", json!(rules).to_string()),
            ("reward_weights", json!(self.weights()).to_string()),
        ]
    }

    /// The first rule that compares with reference answers.
    pub fn needs_answers(&self) -> Option<String> {
        let exact = |rule: &&Rule| matches!(rule, Rule::Exact(_));
        self.reward_rule.iter().find(exact).map(Rule::name)
    }

    fn n_sources(&self) -> usize {
        let (model, command) = (self.reward_model.is_some(), self.reward_command.is_some());
        usize::from(model) + usize::from(command) + self.reward_rule.len()
    }

    /// One for each source.
    fn weights(&self) -> Vec<f64> {
        match self.reward_weights.as_slice() {
            [] => vec![1.0; self.n_sources()],
            given => given.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: RewardFlags,
    }

    fn parse(words: &[&str]) -> Result<RewardFlags, String> {
        let line = Line::try_parse_from(std::iter::once(&"puna").chain(words));
        line.map(|line| line.flags).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_become_sources_with_weights() {
        let words = ["--reward-rule=json", "--reward-command", "cat", "--reward-timeout=5"];
        let more = ["--reward-rule", "length:2-3", "--reward-weights", "-1,0.5,2"];
        let flags = parse(&[&words[..], &more[..]].concat()).unwrap();
        flags.check().unwrap();
        let model = Model::load("builtin".as_ref(), &LoadOptions::threads(1)).unwrap();
        let rewards = flags.rewards(&model, &Rules::default()).unwrap();
        assert_eq!(rewards.names(), ["cat", "json", "length:2-3"]);
        let settings = flags.settings();
        let of = |name: &str| settings.iter().find(|(own, _)| *own == name).unwrap().1.as_str();
        assert_eq!((of("reward_model"), of("reward_command")), ("none", "cat"));
        assert_eq!(of("reward_rules"), r#"["json","length:2-3"]"#);
        assert_eq!(of("reward_weights"), "[-1.0,0.5,2.0]");
        let flags = parse(&["--reward-model-or-path", "builtin"]).unwrap();
        flags.check().unwrap();
        let failure = flags.rewards(&model, &Rules::default()).err().unwrap();
        assert!(failure.lines()[0].contains("`puna reward`"), "{failure:?}");
        assert_eq!(failure.status(), 1);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let cases: [(&[&str], &str); 6] = [
            (&[], "nothing says what an answer is worth"),
            (&["--reward-rule=json", "--reward-adapter=a"], "without --reward-model"),
            (&["--reward-rule=json", "--reward-timeout=9"], "without --reward-command"),
            (&["--reward-rule=json", "--reward-weights=1,2"], "2 numbers, wanted 1"),
            (&["--reward-rule=json", "--reward-rule=exact", "--reward-weights=1"], "wanted 2"),
            (&["--reward-model=/no/such/judge"], "/no/such/judge"),
        ];
        for (words, message) in cases {
            let failure = parse(words).unwrap().check().unwrap_err();
            assert!(failure.lines()[0].contains(message), "{words:?}: {failure:?}");
        }
        for words in [["--reward-rule=size"], ["--reward-weights=1,x"], ["--reward-timeout=0"]] {
            assert!(parse(&words).unwrap_err().contains("wanted"), "{words:?}");
        }
    }
}
