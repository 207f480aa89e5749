//! Choosing on the device: the token of the CPU's sampler for the same logits, settings and draw.

use puna::cuda::sample::{Choice, MOST_TOKENS, chosen, observe, sample};
use puna::infer::{Sampler, SamplerConfig};
use puna::rng::Rng;

use crate::support::{Failures, gpu, guarded, normals};

/// One, fewer than a block has threads, as many, some more, two narrowings' worth and beyond.
const VOCABULARIES: &[usize] = &[1, 2, 7, 100, 511, 512, 513, 1031, 5003];

/// Logits of one kind: how they are spread decides which way through the kernel is taken.
fn logits(rng: &mut Rng, kind: usize, vocab: usize) -> Vec<f32> {
    let plain = normals(rng, vocab);
    let mut pick = |n: u32| rng.next_u32() % n;
    match kind {
        // As a model's: a few far above the rest.
        0 => plain.iter().map(|x| 3.0 * x).collect(),
        // Nearly flat.
        1 => plain.iter().map(|x| 0.01 * x - 7.0).collect(),
        // Ties in all places, zeroes of both signs among them.
        2 => plain.iter().map(|x| (2.0 * x).round() / 4.0).collect(),
        // All equal.
        3 => vec![1.5; vocab],
        // Most cannot be chosen.
        4 => plain.iter().map(|&x| if pick(10) > 0 { f32::NEG_INFINITY } else { x }).collect(),
        // Neighbouring floats, which a score's rounding makes equal.
        _ => (0..vocab).map(|_| f32::from_bits(1e6f32.to_bits() + pick(40))).collect(),
    }
}

fn settings(rng: &mut Rng, vocab: usize) -> SamplerConfig {
    let mut one_of = |values: &[f32]| values[rng.next_u32() as usize % values.len()];
    let [temperature, top_p, min_p, repetition_penalty] = [
        one_of(&[0.0, 0.7, 1.0, 1.0, 1.7, 1e-3, 1e-30, 1e6]),
        one_of(&[1.0, 1.0, 0.95, 0.5, 0.1, 1e-6, 0.999_999]),
        one_of(&[0.0, 0.0, 0.05, 0.6, 1.0]),
        one_of(&[1.0, 1.0, 1.3, 0.8]),
    ];
    let all = vocab as f32;
    let top_k = one_of(&[0.0, 0.0, 1.0, 5.0, 50.0, 600.0, all / 2.0, all - 1.0, all, 2.0 * all]);
    let seed = rng.next_u32().into();
    SamplerConfig { temperature, top_k: top_k as usize, top_p, min_p, repetition_penalty, seed }
}

#[test]
fn tokens_are_those_of_the_cpus_sampler() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for &vocab in VOCABULARIES {
        // More rows than a launch takes, at the sizes where they cost little.
        let rows = if vocab < 200 { 130 } else { 42 };
        let mut rng = Rng::new(19, vocab as u64);
        let (mut x, mut seen, mut choices, mut want) = (vec![], vec![], vec![], vec![]);
        for row in 0..rows {
            let config = settings(&mut rng, vocab);
            let mut own = logits(&mut rng, row % 6, vocab);
            // Something is left to choose.
            own[row % vocab] = own[row % vocab].max(-1.0);
            let stream = row as u64;
            let mut sampler = Sampler::new(config, vocab, stream).unwrap();
            let flags: Vec<u8> =
                (0..vocab).map(|_| (rng.next_u32().is_multiple_of(5)).into()).collect();
            for (id, _) in flags.iter().enumerate().filter(|(_, seen)| **seen == 1) {
                sampler.observe(id as u32);
            }
            want.push((sampler.sample(&own).unwrap(), row % 6, config));
            choices.push(Choice {
                temperature: config.temperature,
                top_k: config.top_k,
                top_p: config.top_p,
                min_p: config.min_p,
                repetition_penalty: config.repetition_penalty,
                uniform: Rng::new(config.seed, stream).uniform(),
            });
            x.extend(own);
            seen.extend(flags);
        }
        let (x, seen) = (guarded(&gpu, &x), guarded(&gpu, &seen));
        let mut tokens = guarded(&gpu, &vec![77u32; rows]);
        let flags = Some(seen.slice());
        sample(&gpu, tokens.slice_mut(), x.slice(), flags, &choices).unwrap();
        for (row, (&got, (want, kind, config))) in tokens.check().iter().zip(&want).enumerate() {
            if got != *want {
                failures.note(format!(
                    "{vocab} row {row} kind {kind}: got {got}, wanted {want}: {config:?}"
                ));
            }
        }
    }
    failures.end();
}

