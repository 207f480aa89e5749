//! What this machine is: processor, cores, caches, memory, instruction sets. From /proc and /sys;
//! what a system does not tell is left out.

use crate::error::{Error, Result};
use puna_cpu::isa::Isa;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A cache of the first core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u32,
    /// `Data`, `Instruction`, `Unified`.
    pub kind: String,
    /// Its size.
    pub bytes: u64,
}

/// This machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: Option<String>,
    /// Cores that Puna uses unless told otherwise.
    pub physical_cores: usize,
    /// Hardware threads that this process may use.
    pub logical_cores: usize,
    /// Instruction sets, lowest first.
    pub isa_available: Vec<String>,
    /// The one that the kernels use.
    pub isa: String,
    /// Caches of the first core.
    pub caches: Vec<Cache>,
    /// Memory in all.
    pub ram_bytes: Option<u64>,
    /// Memory that is free or can be freed.
    pub ram_available_bytes: Option<u64>,
}

impl Machine {
    /// Looks around.
    ///
    /// # Errors
    /// `PUNA_ISA` names an instruction set that this machine lacks.
    pub fn detect() -> Result<Machine> {
        let isa = match std::env::var("PUNA_ISA") {
            Ok(name) => Isa::named(&name).ok_or_else(|| {
                let names: BTreeSet<_> =
                    Isa::available().iter().map(|isa| isa.level().name()).collect();
                let names: Vec<_> = names.into_iter().collect();
                let why = format!("wanted one that this machine has: {}", names.join(", "));
                Error::config("PUNA_ISA", name, why)
            })?,
            Err(_) => Isa::best(),
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Ok(Machine {
            cpu: cpu_name(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            physical_cores: physical_cores(),
            logical_cores: logical_cores(),
            isa_available: Isa::available().iter().map(Isa::to_string).collect(),
            isa: isa.to_string(),
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            ram_bytes: meminfo_bytes(&meminfo, "MemTotal"),
            ram_available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
        })
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let caches = self.caches.iter();
        let caches: Vec<Value> =
            caches.map(|c| json!({"level": c.level, "kind": c.kind, "bytes": c.bytes})).collect();
        json!({
            "cpu": self.cpu,
            "physical_cores": self.physical_cores,
            "logical_cores": self.logical_cores,
            "isa": self.isa,
            "isa_available": self.isa_available,
            "caches": caches,
            "ram_bytes": self.ram_bytes,
            "ram_available_bytes": self.ram_available_bytes,
        })
    }
}

/// Hardware threads that this process may use.
pub fn logical_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Physical cores, at most the hardware threads that this process may use.
pub fn physical_cores() -> usize {
    let logical = logical_cores();
    count_cores(Path::new("/sys/devices/system/cpu")).map_or(logical, |cores| cores.min(logical))
}

/// Distinct sets of hardware threads that share a core, under `root`; `None` where there are none.
fn count_cores(root: &Path) -> Option<usize> {
    let mut cores = BTreeSet::new();
    for entry in fs::read_dir(root).ok()?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
        if number.is_some_and(|n| n.parse::<u32>().is_ok()) {
            let topology = entry.path().join("topology");
            let siblings = fs::read_to_string(topology.join("core_cpus_list"))
                .or_else(|_| fs::read_to_string(topology.join("thread_siblings_list")));
            cores.extend(siblings.map(|list| list.trim().to_owned()));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

fn cpu_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.split(':').next() == Some(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

fn caches(root: &Path) -> Vec<Cache> {
    let read = |index: usize, name: &str| {
        let text = fs::read_to_string(root.join(format!("index{index}")).join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    let cache = |index| {
        Some(Cache {
            level: read(index, "level")?.parse().ok()?,
            kind: read(index, "type")?,
            bytes: size_bytes(&read(index, "size")?)?,
        })
    };
    (0..16).map_while(cache).collect()
}

/// Bytes of a size such as `48K`.
fn size_bytes(text: &str) -> Option<u64> {
    let (digits, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_of_a_core_count_once() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("core_cpus_list"), format!("{siblings}\n")).unwrap();
        }
        fs::create_dir_all(dir.path().join("cpufreq/topology")).unwrap();
        assert_eq!(count_cores(dir.path()), Some(2));
        assert_eq!(count_cores(&dir.path().join("none")), None);
        assert!((1..=logical_cores()).contains(&physical_cores()));
    }

    #[test]
    fn files_of_the_system_are_read() {
        assert_eq!(cpu_name("a: b\nmodel name\t: AMD EPYC\n"), Some("AMD EPYC".into()));
        let meminfo = "MemTotal:       24684092 kB\nMemFree: 1 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemTotal"), Some(24_684_092 * 1024));
        assert_eq!(meminfo_bytes(meminfo, "Mem"), None);
        assert_eq!(size_bytes("48K"), Some(49_152));
        assert_eq!((size_bytes("7"), size_bytes("7X"), size_bytes("")), (Some(7), None, None));
    }
}
