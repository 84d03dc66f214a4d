// Classify an image with a compiled library: TVM's runtime alone (libtvm_ffi, libtvm_runtime; libtvm_runtime_cuda is
// loaded for a GPU). `make` builds it; docs/t4.md tells how to come here.
//
//     ./deploy model.nvidia-t4.so cat.ppm [--runs 20] [--integers]
//
// The library's JSON must lie beside it: it says how an image becomes the network's integers. The image is a binary PPM
// whose short side is as long as the JSON says; `python deploy.py MODEL.so cat.jpg --write-ppm cat.ppm` writes one.
#include <dlfcn.h>
#include <elf.h>
#include <sched.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

namespace {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- the library's JSON ---------------------------------------------------------------------------------------------

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Failure(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

ffi::Any member(const ffi::Any& object, const char* name) {
  const auto table = object.cast<json::Object>();
  const ffi::String key(name);
  if (table.count(key) == 0) throw Failure(std::string("the library's JSON has no '") + name + "'; compile it again");
  return table[key];
}

double number(const ffi::Any& value) {
  if (auto whole = value.as<int64_t>()) return static_cast<double>(*whole);
  return value.cast<double>();
}

// What the JSON says of the input and the output.
struct Description {
  int64_t batch;
  bool gpu;
  int resize, crop;
  float mean[3], std[3];
  bool input_signed;
  int input_bits;
  double input_scale, output_scale;
};

Description read_description(const std::string& library) {
  const std::string path = library.substr(0, library.rfind('.')) + ".json";
  ffi::String error;
  const ffi::Any whole = json::Parse(read_file(path), &error);
  if (!error.empty()) throw Failure(path + " is corrupted: " + std::string(error));
  Description found{};
  found.batch = member(whole, "batch").cast<int64_t>();
  found.gpu = member(whole, "gpu") != nullptr;
  const ffi::Any image = member(whole, "image");
  if (image == nullptr)
    throw Failure(path + " does not say how an image becomes the input; compile a run of image files");
  found.resize = static_cast<int>(number(member(image, "resize")));
  found.crop = static_cast<int>(number(member(image, "crop")));
  const auto means = member(image, "mean").cast<json::Array>(), deviations = member(image, "std").cast<json::Array>();
  for (int channel = 0; channel < 3; channel++) {
    found.mean[channel] = static_cast<float>(number(means[channel]));
    found.std[channel] = static_cast<float>(number(deviations[channel]));
  }
  const ffi::Any values = member(whole, "values");
  const auto value = [&](const char* which) {
    return member(values, std::string(member(whole, which).cast<ffi::String>()).c_str());
  };
  const std::string type(member(value("input_name"), "dtype").cast<ffi::String>());  // s8, u8
  found.input_signed = type[0] == 's';
  found.input_bits = std::atoi(type.c_str() + 1);
  found.input_scale = number(member(value("input_name"), "scale"));
  found.output_scale = number(member(value("output_name"), "scale"));
  return found;
}

// The system's loader may crash on a truncated library: its section headers are the last that a linker writes.
void check_whole(const std::string& library) {
  const std::string bytes = read_file(library);
  Elf64_Ehdr header{};
  if (bytes.size() >= sizeof header) memcpy(&header, bytes.data(), sizeof header);
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
      header.e_shoff + uint64_t{header.e_shentsize} * header.e_shnum > bytes.size())
    throw Failure(library + " is truncated or no library; copy it again");
}

// ---- from an image to the network's integers ------------------------------------------------------------------------

struct Picture {
  int width, height;
  std::vector<uint8_t> pixels;  // [height][width][3]
};

Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  Picture picture{};
  int most = 0;
  file >> magic;
  for (int* field : {&picture.width, &picture.height, &most}) {
    while ((file >> std::ws).peek() == '#') file.ignore(1 << 20, '\n');
    file >> *field;
  }
  if (!file || magic != "P6" || most != 255 || picture.width < 1 || picture.height < 1 || picture.width > 1 << 15 ||
      picture.height > 1 << 15)
    throw Failure(path + " is no binary PPM of 8 bits; deploy.py --write-ppm writes one");
  file.get();  // the one space before the pixels
  picture.pixels.resize(size_t{3} * picture.width * picture.height);
  file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
  if (!file) throw Failure(path + " is truncated");
  return picture;
}

