//! Blocks that ggml's reference encoders made, to hold the encoders here to the same bits.
//!
//! Made by `quantize_row_*_ref` of ggml (llama.cpp of 2026, its `ggml-base` library built without
//! fused multiply-add) from [`weights`]: three blocks of each plain format, two of each K format,
//! and a hash of many blocks of each.

use super::{BLOCK, BlockType, SUPER_BLOCK, encode_row};

/// `n` weights: sums of four uniform numbers, so bell-shaped, exact in f32 on every machine.
/// Every 97th is eight times larger, and the last 16 of every 256 are 1024 times smaller.
fn weights(n: usize) -> Vec<f32> {
    let mut state: u32 = 2_463_534_242;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as i32 - 32_768
    };
    let bell = |i: usize| {
        let v = (0..4).map(|_| uniform()).sum::<i32>() as f32 / 65_536.0;
        match i {
            _ if i % 97 == 5 => v * 8.0,
            _ if i % 256 >= 240 => v / 1024.0,
            _ => v,
        }
    };
    (0..n).map(bell).collect()
}

/// The bytes as hexadecimal digits.
fn golden(ty: BlockType) -> &'static str {
    match ty {
        BlockType::Q4_0 => {
            "\
             3cb4865478796560ab8657c687868b96974ad630ae48084e2564cb5a1b6b9559eb75368acb30f5e9\
             237aa74983aecf8798802e5a647c"
        }
        BlockType::Q4_1 => {
            "\
             9432bbbb589a6463897f214896085648503736a3a930d6bcae49084f2664cb5b1b6ba669eb75469a\
             bf30cbbcf5f9237aa74983aecf8798802e5a647c"
        }
        BlockType::Q5_0 => {
            "\
             3cb04c90c07efba7e1d3c9d0460bae7c0e1b072d2f73d62ccf9b41943c71008d3bb9759515c53bb1\
             b5ea7d14cb2caab5d30fdad246e53e73163c8e0f20003c93c7e7"
        }
        BlockType::Q5_1 => {
            "\
             5e2ebbbbb30a1281b026d9d603ef42902d00ac90a16e6c65832cd6bccf9b41945e82018f3bc997a6\
             17d74cc2d7fb7d26982ccbbcaab5d30feae357e64f83174daf0f21103da4c7f8"
        }
        BlockType::Q8_0 => {
            "\
             45242746fceb377fd12412240e26c91a0ce5063211152318ddfc31c601f9ffecec46df205c060267\
             d6c529262b2bd80929d3e4201aba81bd99d939ca8ae217d758f1b807d520cd0fb326f414b4606df6\
             00815d1bb93a6867a5ee19bb041943fe0c029bcadff2"
        }
        BlockType::Q2_K => {
            "\
             4e7a37899b699f7b9a793669fe586a005da655ec2263d879b9692185b86151787a77425662462de5\
             73586a650e59d59bb3b5e3b9a77a7cce626562756f356e727112d7c5dd95997bc5f7eaa64aa7a429\
             392cbe301312281311021213ff1212231222bc0016e665d5b5f005d52d7391b5a63574762661568d\
             8402204201a8c50a048a4416fbcff7dbe7dbd3e7dbdc27bfc7b7ebf7bafab3d53afabbb8ff9cbdfa\
             e8b4e7bb1034163a"
        }
        BlockType::Q3_K => {
            "\
             78467b457ecec10cb4acbfe295eedbfd2b78fcecc8eccf31e8bd9f3d5fbfa54623c220118a98293b\
             fb0bc8c3ba9ba42d4489735bb6bfca38a14f040cfca11990c9de0a8fc61fa4473d36384232c30058\
             de1c97bad1035e83aad7bdf5bc2a784ebf21deff0e0f190003dbeeac5fa4da92fbb3fa93bbf3998e\
             735fb2fddffe3bfb5b9456fffaeffe2075ddac459cfb827321003377c011b1249501e18d8223950c\
             21d3d08d4e1ddfda0c445c881db03c083470043c38183c2010e014301c34f056c2540d6117016ac9\
             fc0d61e96a3204dd3fd3ded3830446592a9ab5ad"
        }
        BlockType::Q4_K => {
            "\
             351b7a28beaceaba9b61e2649994ff88d78a84e3594ea1a7a6a75587a0566592953806361756b244\
             08609454d473338a658963ea2739f37e9f670890be3a337c5f4f52474a3438ba3c5869681235c687\
             3d853f975e98c0c82b654b66ef67da49170a4f37e567978f375f9c5c993d33877b8ce9ab896d2ec0\
             5868684a780b6a3b6e696967686a696f676e6b6b676c6b6a0923c631cb2009cbc60704c5ff6b6905\
             3b2a25364a104645f61f05364d45212b3916385630191308164337574147423821b463e165b500d2\
             34599266732636692c6f5a9495063f73039df53634b674199dbc5c7f5d9d3d4d8cf07ded5e7e9d6e\
             8d9e0e3d5d7d9e7cbeccdd5d8c4c4e8ecfd1bfe7c9d6c6dac7b50aaec2bfdbcfc8cbc9c3c8cccac8\
             ccc0cfcac4ccc4ce"
        }
        BlockType::Q5_K => {
            "\
             fd167b28baa9eaba9c62e3648992ffa6d3efd2eed1756ab75e47544b7e447056465550006540667c\
             055476543250486bd12619f6b39f72607d70cc2071bedc554b720d8d30ce94a912d04ab9daf77726\
             ca03d7d64f64f7de2fc001306d6568e99f9f959f847852747aa1d3c1247a8d1f6b1b7e3fbd41b0a0\
             57da96ebefded4922f049e6efbdf4e1e6ece48b8337b752e1739f36733eb6cb0c0e0f0b6f006f587\
             ece2e3eee1e5e2efefede8e8eee8e7e5af1ecc31cc2009cbc60704c5ff7c6a03f1b9d0b8d1b890d8\
             b2a558f099f0f0d5b5f4d59898f1f491f0bcf8d0b0d890f46643597d83208c8bfb2e0a6b799a5355\
             512d60cb701126101c867dae818e855f4289c7d2db7b00b458c334ed064c6dc249dfa4283a1d6ff6\
             064bfa6d787ee9323c7ab90fdc4b9cab2af0fbdbcd0e4bed1c3d1d7ccc0c3efa8d9accdc1ababd2d\
             bec19cfdb1cbabc4bd9a036bb38ed5acaea6a2a5afa7a3afa7a0ada2a7a8a8ab"
        }
        BlockType::Q6_K => {
            "\
             364ed1a5d250dc87bbe70c067e7aedf70d0ac8668055f082ba1ac0f3f019a94014beff41fdb213f4\
             73136c5d13cec8e6a6ce90bfd6165e321298f616e61c0e424a71ef38eebbc009949084229126114d\
             95715643acf57315136579784d4f91e3a47b12288906f8a936f5fe63d084f2ad9a0ddb3161c3873c\
             325636b828f09f9a9164462299ac06757595e94576a989668980b1a191f5db16c0a75a96fef62268\
             6e651e655aa5a0019e595aa953e962a94d2eabfde059a547fdcbd65a755e98157b453ababa396d41\
             adc2333780424400689050763953c7cc24a66510c8360a0825f3b80d447940f72d959b8e3ef073e1\
             5b7211b2121ffdc59e5ee02548e1ae0cc211e4fa40605c3ca8cf6c421ab997f3d704b11e7d94015f\
             507f8e316f4f51b2af71c29124a0dbd84fd5c7007d36e4d5f8481921ea601729002d1cf102a51ad0\
             3705a2a790be1660f61f70a2b93992b58523c9199a06551bc60692b84a6a54e6aba98a4d9a6164de\
             8c6eed442592a41664dab685799aaa959ea9955029718a7aa5ba5aab638216aa6b94af4c7da68864\
             87bb0ef4380cf80d0d0f80f70df3f5f4a200e499"
        }
    }
}

