/* See network.h. The layouts are those of TVM 0.27, from its sources:
 *   a library's symbol __tvm_ffi__library_bin     tvm-ffi, src/ffi/extra/library_module.cc
 *   the virtual machine's program                 src/runtime/vm/executable.cc, include/tvm/runtime/vm/bytecode.h
 *   its builtin functions                         src/runtime/vm/builtin.cc
 *   a constant tensor                             include/tvm/runtime/tensor.h, SaveDLTensor
 *   how kernels are called, and what they call    tvm/ffi/c_api.h, dlpack/dlpack.h, tvm/runtime/c_backend_api.h
 */
#define _GNU_SOURCE
#include "network.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- what kernels are given -------------------------------------------------------------------------------------- */

typedef struct { int32_t type, id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } DataType;
typedef struct {
  void *data; Device device; int32_t dimensions; DataType type; int64_t *shape, *strides; uint64_t byte_offset;
} Tensor;
typedef struct { int32_t type_index, zero; union { int64_t integer; void *pointer; }; } Any;
typedef int Kernel(void *handle, const Any *arguments, int32_t count, Any *result);

enum { CPU = 1, LINE = 64, TENSOR_POINTER = 7 };

/* ---- what kernels call ------------------------------------------------------------------------------------------- */

static _Thread_local char error_text[512];

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error_text, sizeof error_text, format, arguments);
  va_end(arguments);
}

const char *network_error(void) { return error_text; }

/* Found by the library's kernels by its name. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  size_t length = (size_t)snprintf(error_text, sizeof error_text, "%s: ", kind);
  for (int32_t i = 0; i < count && length < sizeof error_text; ++i)
    length += (size_t)snprintf(error_text + length, sizeof error_text - length, "%s", parts[i]);
}

static void *aligned(size_t bytes) { return aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE + LINE); }

static void *take_workspace(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  return aligned(bytes);
}

static int return_workspace(int device, int id, void *memory) {
  (void)device, (void)id;
  free(memory);
  return 0;
}

typedef struct { void *barrier; int32_t tasks; } Group;

/* A kernel's tasks wait for nothing but the end, so that any number of threads may take them. */
static int launch(int (*task)(int, Group *, void *), void *closure, int wanted) {
#ifdef _OPENMP
  const int threads = omp_get_max_threads();
#else
  const int threads = 1;
#endif
  Group group = {NULL, wanted > 0 ? wanted : threads};
  int failed = 0;
#pragma omp parallel for num_threads(threads) reduction(| : failed)
  for (int i = 0; i < group.tasks; ++i) failed |= task(i, &group, closure) != 0;
  return failed ? -1 : 0;
}

/* Kernels call these by pointers that the library exports, where it has a kernel that does. */
static void offer_functions(void *library) {
  const struct { const char *name; void *function; } offered[] = {
      {"__TVMBackendParallelLaunch", (void *)launch},
      {"__TVMBackendAllocWorkspace", (void *)take_workspace},
      {"__TVMBackendFreeWorkspace", (void *)return_workspace},
  };
  for (size_t i = 0; i < sizeof offered / sizeof *offered; ++i) {
    void **pointer = dlsym(library, offered[i].name);
    if (pointer) *pointer = offered[i].function;
  }
}

/* ---- the network, and memory that goes with it ------------------------------------------------------------------- */

typedef struct { Kernel *kernel; Any *arguments; int32_t count; } Call;
typedef struct Block { struct Block *next; void *memory; } Block;

struct Network {
  void *library;
  Block *blocks;
  Call *calls;
  size_t call_count;
  Array input, output;
};

/* Zeros; NULL where memory runs out. */
static void *keep(Network *network, size_t bytes) {
  Block *block = malloc(sizeof *block);
  void *memory = block ? aligned(bytes) : NULL;
  if (!memory) {
    free(block);
    fail("no memory for %zu bytes", bytes);
    return NULL;
  }
  *block = (Block){network->blocks, memory};
  network->blocks = block;
  return memset(memory, 0, bytes);
}

