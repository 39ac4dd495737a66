// The few libtorch calls that tch does not bind. Every function returns 0, or 1 with the message kept
// for byol_last_error(); no exception crosses into Rust.
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/Tensor.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DeviceType.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/version.h>
#include <cstdlib>
#include "guarded.h"

extern "C" {

const char* byol_last_error() { return last_error.c_str(); }

const char* byol_libtorch_version() { return TORCH_VERSION; }

// Free and total bytes of a CUDA device's memory.
int byol_cuda_memory(int device, uint64_t* free, uint64_t* total) {
  return guarded([&] {
    const auto found = at::accelerator::getMemoryInfo(device);
    *free = found.first;
    *total = found.second;
  });
}

// Enters (enabled = 1) or leaves (0) bf16 autocast on the CPU (cuda = 0) or CUDA (1) for this thread.
// Leaving drops the cache of cast weights, as Python's torch.autocast does.
int byol_autocast_bf16(int cuda, int enabled) {
  return guarded([&] {
    const auto device = cuda ? at::kCUDA : at::kCPU;
    if (enabled) {
      at::autocast::set_autocast_enabled(device, true);
      at::autocast::set_autocast_dtype(device, at::kBFloat16);
      at::autocast::increment_nesting();
    } else {
      if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(device, false);
    }
  });
}

// TF32 for fp32 matrix products and convolutions on CUDA.
int byol_allow_tf32(int allow) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(allow != 0);
    at::globalContext().setAllowTF32CuDNN(allow != 0);
  });
}

// Deterministic algorithms everywhere, no autotuning (torch.use_deterministic_algorithms).
int byol_deterministic(int on) {
  return guarded([&] {
    // Read when cuBLAS makes its first handle; libtorch refuses products without it.
    if (on) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    at::globalContext().setDeterministicAlgorithms(on != 0, false);
    // Else every empty tensor is filled with NaN first (torch.utils.deterministic.fill_uninitialized_memory).
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicCuDNN(on != 0);
    at::globalContext().setBenchmarkCuDNN(on == 0);
  });
}

// Makes a parameter's gradient undefined: the next backward pass then stores instead of adding.
int byol_clear_grad(at::Tensor* parameter) {
  return guarded([&] { parameter->mutable_grad().reset(); });
}

// Rust's side of the handler below.
void byol_warned(const char* message);

// Has this thread's warnings of libtorch handed to byol_warned(); libtorch itself prints several lines.
int byol_take_warnings() {
  struct Handler : c10::WarningHandler {
    void process(const c10::Warning& warning) override { byol_warned(warning.msg().c_str()); }
  };
  static Handler handler;
  return guarded([] { c10::WarningUtils::set_warning_handler(&handler); });
}

// Freezes the TorchScript module in a file (torch.jit.freeze) and writes it back.
int byol_freeze_torchscript(const char* path) {
  return guarded([&] {
    torch::jit::Module module = torch::jit::load(path, at::kCPU);
    module.eval();
    torch::jit::freeze(module).save(path);
  });
}
}