#[test]
fn encoders_give_the_reference_bits() {
    let mut wrong = Vec::new();
    for ty in BlockType::ALL {
        let blocks = if ty.block_len() == BLOCK { 3 } else { 2 };
        let x = weights(blocks * ty.block_len());
        let mut bytes = vec![0; ty.row_bytes(x.len())];
        encode_row(ty, &mut bytes, &x);
        let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        if digits != golden(ty) {
            wrong.push(ty);
        }
    }
    assert!(wrong.is_empty(), "other bits than the reference: {wrong:?}");
}

/// FNV-1a (64 bits) of the bytes of [`MANY`] weights: rare decisions of the searches are taken
/// somewhere among them.
fn golden_hash(ty: BlockType) -> u64 {
    match ty {
        BlockType::Q4_0 => 0x1fd6_67e9_a36c_a582,
        BlockType::Q4_1 => 0x10cf_40f2_2250_cfd6,
        BlockType::Q5_0 => 0x7da7_98a1_e905_de64,
        BlockType::Q5_1 => 0x8113_7fe0_f023_543c,
        BlockType::Q8_0 => 0x7e80_5d7b_4fed_a837,
        BlockType::Q2_K => 0x6fb6_6ae0_9aff_c3d8,
        BlockType::Q3_K => 0xac08_4932_1603_48f1,
        BlockType::Q4_K => 0x1c70_893a_49da_c3b0,
        BlockType::Q5_K => 0xf73b_2124_5dd4_0088,
        BlockType::Q6_K => 0xa4ce_06a7_a87e_af4a,
    }
}

/// Weights behind each [`golden_hash`].
const MANY: usize = 1 << 17;

#[test]
fn encoders_give_the_reference_bits_of_many_blocks() {
    let x = weights(MANY);
    let mut wrong = Vec::new();
    for ty in BlockType::ALL {
        let mut bytes = vec![0; ty.row_bytes(MANY)];
        encode_row(ty, &mut bytes, &x);
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
            (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
        });
        if hash != golden_hash(ty) {
            wrong.push(ty);
        }
    }
    assert!(wrong.is_empty(), "other bits than the reference: {wrong:?}");
}

#[test]
fn weights_have_the_extremes_that_the_searches_need() {
    let x = weights(2 * SUPER_BLOCK);
    let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let last = x[240..256].iter().fold(0.0f32, |a, v| a.max(v.abs()));
    assert!(largest > 4.0 && last < 0.002 && last > 0.0, "{largest} {last}");
}
