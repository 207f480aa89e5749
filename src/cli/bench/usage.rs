//! What a run takes of the machine besides time: memory at its peak, and energy.

use crate::train::metrics::peak_bytes;
use std::fs;
use std::path::{Path, PathBuf};

/// Most memory resident since a point in time.
#[derive(Clone, Copy, Debug)]
pub struct PeakMemory {
    /// Whether the count says something about what began here.
    telling: bool,
}

impl PeakMemory {
    /// Restarts the kernel's count at what is resident now. Where that is refused the count is
    /// that of the whole process, which still tells when nothing else was done before: `alone`.
    pub fn begin(alone: bool) -> PeakMemory {
        // proc(5): 5 sets the peak to the current size.
        let restarted = fs::write("/proc/self/clear_refs", "5").is_ok();
        PeakMemory { telling: restarted || alone }
    }

    /// The most since then; `None` where nobody knows.
    pub fn bytes(self) -> Option<u64> {
        peak_bytes().filter(|_| self.telling)
    }
}

/// Where Linux shows energy counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// The energy counters of all processor packages: everything that runs there, not this process
/// alone.
#[derive(Debug)]
pub struct Energy {
    packages: Vec<Package>,
}

#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// The counter starts again from 0 after this.
    range_uj: u64,
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Energy {
    /// The counters under `root`; `None` where there are none or one cannot be read.
    pub fn open(root: &Path) -> Option<Energy> {
        let mut packages = vec![];
        for entry in fs::read_dir(root).ok()?.flatten() {
            let zone = entry.path();
            let name = fs::read_to_string(zone.join("name")).unwrap_or_default();
            // Not the zones inside a package, nor that of the whole board.
            let is_rapl = entry.file_name().to_string_lossy().starts_with("intel-rapl:");
            if is_rapl && name.trim().starts_with("package") {
                let range_uj = number(&zone.join("max_energy_range_uj"))?;
                packages.push(Package { counter: zone.join("energy_uj"), range_uj });
            }
        }
        let energy = Energy { packages };
        (!energy.packages.is_empty() && energy.read().is_some()).then_some(energy)
    }

    /// The counters now, in microjoules.
    pub fn read(&self) -> Option<Vec<u64>> {
        self.packages.iter().map(|package| number(&package.counter)).collect()
    }

    /// Joules since an earlier reading; `None` where a counter stands still, as in virtual machines.
    pub fn joules_since(&self, before: &[u64]) -> Option<f64> {
        let after = self.read()?;
        let mut sum = 0.0;
        for ((package, &before), after) in self.packages.iter().zip(before).zip(after) {
            let past = match after.checked_sub(before) {
                Some(past) => past,
                None => (package.range_uj + after).saturating_sub(before),
            };
            sum += past as f64 * 1e-6;
        }
        (sum > 0.0).then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(root: &Path, zone: &str, name: &str, energy_uj: &str) {
        let dir = root.join(zone);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("name"), format!("{name}\n")).unwrap();
        fs::write(dir.join("energy_uj"), energy_uj).unwrap();
        fs::write(dir.join("max_energy_range_uj"), "10000000\n").unwrap();
    }

    #[test]
    fn packages_are_summed_and_counters_wrap() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(Energy::open(&root.join("none")).is_none());
        assert!(Energy::open(root).is_none(), "no zone");
        zone(root, "intel-rapl:0", "package-0", "9000000\n");
        zone(root, "intel-rapl:1", "package-1", "1000000\n");
        zone(root, "intel-rapl:0:0", "core", "1\n");
        zone(root, "intel-rapl:2", "psys", "1\n");
        let energy = Energy::open(root).unwrap();
        let before = energy.read().unwrap();
        assert_eq!(before.len(), 2);
        assert_eq!(energy.joules_since(&before), None, "nothing moved");
        zone(root, "intel-rapl:0", "package-0", "500000\n");
        zone(root, "intel-rapl:1", "package-1", "3000000\n");
        // 1.5 J past the end of the first counter, 2 J on the second.
        assert!((energy.joules_since(&before).unwrap() - 3.5).abs() < 1e-9);
        fs::write(root.join("intel-rapl:1/energy_uj"), "secret").unwrap();
        assert_eq!(energy.joules_since(&before), None);
        assert!(Energy::open(root).is_none(), "a counter that cannot be read");
    }

    #[test]
    fn peak_memory_is_told_or_not_known() {
        let peak = PeakMemory::begin(true);
        assert_eq!(peak.bytes().is_some(), peak_bytes().is_some());
        assert_eq!(PeakMemory { telling: false }.bytes(), None);
    }
}
