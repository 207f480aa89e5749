//! The metadata keys of GGUF that Puna reads or writes, and the numbers of its value types.
//! Source: `docs/gguf.md` of the ggml repository.

/// `general.architecture`: which family of models the file holds.
pub const ARCHITECTURE: &str = "general.architecture";
/// `general.alignment`: alignment of tensor data in bytes, a u32.
pub const ALIGNMENT: &str = "general.alignment";
/// `general.name`: what the model's maker calls it.
pub const NAME: &str = "general.name";

/// The one architecture that is read.
pub const LLAMA: &str = "llama";

/// Residual width.
pub const DIM: &str = "llama.embedding_length";
/// Inner width of the feed-forward.
pub const HIDDEN_DIM: &str = "llama.feed_forward_length";
/// Number of blocks.
pub const N_LAYERS: &str = "llama.block_count";
/// Query heads.
pub const N_HEADS: &str = "llama.attention.head_count";
/// Key/value heads.
pub const N_KV_HEADS: &str = "llama.attention.head_count_kv";
/// Width of a head.
pub const KEY_LENGTH: &str = "llama.attention.key_length";
/// Width of a value head; must equal [`KEY_LENGTH`].
pub const VALUE_LENGTH: &str = "llama.attention.value_length";
/// Longest context.
pub const MAX_SEQ_LEN: &str = "llama.context_length";
/// Vocabulary size, where it is given besides the token list.
pub const VOCAB_SIZE: &str = "llama.vocab_size";
/// RMSNorm epsilon.
pub const NORM_EPS: &str = "llama.attention.layer_norm_rms_epsilon";
/// Width of a sliding attention window.
pub const SLIDING_WINDOW: &str = "llama.attention.sliding_window";
/// RoPE base.
pub const ROPE_THETA: &str = "llama.rope.freq_base";
/// Rotated width of a head.
pub const ROPE_DIM: &str = "llama.rope.dimension_count";
/// Linear RoPE scale of old files.
pub const ROPE_SCALE_LINEAR: &str = "llama.rope.scale_linear";
/// `none`, `linear` or `yarn`.
pub const ROPE_SCALING_TYPE: &str = "llama.rope.scaling.type";
/// By how much the context was stretched.
pub const ROPE_SCALING_FACTOR: &str = "llama.rope.scaling.factor";
/// Context before it was stretched.
pub const ROPE_ORIGINAL_CONTEXT: &str = "llama.rope.scaling.original_context_length";
/// Factor on YaRN's own attention scale.
pub const ROPE_ATTN_FACTOR: &str = "llama.rope.scaling.attn_factor";
/// The same under its later name.
pub const ROPE_YARN_ATTN_FACTOR: &str = "llama.rope.scaling.yarn_attn_factor";
/// Share of YaRN's extrapolation.
pub const ROPE_YARN_EXT_FACTOR: &str = "llama.rope.scaling.yarn_ext_factor";
/// YaRN's `beta_fast`.
pub const ROPE_YARN_BETA_FAST: &str = "llama.rope.scaling.yarn_beta_fast";
/// YaRN's `beta_slow`.
pub const ROPE_YARN_BETA_SLOW: &str = "llama.rope.scaling.yarn_beta_slow";

/// Keys that change the computation in a way Puna does not follow, with the value that changes nothing.
pub const NEUTRAL: [(&str, f64); 6] = [
    ("llama.expert_count", 0.0),
    ("llama.logit_scale", 1.0),
    ("llama.residual_scale", 1.0),
    ("llama.embedding_scale", 1.0),
    ("llama.attention.scale", 0.0),
    ("llama.rope.scaling.yarn_log_multiplier", 0.0),
];

/// `llama` (SentencePiece) or `gpt2` (byte-level BPE).
pub const TOKENIZER_MODEL: &str = "tokenizer.ggml.model";
/// Name of the pre-tokenizer.
pub const TOKENIZER_PRE: &str = "tokenizer.ggml.pre";
/// Token texts, by id.
pub const TOKENS: &str = "tokenizer.ggml.tokens";
/// Token scores, by id.
pub const SCORES: &str = "tokenizer.ggml.scores";
/// Token types, by id.
pub const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
/// BPE merges in order of rank.
pub const MERGES: &str = "tokenizer.ggml.merges";
/// Begin of sequence.
pub const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
/// End of sequence.
pub const EOS_ID: &str = "tokenizer.ggml.eos_token_id";
/// End of turn.
pub const EOT_ID: &str = "tokenizer.ggml.eot_token_id";
/// End of message.
pub const EOM_ID: &str = "tokenizer.ggml.eom_token_id";
/// Unknown token.
pub const UNK_ID: &str = "tokenizer.ggml.unknown_token_id";
/// Padding.
pub const PAD_ID: &str = "tokenizer.ggml.padding_token_id";
/// Whether a sequence begins with BOS.
pub const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
/// Whether a sequence ends with EOS.
pub const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
/// Whether a space is put before the text.
pub const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
/// The chat template in Jinja.
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Type number of a string value.
pub const TYPE_STRING: u32 = 8;
/// Type number of an array value.
pub const TYPE_ARRAY: u32 = 9;
