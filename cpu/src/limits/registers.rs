//! Loops of one multiplying instruction on registers: independent sums, more of them than the
//! instruction's latency times its rate, so that each runs at the rate of its unit.

use std::arch::asm;

/// Fills the factors: 0.5 as f32 (nearly), as a pair of bf16, and small bytes.
const FACTOR: f32 = f32::from_bits(0x3f00_3f00);

/// A loop of the instruction `sum += factor * factor` on the named registers, cleared before.
macro_rules! rounds {
    ($name:ident, $features:literal, $multiply:literal, $clear:literal, $kind:literal, $($sum:tt)*) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(rounds: usize) {
            // SAFETY: touches registers only, all declared; a count from 1 on ends the loop.
            unsafe {
                asm!(
                    concat!(
                        "vbroadcastss ", $kind, "0, xmm0\n",
                        "vmovaps ", $kind, "1, ", $kind, "0\n",
                        $($clear, " ", $sum, ", ", $sum, ", ", $sum, "\n",)*
                        "2:\n",
                        $($multiply, " ", $sum, ", ", $kind, "0, ", $kind, "1\n",)*
                        "dec {n}\n",
                        "jnz 2b\n",
                    ),
                    n = inout(reg) rounds.max(1) => _,
                    inout("xmm0") FACTOR => _,
                    out("xmm1") _,
                    $(out($sum) _,)*
                    options(nostack, nomem),
                );
            }
        }
    };
}

/// Operations of a round: 24 vectors of 16 multiply-adds.
pub(super) const F32_WIDE_OPS: usize = 24 * 16 * 2;
rounds!(f32_wide, "avx512f", "vfmadd231ps", "vpxord", "zmm",
    "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7" "zmm8" "zmm9" "zmm10" "zmm11" "zmm12" "zmm13"
    "zmm14" "zmm15" "zmm16" "zmm17" "zmm18" "zmm19" "zmm20" "zmm21" "zmm22" "zmm23" "zmm24"
    "zmm25");

/// Operations of a round: 24 vectors of 16 pairs.
pub(super) const BF16_OPS: usize = 24 * 32 * 2;
rounds!(bf16, "avx512f,avx512bf16", "vdpbf16ps", "vpxord", "zmm",
    "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7" "zmm8" "zmm9" "zmm10" "zmm11" "zmm12" "zmm13"
    "zmm14" "zmm15" "zmm16" "zmm17" "zmm18" "zmm19" "zmm20" "zmm21" "zmm22" "zmm23" "zmm24"
    "zmm25");

/// Operations of a round: 24 vectors of 16 times 4 bytes.
pub(super) const INT8_OPS: usize = 24 * 64 * 2;
rounds!(int8, "avx512f,avx512vnni", "vpdpbusd", "vpxord", "zmm",
    "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7" "zmm8" "zmm9" "zmm10" "zmm11" "zmm12" "zmm13"
    "zmm14" "zmm15" "zmm16" "zmm17" "zmm18" "zmm19" "zmm20" "zmm21" "zmm22" "zmm23" "zmm24"
    "zmm25");

/// Operations of a round: 12 vectors of 8 multiply-adds.
pub(super) const F32_HALF_OPS: usize = 12 * 8 * 2;
rounds!(f32_half, "avx2,fma", "vfmadd231ps", "vpxor", "ymm",
    "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7" "ymm8" "ymm9" "ymm10" "ymm11" "ymm12" "ymm13");

/// Operations of a round: 6 vectors of 32 bytes.
pub(super) const INT8_HALF_OPS: usize = 6 * 32 * 2;

/// As the others, in two instructions: products of bytes added in pairs, then to i16 sums.
#[target_feature(enable = "avx2")]
pub(super) fn int8_half(rounds: usize) {
    // SAFETY: touches registers only, all declared; a count from 1 on ends the loop.
    unsafe {
        asm!(
            "vbroadcastss ymm0, xmm0",
            "vmovaps ymm1, ymm0",
            "vpxor ymm2, ymm2, ymm2",
            "vpxor ymm3, ymm3, ymm3",
            "vpxor ymm4, ymm4, ymm4",
            "vpxor ymm5, ymm5, ymm5",
            "vpxor ymm6, ymm6, ymm6",
            "vpxor ymm7, ymm7, ymm7",
            "2:",
            "vpmaddubsw ymm8, ymm0, ymm1",
            "vpmaddubsw ymm9, ymm0, ymm1",
            "vpmaddubsw ymm10, ymm0, ymm1",
            "vpmaddubsw ymm11, ymm0, ymm1",
            "vpmaddubsw ymm12, ymm0, ymm1",
            "vpmaddubsw ymm13, ymm0, ymm1",
            "vpaddw ymm2, ymm2, ymm8",
            "vpaddw ymm3, ymm3, ymm9",
            "vpaddw ymm4, ymm4, ymm10",
            "vpaddw ymm5, ymm5, ymm11",
            "vpaddw ymm6, ymm6, ymm12",
            "vpaddw ymm7, ymm7, ymm13",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) rounds.max(1) => _,
            inout("xmm0") FACTOR => _,
            out("xmm1") _,
            out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _,
            options(nostack, nomem),
        );
    }
}
