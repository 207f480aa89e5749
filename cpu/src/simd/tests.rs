//! The vector operations of every level, lane by lane.

use super::*;
use crate::testing::{Gen, ulps};

struct Map<'a, F> {
    x: &'a mut [f32],
    f: F,
}

/// An operation to apply lane by lane; a trait because closures cannot be generic.
trait Op {
    fn apply<V: Vector>(&self, x: V) -> V;
}

impl<F: Op> Kernel for Map<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for x in self.x.chunks_mut(V::LANES) {
            put(x, self.f.apply::<V>(get(x)));
        }
    }
}

struct Exp;
impl Op for Exp {
    #[inline(always)]
    fn apply<V: Vector>(&self, x: V) -> V {
        exp(x)
    }
}

struct Round;
impl Op for Round {
    #[inline(always)]
    fn apply<V: Vector>(&self, x: V) -> V {
        x.round()
    }
}

#[test]
fn exp_is_within_two_ulp() {
    // Every 2000th float between -87.3 (the smallest normal result) and 88.7, and near 0.
    let mut inputs = vec![0.0, -0.0, 88.72, -87.33, 1e-30, -1e-30, 0.346_573_6, -0.346_573_6];
    for bits in (0u32..0x42b1_7000).step_by(2003) {
        inputs.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
    }
    inputs.retain(|&x| x > -87.33);
    for isa in Isa::available() {
        let mut got = inputs.clone();
        run(isa, Map { x: &mut got, f: Exp });
        let worst = inputs
            .iter()
            .zip(&got)
            .map(|(&x, &y)| (ulps(y, f64::from(x).exp()), x))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there are inputs");
        assert!(worst.0 <= 2.0, "{isa}: exp({}) is {} ulp off", worst.1, worst.0);
    }
}

#[test]
fn exp_has_the_right_ends() {
    for isa in Isa::available() {
        let inf = f32::INFINITY;
        let mut x = [-inf, inf, -1e9, 1e9, -104.5, 89.5, f32::NAN, -100.0, -88.0];
        run(isa, Map { x: &mut x, f: Exp });
        assert_eq!(x[..6], [0.0, inf, 0.0, inf, 0.0, inf], "{isa}");
        assert!(x[6].is_nan(), "{isa}");
        assert!((f64::from(x[7]) - (-100f64).exp()).abs() <= 2e-45, "{isa}: {}", x[7]);
        assert!((f64::from(x[8]) - (-88f64).exp()).abs() <= 3e-45, "{isa}: {}", x[8]);
    }
}

#[test]
fn round_is_to_even() {
    let inputs = [0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -3e6, 0.499_999_97, 8_388_609.0, 127.7, -0.2];
    for isa in Isa::available() {
        let mut got = inputs;
        run(isa, Map { x: &mut got, f: Round });
        for (x, y) in inputs.iter().zip(got) {
            assert_eq!(y, x.round_ties_even(), "{isa}: {x}");
        }
    }
}

/// Reductions, `keep`, `zip` and the comparisons on one vector's worth of numbers.
struct Lanes<'a> {
    x: &'a [f32; 32],
}

impl Kernel for Lanes<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let n = V::LANES;
        let all = |v: V| {
            let mut out = vec![0.0; n];
            put(&mut out, v);
            out
        };
        let x = get::<V>(self.x);
        let y = get::<V>(&self.x[n..]);
        let want: f64 = self.x[..n].iter().map(|&x| f64::from(x)).sum();
        assert!((f64::from(x.sum()) - want).abs() < 1e-5);
        assert_eq!(x.max_lane(), self.x[..n].iter().copied().fold(f32::MIN, f32::max));
        for lo in 0..=n {
            for hi in lo..=n {
                let kept = all(x.keep(lo..hi, V::splat(7.0)));
                for (i, k) in kept.iter().enumerate() {
                    assert_eq!(*k, if (lo..hi).contains(&i) { self.x[i] } else { 7.0 });
                }
            }
        }
        let (even, odd) = x.unzip(y);
        for (i, (e, o)) in all(even).iter().zip(all(odd)).enumerate() {
            assert_eq!((*e, o), (self.x[2 * i], self.x[2 * i + 1]));
        }
        let (a, b) = even.zip(odd);
        assert_eq!([all(a), all(b)].concat(), self.x[..2 * n]);
        let nan = V::splat(f32::NAN);
        assert_eq!(all(nan.max(x)), self.x[..n]);
        assert!(all(x.min(nan)).iter().all(|x| x.is_nan()));
        let codes: [i8; 16] = std::array::from_fn(|i| (i as i8 - 8) * 16);
        // SAFETY: LANES is at most 16.
        let loaded = all(unsafe { V::load_i8(codes.as_ptr()) });
        assert!(loaded.iter().zip(codes).all(|(x, c)| *x == f32::from(c)));
    }
}

#[test]
fn lanes_are_where_they_should_be() {
    let mut random = Gen::new(1);
    let x = std::array::from_fn(|_| random.normal());
    for isa in Isa::available() {
        run(isa, Lanes { x: &x });
    }
}
