// BatchNorm, residual sum and ReLU as the kernels of batch_norm.cu, with their backward pass. NVRTC and the driver come
// with libtorch_cuda's libcaffe2_nvrtc.so, which is loaded for this: no CUDA headers, and a CPU-only libtorch will do.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <dlfcn.h>
#include <map>
#include <string>
#include <vector>
#include "guarded.h"

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int BLOCK = 256, FINISH = 512; // threads of a block; of one that adds up partial sums
enum Kernel { STATISTICS, FINISH_FORWARD, APPLY_FORWARD, SUM_BACKWARD, FINISH_BACKWARD, APPLY_BACKWARD, KERNELS };
constexpr const char* NAMES[KERNELS] = {"statistics", "finish_forward", "apply_forward",
                                        "sum_backward", "finish_backward", "apply_backward"};

using Launch = int (*)(
    void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);

// The parts of NVRTC and of the driver that are needed.
struct Cuda {
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(void*, int, const char* const*);
  int (*log_size)(void*, size_t*);
  int (*log)(void*, char*);
  int (*cubin_size)(void*, size_t*);
  int (*cubin)(void*, char*);
  int (*destroy)(void**);
  int (*attribute)(int*, int, int);
  int (*load)(void**, const void*);
  int (*function)(void**, void*, const char*);
  Launch launch;
};
enum { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76 }; // CU_DEVICE_ATTRIBUTE_...

void check(int status, const char* call) { TORCH_CHECK(status == 0, call, " failed with status ", status); }

template <typename F>
void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  TORCH_CHECK(function, name, " is missing");
}

Cuda open_cuda() {
  void* library = dlopen("libcaffe2_nvrtc.so", RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library, dlerror());
  Cuda cuda;
  find(library, "nvrtcCreateProgram", cuda.create);
  find(library, "nvrtcCompileProgram", cuda.compile);
  find(library, "nvrtcGetProgramLogSize", cuda.log_size);
  find(library, "nvrtcGetProgramLog", cuda.log);
  find(library, "nvrtcGetCUBINSize", cuda.cubin_size);
  find(library, "nvrtcGetCUBIN", cuda.cubin);
  find(library, "nvrtcDestroyProgram", cuda.destroy);
  find(library, "cuDeviceGetAttribute", cuda.attribute);
  find(library, "cuModuleLoadData", cuda.load);
  find(library, "cuModuleGetFunction", cuda.function);
  find(library, "cuLaunchKernel", cuda.launch);
  return cuda;
}

// The kernels for one type of values, on one device.
struct Kernels {
  c10::DeviceType device;
  Launch launch; // the driver's, or a test's
  int multiprocessors;
  int block, finish; // threads
  void* functions[KERNELS];

  template <typename... Arguments>
  void run(Kernel kernel, unsigned x, unsigned y, Arguments... arguments) const {
    void* pointers[] = {&arguments...};
    const c10::impl::VirtualGuardImpl guard(device);
    void* stream = device == c10::kCUDA ? guard.getStream(guard.getDevice()).native_handle() : nullptr;
    const unsigned threads = kernel == FINISH_FORWARD || kernel == FINISH_BACKWARD ? finish : block;
    check(launch(functions[kernel], x, y, 1, threads, 1, 1, 0, stream, pointers, nullptr), NAMES[kernel]);
  }
};

