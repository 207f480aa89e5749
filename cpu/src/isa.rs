//! Which instruction set the kernels use: found at run time, or forced to a lower one for tests.
//!
//! A value of [`Isa`] exists only for a level that this machine has, so a kernel that is handed
//! one may enter the `#[target_feature]` functions of that level.

use std::fmt;

/// The three families of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust, no explicit vectors. The only level on aarch64 for now.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ besides everything of [`Level::Avx2`].
    Avx512,
}

impl Level {
    /// The name that `PUNA_ISA` takes and `puna info --machine` prints.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

/// Proof that this machine has the instructions of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa {
    level: Level,
    vnni: bool,
    bf16: bool,
}

impl Isa {
    /// The plain level, which every machine has.
    pub const PORTABLE: Isa = Isa { level: Level::Portable, vnni: false, bf16: false };

    /// Every level of this machine, lowest first; AVX-512 also without its optional extensions,
    /// so that tests cover the fall-backs.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                all.push(Isa { level: Level::Avx2, vnni: false, bf16: false });
            }
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            if avx512 {
                all.push(Isa { level: Level::Avx512, vnni: false, bf16: false });
                let vnni = is_x86_feature_detected!("avx512vnni");
                let bf16 = is_x86_feature_detected!("avx512bf16");
                if vnni || bf16 {
                    all.push(Isa { level: Level::Avx512, vnni, bf16 });
                }
            }
        }
        all
    }

    /// The highest level of this machine, with every extension it has.
    pub fn best() -> Isa {
        Self::available().pop().unwrap_or(Isa::PORTABLE)
    }

    /// The best variant of the level with this name; `None` where the name is unknown or the
    /// machine lacks it.
    pub fn named(name: &str) -> Option<Isa> {
        Self::available().into_iter().rev().find(|isa| isa.level.name() == name)
    }

    /// The level.
    pub fn level(self) -> Level {
        self.level
    }

    /// Whether AVX-512 VNNI (`vpdpbusd`) may be used.
    pub fn has_vnni(self) -> bool {
        self.vnni
    }

    /// Whether AVX-512 BF16 (`vdpbf16ps`) may be used.
    pub fn has_bf16(self) -> bool {
        self.bf16
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.level.name())?;
        for (has, name) in [(self.vnni, "+vnni"), (self.bf16, "+bf16")] {
            if has {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_the_last_available_and_names_round_trip() {
        let all = Isa::available();
        assert_eq!(all[0], Isa::PORTABLE);
        assert_eq!(Isa::best(), *all.last().expect("portable is always there"));
        for isa in all {
            let found = Isa::named(isa.level().name()).expect("an available level has its name");
            assert_eq!(found.level(), isa.level());
        }
        assert_eq!(Isa::named("avx1024"), None);
    }
}
