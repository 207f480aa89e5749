//! The machine's limits as a run is measured against them: read bandwidth and arithmetic peaks.

use super::report::{Format, Report, column, rounded};
use super::{BenchArgs, SCHEMA};
use crate::cli::failure::Failure;
use crate::cli::info::machine_lines;
use crate::cli::machine::{Machine, physical_cores};
use crate::error::Result;
use crate::kernels::Cpu;
use puna_cpu::isa::Isa;
use puna_cpu::limits::{READ_BYTES, ReadTest, Unit, peak};
use serde_json::{Value, json};

/// Bytes to measure the read bandwidth on: as many as that asks for, a quarter of what is free
/// where that is less, but never so few that a cache of today could hold them.
fn read_bytes(ram_available: Option<u64>) -> usize {
    const LEAST: usize = 128 << 20;
    let quarter = ram_available.map_or(READ_BYTES, |bytes| (bytes / 4) as usize);
    quarter.clamp(LEAST, READ_BYTES)
}

/// What a number of threads can do at most.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How many threads.
    pub threads: usize,
    isa: String,
    /// Bytes a second; `None` where it was not measured.
    read: Option<f64>,
    /// Operations a second of each unit.
    peaks: [Option<f64>; 3],
}

impl Limits {
    /// Measures; takes about a second.
    ///
    /// # Errors
    /// When the system refuses threads.
    pub fn measure(threads: usize) -> Result<Limits> {
        let cpu = Cpu::new(threads)?;
        let memory = ReadTest::new(&cpu.team, read_bytes(Machine::detect()?.ram_available_bytes));
        Ok(Limits::of(&cpu, cpu.isa, Some(&memory)))
    }

    fn of(cpu: &Cpu, isa: Isa, memory: Option<&ReadTest>) -> Limits {
        Limits {
            threads: cpu.team.len(),
            isa: isa.to_string(),
            read: memory.map(|memory| memory.bytes_per_s(isa, &cpu.team)),
            peaks: Unit::ALL.map(|unit| peak(isa, &cpu.team, unit)),
        }
    }

    /// Bytes a second.
    pub fn read(&self) -> Option<f64> {
        self.read
    }

    /// Operations a second; `None` for a unit that the instruction set lacks.
    pub fn peak(&self, unit: Unit) -> Option<f64> {
        let index = Unit::ALL.iter().position(|one| *one == unit);
        index.and_then(|index| self.peaks[index])
    }

    /// As an object.
    pub fn json(&self) -> Value {
        let giga = |unit| rounded(self.peak(unit).map(|ops| ops / 1e9));
        json!({
            "isa": self.isa,
            "threads": self.threads,
            "read_gb_per_s": rounded(self.read.map(|bytes| bytes / 1e9)),
            "f32_gop_per_s": giga(Unit::F32),
            "bf16_gop_per_s": giga(Unit::Bf16),
            "int8_gop_per_s": giga(Unit::Int8),
        })
    }
}

/// Those of a number of threads.
pub fn with_threads(all: &[Limits], threads: usize) -> Option<&Limits> {
    all.iter().find(|limits| limits.threads == threads)
}

/// All that were measured beside a run, in a paragraph; empty where none was.
pub fn paragraph(all: &[Limits]) -> String {
    let lines: Vec<String> = all
        .iter()
        .map(|limits| {
            let mut line = format!("{} threads:", limits.threads);
            if let Some(read) = limits.read {
                line += &format!(" read {:.1} GB/s,", read / 1e9);
            }
            let peaks = Unit::ALL.iter().filter_map(|&unit| Some((unit, limits.peak(unit)?)));
            let peaks: Vec<String> =
                peaks.map(|(unit, ops)| format!("{unit} {:.0}", ops / 1e9)).collect();
            format!("{line} {} GOP/s", peaks.join(", "))
        })
        .collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!("Limits beside the run. {}", lines.join("; ")),
    }
}

