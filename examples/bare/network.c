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

enum { CPU = 1, LINE = 64, TENSOR_POINTER = 7, MOST_DIMENSIONS = 16 };
#define MOST_BYTES ((size_t)PTRDIFF_MAX / 2)

/* ---- why something failed ---------------------------------------------------------------------------------------- */

static _Thread_local char error_text[512];

/* The first reason stays: those behind it follow from it. */
static void fail(const char *format, ...) {
  if (*error_text) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error_text, sizeof error_text, format, arguments);
  va_end(arguments);
}

const char *network_error(void) { return error_text; }

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Memory in a list, the last taken first; it begins one line behind its header, aligned as that is. */
typedef struct Block { struct Block *next; } Block;

/* NULL where there is none for so many elements of so many bytes. */
static void *take_block(Block **list, size_t count, size_t size) {
  const bool fits = count <= MOST_BYTES / size;
  Block *block = fits ? aligned_alloc(LINE, LINE + (count * size + LINE - 1) / LINE * LINE) : NULL;
  if (!block) {
    fail("no memory for %zu times %zu bytes", count, size);
    return NULL;
  }
  block->next = *list;
  *list = block;
  return (char *)block + LINE;
}

static void free_first(Block **list) {
  Block *first = *list;
  *list = first->next;
  free(first);
}

/* All that were taken behind `last`. */
static void free_behind(Block **list, const Block *last) {
  while (*list != last) free_first(list);
}

/* ---- what kernels call ------------------------------------------------------------------------------------------- */

/* Found by the library's kernels by its name. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  size_t length = (size_t)snprintf(error_text, sizeof error_text, "%s: ", kind);
  for (int32_t i = 0; i < count && length < sizeof error_text; ++i)
    length += (size_t)snprintf(error_text + length, sizeof error_text - length, "%s", parts[i]);
}

/* What this thread's kernels have taken. Each returns its own, except where it fails on the way. */
static _Thread_local Block *workspaces;

static void *take_workspace(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  return take_block(&workspaces, bytes, 1);
}

