/* Calls a compiled kernel on buffers that a file holds, without TVM: what an emulated CPU runs.
 *
 * The file: a 32-bit count, then each buffer: DLPack's type code, bits and number of dimensions (32 bits each), the
 * shape (64 bits each), the bytes of the memory around it and where in it the buffer starts (64 bits each), the memory.
 * The other file gets all memories, one after the other.
 *
 * Sources of the layouts: tvm/ffi/c_api.h (TVMFFIAny) and dlpack/dlpack.h (DLTensor).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int32_t type_index, zero; union { int64_t integer; void *pointer; }; } Any;
typedef struct { int32_t type, id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } DataType;
typedef struct {
  void *data; Device device; int32_t ndim; DataType dtype; int64_t *shape, *strides; uint64_t byte_offset;
} Tensor;
enum { TENSOR_POINTER = 7, CPU = 1, LINE = 64, MOST = 16 };

int __tvm_ffi_kernel(void *handle, const Any *arguments, int32_t count, Any *result);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
}

typedef struct { void *sync; int32_t tasks; } Group;

static int launch(int (*task)(int, Group *, void *), void *closure, int tasks) {
  Group group = {0, tasks > 0 ? tasks : 2};
  for (int32_t i = 0; i < group.tasks; ++i)
    if (task(i, &group, closure)) return -1;
  return 0;
}

/* A kernel's object file holds pointers that TVM sets where it loads one; those of functions that it calls. */
extern void *__TVMBackendParallelLaunch __attribute__((weak));

static void take(void *to, size_t bytes, FILE *file) {
  if (fread(to, 1, bytes, file) != bytes) { fputs("the file ends early\n", stderr); exit(1); }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  FILE *file = fopen(argv[1], "rb");
  int32_t count;
  Tensor tensors[MOST];
  Any arguments[MOST], result = {0};
  char *memories[MOST];
  int64_t sizes[MOST];
  take(&count, sizeof count, file);
  if (count > MOST) return 2;
  for (int32_t i = 0; i < count; ++i) {
    int32_t kind[3];
    int64_t place[2];
    take(kind, sizeof kind, file);
    int64_t *shape = malloc(2 * kind[2] * sizeof *shape), *strides = shape + kind[2];
    take(shape, kind[2] * sizeof *shape, file);
    for (int32_t axis = kind[2] - 1, next = 1; axis >= 0; next *= (int32_t)shape[axis--]) strides[axis] = next;
    take(place, sizeof place, file);
    char *room = malloc(place[0] + 2 * LINE);
    char *start = room + place[1] + LINE;
    memories[i] = room + LINE + (LINE - (uintptr_t)start % LINE) % LINE;  /* the buffer itself is aligned */
    sizes[i] = place[0];
    take(memories[i], place[0], file);
    DataType dtype = {(uint8_t)kind[0], (uint8_t)kind[1], 1};
    tensors[i] = (Tensor){memories[i] + place[1], {CPU, 0}, kind[2], dtype, shape, strides, 0};
    arguments[i] = (Any){TENSOR_POINTER, 0, {.pointer = &tensors[i]}};
  }
  fclose(file);
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = (void *)launch;
  int status = __tvm_ffi_kernel(NULL, arguments, count, &result);
  if (status) { fprintf(stderr, "\nthe kernel returned %d\n", status); return 1; }
  file = fopen(argv[2], "wb");
  for (int32_t i = 0; i < count; ++i) fwrite(memories[i], 1, sizes[i], file);
  return fclose(file) != 0;
}
