//! The sampler against distributions computed by the definition, and its edge cases.

use super::*;

fn config(change: impl FnOnce(&mut SamplerConfig)) -> SamplerConfig {
    let mut config = SamplerConfig { temperature: 1.0, seed: 11, ..SamplerConfig::GREEDY };
    change(&mut config);
    config
}

/// The distribution that the steps define, plainly: full sort, f64.
fn by_definition(logits: &[f32], config: &SamplerConfig) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if config.top_k > 0 {
        order.truncate(config.top_k);
    }
    let weight = |id: usize| (f64::from(logits[id]) / f64::from(config.temperature)).exp();
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut before = 0.0;
    let mut kept = vec![];
    for &id in &order {
        if before / total < f64::from(config.top_p) {
            kept.push(id);
        }
        before += weight(id);
    }
    let best = weight(order[0]);
    kept.retain(|&id| weight(id) / best >= f64::from(config.min_p));
    let total: f64 = kept.iter().map(|&id| weight(id)).sum();
    let mut p = vec![0.0; logits.len()];
    for id in kept {
        p[id] = weight(id) / total;
    }
    p
}

/// Pearson's statistic of `draws` draws; ids of probability 0 must never come.
fn chi_square(logits: &[f32], config: SamplerConfig, draws: usize) -> (f64, usize) {
    let p = by_definition(logits, &config);
    let mut sampler = Sampler::new(config, logits.len(), 0).unwrap();
    let mut counts = vec![0usize; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits).unwrap() as usize] += 1;
    }
    let mut statistic = 0.0;
    let mut cells = 0;
    for (id, (&count, &p)) in counts.iter().zip(&p).enumerate() {
        if p == 0.0 {
            assert_eq!(count, 0, "id {id} was filtered out");
        } else {
            let expected = p * draws as f64;
            statistic += (count as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    (statistic, cells - 1)
}

const LOGITS: [f32; 10] = [0.3, 2.0, -1.0, 1.2, 0.9, 2.1, -0.5, 0.0, 1.9, 0.4];

#[test]
fn draws_follow_the_defined_distribution() {
    let cases = [
        ("plain", config(|_| {})),
        ("hot", config(|c| c.temperature = 2.5)),
        ("cold", config(|c| c.temperature = 0.6)),
        ("top_k", config(|c| c.top_k = 4)),
        ("top_p", config(|c| c.top_p = 0.7)),
        ("min_p", config(|c| c.min_p = 0.3)),
        ("all", config(|c| (c.temperature, c.top_k, c.top_p, c.min_p) = (1.5, 8, 0.9, 0.15))),
    ];
    for (name, config) in cases {
        let (statistic, freedom) = chi_square(&LOGITS, config, 40_000);
        // Mean k, variance 2k: five standard deviations plus a little for small k.
        let bound = freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt() + 5.0;
        assert!(statistic < bound, "{name}: {statistic} for {freedom} degrees of freedom");
    }
}

#[test]
fn the_chi_square_would_notice_a_wrong_temperature() {
    let wrong = config(|c| c.temperature = 1.1);
    let p = by_definition(&LOGITS, &config(|_| {}));
    let mut sampler = Sampler::new(wrong, LOGITS.len(), 0).unwrap();
    let mut counts = [0f64; 10];
    for _ in 0..40_000 {
        counts[sampler.sample(&LOGITS).unwrap() as usize] += 1.0;
    }
    let statistic: f64 =
        counts.iter().zip(&p).map(|(n, p)| (n - p * 4e4).powi(2) / (p * 4e4)).sum();
    assert!(statistic > 9.0 + 5.0 * 18f64.sqrt() + 5.0, "{statistic}");
}

#[test]
fn top_p_of_a_large_vocabulary_keeps_the_defined_set() {
    // More candidates than one sorted block, with ties.
    let logits: Vec<f32> = (0..3000).map(|i| ((i * 7919) % 500) as f32 * 0.004).collect();
    for top_p in [0.001, 0.2, 0.77, 0.999] {
        let config = config(|c| c.top_p = top_p);
        let kept: Vec<u32> = by_definition(&logits, &config)
            .iter()
            .enumerate()
            .filter(|(_, p)| **p > 0.0)
            .map(|(id, _)| id as u32)
            .collect();
        let mut sampler = Sampler::new(config, logits.len(), 0).unwrap();
        sampler.sample(&logits).unwrap();
        let mut got: Vec<u32> = sampler.candidates.iter().map(|c| c.id).collect();
        got.sort_unstable();
        // f32 weights against f64 ones: at most one candidate at the edge may differ.
        assert!(got.len().abs_diff(kept.len()) <= 1, "{top_p}: {} {}", got.len(), kept.len());
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_equals_and_applies_the_penalty() {
    let mut plain = Sampler::new(SamplerConfig::GREEDY, 4, 0).unwrap();
    assert_eq!(plain.sample(&[1.0, 3.0, 3.0, 0.0]).unwrap(), 1);
    plain.observe(1);
    assert_eq!(plain.sample(&[1.0, 3.0, 3.0, 0.0]).unwrap(), 1, "penalty 1 changes nothing");
    let penalty = SamplerConfig { repetition_penalty: 2.0, ..SamplerConfig::GREEDY };
    let mut sampler = Sampler::new(penalty, 3, 0).unwrap();
    sampler.observe(0);
    assert_eq!(sampler.sample(&[3.0, 2.0, -1.0]).unwrap(), 1, "3 / 2 < 2");
    assert_eq!(sampler.sample(&[-1.0, -3.0, -1.5]).unwrap(), 2, "-1 * 2 < -1.5");
    sampler.observe(0);
    assert_eq!(sampler.sample(&[3.0, 1.4, -9.0]).unwrap(), 0, "an id is penalised once");
}

#[test]
fn same_seed_same_draws_and_streams_differ() {
    let draw = |seed, stream| -> Vec<u32> {
        let mut sampler = Sampler::new(config(|c| c.seed = seed), 10, stream).unwrap();
        (0..50).map(|_| sampler.sample(&LOGITS).unwrap()).collect()
    };
    assert_eq!(draw(5, 0), draw(5, 0));
    assert_ne!(draw(5, 0), draw(6, 0));
    assert_ne!(draw(5, 0), draw(5, 1));
}

#[test]
fn a_tiny_temperature_is_greedy_not_nan() {
    let mut sampler = Sampler::new(config(|c| c.temperature = 1e-38), 10, 0).unwrap();
    for _ in 0..20 {
        assert_eq!(sampler.sample(&LOGITS).unwrap(), 5);
    }
}

#[test]
fn bad_logits_are_errors() {
    for settings in [SamplerConfig::GREEDY, config(|c| c.top_k = 2)] {
        let mut sampler = Sampler::new(settings, 3, 0).unwrap();
        let nan = sampler.sample(&[0.0, f32::NAN, 1.0]).unwrap_err().to_string();
        assert!(nan.contains("token 1 has NaN"), "{nan}");
        assert!(sampler.sample(&[0.0, f32::INFINITY, 1.0]).is_err());
        assert!(sampler.sample(&[f32::NEG_INFINITY; 3]).is_err());
        assert!(sampler.sample(&[0.0; 2]).is_err());
        let inf = f32::NEG_INFINITY;
        assert_eq!(sampler.sample(&[inf, inf, -4.0]).unwrap(), 2);
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let cases = [
        ("temperature", config(|c| c.temperature = -1.0)),
        ("temperature", config(|c| c.temperature = f32::NAN)),
        ("top_p", config(|c| c.top_p = 0.0)),
        ("top_p", config(|c| c.top_p = 1.5)),
        ("min_p", config(|c| c.min_p = -0.1)),
        ("repetition_penalty", config(|c| c.repetition_penalty = 0.0)),
    ];
    for (field, settings) in cases {
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn sampling_does_not_grow_its_buffers() {
    let mut sampler =
        Sampler::new(config(|c| (c.top_p, c.repetition_penalty) = (0.9, 1.3)), 10, 0).unwrap();
    let (at, capacity) = (sampler.candidates.as_ptr(), sampler.candidates.capacity());
    for _ in 0..100 {
        let id = sampler.sample(&LOGITS).unwrap();
        sampler.observe(id);
    }
    assert_eq!((sampler.candidates.as_ptr(), sampler.candidates.capacity()), (at, capacity));
}
