/* Holds a struct of scalars to its size where C, C++ and CUDA read it. */
#ifndef PUNA_PARAMS_CHECK_H
#define PUNA_PARAMS_CHECK_H

#ifdef __cplusplus
#define PUNA_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), "size of " #type)
#else
#define PUNA_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)
#endif

#endif
