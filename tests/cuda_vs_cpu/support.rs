//! What the kernels' tests share: the device, buffers that notice what is written beside them, random
//! numbers, comparisons that report every row.

use half::{bf16, f16};
use puna::cuda::{DeviceBuffer, DeviceSlice, DeviceSliceMut, Element, Gpu};
use puna::kernels::Place;
use puna::rng::Rng;
use std::path::{Path, PathBuf};

/// The device of this run: `PUNA_CUDA=host` the harness, `PUNA_CUDA=device` the driver's first; where
/// it is not set, the harness if this build has it. `None` says that the test is skipped, which
/// `REQUIRE_CUDA=1` makes a failure.
pub fn gpu() -> Option<Gpu> {
    let wanted = std::env::var("PUNA_CUDA").unwrap_or_default();
    let host = match wanted.as_str() {
        "" => cfg!(feature = "cuda-host"),
        "host" => true,
        "device" => false,
        other => panic!("PUNA_CUDA={other}: known are host and device"),
    };
    let opened = if host { open_host() } else { Gpu::open(0) };
    match opened {
        Ok(gpu) => Some(gpu),
        Err(why) => {
            let required = std::env::var("REQUIRE_CUDA").is_ok_and(|v| v == "1");
            assert!(!required && !host, "{why}");
            let thread = std::thread::current();
            println!("SKIPPED: {}: {why}", thread.name().unwrap_or("a test"));
            None
        }
    }
}

/// The same of compute capability 9.0, for kernels that no other device has: where the driver's is
/// another, the test is skipped whatever is required.
pub fn hopper() -> Option<Gpu> {
    let gpu = gpu()?;
    #[cfg(feature = "cuda-host")]
    if gpu.properties().name == "host harness" {
        return Some(Gpu::host_hopper().expect("the order of before"));
    }
    let (major, minor) = gpu.properties().capability;
    if (major, minor) == (9, 0) {
        return Some(gpu);
    }
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    println!("SKIPPED: {name}: compute capability {major}.{minor}, wanted 9.0");
    None
}

/// Where models are opened in this run: where [`gpu`] is.
pub fn place() -> Option<Place> {
    gpu()?;
    let device = std::env::var("PUNA_CUDA").is_ok_and(|wanted| wanted == "device");
    #[cfg(feature = "cuda-host")]
    if !device {
        return Some(Place::Harness);
    }
    let _ = device;
    Some(Place::Cuda(0))
}

/// The program: the one that `PUNA_PROGRAM` names, where the tests were carried to another machine,
/// else the one that was built with them.
pub fn program() -> PathBuf {
    match std::env::var_os("PUNA_PROGRAM") {
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_puna").into(),
    }
}

/// A model of the fixtures, which lie where `PUNA_FIXTURES` says if the tests were carried to another
/// machine.
pub fn fixture(model: &str) -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("PUNA_FIXTURES").map_or_else(own, PathBuf::from).join(model)
}

#[cfg(feature = "cuda-host")]
fn open_host() -> puna::Result<Gpu> {
    Gpu::host()
}

#[cfg(not(feature = "cuda-host"))]
fn open_host() -> puna::Result<Gpu> {
    panic!("PUNA_CUDA=host needs a build with the feature cuda-host")
}

/// Elements behind a guarded buffer. None where the harness' own checks begin at its end.
fn n_sentinels() -> usize {
    #[cfg(feature = "cuda-host")]
    if !puna::cuda::host_sanitizer().is_empty() {
        return 0;
    }
    64
}

/// An element that tests fill with and compare by bits.
pub trait Bits: Element + std::fmt::Debug {
    /// What no kernel writes: a NaN with an odd payload, or a large odd number.
    const SENTINEL: Self;
    /// The bits.
    fn bits(self) -> u64;
}

