//! Random numbers on a device that the host knows without copying them back, and the comparison of
//! results with what they should be.

use crate::cuda::{DeviceBuffer, DeviceSlice, Element, Floats, Gpu};
use crate::error::{Error, Result};
use crate::rng::Rng;
use half::bf16;

/// Half the distance of neighbouring bf16 numbers around 1: what one rounding loses, relative.
pub const EPS_BF16: f64 = 1.0 / 256.0;
/// The machine epsilon of f32: twice a rounding, as tensor cores may cut off what does not fit.
pub const EPS_F32: f64 = f32::EPSILON as f64;
/// Results that are looked at.
pub const LOOKS: usize = 32;

/// Normal numbers that all inputs are taken from, each from another place on, over and over.
pub struct Pool {
    /// All of them are bf16 numbers, so that both types hold the same.
    host: Vec<f32>,
    f32: DeviceBuffer<f32>,
    bf16: DeviceBuffer<bf16>,
    next: usize,
    rng: Rng,
}

/// Some of them: element i is number `start + i` of the pool.
pub struct Numbers<T: Element> {
    pub buffer: DeviceBuffer<T>,
    start: usize,
}

/// Element types that the pool has.
pub trait Pooled: Element {
    fn of(pool: &Pool) -> &DeviceBuffer<Self>;
}

impl Pooled for f32 {
    fn of(pool: &Pool) -> &DeviceBuffer<f32> {
        &pool.f32
    }
}

impl Pooled for bf16 {
    fn of(pool: &Pool) -> &DeviceBuffer<bf16> {
        &pool.bf16
    }
}

impl Pool {
    pub fn new(gpu: &Gpu, seed: u64, len: usize) -> Result<Pool> {
        let mut rng = Rng::new(seed, 0);
        let low: Vec<bf16> = (0..len).map(|_| bf16::from_f64(rng.normal())).collect();
        let host: Vec<f32> = low.iter().map(|x| x.to_f32()).collect();
        let (f32, bf16) = (gpu.upload(&host)?, gpu.upload(&low)?);
        Ok(Pool { host, f32, bf16, next: 0, rng })
    }

    /// `len` numbers on the device.
    pub fn take<T: Pooled>(&mut self, gpu: &Gpu, len: usize) -> Result<Numbers<T>> {
        let start = self.next;
        // Anywhere else for the next.
        self.next = (self.next + 7919) % self.host.len();
        let mut buffer = gpu.alloc(len)?;
        let pool = T::of(self);
        let mut at = 0;
        while at < len {
            let from = (start + at) % pool.len();
            let n = (pool.len() - from).min(len - at);
            let mut to = buffer.slice_mut().range_mut(at..at + n);
            gpu.copy(&mut to, &pool.slice().range(from..from + n))?;
            at += n;
        }
        Ok(Numbers { buffer, start })
    }

    /// Element `i` of these numbers.
    pub fn at<T: Element>(&self, numbers: &Numbers<T>, i: usize) -> f64 {
        self.host[(numbers.start + i) % self.host.len()].into()
    }

    /// A number below `n`.
    pub fn any(&mut self, n: usize) -> usize {
        ((self.rng.uniform() * n as f64) as usize).min(n.saturating_sub(1))
    }

    /// Some of the numbers below `n`, the first and the last among them.
    pub fn some(&mut self, n: usize) -> Vec<usize> {
        let mut some: Vec<usize> = (2..LOOKS).map(|_| self.any(n)).collect();
        some.extend([0, n - 1]);
        some
    }
}

impl<T: Element> Numbers<T> {
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        self.buffer.slice()
    }
}

impl<T: Element> Numbers<T>
where
    for<'a> Floats<'a>: From<DeviceSlice<'a, T>>,
{
    pub fn floats(&self) -> Floats<'_> {
        Floats::from(self.slice())
    }
}

/// One element of a result.
pub fn get<T: Element + Default + Into<f64>>(
    gpu: &Gpu,
    x: DeviceSlice<'_, T>,
    i: usize,
) -> Result<f64> {
    let mut one = [T::default()];
    gpu.download(&x.range(i..i + 1), &mut one)?;
    Ok(one[0].into())
}

/// Refuses a result that is farther than `tolerance` from what it should be.
///
/// # Errors
/// When it is.
pub fn expect(kernel: &str, index: usize, got: f64, wanted: f64, tolerance: f64) -> Result<()> {
    if (got - wanted).abs() <= tolerance {
        return Ok(());
    }
    Err(Error::Cuda {
        what: kernel.to_owned(),
        why: format!("result {index} is {got:e}, wanted {wanted:e} within {tolerance:e}"),
    })
}
