// CUDA graphs: needs CUDA's headers and libtorch_cuda, and so is a shared object of its own, which the binary carries
// and loads only after libtorch_cuda. Functions return 0, or 1 with the message kept for byol_library_error().
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <memory>
#include "guarded.h"

namespace allocator = c10::cuda::CUDACachingAllocator;

namespace {
// A graph with memory of its own. CUDAGraph lets go of that only if the capture ended well; until someone does, the
// allocator asks the graph, which may be gone, about each allocation.
struct Graph {
  // Kept, so that capture_end leaves the instantiation to byol_graph_end: where that fails, on a full GPU, CUDAGraph's
  // destructor lets go of the memory, and nobody else may.
  at::cuda::CUDAGraph graph{/*keep_graph=*/true};
  const c10::MempoolId_t pool = at::cuda::graph_pool_handle();
  const c10::DeviceIndex device = c10::cuda::current_device();

  // A step of the capture; where it fails, the pool is given up. Parts of that may have been done before.
  template <typename F>
  void capture(F step) {
    try {
      step();
    } catch (...) {
      auto* host = at::getHostAllocator(at::kCUDA);
      guarded([&] { allocator::endAllocateToPool(device, pool); });
      guarded([&] { host->end_allocate_to_pool(pool); });
      guarded([&] { allocator::releasePool(device, pool); });
      guarded([&] { host->release_pool(pool); });
      throw;
    }
  }
};
} // namespace

extern "C" {

const char* byol_library_error() { return last_error.c_str(); }

// Begins to capture what is queued on the current stream, which must not be the default one; nothing of it runs.
int byol_graph_begin(Graph** graph) {
  return guarded([&] {
    // The graph's memory cannot come out of what earlier steps have left in the cache.
    allocator::emptyCache();
    auto fresh = std::make_unique<Graph>();
    fresh->capture([&] { fresh->graph.capture_begin(fresh->pool); });
    *graph = fresh.release();
  });
}

// Ends the capture. After a failure only byol_graph_free may follow.
int byol_graph_end(Graph* graph) {
  return guarded([&] {
    graph->capture([&] { graph->graph.capture_end(); });
    graph->graph.instantiate();
  });
}

// Queues everything captured on the current stream.
int byol_graph_replay(Graph* graph) {
  return guarded([&] { graph->graph.replay(); });
}

void byol_graph_free(Graph* graph) {
  guarded([&] { delete graph; });
}
}
