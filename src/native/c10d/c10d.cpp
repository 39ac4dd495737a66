// Several processes as one: c10d's store, process group (Gloo) and gradient Reducer, and BatchNorm over all of them.
// Nothing here looks inside what other processes send: the store holds bytes, the collectives numbers.
#include <ATen/ops/batch_norm_backward_elemt.h>
#include <ATen/ops/batch_norm_backward_reduce.h>
#include <ATen/ops/batch_norm_elemt.h>
#include <ATen/ops/batch_norm_gather_stats_with_counts.h>
#include <ATen/ops/batch_norm_stats.h>
#include <ATen/ops/batch_norm_update_stats.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Logging.h>
#include <c10/util/env.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include "guarded.h"
#include "store.h"

using std::chrono::milliseconds;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {
// How long a process waits for the others: exact on the CPU, where waiting blocks, but for what `tail` says.
class Waiting {
  using Clock = std::chrono::steady_clock;
  using Time = std::chrono::nanoseconds;
  std::mutex mutex_;
  Time total_{0};
  // Of the backward pass that the Reducer averages: from the start of its last bucket, when all gradients are there, to
  // the end of the last one under way. Copying one bucket back while the next is under way counts, too.
  Time tail_{0};
  Clock::time_point last_bucket_;
  int under_way_ = 0;
  std::condition_variable ended_;

  // What waits for a bucket wakes before the bucket's end is noted here, a moment later.
  std::unique_lock<std::mutex> between_passes() {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, std::chrono::seconds(1), [this] { return under_way_ == 0; });
    return lock;
  }

 public:
  Time total() {
    const auto lock = between_passes();
    return total_ + tail_;
  }

  // NCCL's collectives in the order of the stream have no work to wait for.
  void wait(const c10::intrusive_ptr<c10d::Work>& work) {
    const auto start = Clock::now();
    if (work) work->wait();
    const std::lock_guard lock(mutex_);
    total_ += Clock::now() - start;
  }

  // The Reducer's next bucket is the first of another backward pass.
  void settle() {
    const auto lock = between_passes();
    total_ += tail_;
    tail_ = {};
  }

  void bucket_started() {
    const std::lock_guard lock(mutex_);
    last_bucket_ = Clock::now();
    tail_ = {};
    ++under_way_;
  }

  void bucket_ended() {
    const std::lock_guard lock(mutex_);
    tail_ = std::max<Time>(tail_, Clock::now() - last_bucket_);
    --under_way_;
    ended_.notify_all();
  }
};

// c10d's group, with a look at how long this process waits.
class Processes : public c10d::ProcessGroup {
  // Not a part of the group: its own threads run the callback below, and the last reference to it must not be theirs.
  const std::shared_ptr<Waiting> waiting_ = std::make_shared<Waiting>();
  std::mutex counts_mutex_;
  std::map<std::pair<int64_t, at::ScalarType>, at::Tensor> counts_;

 public:
  using c10d::ProcessGroup::ProcessGroup;

  Waiting& waiting() { return *waiting_; }

  // What the Reducer calls, for each bucket.
  c10::intrusive_ptr<c10d::Work> allreduce(
      std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    auto work = c10d::ProcessGroup::allreduce(tensors, options);
    waiting_->bucket_started();
    // Not using the result, it needs no stream of a GPU to run on.
    work->getFuture()->addCallback(
        [waiting = waiting_](c10::ivalue::Future&) { waiting->bucket_ended(); }, /*uses_future=*/false);
    return work;
  }

  // Nobody calls it. The one of the base class may be compiled into a call of Gloo's own, for which the linker would
  // have the binary need libtorch_cuda.
  void setTimeout(milliseconds) override { TORCH_CHECK(false, "the timeout is that of the group"); }

  // Sum over all processes, in place.
  void sum(const at::Tensor& tensor) {
    std::vector<at::Tensor> tensors{tensor};
    c10d::AllreduceOptions options;
    options.asyncOp = false; // NCCL stays on the current stream: no events, no change of streams
    waiting_->wait(c10d::ProcessGroup::allreduce(tensors, options));
  }

  // `[...]` of every process, stacked: `[world, ...]`.
  at::Tensor gather(const at::Tensor& own) {
    auto shape = own.sizes().vec();
    shape.insert(shape.begin(), getSize());
    auto all = at::empty(shape, own.options());
    auto input = own.contiguous().unsqueeze(0);
    c10d::AllgatherOptions options;
    options.asyncOp = false;
    waiting_->wait(_allgather_base(all, input, options)); // straight into place: with lists NCCL copies
    return all;
  }

  // `[world]`, all of them `count`. Kept: on a GPU each would be a kernel of its own. The backward pass has its own thread.
  at::Tensor counts(int64_t count, const at::TensorOptions& options) {
    const std::lock_guard lock(counts_mutex_);
    auto& kept = counts_[{count, c10::typeMetaToScalarType(options.dtype())}];
    if (!kept.defined()) kept = at::full({getSize()}, count, options);
    return kept;
  }
};

using ProcessGroup = c10::intrusive_ptr<Processes>;

struct Group {
  ProcessGroup group;
};

