//! Accuracy: how a question is put to a model, and whether what it wrote holds the right answer.
//!
//! As LMFlow: the question goes into a structure, the answer is taken out of the output by its
//! type, and correct answers are divided by the number of all questions. What generates is
//! elsewhere.

use crate::error::{Error, Result};
use crate::eval::answers::AnswerType;

/// The text around a question. Every `{input}` in it becomes the question; other braces stand as
/// they are, where LMFlow's Python would want them doubled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptStructure(String);

impl PromptStructure {
    /// What becomes the question; alone, the structure that adds nothing.
    pub const PLACE: &'static str = "{input}";

    /// The structure that `text` says.
    ///
    /// # Errors
    /// A text in which the question has no place.
    pub fn new(text: &str) -> Result<PromptStructure> {
        if !text.contains(Self::PLACE) {
            let why = format!("wanted {} in it, where the question goes", Self::PLACE);
            return Err(Error::config("prompt-structure", format!("\"{text}\""), why));
        }
        Ok(PromptStructure(text.to_owned()))
    }

    /// The prompt of a question.
    pub fn prompt(&self, input: &str) -> String {
        self.0.replace(Self::PLACE, input)
    }
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The answer as it was taken out of the output.
    pub answer: String,
    /// Whether it is the right one.
    pub correct: bool,
}

/// Takes the answer out of `output` and compares it with the right one.
pub fn judge(kind: AnswerType, output: &str, wanted: &str) -> Judged {
    let answer = kind.extract(output);
    let correct = kind.matches(&answer, wanted);
    Judged { answer, correct }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_goes_where_the_structure_says() {
        let prompt = |structure: &str, input: &str| {
            PromptStructure::new(structure).map(|structure| structure.prompt(input))
        };
        assert_eq!(prompt(PromptStructure::PLACE, "why?").unwrap(), "why?");
        assert_eq!(prompt("Q: {input}\nA: {x}", "why?").unwrap(), "Q: why?\nA: {x}");
        assert_eq!(prompt("{input}, {input}", "{input}").unwrap(), "{input}, {input}");
        let error = prompt("Q: {inputs}", "x").unwrap_err().to_string();
        assert!(error.contains("\"Q: {inputs}\"") && error.contains("wanted {input}"), "{error}");
    }

    #[test]
    fn an_answer_is_taken_out_and_compared() {
        let cases = [
            (AnswerType::Gsm8k, "So it is 1,024.", "1024", "1024", true),
            (AnswerType::Gsm8k, "I do not know", "1024", "", false),
            (AnswerType::MultipleChoice, "The answer is (B).", "B", "B", true),
            (AnswerType::CoinFlip, "Yes or no? No.", "no", "no", true),
            (AnswerType::Pubmedqa, "Answer: Maybe not", "yes", "maybe", false),
            (AnswerType::Text, " a kite", " a kite", " a kite", true),
        ];
        for (kind, output, wanted, answer, correct) in cases {
            let found = judge(kind, output, wanted);
            assert_eq!(found, Judged { answer: answer.into(), correct }, "{output}");
        }
    }
}