static size_t bytes_of(const int64_t *shape, int64_t dimensions, DataType type) {
  size_t bytes = (type.bits + 7u) / 8 * type.lanes;
  for (int64_t i = 0; i < dimensions; ++i) bytes *= (size_t)shape[i];
  return bytes;
}

static Tensor *tensor(Network *network, void *data, const int64_t *shape, int64_t dimensions, DataType type) {
  Tensor *made = keep(network, sizeof *made + 2 * (size_t)dimensions * sizeof *shape);
  if (!made) return NULL;
  int64_t *own = (int64_t *)(made + 1), *strides = own + dimensions;
  memcpy(own, shape, (size_t)dimensions * sizeof *shape);
  for (int64_t axis = dimensions - 1, next = 1; axis >= 0; next *= shape[axis--]) strides[axis] = next;
  *made = (Tensor){data, {CPU, 0}, (int32_t)dimensions, type, own, strides, 0};
  return made;
}

static Array array(const Tensor *tensor) {
  const size_t bytes = bytes_of(tensor->shape, tensor->dimensions, tensor->type);
  const char kind = "iuf"[tensor->type.code];
  return (Array){tensor->data, bytes, tensor->shape, tensor->dimensions, kind, tensor->type.bits};
}

/* ---- reading the program ----------------------------------------------------------------------------------------- */

/* Past the end everything reads as zero, and `ended` says so. */
typedef struct { const uint8_t *at; size_t left; bool ended; } Reader;

static const uint8_t *skip(Reader *from, uint64_t bytes) {
  if (bytes > from->left) {
    *from = (Reader){from->at, 0, true};
    return NULL;
  }
  const uint8_t *start = from->at;
  from->at += bytes;
  from->left -= bytes;
  return start;
}

static void take(Reader *from, void *to, size_t bytes) {
  const uint8_t *start = skip(from, bytes);
  if (start) memcpy(to, start, bytes);
  else memset(to, 0, bytes);
}

static uint64_t word(Reader *from) { uint64_t value; take(from, &value, sizeof value); return value; }
static int32_t half(Reader *from) { int32_t value; take(from, &value, sizeof value); return value; }

typedef struct { const char *at; size_t length; } Text;

static Text text(Reader *from) {
  const size_t length = word(from);
  return (Text){(const char *)skip(from, length), from->ended ? 0 : length};
}

static bool is(Text text, const char *other) {
  return text.length == strlen(other) && memcmp(text.at, other, text.length) == 0;
}

/* The integers lie anywhere; these are copies. */
static int64_t *integers(Network *network, Reader *from, uint64_t count) {
  const uint8_t *start = count > from->left / 8 ? skip(from, UINT64_MAX) : skip(from, 8 * count);
  int64_t *copies = start ? keep(network, 8 * count) : NULL;
  if (copies) memcpy(copies, start, 8 * count);
  return copies;
}

/* A constant, or what a register of the virtual machine holds. */
typedef struct {
  enum { NOTHING, INTEGER, TYPE, TEXT, SHAPE, STORAGE, TENSOR } kind;
  union { int64_t integer; DataType type; void *storage; Tensor *tensor; };
  int64_t *shape;
  int64_t dimensions;
} Value;

static Value read_tensor(Network *network, Reader *from) {
  const uint64_t magic = 0xDD5E40F096B4A13F;
  DataType type;
  Device device;
  if (word(from) != magic) from->ended = true;
  word(from); /* reserved */
  take(from, &device, sizeof device);
  const int32_t dimensions = half(from);
  take(from, &type, sizeof type);
  const int64_t *shape = integers(network, from, (uint64_t)dimensions);
  const uint64_t bytes = word(from);
  const uint8_t *data = skip(from, bytes);
  void *copy = data ? keep(network, bytes) : NULL;
  if (copy) memcpy(copy, data, bytes);
  Tensor *made = copy && (shape || !dimensions) ? tensor(network, copy, shape, dimensions, type) : NULL;
  return (Value){.kind = made ? TENSOR : NOTHING, .tensor = made};
}

