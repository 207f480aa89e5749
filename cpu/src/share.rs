//! Several outputs of one kernel, shared among a team by whole units.

use crate::floats::FloatsMut;
use crate::team::{SharedMut, Team, part};
use half::bf16;
use std::ops::Range;

enum Shared<'a> {
    F32(SharedMut<'a, f32>),
    Bf16(SharedMut<'a, bf16>),
}

impl<'a> Shared<'a> {
    fn new(floats: FloatsMut<'a>) -> Self {
        match floats {
            FloatsMut::F32(x) => Shared::F32(SharedMut::new(x)),
            FloatsMut::Bf16(x) => Shared::Bf16(SharedMut::new(x)),
        }
    }

    /// The elements of some units, clipped at the end.
    ///
    /// # Safety
    /// No two living results of this function may overlap.
    unsafe fn units(&self, units: &Range<usize>, per_unit: usize) -> FloatsMut<'_> {
        let clip = |len: usize| (units.start * per_unit).min(len)..(units.end * per_unit).min(len);
        match self {
            // SAFETY: the caller's contract.
            Shared::F32(x) => FloatsMut::F32(unsafe { x.slice(clip(x.len())) }),
            // SAFETY: the caller's contract.
            Shared::Bf16(x) => FloatsMut::Bf16(unsafe { x.slice(clip(x.len())) }),
        }
    }
}

/// Gives every member a contiguous range of the `n_units` units and its part of each output. An
/// output comes with its elements per unit; the last unit may be short.
///
/// A unit is never divided, so what is computed within one does not depend on the team.
pub fn share<const N: usize>(
    team: &Team,
    n_units: usize,
    outs: [(FloatsMut<'_>, usize); N],
    f: &(dyn Fn(Range<usize>, [FloatsMut<'_>; N]) + Sync),
) {
    let outs = outs.map(|(floats, per_unit)| (Shared::new(floats), per_unit));
    let members = team.len().min(n_units);
    let work = |member: usize| {
        let units = part(n_units, 1, member, members);
        if units.is_empty() {
            return;
        }
        let parts = std::array::from_fn(|i| {
            // SAFETY: `part` hands every unit to one member only, and an output's units are apart.
            unsafe { outs[i].0.units(&units, outs[i].1) }
        });
        f(units, parts);
    };
    match members {
        0 => {}
        1 => work(0),
        _ => team.run(&|member| {
            if member < members {
                work(member);
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_handed_out_once_for_any_team() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads).unwrap();
            let (mut a, mut b) = (vec![0.0f32; 23], vec![bf16::ZERO; 8]);
            let outs = [(FloatsMut::F32(&mut a), 3), (FloatsMut::Bf16(&mut b), 1)];
            share(&team, 8, outs, &|units, [a, b]| {
                let (FloatsMut::F32(a), FloatsMut::Bf16(b)) = (a, b) else { unreachable!() };
                assert_eq!(b.len(), units.len());
                for (i, x) in a.iter_mut().enumerate() {
                    *x += (units.start * 3 + i) as f32 + 1.0;
                }
                for x in b {
                    *x += bf16::ONE;
                }
            });
            assert!(a.iter().enumerate().all(|(i, &x)| x == i as f32 + 1.0), "{a:?}");
            assert!(b.iter().all(|&x| x == bf16::ONE));
        }
    }
}
