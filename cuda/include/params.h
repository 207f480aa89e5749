/* The scalars and block sizes of every kernel family, one header each: bindgen reads this file, so
   that nothing of it is written a second time in Rust. One line a family, sorted. */
#ifndef PUNA_PARAMS_H
#define PUNA_PARAMS_H

#include "attention.h"
#include "cross_entropy.h"
#include "elements.h"
#include "elementwise.h"
#include "embedding.h"
#include "flash.h"
#include "lora.h"
#include "lora_grads.h"
#include "matmul.h"
#include "nf4_encode.h"
#include "optim.h"
#include "quant_blocks.h"
#include "rms_norm.h"
#include "rope.h"
#include "sample.h"
#include "swiglu.h"
#include "tensor_map.h"

#endif
