//! Flags of `puna train`: what is refused, with name, value and what was wanted, and the defaults.

use super::*;
use crate::cli::args::{Cli, Command};
use crate::cli::train_setup::Setup;
use crate::model::tune::Precision;
use crate::train::Length;
use crate::train::schedule::Schedule;
use clap::Parser;

fn parse(words: &[&str]) -> Result<Setup, String> {
    let all = ["puna", "train", "m", "--dataset", "d", "--output", "o"].iter().chain(words);
    match Cli::try_parse_from(all) {
        Err(error) => Err(error.to_string()),
        Ok(Cli { command: Command::Train(args) }) => Setup::new(&args).map_err(|failure| {
            assert!(failure.status() == 2 || words.contains(&"--adapter"), "{words:?}");
            failure.lines().join("\n")
        }),
        Ok(_) => Err("another command".into()),
    }
}

#[test]
fn the_defaults_are_those_of_transformers_and_lmflow() {
    let full = parse(&[]).ok().unwrap();
    let settings = &full.settings;
    assert_eq!((settings.batch_size, settings.accumulation), (8, 1));
    assert_eq!(settings.length, Length::Epochs(3.0));
    assert_eq!((settings.learning_rate, settings.max_grad_norm), (5e-5, 1.0));
    assert_eq!((settings.schedule.clone(), settings.warmup(1000)), (Schedule::Linear, 0));
    assert_eq!(settings.optim_args, crate::train::optimizer::OptimArgs::default());
    assert_eq!((settings.save_steps, settings.save_total_limit), (500, None));
    assert!(settings.shuffle && matches!(full.tune.precision, Precision::F32));
    let lora = parse(&["--method", "lora"]).ok().unwrap();
    assert_eq!(lora.settings.learning_rate, 1e-4);
    let TuneMethod::Lora { spec, adapter: None } = lora.tune.method else { panic!("no adapter") };
    assert_eq!((spec.r, spec.alpha, spec.dropout, spec.use_rslora), (8, 32.0, 0.1, false));
    let qlora = parse(&["--method", "qlora"]).ok().unwrap();
    assert_eq!(qlora.settings.learning_rate, 1e-4);
    let method = &qlora.tune.method;
    assert!(matches!(method, TuneMethod::QLora { double_quant: true, adapter: None, .. }));
    assert_eq!(method.adapter().unwrap().0, &spec);
    let names: Vec<_> = spec.targets.iter().map(|target| target.hf_name()).collect();
    assert_eq!(names, ["q_proj", "v_proj"]);
}

#[test]
fn flags_arrive() {
    let setup = parse(&[
        "--method",
        "lora",
        "--dtype",
        "bf16",
        "--lora-r",
        "4",
        "--lora-target-modules",
        "all-linear",
        "--use-rslora",
        "--batch-size",
        "2",
        "--gradient-accumulation-steps",
        "3",
        "--max-steps",
        "7",
        "--lr-scheduler-type",
        "cosine",
        "--warmup-ratio",
        "0.1",
        "--learning-rate",
        "0.002",
        "--weight-decay",
        "0.1",
        "--adam-beta2",
        "0.95",
        "--no-shuffle",
        "--decay-all",
        "--seed",
        "5",
        "--validation-split-percentage",
        "10",
        "--eval-steps",
        "2",
        "--early-stopping-patience",
        "3",
        "--load-best-model-at-end",
        "--save-steps",
        "0",
    ])
    .unwrap_or_else(|error| panic!("{error}"));
    let settings = &setup.settings;
    assert_eq!((settings.batch_size, settings.accumulation), (2, 3));
    assert_eq!((settings.length, settings.warmup(100)), (Length::Steps(7), 10));
    assert!(settings.optim_args.decay_all && !settings.shuffle && settings.keep_best);
    assert_eq!((settings.optim_args.beta2, settings.patience), (0.95, Some(3)));
    assert_eq!((setup.tune.seed, settings.seed, setup.data.seed), (5, 5, 5));
    let TuneMethod::Lora { spec, .. } = setup.tune.method else { panic!("no adapter") };
    assert_eq!((spec.targets.len(), spec.r, spec.use_rslora), (7, 4, true));
    let same = ["--per-device-train-batch-size", "3", "--max-steps", "-1", "--warmup-steps", "4"];
    let setup = parse(&same).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((setup.settings.batch_size, setup.settings.length), (3, Length::Epochs(3.0)));
    assert_eq!(setup.settings.warmup(100), 4);
}