#[test]
fn a_large_vocabulary_is_walked_in_order() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let vocab = 32_003;
    let mut rng = Rng::new(20, 0);
    for (kind, top_k, top_p) in
        [(0, 0, 1.0), (0, 0, 0.9), (1, 0, 0.99), (0, 50, 0.95), (2, 2000, 0.8)]
    {
        let x = logits(&mut rng, kind, vocab);
        let config = SamplerConfig {
            temperature: 0.8,
            top_k,
            top_p,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 5,
        };
        let want = Sampler::new(config, vocab, 0).unwrap().sample(&x).unwrap();
        let uniform = Rng::new(5, 0).uniform();
        let SamplerConfig { temperature, min_p, repetition_penalty, .. } = config;
        let choice = Choice { temperature, top_k, top_p, min_p, repetition_penalty, uniform };
        let device = guarded(&gpu, &x);
        let mut token = guarded(&gpu, &[77u32]);
        sample(&gpu, token.slice_mut(), device.slice(), None, &[choice]).unwrap();
        failures.compare_bits(&format!("kind {kind} {config:?}"), &token.check(), &[want]);
    }
    failures.end();
}

const PLAIN: Choice = Choice {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    uniform: 0.5,
};

#[test]
fn the_ends_of_the_draw_are_the_first_and_the_last() {
    let Some(gpu) = gpu() else { return };
    let x = gpu.upload(&[1f32; 1200]).unwrap();
    let mut tokens = guarded(&gpu, &[77u32; 2]);
    let last = 1.0 - f64::EPSILON / 2.0;
    let choices = [0.0, last].map(|uniform| Choice { uniform, ..PLAIN });
    sample(&gpu, tokens.slice_mut(), x.slice(), None, &choices).unwrap();
    assert_eq!(tokens.check(), [0, 599]);
}

#[test]
fn logits_that_cannot_be_chosen_from_are_told_of() {
    let Some(gpu) = gpu() else { return };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let x = gpu.upload(&[0.0, nan, inf, 0.0, 0.0, inf, -inf, -inf, -inf]).unwrap();
    for temperature in [0.0, 1.0] {
        let mut tokens = guarded(&gpu, &[77u32; 3]);
        let choices = [Choice { temperature, ..PLAIN }; 3];
        sample(&gpu, tokens.slice_mut(), x.slice(), None, &choices).unwrap();
        let errors: Vec<_> =
            tokens.check().into_iter().map(|t| chosen(t).unwrap_err().to_string()).collect();
        assert!(errors[0].contains("token 1 has NaN or plus infinity"), "{}", errors[0]);
        assert!(errors[1].contains("token 2 has NaN or plus infinity"), "{}", errors[1]);
        assert!(errors[2].contains("every token has minus infinity"), "{}", errors[2]);
    }
    assert_eq!(chosen(5).unwrap(), 5);
}

#[test]
fn chosen_tokens_are_noted() {
    let Some(gpu) = gpu() else { return };
    let (rows, vocab) = (150, 9);
    let mut rng = Rng::new(21, 0);
    let mut tokens: Vec<u32> = (0..rows).map(|_| rng.next_u32() % vocab as u32).collect();
    // No ids: passed over.
    (tokens[3], tokens[4]) = (vocab as u32, u32::MAX);
    let mut want = vec![0u8; rows * vocab];
    want[7] = 1;
    let mut seen = guarded(&gpu, &want);
    for (row, &token) in tokens.iter().enumerate().filter(|(_, t)| (**t as usize) < vocab) {
        want[row * vocab + token as usize] = 1;
    }
    let device = gpu.upload(&tokens).unwrap();
    observe(&gpu, seen.slice_mut(), device.slice()).unwrap();
    assert_eq!(seen.check(), want);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let x = gpu.upload(&vec![0f32; MOST_TOKENS + 1]).unwrap();
    let seen = gpu.upload(&[0u8; 7]).unwrap();
    let mut tokens = gpu.upload(&[0u32; 2]).unwrap();
    let mut refused = |n: usize, seen, choices: &[Choice], words: &str| {
        let to = tokens.slice_mut().range_mut(0..choices.len().min(2));
        let error = sample(&gpu, to, x.slice().range(0..n), seen, choices).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(9, None, &[PLAIN; 3], "tokens: shape 2 elements, wanted 3");
    refused(9, None, &[PLAIN; 2], "shape 9 elements, wanted 2 rows of one length");
    refused(MOST_TOKENS + 1, None, &[PLAIN], "wanted 1 to 1048576 logits a row");
    refused(0, None, &[PLAIN], "shape 0, wanted 1 to 1048576");
    refused(8, Some(seen.slice()), &[PLAIN], "seen: shape 7 elements, wanted 8");
    let penalty = Choice { repetition_penalty: 1.1, ..PLAIN };
    refused(8, None, &[PLAIN, penalty], "seen: shape 0 elements, wanted 8");
    for uniform in [-0.1, 1.0, f64::NAN] {
        refused(8, None, &[Choice { uniform, ..PLAIN }], "wanted at least 0 and less than 1");
    }
}