// One value for each channel, to be combined with `[N, C]` or `[N, C, H, W]`.
at::Tensor channels(const at::Tensor& values, const at::Tensor& like) {
  std::vector<int64_t> shape(like.dim(), 1);
  shape[1] = values.numel();
  return values.view(shape);
}

// torch.nn.SyncBatchNorm in train mode, every process having the same number of values. The statistics are in fp32
// where the values are in bf16.
struct SyncBatchNorm : torch::autograd::Function<SyncBatchNorm> {
  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
      const at::Tensor& running_mean, const at::Tensor& running_var, double momentum, double eps,
      const ProcessGroup& group) {
    const int64_t world = group->getSize();
    const int64_t own = x.numel() / x.size(1);
    ctx->saved_data["group"] = c10::IValue::make_capsule(group);
    ctx->saved_data["eps"] = eps;
    if (x.is_cuda()) {
      auto values = x.contiguous(x.suggest_memory_format()); // what the kernels take for granted
      auto [own_mean, own_invstd] = at::batch_norm_stats(values, eps);
      auto all = group->gather(at::stack({own_mean, own_invstd})); // [world, 2, C]
      auto counts = group->counts(own, all.options());
      auto [mean, invstd] = at::batch_norm_gather_stats_with_counts(
          values, all.select(1, 0), all.select(1, 1), running_mean, running_var, momentum, eps, counts);
      ctx->save_for_backward({values, weight, mean, invstd});
      return at::batch_norm_elemt(values, weight, bias, mean, invstd, eps);
    }
    // The same sums as one process takes; momentum 0 leaves the running statistics, given for their type, alone.
    auto [own_mean, own_var] = at::batch_norm_update_stats(x, running_mean, running_var, 0.0);
    auto all = group->gather(at::stack({own_mean, own_var})); // [world, 2, C]
    auto means = all.select(1, 0);
    auto mean = means.mean(0);
    auto var = (all.select(1, 1) + (means - mean).square()).mean(0);
    const double n = static_cast<double>(own * world);
    running_mean.lerp_(mean, momentum);
    running_var.lerp_(var * (n / (n - 1.0)), momentum);
    ctx->save_for_backward({x, weight, mean, var});
    return std::get<0>(at::native_batch_norm(x, weight, bias, mean, var, false, momentum, eps));
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto group = c10::static_intrusive_pointer_cast<Processes>(ctx->saved_data["group"].toCapsule());
    const double eps = ctx->saved_data["eps"].toDouble();
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &mean = saved[2];
    const int64_t world = group->getSize();
    const int64_t n = world * (x.numel() / x.size(1));
    at::Tensor dx, dweight, dbias;
    if (x.is_cuda()) {
      const auto& invstd = saved[3];
      auto dy = gradients[0].contiguous(x.suggest_memory_format());
      auto [sum_dy, sum_dy_xmu, dw, db] =
          at::batch_norm_backward_reduce(dy, x, mean, invstd, weight, true, true, true);
      auto sums = at::stack({sum_dy, sum_dy_xmu});
      group->sum(sums);
      auto counts = group->counts(n / world, x.options().dtype(at::kInt));
      dx = at::batch_norm_backward_elemt(dy, x, mean, invstd, weight, sums[0], sums[1], counts);
      dweight = dw;
      dbias = db;
    } else {
      const auto& var = saved[3];
      auto values = x.to(mean.scalar_type());
      auto dy = gradients[0].to(mean.scalar_type());
      // As though the statistics were constants: w / std * dy, and the sums of dy * xhat and dy over this process.
      std::tie(dx, dweight, dbias) = at::native_batch_norm_backward(
          dy, values, weight, mean, var, {}, {}, false, eps, {true, true, true});
      auto sums = at::stack({dweight, dbias});
      group->sum(sums);
      // What the statistics themselves depend on: w / std * (sum dy + xhat sum(dy xhat)) / n.
      auto invstd = (var + eps).rsqrt();
      auto scale = weight * invstd / static_cast<double>(n);
      dx.sub_((values - channels(mean, x)).mul_(channels(scale * invstd * sums[0], x)));
      dx = dx.sub_(channels(scale * sums[1], x)).to(x.scalar_type());
    }
    return {dx, dweight, dbias, {}, {}, {}, {}, {}};
  }
};

thread_local std::vector<uint8_t> last_value;
} // namespace

extern "C" {

// Connects to the store at host:port; as its server, over the listening socket `listen_fd`, where that is not -1.
int byol_store_open(const char* host, int port, int listen_fd, const char* prefix, int64_t timeout_ms, Store** out) {
  return guarded([&] {
    FLAGS_caffe2_log_level = 3; // c10d tells of every lost connection in many lines; errors come as exceptions
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port);
    options.isServer = listen_fd >= 0;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    if (options.isServer) options.masterListenFd = listen_fd;
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out = new Store{c10::make_intrusive<c10d::PrefixStore>(prefix, store)};
  });
}

// A second connection, so that one thread can wait while another asks.
int byol_store_clone(const Store* store, Store** out) {
  return guarded([&] { *out = new Store{store->store->clone()}; });
}