/// Up to four thread counts all of them, of more the powers of two and the last.
fn thread_counts(most: usize) -> Vec<usize> {
    (1..=most).filter(|&n| most <= 4 || n.is_power_of_two() || n == most).collect()
}

/// `--machine`: the limits of every instruction set.
///
/// # Errors
/// When the system refuses threads or standard output is closed.
pub fn machine(args: &BenchArgs) -> Result<Value, Failure> {
    args.common.device.check()?;
    let machine = Machine::detect()?;
    let columns = vec![
        column("instructions", "isa", 0),
        column("threads", "threads", 0),
        column("read GB/s", "read_gb_per_s", 1),
        column("f32 GOP/s", "f32_gop_per_s", 0),
        column("bf16 GOP/s", "bf16_gop_per_s", 0),
        column("int8 GOP/s", "int8_gop_per_s", 0),
    ];
    let mut report = Report::new(args.format(), "bench_machine", columns);
    let lines: Vec<String> =
        machine_lines(&machine).iter().map(|(name, text)| format!("{name:<14}{text}")).collect();
    report.begin(&lines.join("\n"), vec![("cpu", json!(machine.cpu))])?;
    let counts = match &args.threads[..] {
        [] => thread_counts(physical_cores()),
        given => given.to_vec(),
    };
    let most = counts.iter().copied().max().unwrap_or(1);
    let all = Cpu::new(most)?;
    let memory = ReadTest::new(&all.team, read_bytes(machine.ram_available_bytes));
    let others = [1, most];
    for isa in Isa::available() {
        let chosen = isa == all.isa;
        let counts = if chosen { &counts[..] } else { &others[..usize::from(most > 1) + 1] };
        for &threads in counts {
            let cpu = Cpu::new(threads)?;
            let limits = Limits::of(&cpu, isa, chosen.then_some(&memory));
            let mut row = limits.json();
            row["chosen"] = json!(chosen);
            report.row(row)?;
        }
    }
    report.note(&format!(
        "Read: {} MiB by all threads. GOP/s: a multiplication and an addition are two operations, \
         on registers only.",
        memory.bytes() >> 20
    ))?;
    if args.format() != Format::Json {
        return Ok(Value::Null);
    }
    Ok(json!({
        "program": concat!("puna ", env!("CARGO_PKG_VERSION")),
        "schema": SCHEMA,
        "machine": machine.json(),
        "read_bytes": memory.bytes(),
        "limits": report.into_rows(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            threads: 2,
            isa: "avx2".into(),
            read: Some(40e9),
            peaks: [Some(2e11), None, Some(8e11)],
        }
    }

    #[test]
    fn units_find_their_peak() {
        let limits = limits();
        assert_eq!(limits.peak(Unit::F32), Some(2e11));
        assert_eq!((limits.peak(Unit::Bf16), limits.peak(Unit::Int8)), (None, Some(8e11)));
        assert_eq!(limits.json()["bf16_gop_per_s"], Value::Null);
        assert_eq!(limits.json()["int8_gop_per_s"], 800.0);
        assert!(with_threads(std::slice::from_ref(&limits), 1).is_none());
        let text = paragraph(&[limits]);
        assert_eq!(
            text,
            "Limits beside the run. 2 threads: read 40.0 GB/s, f32 200, int8 800 GOP/s"
        );
        assert_eq!(paragraph(&[]), "");
    }

    #[test]
    fn memory_that_is_short_is_left_to_others() {
        assert_eq!(read_bytes(None), 2 << 30);
        assert_eq!(read_bytes(Some(64 << 30)), 2 << 30);
        assert_eq!(read_bytes(Some(4 << 30)), 1 << 30);
        assert_eq!(read_bytes(Some(0)), 128 << 20);
    }

    #[test]
    fn many_threads_are_measured_in_steps() {
        assert_eq!(thread_counts(1), [1]);
        assert_eq!(thread_counts(3), [1, 2, 3]);
        assert_eq!(thread_counts(12), [1, 2, 4, 8, 12]);
        assert_eq!(thread_counts(64), [1, 2, 4, 8, 16, 32, 64]);
    }
}
