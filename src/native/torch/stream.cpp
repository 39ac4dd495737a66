// Work on a GPU that the host does not wait for: pinned buffers and copies on a stream of their own. Device-generic
// c10 only, no CUDA headers: it links to a CPU-only libtorch, where every function says that there is no such device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cstring>
#include <memory>
#include <vector>
#include "guarded.h"

namespace {
using Guard = c10::impl::VirtualGuardImpl;

at::Tensor pinned(at::IntArrayRef shape, at::ScalarType kind) {
  return at::empty(shape, at::TensorOptions().dtype(kind).pinned_memory(true));
}

struct Slot {
  at::Tensor host, there;
  c10::Event copied{c10::kCUDA}, used{c10::kCUDA};
};

// Buffers in turn: while one is being read on the device, the next is on its way.
struct Ring {
  c10::Device device;
  c10::Stream copies;
  std::vector<Slot> slots;
  size_t next = 0;
};

// Numbers on their way to the host.
struct PendingScalars {
  at::Tensor host;
  c10::Event arrived{c10::kCUDA};
};
} // namespace

extern "C" {

// From now on this thread's work goes to a stream other than the default one, which a CUDA graph cannot capture.
int byol_own_stream(int device) {
  return guarded([&] {
    Guard guard(c10::kCUDA);
    const c10::Device where(c10::kCUDA, device);
    // First, as synchronizing returns to the current device: GPU 0 would get a context, half a gigabyte of its memory.
    guard.setDevice(where);
    guard.synchronizeDevice(where.index());
    guard.exchangeStream(guard.getStreamFromGlobalPool(where));
  });
}

int byol_ring_new(int device, size_t slots, int64_t bytes, Ring** out) {
  return guarded([&] {
    Guard guard(c10::kCUDA);
    const c10::Device where(c10::kCUDA, device);
    std::unique_ptr<Ring> ring(new Ring{where, guard.getStreamFromGlobalPool(where), {}});
    for (size_t i = 0; i < slots; i++) {
      Slot slot;
      slot.host = pinned({bytes}, at::kByte);
      slot.there = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(where));
      // The memory may come from something that queued work still reads.
      slot.used.record(guard.getStream(where));
      ring->slots.push_back(std::move(slot));
    }
    *out = ring.release();
  });
}

// Puts two arrays of the same length, one after the other, on their way to the device. Work that is queued on the
// current stream after this waits for them; the host waits only where the ring has gone round before they arrived.
int byol_ring_put(Ring* ring, const uint8_t* first, const uint8_t* second, int64_t bytes, at::Tensor** out) {
  return guarded([&] {
    Slot& slot = ring->slots[ring->next];
    TORCH_CHECK(2 * bytes <= slot.host.numel(), "the ring's buffers hold ", slot.host.numel(), " bytes");
    if (slot.copied.was_marked_for_recording()) slot.copied.synchronize();
    auto* host = slot.host.data_ptr<uint8_t>();
    std::memcpy(host, first, bytes);
    std::memcpy(host + bytes, second, bytes);
    slot.used.block(ring->copies);
    auto there = slot.there.narrow(0, 0, 2 * bytes);
    {
      c10::StreamGuard on(ring->copies);
      there.copy_(slot.host.narrow(0, 0, 2 * bytes), /*non_blocking=*/true);
    }
    slot.copied.record(ring->copies);
    slot.copied.block(Guard(c10::kCUDA).getStream(ring->device));
    *out = new at::Tensor(std::move(there));
  });
}

// Everything that reads what was put last is queued on the current stream.
int byol_ring_used(Ring* ring) {
  return guarded([&] {
    ring->slots[ring->next].used.record(Guard(c10::kCUDA).getStream(ring->device));
    ring->next = (ring->next + 1) % ring->slots.size();
  });
}

void byol_ring_free(Ring* ring) {
  guarded([&] {
    Guard(c10::kCUDA).synchronizeDevice(ring->device.index());
    delete ring;
  });
}

int byol_later_new(const at::Tensor* values, PendingScalars** out) {
  return guarded([&] {
    std::unique_ptr<PendingScalars> later(new PendingScalars);
    later->host = pinned(values->sizes(), at::kFloat);
    later->host.copy_(*values, /*non_blocking=*/true);
    later->arrived.record(Guard(c10::kCUDA).getStream(values->device()));
    *out = later.release();
  });
}

// Waits for what was queued before the numbers, not for what came after.
int byol_later_get(const PendingScalars* later, float* out, int64_t n) {
  return guarded([&] {
    later->arrived.synchronize();
    TORCH_CHECK(later->host.numel() == n, "found ", later->host.numel(), " numbers, expected ", n);
    std::memcpy(out, later->host.data_ptr<float>(), n * sizeof(float));
  });
}

void byol_later_free(PendingScalars* later) {
  guarded([&] { delete later; });
}

// Most bytes of tensors at a time so far, and most that were taken from the device for them.
int byol_peak_device_bytes(int device, int64_t* tensors, int64_t* taken) {
  return guarded([&] {
    const auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *tensors = stats.allocated_bytes[all].peak;
    *taken = stats.reserved_bytes[all].peak;
  });
}
}
