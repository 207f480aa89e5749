//! Every test of the workflow in one program: cargo links the engine once for all of them, which is
//! most of what building tests costs. `cargo test --release --test suite NAME::` runs one file's.

mod support;

mod accumulation;
mod bench;
mod builtin_data;
mod cli;
mod convert_models;
mod data_cache;
mod data_rows;
mod decode_parity;
mod dpo;
mod eval_sets;
mod eval_tasks;
mod floors;
mod generate_batch;
mod gradients;
mod hostile;
mod memory_plan;
mod model_gradients;
mod model_parity;
mod panel_cache;
mod qlora;
mod quickstart;
mod raft;
mod reward;
mod schedules;
mod session;
mod sliding_window;
mod smollm2;
mod speculative;
mod text_export;
mod text_hostile;
mod text_presets;
mod text_tokenizer;
mod train_cli;
mod train_parity;
mod train_resume;
mod verify;
mod vocab;
