// Operations on many tensors at once: on a GPU a few launches in place of one for each tensor (PyTorch's `_foreach_*`
// and `_fused_*` operators). Lists are arrays of pointers to tensors.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/stack.h>
#include <vector>
#include "guarded.h"

namespace {
std::vector<at::Tensor> list(at::Tensor* const* tensors, size_t n) {
  std::vector<at::Tensor> all;
  all.reserve(n);
  for (size_t i = 0; i < n; i++) all.push_back(*tensors[i]);
  return all;
}
} // namespace

extern "C" {

// out[i] = new tensor a[i] + alpha b[i]
int byol_foreach_sum(at::Tensor* const* a, at::Tensor* const* b, size_t n, double alpha, at::Tensor** out) {
  return guarded([&] {
    auto sums = at::_foreach_add(list(a, n), list(b, n), alpha);
    for (size_t i = 0; i < n; i++) out[i] = new at::Tensor(std::move(sums[i]));
  });
}

// The L2 norms as one new tensor [n].
int byol_foreach_norm(at::Tensor* const* tensors, size_t n, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(at::stack(at::_foreach_norm(list(tensors, n), 2))); });
}

// a[i] *= factor, one number on the device for all of them
int byol_foreach_scale(at::Tensor* const* tensors, size_t n, const at::Tensor* factor) {
  return guarded([&] { at::_foreach_mul_(list(tensors, n), *factor); });
}

// a[i] = lerp(a[i], b[i], weight), the weight read on the host.
int byol_foreach_lerp(at::Tensor* const* a, at::Tensor* const* b, size_t n, const at::Tensor* weight) {
  return guarded([&] { at::_foreach_lerp_(list(a, n), list(b, n), weight->item()); });
}

// The same with the weight on the device, for which `lerp` has no operator for many tensors: a step of SGD in one pass,
// a - (-weight) (b + (-1) a).
int byol_fused_lerp(at::Tensor* const* a, at::Tensor* const* b, size_t n, const at::Tensor* weight) {
  return guarded([&] {
    at::_fused_sgd_(list(a, n), list(b, n), {}, /*weight_decay=*/-1, /*momentum=*/0, weight->neg(), /*dampening=*/0,
                    /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false);
  });
}

int byol_fused_sgd(at::Tensor* const* weights, at::Tensor* const* gradients, at::Tensor* const* momenta, size_t n,
                   const at::Tensor* lr, double weight_decay, double momentum, int nesterov) {
  return guarded([&] {
    // The operator refuses momenta that it has no use for.
    at::_fused_sgd_(list(weights, n), list(gradients, n), list(momenta, momentum == 0 ? 0 : n), weight_decay, momentum, *lr,
                    /*dampening=*/0, nesterov != 0, /*maximize=*/false, /*is_first_step=*/false);
  });
}

// `count`: updates with this one, on the device.
int byol_fused_adamw(at::Tensor* const* weights, at::Tensor* const* gradients, at::Tensor* const* first,
                     at::Tensor* const* second, size_t n, const at::Tensor* count, const at::Tensor* lr, double beta1,
                     double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::_fused_adamw_(list(weights, n), list(gradients, n), list(first, n), list(second, n), {},
                      std::vector<at::Tensor>(n, *count), *lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  });
}
}
