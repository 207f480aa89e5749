//! Stop strings, found exactly wherever tokens split them.
//!
//! The match that is complete first wins (of those complete at the same character, the one that
//! began first), as if the text came one character at a time. So the cut does not depend on how
//! the text was split into tokens. Text that may still turn out to begin a stop string is held
//! back; everything before it may be shown at once.

use crate::error::{Error, Result};

/// Text that may be shown after a push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The text; empty where everything is held back.
    pub text: String,
    /// Whether a stop string was found; it and what follows it is gone.
    pub stopped: bool,
}

/// Watches a stream of text for stop strings.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text not shown yet: the longest suffix that may begin a stop string.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for `stops` (none: everything passes through).
    ///
    /// # Errors
    /// An empty stop string, which would stop before the first character.
    pub fn new(stops: &[String]) -> Result<StopMatcher> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::config("stop", "\"\"", "an empty string would stop at once"));
        }
        Ok(StopMatcher { stops: stops.to_vec(), held: String::new(), stopped: false })
    }

    /// Adds text; returns what may be shown now. After a stop nothing is shown any more.
    pub fn push(&mut self, text: &str) -> Shown {
        let mut shown = String::new();
        let stopped = self.push_into(text, &mut shown);
        Shown { text: shown, stopped }
    }

    /// As [`StopMatcher::push`], with what may be shown appended to `out`; whether a stop string
    /// was found. Allocates only where `out` or the text held back outgrow their room.
    pub fn push_into(&mut self, text: &str, out: &mut String) -> bool {
        if self.stopped {
            return true;
        }
        if self.stops.is_empty() {
            out.push_str(text);
            return false;
        }
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)))
            .min();
        let showable = match found {
            Some((_, start)) => start,
            None => self.first_possible_start(),
        };
        out.push_str(&self.held[..showable]);
        self.held.drain(..showable);
        self.stopped = found.is_some();
        if self.stopped {
            self.held.clear();
        }
        self.stopped
    }

    /// Forgets the text so far.
    pub fn restart(&mut self) {
        self.held.clear();
        self.stopped = false;
    }

    /// What was still held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Byte position of the longest suffix of the held text that begins some stop string.
    fn first_possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        self.held
            .char_indices()
            .map(|(at, _)| at)
            .filter(|&at| at >= from)
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    /// The definition: characters one by one; stop as soon as some stop string is a suffix.
    fn by_definition(text: &str, stops: &[String]) -> (String, bool) {
        let mut seen = String::new();
        for c in text.chars() {
            seen.push(c);
            let hit = stops.iter().filter(|s| seen.ends_with(s.as_str())).map(String::len).max();
            if let Some(len) = hit {
                seen.truncate(seen.len() - len);
                return (seen, true);
            }
        }
        (seen, false)
    }

    fn run(pieces: &[&str], stops: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops).unwrap();
        let (mut out, mut stopped) = (String::new(), false);
        for piece in pieces {
            let shown = matcher.push(piece);
            out.push_str(&shown.text);
            stopped |= shown.stopped;
        }
        out.push_str(&matcher.finish());
        (out, stopped)
    }

    #[test]
    fn every_split_into_three_gives_the_definition() {
        let cases: [(&str, &[&str]); 9] = [
            ("Hello world###Human: x", &["###"]),
            ("aaab", &["aab"]),
            ("ababac", &["abac"]),
            ("abcd", &["abcd", "bc"]),
            ("abX", &["abc", "bX"]),
            ("naïve 🦙🦙 llama", &["🦙 l", "ï!"]),
            ("no stop here", &["stops", "xyz"]),
            ("\n\nUser: ", &["\nUser:", "\n\nUser"]),
            ("stop", &["stop"]),
        ];
        for (text, stops) in cases {
            let stops = strings(stops);
            let wanted = by_definition(text, &stops);
            let cuts: Vec<usize> =
                text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            for &a in &cuts {
                for &b in cuts.iter().filter(|&&b| b >= a) {
                    let got = run(&[&text[..a], &text[a..b], &text[b..]], &stops);
                    assert_eq!(got, wanted, "{text:?} cut at {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut matcher = StopMatcher::new(&strings(&["END"])).unwrap();
        assert_eq!(matcher.push("the E").text, "the ");
        assert_eq!(matcher.push("N").text, "");
        assert_eq!(matcher.push("ter").text, "ENter");
        assert_eq!(matcher.push("EN").text, "");
        assert_eq!(matcher.finish(), "EN");
    }

    #[test]
    fn nothing_is_shown_after_a_stop() {
        let mut matcher = StopMatcher::new(&strings(&["x"])).unwrap();
        assert_eq!(matcher.push("axb"), Shown { text: "a".into(), stopped: true });
        assert_eq!(matcher.push("more"), Shown { text: String::new(), stopped: true });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn empty_stop_strings_are_refused() {
        assert!(StopMatcher::new(&strings(&["a", ""])).is_err());
    }
}
