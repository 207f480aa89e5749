/* A matrix in the device's memory as bulk copies cut boxes out of it. The host fills it in
   (cuTensorMapEncodeTiled; on the harness cuda/host/bulk.cpp), copies read it, nobody else looks
   inside. Kernels take it by value. */
#ifndef PUNA_TENSOR_MAP_H
#define PUNA_TENSOR_MAP_H

#include <stdint.h>

#include "params_check.h"

/* bf16 along a side of the squares that boxes are made of: 128 bytes, the widest that is permuted
   on the way into shared memory. */
#define BOX_COLS 64

/* Aligned as CUDA 13's cuda.h aligns its CUtensorMap. */
typedef struct __attribute__((aligned(128))) TensorMap {
    uint64_t opaque[16];
} TensorMap;
PUNA_SIZE(TensorMap, 128);

#endif
