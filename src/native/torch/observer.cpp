// Counts the operators that libtorch runs, in this thread, backward passes on the CPU included (torch.profiler's mechanism).
#include <ATen/record_function.h>
#include <map>
#include <string>
#include <vector>
#include "guarded.h"

namespace {
thread_local std::map<std::string, uint64_t> counts;
thread_local std::vector<std::string> running;

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
  running.emplace_back(function.name());
  std::string path;
  for (const auto& name : running) path += (path.empty() ? "" : ">") + name;
  counts[path]++;
  return nullptr;
}

void leave(const at::RecordFunction&, at::ObserverContext*) { running.pop_back(); }
} // namespace

extern "C" {

// `*handle` is for byol_observe_end, in the same thread.
int byol_observe_start(uint64_t* handle) {
  return guarded([&] {
    counts.clear();
    running.clear();
    *handle = at::addThreadLocalCallback(at::RecordFunctionCallback(enter, leave).scopes({at::RecordScope::FUNCTION}));
  });
}

// The operators so far, a line for each: its callers and itself, separated by `>`, and how often. The string lives
// until the thread's next call.
int byol_observe_end(uint64_t handle, const char** lines) {
  return guarded([&] {
    at::removeCallback(handle);
    static thread_local std::string text;
    text.clear();
    for (const auto& [path, count] : counts) text += path + " " + std::to_string(count) + "\n";
    *lines = text.c_str();
  });
}
}
