// The kernels of batch_norm.cu as C++, for the test: CUDA's names with a thread for each of a block's, which meet at
// __syncthreads; blocks run one after the other.
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__ static // of the one block that runs
#define __restrict__
#define __launch_bounds__(...)
using std::sqrt;

struct uint4 { unsigned x, y, z, w; };
struct Index { unsigned x, y; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
static unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
static std::barrier<>* meeting;
static void __syncthreads() { meeting->arrive_and_wait(); }

// Elsewhere than in an unnamed namespace, the static array of an inline function is one for the whole process (a GNU
// unique symbol). The test loads this file twice, for bf16 and for fp32, whose arrays differ in length.
namespace {
#include "batch_norm.cu"
}

template <typename Kernel>
static void launch(unsigned threads, Index grid, Kernel kernel) {
  blockDim = {threads, 1};
  gridDim = grid;
  for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++) {
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
      std::barrier<> all(threads);
      meeting = &all;
      std::vector<std::thread> running;
      for (unsigned i = 0; i < threads; i++) {
        running.emplace_back([&, i] {
          threadIdx = {i, 0};
          kernel();
          all.arrive_and_drop();
        });
      }
      for (auto& thread : running) thread.join();
    }
  }
}

template <typename T>
static T get(void* argument) { return *static_cast<T*>(argument); }

// Takes its arguments out of an array of pointers to them, which is how the driver is given them.
template <typename... Arguments, size_t... At>
static void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<At...>) {
  kernel(get<std::remove_cv_t<Arguments>>(arguments[At])...);
}

template <typename... Arguments>
static void call(void (*kernel)(Arguments...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<Arguments...>());
}

static void run(size_t kernel, void** arguments) {
  switch (kernel) {
    case 0: return call(statistics, arguments);
    case 1: return call(finish_forward, arguments);
    case 2: return call(apply_forward, arguments);
    case 3: return call(sum_backward, arguments);
    case 4: return call(finish_backward, arguments);
    case 5: return call(apply_backward, arguments);
  }
}

// cuLaunchKernel, where `function` is the number of a kernel.
extern "C" int batch_norm_launch(
    void* function, unsigned x, unsigned y, unsigned, unsigned threads, unsigned, unsigned, unsigned, void*,
    void** arguments, void**) {
  launch(threads, {x, y}, [&] { run(reinterpret_cast<size_t>(function), arguments); });
  return 0;
}