macro_rules! bits_of_floats {
    ($($t:ty: $sentinel:expr;)*) => {$(
        impl Bits for $t {
            const SENTINEL: Self = <$t>::from_bits($sentinel);
            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    )*};
}
bits_of_floats! { f32: 0xffc1_a5a5; bf16: 0xffa5; f16: 0xfea5; }

macro_rules! bits_of_integers {
    ($($t:ty: $sentinel:expr;)*) => {$(
        impl Bits for $t {
            const SENTINEL: Self = $sentinel;
            fn bits(self) -> u64 {
                self as u64
            }
        }
    )*};
}
bits_of_integers! {
    u8: 0xa5; i8: 0x5b; u16: 0xa5c1; i32: 0x5ba5_c1a5; u32: 0xa5c1_5ba5;
    u64: 0xa5c1_5ba5_c15b_a55b; i64: 0x25c1_5ba5_c15b_a55b;
}

/// A buffer followed by sentinels.
pub struct Guarded<'g, T: Bits> {
    gpu: &'g Gpu,
    buffer: DeviceBuffer<T>,
    len: usize,
}

/// A buffer with these elements, which ends where they end.
pub fn guarded<'g, T: Bits>(gpu: &'g Gpu, content: &[T]) -> Guarded<'g, T> {
    let mut all = content.to_vec();
    all.resize(content.len() + n_sentinels(), T::SENTINEL);
    let buffer = gpu.upload(&all).expect("room for a test's buffer");
    Guarded { gpu, buffer, len: content.len() }
}

impl<T: Bits> Guarded<'_, T> {
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        self.buffer.slice().range(0..self.len)
    }

    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        self.buffer.slice_mut().range_mut(0..self.len)
    }

    /// The content, after a look at the sentinels.
    pub fn check(&self) -> Vec<T> {
        let mut all = vec![T::SENTINEL; self.buffer.len()];
        self.gpu.download(&self.buffer.slice(), &mut all).expect("the device works");
        let written = all[self.len..].iter().position(|x| x.bits() != T::SENTINEL.bits());
        assert_eq!(written, None, "elements behind the end of a buffer of {} written", self.len);
        all.truncate(self.len);
        all
    }
}

/// Standard normal numbers.
pub fn normals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Rounded to the nearest.
pub fn to_bf16(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Exactly.
pub fn from_bf16(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Exactly.
pub fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// Half the distance of neighbouring numbers around 1: what one rounding loses, relative.
pub const EPS_F32: f64 = f32::EPSILON as f64 / 2.0;
pub const EPS_BF16: f64 = 1.0 / 256.0;

/// Collects what differs, so that a table of cases reports all of its failing rows.
#[derive(Default)]
pub struct Failures(Vec<String>);

impl Failures {
    /// Notes elements of `got` that are farther than `tolerance(i)` from `want`.
    pub fn compare(
        &mut self,
        case: &str,
        got: &[f32],
        want: &[f64],
        tolerance: impl Fn(usize) -> f64,
    ) {
        if got.len() != want.len() {
            self.0.push(format!("{case}: {} elements, wanted {}", got.len(), want.len()));
            return;
        }
        let far = |i: &usize| {
            let distance = (f64::from(got[*i]) - want[*i]).abs();
            distance.is_nan() || distance > tolerance(*i)
        };
        let wrong: Vec<usize> = (0..got.len()).filter(far).collect();
        if let Some(&i) = wrong.first() {
            self.0.push(format!(
                "{case}: {} of {} differ, first [{i}]: got {:e}, wanted {:e}, tolerance {:e}",
                wrong.len(),
                got.len(),
                got[i],
                want[i],
                tolerance(i)
            ));
        }
    }

    /// Notes elements whose bits differ.
    pub fn compare_bits<T: Bits>(&mut self, case: &str, got: &[T], want: &[T]) {
        let same = got.len() == want.len()
            && got.iter().zip(want).all(|(got, want)| got.bits() == want.bits());
        if !same {
            let differ = |(_, (got, want)): &(usize, (&T, &T))| got.bits() != want.bits();
            let differing: Vec<_> = got.iter().zip(want).enumerate().filter(differ).collect();
            self.0.push(format!(
                "{case}: bits of {} of {} (wanted {}) differ, (place, (got, wanted)): {:?}",
                differing.len(),
                got.len(),
                want.len(),
                &differing[..differing.len().min(8)]
            ));
        }
    }

    /// Notes anything else.
    pub fn note(&mut self, what: String) {
        self.0.push(what);
    }

    /// Fails with all that was noted.
    pub fn end(self) {
        assert!(self.0.is_empty(), "{} failures:\n{}", self.0.len(), self.0.join("\n"));
    }
}
