//! Data sets of any size as files of rows: read as a stream, found again, made anew after a change
//! or a fault, the same on any number of threads; instances held back; packing end to end.

use crate::support::data::{Place, bytes, bytes_with, fixture, rows};
use puna::data::{DataOptions, Holdout, Layout, Row, Rules, Stage, TruncationSide, prepare};
use puna::text::TextParts;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn many(n: usize) -> Place {
    let text = |i: usize| format!("{i} {}", "ab ".repeat(i * 7 % 41));
    let instances: Value = (0..n).map(|i| json!({"text": text(i)})).collect();
    Place::container("text_only", &instances)
}

#[test]
fn a_type_after_the_instances_is_the_same_set() {
    let before = Place::new(&[("a.json", r#"{"type":"text_only","instances":[{"text":"ab"}]}"#)]);
    let after = Place::new(&[("a.json", r#"{"instances":[{"text":"ab"}],"type":"text_only"}"#)]);
    assert_eq!(before.blocks(&bytes(), Rules::default()), after.blocks(&bytes(), Rules::default()));
    let twice = r#"{"type":"text_only","instances":[{"text":"a"}],"instances":[{"text":"b"}]}"#;
    let place = Place::new(&[("a.json", twice)]);
    let error = place.prepare(&bytes(), &place.options()).unwrap_err().to_string();
    assert!(error.contains("\"instances\": there twice"), "{error}");
    let cut = Place::new(&[("a.json", r#"{"type":"text_only","instances":[{"text":"ab"},"#)]);
    let error = cut.prepare(&bytes(), &cut.options()).unwrap_err().to_string();
    assert!(error.contains("a.json") && error.contains("not JSON"), "{error}");
    assert!(!cut.cache().read_dir().unwrap().any(|_| true), "nothing half-written is left");
}

#[test]
fn the_same_rows_on_any_number_of_threads() {
    let place = many(3000);
    let run = |n: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let options = DataOptions { overwrite_cache: true, ..place.options() };
        let prepared = pool.install(|| place.prepare(&bytes(), &options).unwrap());
        assert!(!prepared.report.cache_hit);
        let mut files: Vec<PathBuf> =
            place.cache().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        fs::read(files.remove(0)).unwrap()
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3), "the files differ");
}

#[test]
fn a_second_run_finds_the_rows_and_any_change_makes_them_anew() {
    let place = many(30);
    let chat = |template| bytes_with(Some(template));
    let options = place.options();
    let text = chat("{{ messages[0].content }}");
    let first = place.prepare(&text, &options).unwrap();
    assert!(!first.report.cache_hit);
    let mut stages = vec![];
    let n = text.tokenizer.vocab_size();
    let mut progress = |p: puna::data::Progress| stages.push(p.stage);
    let again = prepare(&place.data(), Some(&text), n, 4096, &options, &mut progress).unwrap();
    assert!(again.report.cache_hit);
    assert!(stages.iter().all(|&stage| stage == Stage::Hashing), "nothing is tokenised again");
    assert_eq!(rows(&again), rows(&first));
    assert_eq!(
        puna::data::Report { cache_hit: false, ..again.report },
        first.report,
        "what was reported is kept"
    );
    let hit = |text: &TextParts, options: &DataOptions| {
        place.prepare(text, options).unwrap().report.cache_hit
    };
    assert!(!hit(&chat("{{ messages[0].role }}"), &options), "template");
    assert!(!hit(&fixture("byte-level"), &options), "tokenizer");
    assert!(!hit(&fixture("spm"), &options), "tokenizer");
    let changes: Vec<DataOptions> = vec![
        DataOptions { block_size: Some(63), ..options.clone() },
        DataOptions { layout: Layout::Blocks, ..options.clone() },
        DataOptions { layout: Layout::Group, ..options.clone() },
        DataOptions { rules: Rules { no_eos: true, ..Rules::default() }, ..options.clone() },
        DataOptions { truncation_side: TruncationSide::Left, ..options.clone() },
        DataOptions { holdout: Some(Holdout::Count(3)), ..options.clone() },
        DataOptions { holdout: Some(Holdout::Count(3)), seed: 1, ..options.clone() },
    ];
    for changed in &changes {
        assert!(!hit(&text, changed), "{changed:?}");
        assert!(hit(&text, changed), "{changed:?}");
    }
    assert!(hit(&text, &DataOptions { seed: 9, ..options.clone() }), "nothing is chosen by seed");
    assert!(!hit(&text, &DataOptions { overwrite_cache: true, ..options.clone() }));
    // One byte of the data, and the name of a file.
    let file = place.data().join("x.json");
    let data = fs::read_to_string(&file).unwrap();
    fs::write(&file, data.replacen("ab", "ac", 1)).unwrap();
    assert!(!hit(&text, &options), "data");
    fs::write(&file, data).unwrap();
    assert!(hit(&text, &options));
    fs::rename(&file, place.data().join("y.json")).unwrap();
    assert!(!hit(&text, &options), "file name");
}

#[test]
fn a_damaged_cache_is_made_again() {
    let place = many(30);
    let options = DataOptions { holdout: Some(Holdout::Percent(20.0)), ..place.options() };
    let first = place.prepare(&bytes(), &options).unwrap();
    let wanted = rows(&first);
    let files: Vec<PathBuf> =
        place.cache().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    for file in files {
        let whole = fs::read(&file).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            bytes
        };
        let damaged = [
            flipped(9),
            flipped(200),
            flipped(whole.len() - 3),
            whole[..whole.len() / 2].to_vec(),
            vec![],
        ];
        for bytes in damaged {
            fs::write(&file, bytes).unwrap();
            let again = place.prepare(&bytes_with(None), &options).unwrap();
            assert!(!again.report.cache_hit);
            assert_eq!(rows(&again), wanted);
            assert_eq!(fs::read(&file).unwrap(), whole, "the same bytes");
        }
        fs::remove_file(&file).unwrap();
        assert!(!place.prepare(&bytes(), &options).unwrap().report.cache_hit);
    }
}

#[test]
fn held_out_instances_are_in_no_row_of_the_rest() {
    let place = many(200);
    let run = |holdout, seed| {
        let options = DataOptions { holdout: Some(holdout), seed, ..place.options() };
        let prepared = place.prepare(&bytes(), &options).unwrap();
        let held_out = prepared.held_out.clone().unwrap();
        let sources = |n: usize, row: &dyn Fn(usize) -> Row| -> BTreeSet<u32> {
            (0..n).flat_map(|i| row(i).source).collect()
        };
        let train = sources(prepared.train.len(), &|i| prepared.train.row(i).unwrap());
        let held = sources(held_out.len(), &|i| held_out.row(i).unwrap());
        assert!(train.is_disjoint(&held));
        assert_eq!(train.len() + held.len(), 200);
        assert_eq!(prepared.report.held_out_instances, held.len() as u64);
        held
    };
    let held = run(Holdout::Percent(5.0), 1);
    assert_eq!(held.len(), 10);
    assert_eq!(held, run(Holdout::Count(10), 1));
    assert_ne!(held, run(Holdout::Count(10), 2));
    for holdout in [
        Holdout::Count(0),
        Holdout::Count(200),
        Holdout::Percent(0.0),
        Holdout::Percent(100.0),
        Holdout::Percent(f64::NAN),
    ] {
        let options = DataOptions { holdout: Some(holdout), ..place.options() };
        assert!(place.prepare(&bytes(), &options).is_err(), "{holdout:?}");
    }
}

#[test]
fn packed_texts_are_all_there() {
    let place = many(500);
    let text = bytes();
    let options = place.options();
    let prepared = place.prepare(&text, &options).unwrap();
    let blocks = DataOptions { layout: Layout::Blocks, block_size: Some(4096), ..options.clone() };
    let whole = rows(&place.prepare(&text, &blocks).unwrap());
    let mut pieces = vec![vec![]; 500];
    for row in rows(&prepared) {
        assert!(row.ids.len() <= 64);
        let mut start = 0;
        for (&n, &source) in row.spans.iter().zip(&row.source) {
            pieces[source as usize].push(row.ids[start..start + n as usize].to_vec());
            start += n as usize;
        }
    }
    // Pieces of one instance lie in rows in any order, but the first begins with BOS.
    for (source, row) in whole.iter().enumerate() {
        let mut ids: Vec<u32> = pieces[source].concat();
        let mut wanted = row.ids.clone();
        ids.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(ids, wanted, "instance {source}");
    }
    assert!(prepared.report.split > 0 && prepared.report.truncated == 0);
    assert_eq!(prepared.report.rows as usize, prepared.train.len());
    // Short rows are few: three of four blocks are full to the last token or nearly.
    assert!(prepared.train.n_tokens() * 10 > prepared.train.len() as u64 * 64 * 9);
}

#[test]
fn a_large_set_is_read_as_a_stream() {
    let place = Place::new(&[]);
    let mut lines = String::new();
    for i in 0..60_000 {
        lines.push_str(&format!("{{\"input_ids\":[{},{},7,8,9]}}\n", i % 1000, i / 1000));
    }
    fs::write(place.data().join("a.jsonl"), &lines).unwrap();
    fs::write(place.data().join("b.jsonl"), "{\"input_ids\":[1,2]}\n").unwrap();
    let mut seen = vec![];
    let mut progress = |p: puna::data::Progress| seen.push((p.stage, p.instances, p.done_bytes));
    let prepared = prepare(&place.data(), None, 1000, 64, &place.options(), &mut progress).unwrap();
    assert_eq!(prepared.train.len(), 60_001);
    assert_eq!(prepared.train.row(54_321).unwrap().ids, [321, 54, 7, 8, 9]);
    assert!(prepared.train.place(60_000).ends_with("b.jsonl, instance 0"));
    assert!(prepared.train.place(59_999).ends_with("a.jsonl, instance 59999"));
    let tokenizing = seen.iter().filter(|(stage, ..)| *stage == Stage::Tokenizing);
    assert!(tokenizing.count() > 50, "reported on the way");
    assert!(
        seen.is_sorted_by_key(|&(stage, instances, _)| (stage == Stage::Tokenizing, instances))
    );
    let bytes = lines.len() as u64 + 20;
    assert_eq!(seen.last(), Some(&(Stage::Tokenizing, 60_001, bytes)));
}
