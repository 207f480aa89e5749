//! Every type of answer: what is taken out of a text, and what is the same answer.

use super::*;

fn check(kind: AnswerType, cases: &[(&str, &str)]) {
    let wrong: Vec<String> = cases
        .iter()
        .map(|(text, wanted)| (text, kind.extract(text), wanted))
        .filter(|(_, found, wanted)| found != *wanted)
        .map(|(text, found, wanted)| format!("{text:?}: {found:?}, wanted {wanted:?}"))
        .collect();
    assert!(wrong.is_empty(), "{}: {wrong:#?}", kind.name());
}

#[test]
fn names_are_lmflows() {
    assert_eq!(AnswerType::NAMES.len(), ALL.len());
    for (at, kind) in ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, at);
        assert_eq!(AnswerType::named(kind.name()), Some(kind));
    }
    assert_eq!(AnswerType::CoinFlip.name(), "coin_flip");
    assert_eq!(AnswerType::Strategyqa.name(), "strategyqa");
    assert_eq!(AnswerType::Text.name(), "text");
    for name in ["", "letters", "GSM8K", "coin flip", "multiple_choice "] {
        assert_eq!(AnswerType::named(name), None, "{name:?}");
    }
}

#[test]
fn the_last_number() {
    for kind in [T::Asdiv, T::Addsub, T::Singleeq, T::Multiarith, T::Math] {
        check(
            kind,
            &[
                ("3 and 4 make 7.", "7"),
                ("so it is 64. Done", "64"),
                ("-2.50 degrees", "-2.50"),
                ("1,234,567 people", "1234567"),
                ("first 1, then 2,", "2"),
                ("5.0", "5.0"),
                ("10-2", "-2"),
                ("--5", "-5"),
                ("- 5", "5"),
                ("1.2.3", "3"),
                ("7..", "7"),
                (".5", "5"),
                ("x2y", "2"),
                ("2 €, 3 Äpfel", "3"),
                ("none", ""),
                ("-", ""),
                ("-.", ""),
                ("", ""),
                // Digits of another script: not read here.
                ("٣", ""),
            ],
        );
    }
}

#[test]
fn the_last_number_rounded() {
    for kind in [T::Gsm8k, T::Svamp] {
        check(
            kind,
            &[
                ("The answer is 1,234.", "1234"),
                ("2.5", "2"),
                ("3.5", "4"),
                ("-2.5", "-2"),
                ("2.51 is it", "3"),
                ("-0.4", "0"),
                ("0.5", "0"),
                ("007", "7"),
                ("12345678901234567890", "12345678901234567168"),
                ("costs $18.00", "18"),
                ("no number", ""),
                ("", ""),
            ],
        );
        // More than a float holds.
        check(kind, &[("9".repeat(400).as_str(), "")]);
    }
}

#[test]
fn the_last_capital_letter() {
    for kind in [T::MultipleChoice, T::Aqua, T::Csqa] {
        check(
            kind,
            &[
                ("The answer is (C).", "C"),
                ("A, no: B", "B"),
                ("B. It is an Elephant", "E"),
                ("I'm a banana", ""),
                ("(C) Because of that", "B"),
                ("F is not one, nor is Ä", ""),
                ("c", ""),
                ("", ""),
            ],
        );
    }
}

#[test]
fn the_last_yes_or_no() {
    for kind in [T::Strategyqa, T::CoinFlip] {
        check(
            kind,
            &[
                ("Yes.", "yes"),
                ("So the answer is \"NO\"", "no"),
                ("yes, no:yes", "yes"),
                ("no\nyes\tit is", "yes"),
                ("nobody knows, yesterday", ""),
                ("yes!", ""),
                ("(no)", ""),
                ("", ""),
            ],
        );
    }
}

#[test]
fn letters_without_quotes_points_and_blanks() {
    check(
        T::LastLetters,
        &[
            ("\"a b.c\"\n", "abc"),
            ("It is 'nk'.", "Itisnk"),
            ("é, ü\u{a0}", "é,ü"),
            (" . ", ""),
            ("", ""),
        ],
    );
}

#[test]
fn the_first_yes_no_or_maybe() {
    for kind in [T::BinaryChoice, T::Pubmedqa] {
        check(
            kind,
            &[
                ("Output: yes", "yes"),
                ("the answer: Maybe, but no.", "maybe"),
                ("no. ANSWER: YES", "yes"),
                ("Q: no A: yes", "yes"),
                ("USA: no", "no"),
                ("answer: nothing", "no"),
                // One blank after the colon, no other.
                ("answer:yes. ", "yes"),
                ("answer:  no", "N/A"),
                ("answer: yEs.", "N/A"),
                // The parenthesis spoils it.
                ("answer: (yes)", "(yes"),
                ("answer: ((No)", "((no"),
                ("(yes)", "N/A"),
                // Without a key word: a point or white space must follow, nothing need precede.
                ("I say no.", "no"),
                ("the piano. yes.", "no"),
                ("Yes\nor no", "yes"),
                ("yes, or maybe not", "maybe"),
                ("it is yes", "N/A"),
                ("Maybe.", "maybe"),
                ("ünmaybe ", "maybe"),
                ("YEs.", "N/A"),
                ("", "N/A"),
            ],
        );
    }
}

#[test]
fn the_first_letter() {
    let both = [
        ("Answer: B", "b"),
        ("Output: (c) and so on", "c"),
        ("A: ((D", "d"),
        ("first a. then Answer: C", "c"),
        ("Answer: because", "b"),
        ("Answer: E, but b.", "b"),
        ("(C) ", "c"),
        ("C.", "c"),
        ("(D)). ", "d"),
        ("is it D)\n", "d"),
        // A word that ends in such a letter.
        ("The end.", "d"),
        ("((a) ", "("),
        ("(((a) ", "("),
        ("D", "N/A"),
        ("(B)", "N/A"),
        ("ä. é ", "N/A"),
        ("", "N/A"),
    ];
    check(T::Medmcqa, &both);
    check(T::Usmle, &both);
    // Fewer key words, so the first letter before a point or a blank counts.
    for (text, medmcqa, usmle) in [
        ("I said b. answer: c", "c", "d"),
        ("OUTPUT: A, or B.", "a", "b"),
        ("ANSWER: D", "d", "N/A"),
    ] {
        check(T::Medmcqa, &[(text, medmcqa)]);
        check(T::Usmle, &[(text, usmle)]);
    }
}

#[test]
fn a_text_stays() {
    check(T::Text, &[(" As it is.\n", " As it is.\n"), ("", "")]);
}

#[test]
fn case_counts_for_some_types_only() {
    let loose = [T::Strategyqa, T::CoinFlip, T::Pubmedqa, T::BinaryChoice, T::Medmcqa, T::Usmle];
    for kind in ALL {
        assert!(kind.matches("b", "b"), "{}", kind.name());
        assert!(kind.matches("b", " b\n"), "{}", kind.name());
        assert!(!kind.matches("b", "c"), "{}", kind.name());
        assert_eq!(kind.matches("b", "B"), loose.contains(&kind), "{}", kind.name());
        assert_eq!(kind.matches("N/A", "n/a"), loose.contains(&kind), "{}", kind.name());
    }
    // Nothing is extracted from what is wanted.
    assert!(!T::Gsm8k.matches("7", "7.0"));
    assert!(!T::Pubmedqa.matches(&T::Pubmedqa.extract("answer: (yes)"), "yes"));
    // A text may be wanted with the white space around it.
    assert!(T::Text.matches(" x\n", " x\n"));
    assert!(!T::Text.matches(" x\n", "x"));
}