static Value read_constant(Network *network, Reader *from) {
  enum { IS_INTEGER = 1, IS_FLOAT = 3, IS_TYPE = 5, IS_TEXT = 65, IS_SHAPE = 69, IS_TENSOR = 70 };
  Value value = {.kind = NOTHING};
  switch (half(from)) {
    case IS_INTEGER: value.kind = INTEGER, value.integer = (int64_t)word(from); break;
    case IS_FLOAT: word(from); break;
    case IS_TYPE: value.kind = TYPE, take(from, &value.type, sizeof value.type); break;
    case IS_TEXT: value.kind = TEXT, text(from); break;
    case IS_SHAPE:
      value.kind = SHAPE;
      value.dimensions = (int64_t)word(from);
      value.shape = integers(network, from, (uint64_t)value.dimensions);
      break;
    case IS_TENSOR: value = read_tensor(network, from); break;
    default: from->ended = true;
  }
  return value;
}

typedef struct { Text name; int64_t first, end, registers; } Function;

typedef struct {
  Function *functions;
  Value *constants;
  int64_t *offsets, *words;
  uint64_t function_count, constant_count, offset_count, word_count;
} Program;

static void read_functions(Network *network, Reader *from, Program *program) {
  program->function_count = word(from);
  if (program->function_count > from->left) from->ended = true;
  if (from->ended || !(program->functions = keep(network, program->function_count * sizeof(Function)))) return;
  for (uint64_t i = 0; i < program->function_count; ++i) {
    Function *function = &program->functions[i];
    half(from); /* whether it is a kernel or a part of the program */
    function->name = text(from);
    function->first = (int64_t)word(from);
    function->end = (int64_t)word(from);
    word(from); /* number of arguments */
    function->registers = (int64_t)word(from);
    for (uint64_t names = word(from); names && !from->ended; --names) text(from);
  }
}

static bool read_program(Network *network, Reader *from, Program *program) {
  const uint64_t magic = 0xD225DE2F4214151E;
  if (word(from) != magic) from->ended = true;
  if (!is(text(from), "0.14")) from->ended = true;
  read_functions(network, from, program);
  if (word(from)) from->ended = true; /* memory that is no CPU's */
  program->constant_count = word(from);
  if (program->constant_count > from->left) from->ended = true;
  if (from->ended || !(program->constants = keep(network, program->constant_count * sizeof(Value)))) return false;
  for (uint64_t i = 0; i < program->constant_count && !from->ended; ++i)
    program->constants[i] = read_constant(network, from);
  program->offsets = integers(network, from, program->offset_count = word(from));
  program->words = integers(network, from, program->word_count = word(from));
  return program->offsets && program->words;
}

/* The program within what the library carries beside its functions. */
static bool find_program(Network *network, const uint8_t *packed, Program *program) {
  Reader length = {packed, sizeof(uint64_t), false};
  const uint64_t bytes = word(&length);
  Reader from = {packed + sizeof bytes, bytes, false};
  const uint64_t modules = word(&from); /* one more than there are, the ends of each one's imports */
  skip(&from, 8 * modules);
  skip(&from, 8 * word(&from));
  for (uint64_t i = 1; i < modules && !from.ended; ++i) {
    const Text kind = text(&from);
    if (is(kind, "_lib")) continue;
    const Text content = text(&from);
    Reader inside = {(const uint8_t *)content.at, content.length, false};
    if (is(kind, "relax.VMExecutable")) return read_program(network, &inside, program);
  }
  return false;
}

/* ---- from the program to calls ----------------------------------------------------------------------------------- */

typedef struct { Network *network; const Program *program; Value *registers; int64_t count; } Machine;

