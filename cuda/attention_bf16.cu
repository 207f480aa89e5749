// Attention of new rows over caches of bf16, on tensor cores; see include/attention_mma.cuh.
//
//   out[i, h] = sum over j of softmax_j(scale q[i, h] . k[j, h / group]) v[j, h / group]
//
// over the positions j of i's sequence with pos(i) - window < j <= pos(i). out, q: [m, n_heads,
// head_dim] f32 or bf16; keys and values: pages of the segments' caches, bf16. Overwrites.
//
// A step of decoding reads, for each sequence and layer, 2 n_kv_heads head_dim 2 bytes a position
// (q8_0: 1 1/8 bytes for the 2, f32: 4), once for all heads of a group. Partial results add
// group (head_dim + 2) 8 bytes, written and read, for every 256 positions of a key head: some 3 %
// of that at 4 heads a group. 8 key heads of 128 and 4096 positions are 16.8 MB, 5 us at 3.35 TB/s,
// by 128 blocks of up to 64 KiB in flight.

#include "include/attention_mma.cuh"

ATTEND_KERNELS(bf16, CacheBf16)
