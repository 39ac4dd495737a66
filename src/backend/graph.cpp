// CUDA graphs: needs CUDA's headers and libtorch_cuda, and so is a shared object of its own, which the binary carries
// and loads only after libtorch_cuda. Functions return 0, or 1 with the message kept for byol_graph_error().
#include <ATen/cuda/CUDAGraph.h>
#include <memory>
#include "guarded.h"

extern "C" {

const char* byol_graph_error() { return last_error.c_str(); }

// Begins to record what is queued on the current stream, which must not be the default one; nothing of it runs.
int byol_graph_begin(at::cuda::CUDAGraph** graph) {
  return guarded([&] {
    // The graph has memory of its own, which cannot come out of what earlier steps have left in the cache.
    c10::cuda::CUDACachingAllocator::emptyCache();
    auto fresh = std::make_unique<at::cuda::CUDAGraph>();
    fresh->capture_begin();
    *graph = fresh.release();
  });
}

int byol_graph_end(at::cuda::CUDAGraph* graph) {
  return guarded([&] { graph->capture_end(); });
}

// Queues everything recorded on the current stream.
int byol_graph_replay(at::cuda::CUDAGraph* graph) {
  return guarded([&] { graph->replay(); });
}

void byol_graph_free(at::cuda::CUDAGraph* graph) {
  guarded([&] { delete graph; });
}
}