void byol_store_free(Store* store) { delete store; }

int byol_store_set(Store* store, const char* key, const uint8_t* bytes, size_t length) {
  return guarded([&] { store->store->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// The value of `key`, waiting for it; valid until this thread's next call.
int byol_store_get(Store* store, const char* key, int64_t timeout_ms, const uint8_t** bytes, size_t* length) {
  return guarded([&] {
    store->store->wait({key}, milliseconds(timeout_ms));
    last_value = store->store->get(key);
    *bytes = last_value.data();
    *length = last_value.size();
  });
}

int byol_store_check(Store* store, const char* key, int* there) {
  return guarded([&] { *there = store->store->check({key}); });
}

// Adds to a counter; tells its new value.
int byol_store_add(Store* store, const char* key, int64_t amount, int64_t* value) {
  return guarded([&] { *value = store->store->add(key, amount); });
}

// Connects all processes of the group, each listening on `address` (of this machine), or on the interface of that name.
int byol_group_gloo(
    const Store* store, int rank, int world, const char* address, int is_interface, int64_t timeout_ms, Group** out) {
  return guarded([&] {
    // c10d notes every collective, with a stack trace, in a list that nobody reads here and that two groups of a process
    // would write at the same time without a lock.
    [[maybe_unused]] static const bool quiet =
        (c10::utils::set_env("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/false), true);
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->devices = {
        is_interface ? c10d::ProcessGroupGloo::createDeviceForInterface(address)
                     : c10d::ProcessGroupGloo::createDeviceForHostname(address)};
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("gloo", store->store);
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, world, options);
    auto group = c10::make_intrusive<Processes>(store->store, rank, world);
    group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    *out = new Group{group};
  });
}

void byol_group_free(Group* group) { delete group; }

// CUDA tensors go over `nccl`, see nccl.cpp, which is handed over; those of the CPU still over Gloo.
int byol_group_add_nccl(Group* group, c10d::Backend* nccl) {
  return guarded([&] {
    auto backend = c10::intrusive_ptr<c10d::Backend>::reclaim(nccl);
    group->group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, backend);
  });
}

// What its watchdog thread has found: 0 nothing, 1 a collective that did not end in time, else one that failed.
int byol_group_nccl_error(const Group* group, int* error) {
  return guarded([&] { *error = static_cast<int>(group->group->getBackend(c10::DeviceType::CUDA)->getError()); });
}

// Ends NCCL in this process; waits for what is queued.
int byol_group_close_nccl(Group* group) {
  return guarded([&] { group->group->getBackend(c10::DeviceType::CUDA)->shutdown(); });
}

// Nanoseconds that this process has spent waiting for the others.
int64_t byol_waited(const Group* group) { return group->group->waiting().total().count(); }

// Sum over all processes, in place.
int byol_all_reduce(const Group* group, at::Tensor* tensor) {
  return guarded([&] { group->group->sum(*tensor); });
}

int byol_all_gather(const Group* group, const at::Tensor* own, at::Tensor** all) {
  return guarded([&] { *all = new at::Tensor(group->group->gather(*own)); });
}

// Rank 0's values for everyone, in place.
int byol_broadcast(const Group* group, at::Tensor* const* tensors, size_t count) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> list;
    for (size_t i = 0; i < count; ++i) list.push_back(*tensors[i]);
    c10d::broadcast_coalesced(group->group, list, 64 << 20, 0);
  });
}

// Averages the gradients of `parameters` over all processes during the backward passes announced by
// byol_reducer_prepare, in buckets of the sizes that DistributedDataParallel has.
int byol_reducer_new(const Group* group, at::Tensor* const* parameters, size_t count, c10d::Reducer** out) {
  return guarded([&] {
    std::vector<at::Tensor> list;
    for (size_t i = 0; i < count; ++i) list.push_back(*parameters[i]);
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
        list, {c10d::kDefaultFirstBucketBytes, c10d::kDefaultBucketBytesCap}));
    std::reverse(buckets.begin(), buckets.end()); // about the order in which gradients come
    const std::vector<bool> sparse(count, false);
    *out = new c10d::Reducer(
        list, buckets, group->group, sparse, c10d::kDefaultBucketBytesCap, false, true, {},
        c10d::kDefaultFirstBucketBytes, false, false, {});
  });
}

// The next backward pass is to average. One that is not announced adds up in this process alone. After the first
// averaged one the buckets are rearranged in the order in which gradients came.
int byol_reducer_prepare(const Group* group, c10d::Reducer* reducer) {
  return guarded([&] {
    group->group->waiting().settle();
    reducer->rebuild_buckets();
    reducer->prepare_for_backward({});
  });
}

void byol_reducer_free(c10d::Reducer* reducer) { delete reducer; }

int byol_sync_batch_norm(
    const Group* group, const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias,
    const at::Tensor* running_mean, const at::Tensor* running_var, double momentum, double eps, at::Tensor** y) {
  return guarded([&] {
    *y = new at::Tensor(
        SyncBatchNorm::apply(*x, *weight, *bias, *running_mean, *running_var, momentum, eps, group->group));
  });
}
}
