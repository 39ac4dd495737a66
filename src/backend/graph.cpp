// CUDA graphs: needs CUDA's headers and libtorch_cuda, and so is a shared object of its own, which the binary carries
// and loads only after libtorch_cuda. Functions return 0, or 1 with the message kept for byol_graph_error().
#include <ATen/cuda/CUDAGraph.h>
#include <c10/util/Exception.h>
#include <memory>
#include <string>

namespace {
thread_local std::string last_error;

template <typename F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const c10::Error& e) {
    last_error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}
} // namespace

extern "C" {

const char* byol_graph_error() { return last_error.c_str(); }

// Begins to record what is queued on the current stream, which must not be the default one; nothing of it runs.
int byol_graph_begin(at::cuda::CUDAGraph** graph) {
  return guarded([&] {
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