std::vector<char> compile(const Cuda& cuda, const char* source, bool bf16, int device) {
  int major, minor;
  check(cuda.attribute(&major, MAJOR, device), "cuDeviceGetAttribute");
  check(cuda.attribute(&minor, MINOR, device), "cuDeviceGetAttribute");
  const std::string options[] = {
      "--gpu-architecture=sm_" + std::to_string(major) + std::to_string(minor), "--std=c++17",
      "-DBF16=" + std::to_string(bf16), "-DBLOCK=" + std::to_string(BLOCK), "-DFINISH=" + std::to_string(FINISH)};
  std::vector<const char*> words;
  for (const auto& option : options) words.push_back(option.c_str());
  void* program;
  check(cuda.create(&program, source, "batch_norm.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
  const int status = cuda.compile(program, static_cast<int>(words.size()), words.data());
  size_t size = 0;
  std::vector<char> binary;
  if (status == 0 && cuda.cubin_size(program, &size) == 0) {
    binary.resize(size);
    check(cuda.cubin(program, binary.data()), "nvrtcGetCUBIN");
  }
  std::string log;
  if (cuda.log_size(program, &size) == 0) cuda.log(program, (log.resize(size), log.data()));
  cuda.destroy(&program);
  TORCH_CHECK(!binary.empty(), "NVRTC cannot compile for ", options[0].substr(19), ": ", log.c_str());
  return binary;
}

// By type, for the one device of this process; filled before the first step and only read from then on.
std::map<at::ScalarType, Kernels> compiled;

const Kernels* kernels_for(const at::Tensor& x) {
  const auto found = compiled.find(x.scalar_type());
  return found == compiled.end() || found->second.device != x.device().type() ? nullptr : &found->second;
}

// [N, C, H, W] with channels last, or [N, C], as [rows, channels], and how the kernels share it.
struct Shape {
  size_t rows;
  int channels, bx = 1;
  unsigned groups; // of channels

  Shape(const at::Tensor& x) : rows(x.numel() / x.size(1)), channels(static_cast<int>(x.size(1))) {
    const int loads = channels / lanes(x);
    while (bx < 32 && bx < loads) bx *= 2;
    groups = (loads + bx - 1) / bx;
  }

  // Values of a 16-byte load.
  static int lanes(const at::Tensor& x) { return static_cast<int>(16 / x.element_size()); }

  // Blocks over the rows, when each multiprocessor is to get `each` blocks.
  unsigned blocks(const Kernels& kernels, unsigned each) const {
    const size_t most = (rows * bx + kernels.block - 1) / kernels.block, wanted = kernels.multiprocessors * each / groups;
    return static_cast<unsigned>(std::max<size_t>(1, std::min(most, wanted)));
  }
};

bool fits(const at::Tensor& x) {
  const bool layout = x.dim() == 2 ? x.is_contiguous() : x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return layout && x.size(1) % Shape::lanes(x) == 0 && x.numel() / x.size(1) > 1 &&
      reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
}

void* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

struct FusedBatchNorm : torch::autograd::Function<FusedBatchNorm> {
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& shortcut, const at::Tensor& weight,
      const at::Tensor& bias, const at::Tensor& running_mean, const at::Tensor& running_var, double momentum,
      double eps, bool relu) {
    const Kernels& kernels = *kernels_for(x);
    const Shape shape(x);
    const unsigned blocks = shape.blocks(kernels, 4);
    const auto partial = at::empty({blocks, 2, shape.channels}, weight.options());
    const auto statistics = at::empty({3, shape.channels}, weight.options());
    const auto y = at::empty_like(x);
    kernels.run(STATISTICS, blocks, shape.groups, data(x), data(partial), shape.rows, shape.channels, shape.bx);
    kernels.run(
        FINISH_FORWARD, (shape.channels + 31) / 32, 1, data(x), data(partial), static_cast<int>(blocks), data(weight),
        data(running_mean), data(running_var), data(statistics), shape.rows, shape.channels,
        static_cast<float>(momentum), static_cast<float>(eps));
    kernels.run(
        APPLY_FORWARD, shape.blocks(kernels, 8), shape.groups, data(x), data(shortcut.value_or(at::Tensor())), data(y), data(statistics),
        data(bias), shape.rows, shape.channels, shape.bx, static_cast<int>(relu));
    // After a residual sum y says where ReLU let the gradient through; else x does.
    const bool summed = shortcut.has_value();
    ctx->save_for_backward({x, bias, statistics, summed && relu ? y : at::Tensor()});
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["summed"] = summed;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &bias = saved[1], &statistics = saved[2], &y = saved[3];
    const bool relu = ctx->saved_data["relu"].toBool(), summed = ctx->saved_data["summed"].toBool();
    const Kernels& kernels = *kernels_for(x);
    const Shape shape(x);
    const auto dy = gradients[0].contiguous(x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
    const unsigned blocks = shape.blocks(kernels, 4);
    const auto partial = at::empty({blocks, 2, shape.channels}, statistics.options());
    const auto means = at::empty({2, shape.channels}, statistics.options());
    const auto dweight = at::empty({shape.channels}, statistics.options()), dbias = at::empty_like(dweight);
    const auto dz = y.defined() ? at::empty_like(x) : dy; // the shortcut's gradient
    const auto dx = at::empty_like(x);
    kernels.run(
        SUM_BACKWARD, blocks, shape.groups, data(dy), data(x), data(y), data(dz), data(statistics), data(bias),
        data(partial), shape.rows, shape.channels, shape.bx, static_cast<int>(relu));
    kernels.run(
        FINISH_BACKWARD, (shape.channels + 31) / 32, 1, data(partial), static_cast<int>(blocks), data(statistics),
        data(dweight), data(dbias), data(means), shape.rows, shape.channels);
    kernels.run(
        APPLY_BACKWARD, shape.blocks(kernels, 8), shape.groups, data(dz), data(x), data(dx), data(statistics),
        data(bias), data(means), shape.rows, shape.channels, shape.bx, static_cast<int>(relu && !summed));
    return {dx, summed ? dz : at::Tensor(), dweight, dbias, {}, {}, {}, {}, {}};
  }
};
} // namespace

extern "C" {

// Compiles the kernels of `source` for a GPU; from then on byol_batch_norm_fused takes values on it.
int byol_batch_norm_compile(int device, const char* source) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
    guard.setDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device)));
    at::empty({1}, at::TensorOptions().device(guard.getDevice())); // the device's context is current from here on
    const Cuda cuda = open_cuda();
    std::map<at::ScalarType, Kernels> fresh;
    for (const auto type : {at::kBFloat16, at::kFloat}) {
      const auto binary = compile(cuda, source, type == at::kBFloat16, device);
      Kernels kernels{c10::kCUDA, cuda.launch, 0, BLOCK, FINISH, {}};
      check(cuda.attribute(&kernels.multiprocessors, MULTIPROCESSORS, device), "cuDeviceGetAttribute");
      void* module;
      check(cuda.load(&module, binary.data()), "cuModuleLoadData");
      for (int i = 0; i < KERNELS; i++) check(cuda.function(&kernels.functions[i], module, NAMES[i]), NAMES[i]);
      fresh.emplace(type, kernels);
    }
    compiled = std::move(fresh);
  });
}

