// What dist.cpp and nccl.cpp share.
#pragma once
#include <torch/csrc/distributed/c10d/Store.hpp>

// A connection to the store of rank 0, or of torchrun's agent.
struct Store {
  c10::intrusive_ptr<c10d::Store> store;
};
