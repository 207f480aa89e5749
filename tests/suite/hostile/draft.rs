//! A GGUF file in parts, to be broken.

/// A GGUF file in parts, so that a test can break one of them.
#[derive(Clone)]
pub struct Draft {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_entries: Option<u64>,
    /// Key bytes, value type, value bytes.
    pub entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<DraftTensor>,
    pub alignment: usize,
}

#[derive(Clone)]
pub struct DraftTensor {
    pub name: Vec<u8>,
    /// Fastest first, as in the file.
    pub dims: Vec<u64>,
    pub ty: u32,
    pub offset: u64,
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub fn strings(texts: &[&str]) -> Vec<u8> {
    let mut out = 8u32.to_le_bytes().to_vec();
    out.extend((texts.len() as u64).to_le_bytes());
    texts.iter().for_each(|text| out.extend(string(text.as_bytes())));
    out
}

pub fn array(ty: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat()
}

impl Draft {
    /// A LLaMA of one block: dim 4, 2 heads of width 2, 1 key/value head, hidden 6, 5 tokens; F32.
    pub fn llama() -> Draft {
        let mut draft = Draft {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_entries: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
        };
        draft.set("general.architecture", 8, &string(b"llama"));
        for (key, n) in [
            ("llama.embedding_length", 4u32),
            ("llama.feed_forward_length", 6),
            ("llama.block_count", 1),
            ("llama.attention.head_count", 2),
            ("llama.attention.head_count_kv", 1),
            ("llama.context_length", 16),
            ("tokenizer.ggml.bos_token_id", 1),
            ("tokenizer.ggml.eos_token_id", 2),
        ] {
            draft.set(key, 4, &n.to_le_bytes());
        }
        draft.set("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
        draft.set("tokenizer.ggml.model", 8, &string(b"llama"));
        draft.set("tokenizer.ggml.tokens", 9, &strings(&["<unk>", "<s>", "</s>", "a", "b"]));
        draft.set("tokenizer.ggml.scores", 9, &array(6, 5, &[0; 20]));
        draft.set("tokenizer.ggml.token_type", 9, &array(5, 5, &[1; 20]));
        for (name, dims) in [
            ("token_embd.weight", vec![4, 5]),
            ("blk.0.attn_norm.weight", vec![4]),
            ("blk.0.attn_q.weight", vec![4, 4]),
            ("blk.0.attn_k.weight", vec![4, 2]),
            ("blk.0.attn_v.weight", vec![4, 2]),
            ("blk.0.attn_output.weight", vec![4, 4]),
            ("blk.0.ffn_norm.weight", vec![4]),
            ("blk.0.ffn_gate.weight", vec![4, 6]),
            ("blk.0.ffn_up.weight", vec![4, 6]),
            ("blk.0.ffn_down.weight", vec![6, 4]),
            ("output_norm.weight", vec![4]),
        ] {
            draft.tensor(name, dims, 0);
        }
        draft
    }

    pub fn set(&mut self, key: &str, ty: u32, value: &[u8]) {
        self.entries.retain(|entry| entry.0 != key.as_bytes());
        self.entries.push((key.into(), ty, value.to_vec()));
    }

    pub fn remove(&mut self, key: &str) {
        self.entries.retain(|entry| entry.0 != key.as_bytes());
    }

    /// Adds a tensor where the one before ends; sizes as for F32.
    pub fn tensor(&mut self, name: &str, dims: Vec<u64>, ty: u32) {
        let offset = self.tensors.last().map_or(0, |t| {
            t.offset + (t.dims.iter().product::<u64>() * 4).next_multiple_of(self.alignment as u64)
        });
        self.tensors.push(DraftTensor { name: name.into(), dims, ty, offset });
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, ty, value) in &self.entries {
            out.extend(string(key));
            out.extend(ty.to_le_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment.max(1)), 0);
        let len = Draft::llama_data_bytes();
        out.extend((0..len).map(|i| i as u8));
        out
    }

    pub fn llama_data_bytes() -> usize {
        // 80 + 16 + 64 + 32 + 32 + 64 + 16 + 96 + 96 + 96 bytes, each up to 32, and the last 16.
        96 + 32 + 64 + 32 + 32 + 64 + 32 + 96 + 96 + 96 + 16
    }
}
