//! Multiple choice as EleutherAI's lm-evaluation-harness asks and scores it: a record becomes a
//! prompt and its continuations, and their log-probabilities ([`Asker`]) become a score.
//!
//! A continuation begins with the blank that the harness puts between prompt and answer. Whoever
//! computes log-probabilities encodes prompt and continuation as one text: the tokens after those
//! of the prompt are the continuation's.

mod ask;
mod read;

pub use ask::Asker;
pub use read::item;

/// A data set and how it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// ARC, the easy questions.
    ArcEasy,
    /// ARC, the hard questions.
    ArcChallenge,
    /// HellaSwag: how a text goes on.
    HellaSwag,
    /// MMLU, one of its subjects.
    Mmlu,
    /// TruthfulQA with one true answer.
    TruthfulQaMc1,
    /// TruthfulQA with several true answers.
    TruthfulQaMc2,
    /// PubMedQA: yes, no or maybe, from an abstract.
    PubMedQa,
    /// MedQA, the four options of the USMLE.
    MedQa,
    /// MedMCQA.
    MedMcQa,
}

/// Every task, in the order of [`Task::NAMES`].
const ALL: [Task; 9] = [
    Task::ArcEasy,
    Task::ArcChallenge,
    Task::HellaSwag,
    Task::Mmlu,
    Task::TruthfulQaMc1,
    Task::TruthfulQaMc2,
    Task::PubMedQa,
    Task::MedQa,
    Task::MedMcQa,
];

impl Task {
    /// The names of all tasks.
    pub const NAMES: &'static [&'static str] = &[
        "arc_easy",
        "arc_challenge",
        "hellaswag",
        "mmlu",
        "truthfulqa_mc1",
        "truthfulqa_mc2",
        "pubmedqa",
        "medqa",
        "medmcqa",
    ];

    /// The task of that name.
    pub fn named(name: &str) -> Option<Task> {
        ALL.iter().zip(Self::NAMES).find(|(_, other)| **other == name).map(|(task, _)| *task)
    }

    /// The task's name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether the harness reports a normalised accuracy for it.
    fn is_normalised(self) -> bool {
        matches!(
            self,
            Task::ArcEasy | Task::ArcChallenge | Task::HellaSwag | Task::MedQa | Task::MedMcQa
        )
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The question as the harness asks it, up to where the answer begins; without MMLU's header,
    /// which [`with_shots`] puts before the examples.
    pub context: String,
    /// The answers, each with the blank before it.
    pub choices: Vec<String>,
    /// Which of them are right, one for each.
    pub correct: Vec<bool>,
    /// The subject as the data set writes it, where it has one.
    pub subject: Option<String>,
}

/// The whole prompt for `item`: `prefix` and two line ends, MMLU's header with the item's subject,
/// then each of `shots` with its first right answer and two line ends, then the item's question.
///
/// The harness puts six fixed questions with answers before every question of TruthfulQA. They are
/// part of its score and not of the data: give them as `prefix` to compare with its figures.
pub fn with_shots(task: Task, prefix: Option<&str>, shots: &[Item], item: &Item) -> String {
    let mut prompt = String::new();
    if let Some(prefix) = prefix {
        prompt.push_str(prefix);
        prompt.push_str("\n\n");
    }
    if let (Task::Mmlu, Some(subject)) = (task, &item.subject) {
        let subject = subject.replace('_', " ");
        prompt.push_str(&format!(
            "The following are multiple choice questions (with answers) about {subject}.\n\n"
        ));
    }
    for shot in shots {
        prompt.push_str(&shot.context);
        let right = shot.choices.iter().zip(&shot.correct).find(|(_, correct)| **correct);
        prompt.push_str(right.map_or("", |(choice, _)| choice.as_str()));
        prompt.push_str("\n\n");
    }
    prompt.push_str(&item.context);
    prompt
}

/// How a model answered one question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// 1 if the likeliest answer is a right one, else 0.
    pub acc: f64,
    /// The same for the answer that is likeliest by character, for the tasks of which the harness
    /// reports it.
    pub acc_norm: Option<f64>,
    /// The right answers' share of the probability of all answers, for TruthfulQA with several;
    /// the harness reports it as that task's accuracy.
    pub mc2: Option<f64>,
    /// The likeliest answer.
    pub chosen: usize,
}

/// Scores the summed log-probabilities of an item's choices. Of equal ones the first is taken, and
/// one that is not a number never.
///
/// `acc_norm` divides by the number of characters (not bytes, not tokens) of the choice without the
/// blank before it, as the harness does; a choice without characters is never taken.
///
/// # Panics
/// If there is not one log-probability for each choice.
pub fn score(task: Task, item: &Item, logprobs: &[f64]) -> Scored {
    let (n, n_choices) = (logprobs.len(), item.choices.len());
    assert_eq!(n, n_choices, "log-probabilities: {n}, wanted one for each of {n_choices} choices");
    let hit = |choice: usize| match item.correct.get(choice) {
        Some(true) => 1.0,
        _ => 0.0,
    };
    let chosen = argmax(logprobs.iter().copied());
    let by_character = logprobs.iter().zip(&item.choices).map(|(logprob, choice)| {
        let text = choice.strip_prefix(' ').unwrap_or(choice);
        match text.chars().count() {
            0 => f64::NEG_INFINITY,
            characters => logprob / characters as f64,
        }
    });
    Scored {
        acc: hit(chosen),
        acc_norm: task.is_normalised().then(|| hit(argmax(by_character))),
        mc2: (task == Task::TruthfulQaMc2).then(|| mass(logprobs, &item.correct)),
        chosen,
    }
}

/// The first of the largest values; 0 where none is larger than minus infinity.
fn argmax(values: impl Iterator<Item = f64>) -> usize {
    let (mut chosen, mut largest) = (0, f64::NEG_INFINITY);
    for (at, value) in values.enumerate() {
        if value > largest {
            (chosen, largest) = (at, value);
        }
    }
    chosen
}

/// The share of probability that the right answers have.
fn mass(logprobs: &[f64], correct: &[bool]) -> f64 {
    // Less the largest, or all answers of some length would come to a probability of 0.
    let largest = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut right, mut all) = (0.0, 0.0);
    for (logprob, correct) in logprobs.iter().zip(correct) {
        let probability = (logprob - largest).exp();
        all += probability;
        if *correct {
            right += probability;
        }
    }
    right / all
}

#[cfg(test)]
mod tests;