// Python's round(): half to even, which says where a crop begins that cannot be in the very middle.
int half_of(int difference) { return static_cast<int>(std::nearbyint(difference / 2.0)); }

// The centre of the picture, normalised in float and divided by the scale in double, as the first of a batch whose rest
// is zero: clip(floor(x / scale + 1/2), lo, hi), [batch][3][crop][crop]. int8 and uint8 have the same bytes.
std::vector<uint8_t> quantize(const Picture& picture, const Description& how) {
  if (std::min(picture.width, picture.height) != how.resize || how.crop > how.resize)
    throw Failure("the image's short side has " + std::to_string(std::min(picture.width, picture.height)) +
                  " pixels, and the network's images are resized to " + std::to_string(how.resize) +
                  " first; deploy.py --write-ppm does so");
  const double lo = how.input_signed ? -std::ldexp(1, how.input_bits - 1) : 0;
  const double hi = lo + std::ldexp(1, how.input_bits) - 1;
  const size_t plane = size_t{1} * how.crop * how.crop;
  std::vector<uint8_t> integers(how.batch * 3 * plane);
  const int left = half_of(picture.width - how.crop), top = half_of(picture.height - how.crop);
  for (int channel = 0; channel < 3; channel++)
    for (int row = 0; row < how.crop; row++)
      for (int column = 0; column < how.crop; column++) {
        const uint8_t pixel = picture.pixels[(size_t{1} * (row + top) * picture.width + column + left) * 3 + channel];
        const float normal = (static_cast<float>(pixel) / 255.0f - how.mean[channel]) / how.std[channel];
        const double rounded = std::floor(static_cast<double>(normal) / how.input_scale + 0.5);
        integers[channel * plane + row * how.crop + column] =
            static_cast<uint8_t>(static_cast<int>(std::clamp(rounded, lo, hi)));
      }
  return integers;
}

// ---- the network ----------------------------------------------------------------------------------------------------

// TVM's part for GPUs is no part of libtvm_runtime; each of what it is linked with is told by name where it is missing.
void load_cuda() {
  for (const char* name : {"libcuda.so.1", "libcudart.so.13", "libtvm_runtime_cuda.so"})
    if (!dlopen(name, RTLD_NOW | RTLD_GLOBAL))
      throw Failure(std::string("the library runs on an NVIDIA GPU, and ") + dlerror() + "; see docs/t4.md");
}

// A thread on each core that this process may use, or TVM_NUM_THREADS of them. TVM itself takes half of the machine's
// cores, binds its workers to the first of them, and lets this thread run where a worker is: the two take turns.
void place_threads() {
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) != 0) return;
  ffi::Array<ffi::String> cores;
  int first = -1;
  for (int core = 0; core < CPU_SETSIZE; core++)
    if (CPU_ISSET(core, &usable)) {
      if (first < 0) first = core;
      cores.push_back(std::to_string(core));
    }
  const char* wanted = std::getenv("TVM_NUM_THREADS");
  const int threads = wanted ? std::atoi(wanted) : static_cast<int>(cores.size());
  const bool each = threads == static_cast<int>(cores.size());
  constexpr int kOneACore = -2, kShared = -3;
  ffi::Function::GetGlobalRequired("runtime.config_threadpool")(each ? kOneACore : kShared, threads, cores);
  if (!each) return;
  CPU_ZERO(&usable);
  CPU_SET(first, &usable);
  sched_setaffinity(0, sizeof usable, &usable);
}

