//! `puna train --dry-run`: what a run would do, take and need, with nothing written.

use super::machine::Machine;
use super::terminal::{human_bytes, human_count, print_line};
use super::train_memory::{self, slice_size, state_bytes};
use super::train_setup::Setup;
use crate::error::Result;
use crate::model::tune::TuneModel;
use crate::train::metrics::peak_bytes;
use crate::train::probe;
use crate::train::{Rows, Trainee};
use serde_json::{Value, json};

/// The rows of a run.
pub struct Load<'a> {
    /// To train on.
    pub rows: &'a dyn Rows,
    /// Their tokens.
    pub n_tokens: u64,
    /// Those that are scored.
    pub n_scored: u64,
    /// Rows to evaluate on.
    pub n_eval: Option<usize>,
}

/// The plan as one object; the trained values of `model` are used up.
///
/// # Errors
/// Rows that the model cannot take.
pub fn plan<M: Trainee>(
    setup: &Setup,
    model: &mut M,
    tuned: fn(&M) -> &TuneModel,
    load: &Load<'_>,
    machine: &Machine,
) -> Result<Value> {
    let rows = load.rows;
    let plan = setup.settings.plan(rows.n_rows())?;
    let epochs = plan.epochs_after(plan.total_steps);
    let n_tokens = load.n_tokens as f64 * epochs;
    let settings = &setup.settings;
    let even = is_even(rows, load.n_tokens);
    let slice = slice_size(settings.batch_size, rows.longest(), settings.slice_tokens, even);
    let memory =
        tuned(model).memory_plan(state_bytes(&settings.optim, &settings.optim_args)?, slice)?;
    let gpu = tuned(model).device().memory()?;
    let speed = probe::speed(model, rows, &setup.settings, &plan)?;
    Ok(json!({
        "method": setup.method.name(),
        "rows": rows.n_rows(),
        "longest_row": rows.longest(),
        "eval_rows": load.n_eval,
        "steps": plan.total_steps,
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": epochs,
        "warmup_steps": setup.settings.warmup(plan.total_steps),
        "tokens": n_tokens.round() as u64,
        "scored_tokens": (load.n_scored as f64 * epochs).round() as u64,
        "trained_parameters": model.params().n_elements(),
        "planned_bytes": memory.total(),
        "planned_items": train_memory::items(&memory),
        "probe_peak_bytes": peak_bytes(),
        "ram_bytes": machine.ram_bytes,
        "ram_available_bytes": machine.ram_available_bytes,
        "gpu_bytes": gpu.as_ref().map(|gpu| gpu.total),
        "gpu_available_bytes": gpu.as_ref().map(|gpu| gpu.free + gpu.used),
        "tok_per_s": speed.tok_per_s,
        "seconds": speed.seconds(n_tokens, plan.total_steps),
    }))
}

/// Whether rows with so many tokens are all as long as the longest.
pub fn is_even(rows: &dyn Rows, n_tokens: u64) -> bool {
    n_tokens == (rows.n_rows() * rows.longest()) as u64
}

/// The items of the planned memory, a line each.
pub fn items(plan: &Value) -> Vec<String> {
    let items = plan["planned_items"].as_object().into_iter().flatten();
    let line = |(name, bytes): (&String, &Value)| {
        format!("memory: {} {name}", human_bytes(bytes.as_u64().unwrap_or(0)))
    };
    items.map(line).collect()
}

/// Prints the plan.
///
/// # Errors
/// A standard output that cannot be written.
pub fn print(plan: &Value, json: bool) -> Result<()> {
    if json {
        return print_line(&plan.to_string());
    }
    let count = |key: &str| plan[key].as_u64().map(human_count).unwrap_or_else(|| "none".into());
    let bytes = |key: &str| plan[key].as_u64().map(human_bytes).unwrap_or_else(|| "unknown".into());
    let number = |key: &str| plan[key].as_f64().unwrap_or(f64::NAN);
    let memory = match plan["gpu_bytes"].is_null() {
        true => format!(
            "{} planned, {} when tried; {} of {} free",
            bytes("planned_bytes"),
            bytes("probe_peak_bytes"),
            bytes("ram_available_bytes"),
            bytes("ram_bytes")
        ),
        false => format!(
            "{} of the GPU's planned; {} of {} to be had",
            bytes("planned_bytes"),
            bytes("gpu_available_bytes"),
            bytes("gpu_bytes")
        ),
    };
    let lines = [
        ("method", plan["method"].as_str().unwrap_or_default().to_owned()),
        ("trained parameters", count("trained_parameters")),
        ("rows", format!("{}, the longest of {} tokens", count("rows"), plan["longest_row"])),
        ("rows to evaluate on", count("eval_rows")),
        (
            "steps",
            format!(
                "{}, {} an epoch, {:.2} epochs, {} of warm-up",
                plan["steps"],
                plan["steps_per_epoch"],
                number("epochs"),
                plan["warmup_steps"]
            ),
        ),
        ("tokens", format!("{}, {} scored", count("tokens"), count("scored_tokens"))),
        ("memory", memory),
        (
            "time",
            format!(
                "{} at {:.0} tok/s, evaluations not counted",
                duration(number("seconds")),
                number("tok_per_s")
            ),
        ),
    ];
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().try_for_each(|(name, value)| print_line(&format!("{name:width$}  {value}")))
}

/// Seconds for people.
fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..120 => format!("{seconds:.1} s"),
        120..7200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_for_people() {
        for (seconds, wanted) in
            [(3.25, "3.2 s"), (125.0, "2 min 5 s"), (7260.0, "2 h 1 min"), (0.0, "0.0 s")]
        {
            assert_eq!(duration(seconds), wanted);
        }
    }
}