static int return_workspace(int device, int id, void *memory) {
  (void)device, (void)id;
  Block **block = &workspaces;
  while (*block && (char *)*block + LINE != memory) block = &(*block)->next;
  if (*block) free_first(block);
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
  for (int i = 0; i < group.tasks; ++i) {
    const Block *before = workspaces;
    if (task(i, &group, closure)) failed = 1, free_behind(&workspaces, before);
  }
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

struct Network {
  void *library;
  Block *blocks;
  Call *calls;
  size_t call_count;
  Array input, output;
};

/* Zeros; NULL where memory runs out. */
static void *keep(Network *network, size_t count, size_t size) {
  void *memory = take_block(&network->blocks, count, size);
  return memory ? memset(memory, 0, count * size) : NULL;
}

/* 0 of what is no tensor: else no product of some of its dimensions is more than MOST_BYTES. */
static size_t bytes_of(const int64_t *shape, int64_t dimensions, DataType type) {
  enum { SIGNED, UNSIGNED, FLOAT };
  if (type.code > FLOAT || type.bits == 0 || type.bits % 8 || type.lanes != 1) return 0;
  if (dimensions < 0 || dimensions > MOST_DIMENSIONS) return 0;
  size_t bytes = type.bits / 8;
  for (int64_t i = 0; i < dimensions; ++i) {
    if (shape[i] < 1 || (uint64_t)shape[i] > MOST_BYTES / bytes) return 0;
    bytes *= (size_t)shape[i];
  }
  return bytes;
}

/* All tensors are made here, within the `available` bytes of `data`; NULL where one would not fit. */
static Tensor *tensor(Network *network, void *data, size_t available, const int64_t *shape, int64_t dimensions,
                      DataType type) {
  const size_t bytes = bytes_of(shape, dimensions, type);
  if (!data || bytes == 0 || bytes > available) return NULL;
  Tensor *made = keep(network, 1, sizeof *made + 2 * (size_t)dimensions * sizeof *shape);
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

/* Where so many elements of so many bytes begin; NULL where there are fewer. */
static const uint8_t *skip(Reader *from, uint64_t count, size_t size) {
  if (count > from->left / size) {
    *from = (Reader){from->at, 0, true};
    return NULL;
  }
  const uint8_t *start = from->at;
  from->at += count * size;
  from->left -= count * size;
  return start;
}

static void take(Reader *from, void *to, size_t bytes) {
  const uint8_t *start = skip(from, 1, bytes);
  if (start) memcpy(to, start, bytes);
  else memset(to, 0, bytes);
}

static uint64_t word(Reader *from) { uint64_t value; take(from, &value, sizeof value); return value; }
static int32_t int32(Reader *from) { int32_t value; take(from, &value, sizeof value); return value; }

typedef struct { const char *at; size_t length; } Text;

static Text text(Reader *from) {
  const size_t length = word(from);
  const char *start = (const char *)skip(from, length, 1);
  return (Text){start, start ? length : 0};
}

static bool is(Text text, const char *other) {
  return text.length == strlen(other) && memcmp(text.at, other, text.length) == 0;
}

/* The integers lie anywhere; these are copies. */
static int64_t *integers(Network *network, Reader *from, uint64_t count) {
  const uint8_t *start = skip(from, count, sizeof(int64_t));
  int64_t *copies = start ? keep(network, count, sizeof *copies) : NULL;
  if (copies) memcpy(copies, start, count * sizeof *copies);
  return copies;
}

/* A constant, or what a register of the virtual machine holds. */
typedef struct {
  enum { NOTHING, INTEGER, TYPE, TEXT, SHAPE, STORAGE, TENSOR } kind;
  union { int64_t integer; DataType type; struct { char *memory; size_t bytes; } storage; Tensor *tensor; };
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
  const int32_t dimensions = int32(from);
  take(from, &type, sizeof type);
  const int64_t *shape = integers(network, from, (uint64_t)dimensions);
  const uint64_t bytes = word(from);
  const uint8_t *data = skip(from, bytes, 1);
  void *copy = data ? keep(network, bytes, 1) : NULL;
  if (copy) memcpy(copy, data, bytes);
  Tensor *made = shape ? tensor(network, copy, bytes, shape, dimensions, type) : NULL;
  return (Value){.kind = made ? TENSOR : NOTHING, .tensor = made};
}

static Value read_constant(Network *network, Reader *from) {
  enum { IS_INTEGER = 1, IS_FLOAT = 3, IS_TYPE = 5, IS_TEXT = 65, IS_SHAPE = 69, IS_TENSOR = 70 };
  Value value = {.kind = NOTHING};
  switch (int32(from)) {
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
  if (from->ended || !(program->functions = keep(network, program->function_count, sizeof(Function)))) return;
  for (uint64_t i = 0; i < program->function_count; ++i) {
    Function *function = &program->functions[i];
    int32(from); /* whether it is a kernel or a part of the program */
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
  if (from->ended || !(program->constants = keep(network, program->constant_count, sizeof(Value)))) return false;
  for (uint64_t i = 0; i < program->constant_count && !from->ended; ++i)
    program->constants[i] = read_constant(network, from);
  program->offsets = integers(network, from, program->offset_count = word(from));
  program->words = integers(network, from, program->word_count = word(from));
  return !from->ended && program->offsets && program->words;
}

/* The program within what the library carries beside its functions. */
static bool find_program(Network *network, const uint8_t *packed, Program *program) {
  Reader length = {packed, sizeof(uint64_t), false};
  const uint64_t bytes = word(&length);
  Reader from = {packed + sizeof bytes, bytes, false};
  const uint64_t modules = word(&from); /* one more than there are, the ends of each one's imports */
  skip(&from, modules, sizeof(uint64_t));
  skip(&from, word(&from), sizeof(uint64_t));
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

/* -1 of what is none; no program needs one below 0. */
static int64_t integer_of(const Machine *machine, int64_t argument) {
  const Value value = value_of(machine, argument);
  return value.kind == INTEGER ? value.integer : -1;
}

/* The input's memory, once its type and its shape have been told: match_shape(input, heap, n, (0, size) n times, text).
 */
static bool set_input(Machine *machine, const int64_t *arguments, int64_t count) {
  int64_t shape[MOST_DIMENSIONS];
  const int64_t dimensions = count < 3 ? -1 : integer_of(machine, arguments[2]);
  if (dimensions < 1 || dimensions > MOST_DIMENSIONS || count < 3 + 2 * dimensions) return false;
  for (int64_t i = 0; i < dimensions; ++i) {
    if (integer_of(machine, arguments[3 + 2 * i]) != 0) return false;
    shape[i] = integer_of(machine, arguments[4 + 2 * i]);
  }
  Value *input = &machine->registers[0];
  if (input->kind != TYPE) return false;
  const size_t bytes = bytes_of(shape, dimensions, input->type);
  void *data = keep(machine->network, bytes, 1);
  Tensor *made = tensor(machine->network, data, bytes, shape, dimensions, input->type);
  if (!made) return false;
  *input = (Value){.kind = TENSOR, .tensor = made};
  machine->network->input = array(made);
  return true;
}

/* What a builtin function gives; its kind is NOTHING where it gives nothing, as where memory ran out. */
static Value builtin(Machine *machine, Text name, const Value *given, int64_t count) {
  Network *network = machine->network;
  Value value = {.kind = NOTHING};
  if (is(name, "vm.builtin.alloc_storage") && count == 5 && given[1].kind == SHAPE && given[3].kind == TYPE) {
    const size_t bytes = bytes_of(given[1].shape, given[1].dimensions, given[3].type);
    value.storage.memory = keep(network, bytes, 1);
    value.storage.bytes = bytes;
    value.kind = value.storage.memory ? STORAGE : NOTHING;
  } else if (is(name, "vm.builtin.alloc_tensor") && count == 4 && given[0].kind == STORAGE &&
             given[1].kind == INTEGER && given[2].kind == SHAPE && given[3].kind == TYPE) {
    const uint64_t offset = (uint64_t)given[1].integer, bytes = given[0].storage.bytes;
    if (offset > bytes || offset % LINE) return value;
    char *data = given[0].storage.memory + offset;
    value.tensor = tensor(network, data, bytes - offset, given[2].shape, given[2].dimensions, given[3].type);
    value.kind = value.tensor ? TENSOR : NOTHING;
  } else if (is(name, "vm.builtin.reshape") && count == 2 && given[0].kind == TENSOR && given[1].kind == SHAPE) {
    const Tensor *from = given[0].tensor;
    const size_t bytes = bytes_of(from->shape, from->dimensions, from->type);
    value.tensor = tensor(network, from->data, bytes, given[1].shape, given[1].dimensions, from->type);
    value.kind = value.tensor ? TENSOR : NOTHING;
  }
  return value;
}

static bool add_call(Machine *machine, Text name, const Value *given, int64_t count) {
  Network *network = machine->network;
  char symbol[512];
  snprintf(symbol, sizeof symbol, "__tvm_ffi_%.*s", (int)name.length, name.at);
  Call call = {.arguments = keep(network, (size_t)count, sizeof(Any)), .count = (int32_t)count};
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
      if (result.kind != TENSOR || !machine->network->input.data) return false;
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
    network->calls = keep(network, program->offset_count, sizeof(Call));
    const uint64_t registers = function->registers < 1 ? 1 : (uint64_t)function->registers;
    Machine machine = {network, program, NULL, (int64_t)registers};
    machine.registers = keep(network, registers, sizeof(Value));
    return network->calls && machine.registers && walk(&machine, function);
  }
  fail("the library has no function '%s'", name);
  return false;
}

/* ---- the library's face ------------------------------------------------------------------------------------------ */

/* Without a slash in it, dlopen would look for a name where the system's libraries are. */
static void *load(const char *path) {
  char here[4096];
  const int length = snprintf(here, sizeof here, "%s%s", strchr(path, '/') ? "" : "./", path);
  void *library = length < (int)sizeof here ? dlopen(here, RTLD_NOW | RTLD_LOCAL) : NULL;
  if (!library) fail("%s", length < (int)sizeof here ? dlerror() : "the path is too long");
  return library;
}

static bool open_function(Network *network, const char *path, const char *function) {
  Program program = {0};
  network->library = load(path);
  if (!network->library) return false;
  offer_functions(network->library);
  const uint8_t *packed = dlsym(network->library, "__tvm_ffi__library_bin");
  if (packed && find_program(network, packed, &program) && prepare(network, &program, function)) return true;
  fail("%s was not compiled by hawq_tvm for a CPU with TVM 0.27, or is damaged", path);
  return false;
}

Network *network_open(const char *path, const char *function) {
  *error_text = '\0';
  Network *network = calloc(1, sizeof *network);
  if (!network) fail("no memory for a network");
  if (network && open_function(network, path, function)) return network;
  network_close(network);
  return NULL;
}

const Array *network_input(const Network *network) { return &network->input; }
const Array *network_output(const Network *network) { return &network->output; }

int network_run(Network *network) {
  *error_text = '\0';
  for (size_t i = 0; i < network->call_count; ++i) {
    const Call *call = &network->calls[i];
    Any result = {0};
    if (call->kernel(NULL, call->arguments, call->count, &result)) {
      free_behind(&workspaces, NULL);
      fail("a kernel failed"); /* unless it said why */
      return -1;
    }
  }
  return 0;
}

void network_close(Network *network) {
  if (!network) return;
  free_behind(&network->blocks, NULL);
  if (network->library) dlclose(network->library);
  free(network);
}