static Value value_of(const Machine *machine, int64_t argument) {
  enum { REGISTER, IMMEDIATE, CONSTANT };
  const int kind = (int)((uint64_t)argument >> 56);
  const int64_t value = (int64_t)((uint64_t)argument << 8) >> 8;
  if (kind == REGISTER && value >= 0 && value < machine->count) return machine->registers[value];
  if (kind == CONSTANT && value >= 0 && (uint64_t)value < machine->program->constant_count)
    return machine->program->constants[value];
  return (Value){.kind = kind == IMMEDIATE ? INTEGER : NOTHING, .integer = value};
}

/* The input's memory, once its type and its shape have been told: match_shape(input, heap, n, (0, size) n times, text).
 */
static bool set_input(Machine *machine, const int64_t *arguments, int64_t count) {
  int64_t shape[16];
  const int64_t dimensions = count < 3 ? -1 : value_of(machine, arguments[2]).integer;
  if (dimensions < 1 || dimensions > 16 || count < 3 + 2 * dimensions) return false;
  for (int64_t i = 0; i < dimensions; ++i) {
    if (value_of(machine, arguments[3 + 2 * i]).integer != 0) return false;
    shape[i] = value_of(machine, arguments[4 + 2 * i]).integer;
  }
  Value *input = &machine->registers[0];
  if (input->kind != TYPE) return false;
  const DataType type = input->type;
  void *data = keep(machine->network, bytes_of(shape, dimensions, type));
  *input = (Value){.kind = TENSOR, .tensor = data ? tensor(machine->network, data, shape, dimensions, type) : NULL};
  if (!input->tensor) return false;
  machine->network->input = array(input->tensor);
  return true;
}

/* What a builtin function gives; its kind is NOTHING where it gives nothing, as where memory ran out. */
static Value builtin(Machine *machine, Text name, const Value *given, int64_t count) {
  Network *network = machine->network;
  Value value = {.kind = NOTHING};
  if (is(name, "vm.builtin.alloc_storage") && count == 5 && given[1].kind == SHAPE && given[3].kind == TYPE) {
    value.storage = keep(network, bytes_of(given[1].shape, given[1].dimensions, given[3].type));
    value.kind = value.storage ? STORAGE : NOTHING;
  } else if (is(name, "vm.builtin.alloc_tensor") && count == 4 && given[0].kind == STORAGE && given[2].kind == SHAPE &&
             given[3].kind == TYPE) {
    void *data = (char *)given[0].storage + given[1].integer;
    value.tensor = tensor(network, data, given[2].shape, given[2].dimensions, given[3].type);
    value.kind = value.tensor ? TENSOR : NOTHING;
  } else if (is(name, "vm.builtin.reshape") && count == 2 && given[0].kind == TENSOR && given[1].kind == SHAPE) {
    const Tensor *from = given[0].tensor;
    value.tensor = tensor(network, from->data, given[1].shape, given[1].dimensions, from->type);
    value.kind = value.tensor ? TENSOR : NOTHING;
  }
  return value;
}

static bool add_call(Machine *machine, Text name, const Value *given, int64_t count) {
  Network *network = machine->network;
  char symbol[512];
  snprintf(symbol, sizeof symbol, "__tvm_ffi_%.*s", (int)name.length, name.at);
  Call call = {.arguments = keep(network, (size_t)count * sizeof(Any)), .count = (int32_t)count};
  *(void **)&call.kernel = dlsym(network->library, symbol);
  if (!call.kernel) fail("the library has no function '%s'", symbol);
  if (!call.kernel || !call.arguments) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (given[i].kind != TENSOR) {
      fail("'%s' is given something else than tensors", symbol);
      return false;
    }
    call.arguments[i] = (Any){TENSOR_POINTER, 0, {.pointer = given[i].tensor}};
  }
  network->calls[network->call_count++] = call;
  return true;
}

