// libtorch contains Gloo but not its headers, which ProcessGroupGloo.hpp includes. These files declare the few names
// that it mentions. None of these classes is made, derived from or called here: libtorch does all of that inside.
#pragma once
#include <chrono>
#include <memory>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
namespace transport {
class UnboundBuffer;
} // namespace transport
} // namespace gloo
