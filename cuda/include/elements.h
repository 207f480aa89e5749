/* The launch constant that all element-wise kernels share: cuda/include/elements.cuh. */
#ifndef PUNA_ELEMENTS_H
#define PUNA_ELEMENTS_H

/* Neighbouring elements of a thread. */
#define ELEMENT_LANES 8

#endif