// For tests: kernels that `launch` runs on the CPU, in blocks of 64 threads, as though it had one multiprocessor.
void byol_batch_norm_install(int bf16, Launch launch, void* const* functions) {
  Kernels kernels{c10::kCPU, launch, 1, 64, 64, {}};
  std::copy(functions, functions + KERNELS, kernels.functions);
  compiled.insert_or_assign(bf16 ? at::kBFloat16 : at::kFloat, kernels);
}

// Back to libtorch's own kernels.
void byol_batch_norm_forget() { compiled.clear(); }

// BatchNorm of a training batch, the sum with `shortcut` if that is not null, and ReLU if `relu`. `*out` stays null
// where the kernels were not compiled or do not fit the values' layout.
int byol_batch_norm_fused(
    const at::Tensor* x, const at::Tensor* shortcut, const at::Tensor* weight, const at::Tensor* bias,
    const at::Tensor* running_mean, const at::Tensor* running_var, double momentum, double eps, int relu,
    at::Tensor** out) {
  return guarded([&] {
    if (!kernels_for(*x) || !fits(*x)) return;
    if (shortcut && !(shortcut->scalar_type() == x->scalar_type() && shortcut->sizes() == x->sizes() && fits(*shortcut)))
      return;
    *out = new at::Tensor(FusedBatchNorm::apply(
        *x, shortcut ? std::make_optional(*shortcut) : std::nullopt, *weight, *bias, *running_mean, *running_var, momentum, eps, relu != 0));
  });
}
}