/// Words, and what the message must hold.
const REFUSED: &[(&[&str], &[&str])] = &[
    (&["--method", "magic"], &["--method", "magic"]),
    (&["--dtype", "f64"], &["--dtype", "f64"]),
    (&["--batch-size", "0"], &["--batch-size", "'0'", "at least 1"]),
    (&["--gradient-accumulation-steps", "x"], &["--gradient-accumulation-steps", "at least 1"]),
    (&["--num-train-epochs", "-1"], &["--num-train-epochs", "-1", "above 0"]),
    (&["--max-steps", "0"], &["--max-steps", "at least 1"]),
    (&["--learning-rate", "-0.1"], &["--learning-rate", "-0.1", "at least 0"]),
    (&["--learning-rate", "nan"], &["--learning-rate", "nan", "at least 0"]),
    (&["--warmup-ratio", "1.5"], &["--warmup-ratio", "1.5", "0 to 1"]),
    (&["--warmup-steps", "-3"], &["-3"]),
    (&["--adam-beta1", "1"], &["--adam-beta1", "below 1"]),
    (&["--adam-beta2", "-0.1"], &["--adam-beta2", "-0.1"]),
    (&["--adam-epsilon", "-1"], &["--adam-epsilon", "at least 0"]),
    (&["--momentum", "2"], &["--momentum", "below 1"]),
    (&["--weight-decay", "inf"], &["--weight-decay", "inf"]),
    (&["--max-grad-norm", "-1"], &["--max-grad-norm", "at least 0"]),
    (&["--optim", "magic"], &["optim", "magic", "adamw", "sgd"]),
    (&["--lr-scheduler-type", "magic"], &["lr_scheduler_type", "magic", "cosine"]),
    (&["--lr-scheduler-kwargs", "{"], &["lr_scheduler_kwargs", "{"]),
    (&["--lr-scheduler-kwargs", r#"{"power": 2}"#], &["lr_scheduler_kwargs", "power"]),
    (&["--lr-scheduler-type", "cosine_with_min_lr"], &["min_lr"]),
    (&["--method", "lora", "--lora-r", "0"], &["--lora-r", "at least 1"]),
    (&["--method", "lora", "--lora-dropout", "1"], &["--lora-dropout", "below 1"]),
    (&["--method", "lora", "--lora-alpha", "x"], &["--lora-alpha", "x", "a number"]),
    (&["--method", "lora", "--lora-target-modules", "q"], &["lora-target-modules", "\"q\""]),
    (&["--lora-r", "4"], &["--lora-r with --method full", "--method lora"]),
    (&["--adapter", "a"], &["--adapter with --method full", "--method lora"]),
    (&["--method", "lora", "--adapter", "a", "--lora-r", "4"], &["--lora-r with --adapter"]),
    (&["--method", "qlora", "--adapter", "a", "--lora-r", "4"], &["--lora-r with --adapter"]),
    (&["--double-quant", "true"], &["--double-quant with --method full", "--method qlora"]),
    (&["--method", "qlora", "--double-quant", "8"], &["--double-quant", "8"]),
    (&["--block-size", "0"], &["--block-size", "at least 1"]),
    (&["--group-texts-batch-size", "0"], &["--group-texts-batch-size", "at least 1"]),
    (&["--truncation-side", "up"], &["--truncation-side", "up"]),
    (&["--truncate-to-model-max-length", "no"], &["--truncate-to-model-max-length", "no"]),
    (&["--no-packing", "--group-texts"], &["cannot be used with"]),
    (&["--conversation-template", "magic"], &["magic"]),
    (&["--validation-split-percentage", "100"], &["--validation-split-percentage", "below 100"]),
    (&["--validation-split-percentage", "5", "--eval-dataset", "e"], &["cannot be used with"]),
    (&["--eval-steps", "5"], &["eval_steps", "eval_dataset"]),
    (&["--eval-on-start"], &["eval_on_start", "eval_dataset"]),
    (&["--load-best-model-at-end"], &["load_best_model_at_end", "eval_dataset"]),
    (&["--early-stopping-patience", "2"], &["early_stopping_patience", "eval_dataset"]),
    (&["--early-stopping-threshold", "-1"], &["--early-stopping-threshold", "at least 0"]),
    (&["--save-total-limit", "0"], &["--save-total-limit", "at least 1"]),
    (&["--logging-steps", "0"], &["--logging-steps", "at least 1"]),
    (&["--resume", "--overwrite"], &["cannot be used with"]),
    (&["--threads", "0"], &["--threads", "at least 1"]),
    (&["--show-batch", "0"], &["--show-batch", "at least 1"]),
    (&["--learning-rat", "1"], &["--learning-rat"]),
];

#[test]
fn every_bad_value_is_refused_with_its_name() {
    let mut wrong = vec![];
    for (words, parts) in REFUSED {
        match parse(words) {
            Ok(_) => wrong.push(format!("{words:?} was taken")),
            Err(text) if parts.iter().all(|part| text.contains(part)) => {}
            Err(text) => wrong.push(format!("{words:?}: {text}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn data_and_output_are_needed() {
    for (words, part) in [
        (&["puna", "train", "m", "--output", "o"][..], "no data named"),
        (&["puna", "train", "m", "--dataset", "d"][..], "no output named"),
    ] {
        let Ok(Cli { command: Command::Train(args) }) = Cli::try_parse_from(words) else {
            panic!("{words:?}");
        };
        let failure = Setup::new(&args).err().unwrap();
        assert!(failure.lines()[0].contains(part) && failure.status() == 2);
    }
    for flag in ["--dry-run", "--show-batch=2"] {
        let words = ["puna", "train", "m", "--dataset", "d", flag];
        let Ok(Cli { command: Command::Train(args) }) = Cli::try_parse_from(words) else {
            panic!("{flag}");
        };
        assert!(Setup::new(&args).is_ok(), "{flag}");
    }
}

#[test]
fn an_output_that_would_be_lost_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(path("out/checkpoint-7")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    let check = |output: &str, model: &str, words: &[&str]| {
        let all = ["puna", "train", "m"].iter().chain(words);
        let Ok(Cli { command: Command::Train(args) }) = Cli::try_parse_from(all) else {
            panic!("{words:?}");
        };
        let result = check_output(&path(output), &path(model), &args);
        result.err().map(|failure| {
            assert_eq!(failure.status(), 2);
            failure.lines().join("\n")
        })
    };
    let found = check("out", "m", &[]).unwrap();
    assert!(found.contains("checkpoint-7") && found.contains("--resume"), "{found}");
    assert_eq!(check("out", "m", &["--resume"]), None);
    assert_eq!(check("out", "m", &["--overwrite"]), None);
    assert_eq!(check("out", "m", &["--dry-run"]), None);
    assert_eq!(check("new", "m", &[]), None);
    assert!(check("file", "m", &[]).unwrap().contains("a file"));
    assert!(check("out", "out", &["--overwrite"]).unwrap().contains("starts from"));
    std::fs::write(path("out/config.json"), "{}").unwrap();
    let lone = check("out", "out/config.json", &["--overwrite"]).unwrap();
    assert!(lone.contains("starts from"), "{lone}");
}
