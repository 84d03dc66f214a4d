/* A compiled library run without TVM: C, the C library and the library's own kernels.
 *
 * A library that hawq_tvm compiled for a CPU holds its kernels as machine code, the weights, and a program for TVM's
 * virtual machine that says which kernel is called with which memory. `network_open` reads that program once and keeps
 * the calls; `network_run` makes them, one after the other. Memory is planned when the library is compiled and taken
 * here once, so that a run allocates nothing of its own.
 *
 * What calls a network is linked with -rdynamic and -ldl, so that kernels find what they report errors with; with
 * -fopenmp, kernels share their work among OpenMP's threads (OMP_NUM_THREADS). One thread at a time calls a network.
 */
#ifndef HAWQ_TVM_NETWORK_H
#define HAWQ_TVM_NETWORK_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
  void *data;           /* aligned to 64 bytes, in C order, the network's own */
  size_t bytes;
  const int64_t *shape; /* the first dimension is the batch that the library was compiled for */
  int32_t dimensions;
  char kind;            /* 'i' signed, 'u' unsigned, 'f' floating point */
  uint8_t bits;         /* of an element in memory */
} Array;

typedef struct Network Network;

/* Load a library. `function` is "main", from integers to integers, or "reals", from float32 to float32; a scale and a
 * type of each are in the library's JSON. NULL where that fails. */
Network *network_open(const char *path, const char *function);

/* Write the input there before a run; the output stands there behind it, until the next. */
const Array *network_input(const Network *network);
const Array *network_output(const Network *network);

/* 0, or -1 where a kernel refuses: of "reals", an input that is not finite. */
int network_run(Network *network);

void network_close(Network *network);

/* Why this thread's last network_open or network_run failed, in a sentence; empty where it did not. */
const char *network_error(void);

#endif
