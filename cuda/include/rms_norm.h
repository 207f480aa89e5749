/* Launch constants and scalars of cuda/rms_norm.cu. */
#ifndef PUNA_RMS_NORM_H
#define PUNA_RMS_NORM_H

#include <stdint.h>

#include "params_check.h"

/* Threads of a block that has one row. */
#define RMS_NORM_THREADS 256
/* Threads of a block of the kernels that sum dw, one column each. */
#define RMS_NORM_COLUMN_THREADS 128
/* Rows whose contributions to dw are summed first, one partial sum each: a constant, so that the
   order of the whole sum depends on the number of rows alone. */
#define RMS_NORM_GRAD_ROWS 64

typedef struct RmsNormParams {
    uint64_t rows;
    /* Elements of a row. */
    uint32_t dim;
    float eps;
    /* 1: every row of every buffer begins at a multiple of 16 bytes; 0: not so. */
    uint32_t vectors;
    /* Backward: 1 adds to dx, 0 overwrites it. */
    uint32_t dx_acc;
} RmsNormParams;
PUNA_SIZE(RmsNormParams, 24);

#endif