class Network {
 public:
  Network(const std::string& library, const Description& how)
      : how_(how), device_{how.gpu ? kDLCUDA : kDLCPU, 0} {
    if (how.gpu)
      load_cuda();
    else
      place_threads();
    // Absolute, since the loader looks for a bare name in its own path only.
    library_ = ffi::Module::LoadFromFile(std::filesystem::absolute(library).string());
    machine_ = (*library_->GetFunction("vm_load_executable", true))().cast<ffi::Module>();
    constexpr int kPooled = 2;  // of the machine's two allocators, the one that keeps memory between calls
    const auto start = *machine_->GetFunction("vm_initialization", true);
    if (how.gpu)
      start(static_cast<int>(kDLCUDA), 0, kPooled, static_cast<int>(kDLCPU), 0, kPooled);
    else
      start(static_cast<int>(kDLCPU), 0, kPooled);
    main_ = *machine_->GetFunction("main", true);
  }

  void set_input(const std::vector<uint8_t>& integers) {
    const ffi::Shape shape({how_.batch, 3, how_.crop, how_.crop});
    const DLDataType type{static_cast<uint8_t>(how_.input_signed ? kDLInt : kDLUInt), 8, 1};
    input_ = global("runtime.TVMTensorAllocWithScope")(shape, type, device_, nullptr).cast<ffi::Tensor>();
    void* bytes = const_cast<uint8_t*>(integers.data());
    global("runtime.TVMTensorCopyFromBytes")(input_.value(), bytes, static_cast<int64_t>(integers.size()));
  }

  // Returns when the device has done all.
  void run() {
    output_ = main_(input_.value()).cast<ffi::Tensor>();
    global("runtime.Device_StreamSync")(device_, 0);
  }

  // The output's integers, int32 [batch][classes].
  std::vector<int32_t> output() const {
    std::vector<int32_t> integers(output_.value().numel());
    global("runtime.TVMTensorCopyToBytes")(output_.value(), static_cast<void*>(integers.data()),
                                           static_cast<int64_t>(integers.size() * sizeof(int32_t)));
    return integers;
  }

 private:
  static ffi::Function global(const char* name) { return ffi::Function::GetGlobalRequired(name); }

  Description how_;
  DLDevice device_;
  ffi::Optional<ffi::Tensor> input_, output_;
  ffi::Module library_{ffi::UnsafeInit{}}, machine_{ffi::UnsafeInit{}};
  ffi::Function main_;
};

double median_milliseconds(Network& network, int runs) {
  std::vector<double> times;
  for (int i = 0; i < runs; i++) {
    const auto start = std::chrono::steady_clock::now();
    network.run();
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

int classify(const std::string& library, const std::string& image, int runs, bool print_integers) {
  const Description how = read_description(library);
  check_whole(library);
  const std::vector<uint8_t> input = quantize(read_ppm(image), how);
  Network network(library, how);
  network.set_input(input);
  network.run();  // records the CUDA graph
  const std::vector<int32_t> batch = network.output();
  const std::vector<int32_t> integers(batch.begin(), batch.begin() + batch.size() / how.batch);
  const auto best = std::max_element(integers.begin(), integers.end());
  printf("%s: class %td, logit %.4f\n", image.c_str(), best - integers.begin(), *best * how.output_scale);
  if (print_integers) {
    printf("integers:");
    for (const int32_t value : integers) printf(" %d", value);
    printf("\n");
  }
  printf("%.3f ms a call of batch %lld on %s, median of %d\n", median_milliseconds(network, runs),
         static_cast<long long>(how.batch), how.gpu ? "the GPU" : "this CPU", runs);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  std::vector<std::string> names;
  int runs = 20;
  bool print_integers = false;
  for (int i = 1; i < count; i++) {
    if (strcmp(words[i], "--integers") == 0) print_integers = true;
    else if (strcmp(words[i], "--runs") == 0 && i + 1 < count) runs = std::max(1, std::atoi(words[++i]));
    else names.push_back(words[i]);
  }
  if (names.size() != 2) {
    fprintf(stderr, "usage: %s MODEL.so IMAGE.ppm [--runs 20] [--integers]\n", words[0]);
    return 2;
  }
  try {
    return classify(names[0], names[1], runs, print_integers);
  } catch (const Failure& failure) {
    fprintf(stderr, "error: %s\n", failure.what());
  } catch (const std::exception& failure) {  // TVM's
    fprintf(stderr, "error: %s cannot be run: %s\n", names[0].c_str(), failure.what());
  }
  return 1;
}
