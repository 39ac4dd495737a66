// NCCL: needs its and CUDA's headers and libtorch_cuda, and so is a shared object of its own, which the binary carries
// and loads only where several processes use GPUs. Functions return 0, or 1 with the message kept for
// byol_library_error().
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <torch/csrc/distributed/c10d/debug.h>
#include <string>
#include "guarded.h"
#include "store.h"

namespace {
// The name of the interface that has this address; nothing where none has.
std::string interface_of(const std::string& address) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return {};
  std::string name;
  for (const auto* at = all; at != nullptr && name.empty(); at = at->ifa_next) {
    if (at->ifa_addr == nullptr) continue;
    const auto family = at->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    char text[NI_MAXHOST];
    if (getnameinfo(at->ifa_addr, size, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0 && address == text)
      name = at->ifa_name;
  }
  freeifaddrs(all);
  return name;
}

// The watchdog finds out what fails or takes too long; what follows is not its to decide. By itself it would throw,
// wait for dumps and end the process, each in many lines.
void quiet() {
  for (const char* variable :
       {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_DESYNC_DEBUG",
        "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_ENABLE_MONITORING", "TORCH_NCCL_RETHROW_CUDA_ERRORS",
        "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"})
    c10::utils::set_env(variable, "0");
  c10d::setDebugLevel(c10d::DebugLevel::Off); // the highest one brings the throwing back
}
} // namespace

extern "C" {

const char* byol_library_error() { return last_error.c_str(); }

// NCCL for tensors of this GPU. Nothing is connected before the first collective. It listens at `place`, an address of
// this machine (unless NCCL_SOCKET_IFNAME says where) or the name of an interface. `timeout_ms` is for each collective.
int byol_nccl_new(
    const Store* store, int rank, int world, int device, const char* place, int is_interface, int64_t timeout_ms,
    c10d::Backend** out) {
  return guarded([&] {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
    quiet();
    const std::string interface = is_interface ? place : interface_of(place);
    if (!interface.empty()) c10::utils::set_env("NCCL_SOCKET_IFNAME", ("=" + interface).c_str(), is_interface);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("nccl", store->store);
    *out = c10::make_intrusive<c10d::ProcessGroupNCCL>(prefixed, rank, world, options).release();
  });
}
}