static bool do_call(Machine *machine, int64_t to, Text name, const int64_t *arguments, int64_t count) {
  enum { MOST = 256 };
  Value given[MOST], made = {.kind = NOTHING};
  if (count < 0 || count > MOST) return false;
  for (int64_t i = 0; i < count; ++i) given[i] = value_of(machine, arguments[i]);
  if (is(name, "vm.builtin.check_tensor_info")) {
    if (count != 4 || given[2].kind != TYPE) return false;
    machine->registers[0] = given[2]; /* the input's type, until its shape is told */
    return true;
  }
  if (is(name, "vm.builtin.match_shape")) return set_input(machine, arguments, count);
  if (name.length > 11 && memcmp(name.at, "vm.builtin.", 11) == 0) {
    made = builtin(machine, name, given, count);
    if (made.kind == NOTHING && !is(name, "vm.builtin.null_value")) {
      fail("the library's program calls '%.*s' as this file does not", (int)name.length, name.at);
      return false;
    }
  } else if (!add_call(machine, name, given, count)) {
    return false;
  }
  if (to >= 0 && to < machine->count) machine->registers[to] = made;
  return true;
}

/* Walk through a function, which has no branches: kernels become calls, all else is done here and now. */
static bool walk(Machine *machine, const Function *function) {
  enum { CALL = 1, RETURN = 2 };
  const Program *program = machine->program;
  for (int64_t i = function->first; i < function->end && (uint64_t)i < program->offset_count; ++i) {
    const uint64_t start = (uint64_t)program->offsets[i];
    if (start >= program->word_count || program->word_count - start < 2) return false;
    const int64_t *words = program->words + start;
    if (words[0] == RETURN) {
      const Value result = value_of(machine, words[1]);
      if (result.kind != TENSOR) return false;
      machine->network->output = array(result.tensor);
      return true;
    }
    if (words[0] != CALL || program->word_count - start < 4 || words[3] < 0 ||
        program->word_count - start - 4 < (uint64_t)words[3] || (uint64_t)words[2] >= program->function_count)
      return false;
    if (!do_call(machine, words[1], program->functions[words[2]].name, words + 4, words[3])) return false;
  }
  return false;
}

static bool prepare(Network *network, const Program *program, const char *name) {
  for (uint64_t i = 0; i < program->function_count; ++i) {
    const Function *function = &program->functions[i];
    if (!is(function->name, name)) continue;
    network->calls = keep(network, program->offset_count * sizeof(Call));
    const uint64_t registers = function->registers < 1 ? 1 : (uint64_t)function->registers;
    Machine machine = {network, program, NULL, (int64_t)registers};
    machine.registers = keep(network, registers * sizeof(Value));
    return network->calls && machine.registers && walk(&machine, function);
  }
  fail("the library has no function '%s'", name);
  return false;
}

/* ---- the library's face ------------------------------------------------------------------------------------------ */

Network *network_open(const char *path, const char *function) {
  Network *network = calloc(1, sizeof *network);
  Program program = {0};
  if (!network) return NULL;
  network->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!network->library) {
    fail("%s", dlerror());
    network_close(network);
    return NULL;
  }
  const uint8_t *packed = dlsym(network->library, "__tvm_ffi__library_bin");
  fail("%s was not compiled by hawq_tvm for a CPU with TVM 0.27", path); /* unless something else is said below */
  offer_functions(network->library);
  if (packed && find_program(network, packed, &program) && prepare(network, &program, function)) return network;
  network_close(network);
  return NULL;
}

const Array *network_input(const Network *network) { return &network->input; }
const Array *network_output(const Network *network) { return &network->output; }

int network_run(Network *network) {
  for (size_t i = 0; i < network->call_count; ++i) {
    const Call *call = &network->calls[i];
    Any result = {0};
    if (call->kernel(NULL, call->arguments, call->count, &result)) return -1;
  }
  return 0;
}

void network_close(Network *network) {
  if (!network) return;
  for (Block *block = network->blocks, *next; block; block = next) {
    next = block->next;
    free(block->memory);
    free(block);
  }
  if (network->library) dlclose(network->library);
  free(network);
}
