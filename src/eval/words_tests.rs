//! What NLTK makes of some texts, and the borders of sentences.

use super::*;

/// Texts and what NLTK 3.9.1 makes of them, lower-cased and joined by spaces.
const CASES: &[(&str, &str)] = &[
    (
        "She can't say it isn't hers, and they'll agree it's John's.",
        "she ca n't say it is n't hers , and they 'll agree it 's john 's .",
    ),
    (
        "I'm sure you've heard we're late; he'd know.",
        "i 'm sure you 've heard we 're late ; he 'd know .",
    ),
    ("DON'T SHOUT, I'LL LISTEN.", "do n't shout , i 'll listen ."),
    (
        "You cannot be gonna do that, gimme a break, I wanna go.",
        "you can not be gon na do that , gim me a break , i wan na go .",
    ),
    (
        "'Twas late and 'tis later, d'ye see more'n one?",
        "'t was late and 't is later , d 'ye see more 'n one ?",
    ),
    ("\"Come in,\" she said. \"Now!\"", "`` come in , '' she said . `` now ! ''"),
    (
        "A (\"quoted\") word and ''two'' ``more''.",
        "a ( `` quoted '' ) word and `` two '' `` more '' .",
    ),
    (
        "The “curly” and ‘single’ and «angled» ones.",
        "the “ curly ” and ‘ single ’ and « angled » ones .",
    ),
    ("It’s not split as it's.", "it ’ s not split as it 's ."),
    ("The 'a', a 'word' and the dogs' bowl.", "the ' a ' , a 'word ' and the dogs ' bowl ."),
    (
        "It cost $1,234.56, or 12.5% of all, at 10:30, in A:B.",
        "it cost $ 1,234.56 , or 12.5 % of all , at 10:30 , in a : b .",
    ),
    (
        "Mail me@home.org & #3; half-baked -- or not--at all*",
        "mail me @ home.org & # 3 ; half-baked -- or not -- at all *",
    ),
    ("Wait... what.. So?! [x] {y} <z>", "wait ... what .. so ? ! [ x ] { y } < z >"),
    ("We went to the U.S. with Dr. Who.", "we went to the u.s. with dr. who ."),
    ("It ended.)  ", "it ended . )"),
    ("It ended.\"", "it ended . ''"),
    ("No end", "no end"),
    ("a,,b ,", "a , ,b ,"),
    ("don't\nwrap o'clock rock 'n' roll", "do n't wrap o'clock rock 'n ' roll"),
    ("Ünder ÉCOLE can't—naïve", "ünder école can't—naïve"),
    ("日本 語。", "日本 語。"),
    ("...", "..."),
    (".", "."),
    ("' \"", "' ``"),
    ("", ""),
    (" \n\t ", ""),
];

#[test]
fn words_are_those_of_nltk() {
    for (text, wanted) in CASES {
        let wanted: Vec<&str> = wanted.split(' ').filter(|word| !word.is_empty()).collect();
        assert_eq!(words(text), wanted, "{text:?}");
    }
}

#[test]
fn borders_of_sentences() {
    let cases: &[(&str, &[&str])] = &[
        ("One. Two? three! Four", &["One.", "Two?", "three!", "Four"]),
        (
            "He said \"No.\" Then (so he did.) he left.\n\nEnd.\n",
            &["He said \"No.\"", "Then (so he did.)", "he left.", "End.\n"],
        ),
        ("Ask Mrs. Hill, J. Smith, etc. and so on.", &["Ask Mrs. Hill, J. Smith, etc. and so on."]),
        (
            "Pears, etc. Then I. Then we, e.g. Tom.",
            &["Pears, etc.", "Then I.", "Then we, e.g. Tom."],
        ),
        (
            "It was 3. then 4. Next, v1.2 is out.Now... Now",
            &["It was 3. then 4.", "Next, v1.2 is out.Now... Now"],
        ),
        ("at 5 p.m. on Monday. so it is", &["at 5 p.m. on Monday.", "so it is"]),
        ("", &[""]),
    ];
    for (text, wanted) in cases {
        assert_eq!(sentences(text), *wanted, "{text:?}");
    }
}

#[test]
fn a_border_splits_the_period_off_its_word() {
    assert_eq!(words("the end. it was"), ["the", "end", ".", "it", "was"]);
    assert_eq!(words("the U.S. It was"), ["the", "u.s.", "it", "was"]);
    assert_eq!(words("the U.S."), ["the", "u.s", "."]);
}
