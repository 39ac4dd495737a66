// BatchNorm of a training batch together with the residual sum and the ReLU that follow it, for values whose channels
// are innermost in memory: [rows, channels]. libtorch runs these as passes of their own over the values; two thirds of a
// ResNet-50's step in bf16 on an H100 went into them. Here the statistics read the values once, and everything after
// them reads and writes once more; the backward pass is two likewise.
//
// NVRTC compiles this for the GPU at hand, once for bf16 (BF16 = 1) and once for fp32 values (BF16 = 0); sums and
// statistics are in fp32. The tests compile it as C++, with a thread for each of CUDA's. No atomics: equal bits in every
// run.
//
// A thread has the VEC channels of one 16-byte load, `bx` threads side by side (a power of two, at most 32) have
// neighboring channels, the block's others the next rows; blockIdx.y says which channels, blockIdx.x which rows.

#if BF16
typedef unsigned short Value;
enum { VEC = 8 };
#else
typedef float Value;
enum { VEC = 4 };
#endif
enum { BATCH = 4 }; // loads in flight for each thread

// What `finish_forward` writes: [3, channels].
enum { MEAN, INVSTD, SCALE, STATISTICS };

struct Lanes {
  float of[VEC];
};

__device__ inline uint4 load(const Value* values, size_t at) { return *reinterpret_cast<const uint4*>(values + at); }

__device__ inline Lanes unpack(uint4 bits) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
  Lanes lanes;
  for (int i = 0; i < 4; i++) {
#if BF16
    lanes.of[2 * i] = __uint_as_float(words[i] << 16);
    lanes.of[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
#else
    lanes.of[i] = __uint_as_float(words[i]);
#endif
  }
  return lanes;
}

// bf16 by rounding to the nearest, ties to even; NaN stays NaN.
__device__ inline unsigned to_bf16(float value) {
  const unsigned bits = __float_as_uint(value);
  return value != value ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

__device__ inline void store(Value* values, size_t at, const Lanes& lanes) {
  unsigned words[4];
  for (int i = 0; i < 4; i++) {
#if BF16
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(lanes.of[2 * i + 1]), "f"(lanes.of[2 * i]));
#else
    words[i] = to_bf16(lanes.of[2 * i]) | to_bf16(lanes.of[2 * i + 1]) << 16;
#endif
#else
    words[i] = __float_as_uint(lanes.of[i]);
#endif
  }
  *reinterpret_cast<uint4*>(values + at) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Where a thread is: its first channel, its first row, and from one of its rows to the next.
struct Place {
  int channel;
  size_t row, step;
};

__device__ inline Place place(int bx) {
  const int by = blockDim.x / bx;
  return {VEC * int(blockIdx.y * bx + threadIdx.x % bx), size_t(blockIdx.x) * by + threadIdx.x / bx, size_t(gridDim.x) * by};
}

__device__ inline Lanes channels_of(const float* values, int channel) {
  Lanes lanes;
  for (int i = 0; i < VEC; i++) lanes.of[i] = values[channel + i];
  return lanes;
}

// Adds up two sums of each channel over the block's rows; partial is [gridDim.x, 2, channels].
__device__ inline void sum_block(const Lanes& first, const Lanes& second, float* partial, int channels, int bx) {
  __shared__ float sums[2 * VEC * BLOCK];
  const int width = bx * VEC, by = blockDim.x / bx, y = threadIdx.x / bx;
  float* own = sums + y * width + (threadIdx.x % bx) * VEC;
  for (int i = 0; i < VEC; i++) {
    own[i] = first.of[i];
    own[VEC * BLOCK + i] = second.of[i];
  }
  for (int half = by / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) {
      for (int i = 0; i < VEC; i++) {
        own[i] += own[half * width + i];
        own[VEC * BLOCK + i] += own[VEC * BLOCK + half * width + i];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int channel = blockIdx.y * width + i;
    if (channel < channels) {
      partial[(size_t(blockIdx.x) * 2) * channels + channel] = sums[i];
      partial[(size_t(blockIdx.x) * 2 + 1) * channels + channel] = sums[VEC * BLOCK + i];
    }
  }
}

// Adds the `blocks` partial sums of 32 channels; true in the thread that has those of `channel`.
__device__ inline bool sum_partials(
    const float* partial, int blocks, int channels, int& channel, float& first, float& second) {
  __shared__ float sums[2 * FINISH];
  const int y = threadIdx.x / 32, by = FINISH / 32;
  channel = blockIdx.x * 32 + threadIdx.x % 32;
  float a = 0, b = 0;
  if (channel < channels) {
#pragma unroll 4
    for (int at = y; at < blocks; at += by) {
      a += partial[(size_t(at) * 2) * channels + channel];
      b += partial[(size_t(at) * 2 + 1) * channels + channel];
    }
  }
  sums[threadIdx.x] = a;
  sums[FINISH + threadIdx.x] = b;
  for (int half = by / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) {
      sums[threadIdx.x] += sums[threadIdx.x + 32 * half];
      sums[FINISH + threadIdx.x] += sums[FINISH + threadIdx.x + 32 * half];
    }
  }
  first = sums[threadIdx.x];
  second = sums[FINISH + threadIdx.x];
  return y == 0 && channel < channels;
}

// What a forward pass did to a thread's channels.
struct Normalized {
  Lanes mean, scale, offset;
};

__device__ inline Normalized normalized(const float* statistics, const float* bias, int channels, int channel) {
  return {channels_of(statistics + MEAN * channels, channel), channels_of(statistics + SCALE * channels, channel),
          channels_of(bias, channel)};
}

// Sums of x - k and (x - k)^2, where k is the channel's first value: the variance of values far from 0 keeps its digits.
extern "C" __global__ void __launch_bounds__(BLOCK, 2) statistics(const Value* x, float* partial, size_t rows, int channels, int bx) {
  const Place at = place(bx);
  Lanes sum = {}, squares = {};
  if (at.channel < channels) {
    const Lanes k = unpack(load(x, at.channel));
    for (size_t row = at.row; row < rows; row += BATCH * at.step) {
      uint4 loaded[BATCH];
#pragma unroll
      for (int b = 0; b < BATCH; b++)
        if (row + b * at.step < rows) loaded[b] = load(x, (row + b * at.step) * channels + at.channel);
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        if (row + b * at.step >= rows) break;
        const Lanes values = unpack(loaded[b]);
        for (int i = 0; i < VEC; i++) {
          const float d = values.of[i] - k.of[i];
          sum.of[i] += d;
          squares.of[i] += d * d;
        }
      }
    }
  }
  sum_block(sum, squares, partial, channels, bx);
}

// Mean, 1 / deviation and weight / deviation of each channel; the running statistics advance, the variance unbiased.
extern "C" __global__ void __launch_bounds__(FINISH) finish_forward(
    const Value* x, const float* partial, int blocks, const float* weight, float* running_mean, float* running_var,
    float* statistics, size_t rows, int channels, float momentum, float eps) {
  int channel;
  float sum, squares;
  if (!sum_partials(partial, blocks, channels, channel, sum, squares)) return;
#if BF16
  const float k = __uint_as_float(unsigned(x[channel]) << 16);
#else
  const float k = x[channel];
#endif
  const double n = double(rows), off = sum / n, biased = squares / n - off * off;
  const double var = biased < 0 ? 0 : biased; // NaN stays
  const float mean = float(k + off), invstd = float(1 / sqrt(var + double(eps)));
  statistics[MEAN * channels + channel] = mean;
  statistics[INVSTD * channels + channel] = invstd;
  statistics[SCALE * channels + channel] = weight[channel] * invstd;
  running_mean[channel] += momentum * (mean - running_mean[channel]);
  running_var[channel] += momentum * (float(var * (n / (n - 1))) - running_var[channel]);
}

// y = relu((x - mean) * scale + bias + shortcut); the shortcut may be null, `relu` 0.
extern "C" __global__ void __launch_bounds__(BLOCK, 2) apply_forward(
    const Value* __restrict__ x, const Value* __restrict__ shortcut, Value* __restrict__ y, const float* statistics,
    const float* bias, size_t rows, int channels, int bx, int relu) {
  const Place at = place(bx);
  if (at.channel >= channels) return;
  const Normalized norm = normalized(statistics, bias, channels, at.channel);
  for (size_t row = at.row; row < rows; row += BATCH * at.step) {
    uint4 loaded[BATCH], added[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const size_t there = (row + b * at.step) * channels + at.channel;
      if (row + b * at.step < rows) {
        loaded[b] = load(x, there);
        if (shortcut) added[b] = load(shortcut, there);
      }
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      if (row + b * at.step >= rows) break;
      Lanes values = unpack(loaded[b]);
      for (int i = 0; i < VEC; i++) values.of[i] = (values.of[i] - norm.mean.of[i]) * norm.scale.of[i] + norm.offset.of[i];
      if (shortcut) {
        const Lanes more = unpack(added[b]);
        for (int i = 0; i < VEC; i++) values.of[i] += more.of[i];
      }
      if (relu)
        for (int i = 0; i < VEC; i++) values.of[i] = values.of[i] < 0 ? 0 : values.of[i]; // NaN stays
      store(y, (row + b * at.step) * channels + at.channel, values);
    }
  }
}

// The gradient before ReLU: that of y where y is not 0. y is given after a residual sum, else it is computed anew.
__device__ inline Lanes before_relu(Lanes dy, const Lanes& x, const uint4* y, const Normalized& norm) {
  Lanes output = {};
  if (y) output = unpack(*y);
  for (int i = 0; i < VEC; i++) {
    const float value = y ? output.of[i] : (x.of[i] - norm.mean.of[i]) * norm.scale.of[i] + norm.offset.of[i];
    dy.of[i] = value <= 0 ? 0 : dy.of[i];
  }
  return dy;
}

// Sums of dz and dz (x - mean), where dz is the gradient before ReLU. With `y`, dz is written, too: it is the shortcut's
// gradient. Without `relu`, dz is dy.
extern "C" __global__ void __launch_bounds__(BLOCK, 2) sum_backward(
    const Value* __restrict__ dy, const Value* __restrict__ x, const Value* __restrict__ y, Value* __restrict__ dz,
    const float* statistics, const float* bias, float* partial, size_t rows, int channels, int bx, int relu) {
  const Place at = place(bx);
  Lanes sum = {}, products = {};
  if (at.channel < channels) {
    const Normalized norm = normalized(statistics, bias, channels, at.channel);
    for (size_t row = at.row; row < rows; row += BATCH * at.step) {
      uint4 gradients[BATCH], inputs[BATCH], outputs[BATCH];
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        const size_t there = (row + b * at.step) * channels + at.channel;
        if (row + b * at.step < rows) {
          gradients[b] = load(dy, there);
          inputs[b] = load(x, there);
          if (y) outputs[b] = load(y, there);
        }
      }
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        if (row + b * at.step >= rows) break;
        const Lanes values = unpack(inputs[b]);
        Lanes gradient = unpack(gradients[b]);
        if (relu) gradient = before_relu(gradient, values, y ? &outputs[b] : nullptr, norm);
        if (y) store(dz, (row + b * at.step) * channels + at.channel, gradient);
        for (int i = 0; i < VEC; i++) {
          sum.of[i] += gradient.of[i];
          products.of[i] += gradient.of[i] * (values.of[i] - norm.mean.of[i]);
        }
      }
    }
  }
  sum_block(sum, products, partial, channels, bx);
}

// Gradients of weight and bias; the means that dx needs, [2, channels].
extern "C" __global__ void __launch_bounds__(FINISH) finish_backward(
    const float* partial, int blocks, const float* statistics, float* dweight, float* dbias, float* means, size_t rows,
    int channels) {
  int channel;
  float sum, products;
  if (!sum_partials(partial, blocks, channels, channel, sum, products)) return;
  const float invstd = statistics[INVSTD * channels + channel];
  dweight[channel] = products * invstd;
  dbias[channel] = sum;
  means[channel] = float(sum / double(rows));
  means[channels + channel] = float(products / double(rows)) * invstd * invstd;
}

// dx = scale (dz - mean dz - (x - mean) mean(dz (x - mean)) / variance). With `relu`, dz is dy before ReLU; else dy.
extern "C" __global__ void __launch_bounds__(BLOCK, 2) apply_backward(
    const Value* __restrict__ dy, const Value* __restrict__ x, Value* __restrict__ dx, const float* statistics,
    const float* bias, const float* means, size_t rows, int channels, int bx, int relu) {
  const Place at = place(bx);
  if (at.channel >= channels) return;
  const Normalized norm = normalized(statistics, bias, channels, at.channel);
  const Lanes first = channels_of(means, at.channel), second = channels_of(means + channels, at.channel);
  for (size_t row = at.row; row < rows; row += BATCH * at.step) {
    uint4 gradients[BATCH], inputs[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const size_t there = (row + b * at.step) * channels + at.channel;
      if (row + b * at.step < rows) {
        gradients[b] = load(dy, there);
        inputs[b] = load(x, there);
      }
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      if (row + b * at.step >= rows) break;
      const Lanes values = unpack(inputs[b]);
      Lanes gradient = unpack(gradients[b]);
      if (relu) gradient = before_relu(gradient, values, nullptr, norm);
      for (int i = 0; i < VEC; i++) {
        const float off = values.of[i] - norm.mean.of[i];
        gradient.of[i] = norm.scale.of[i] * (gradient.of[i] - first.of[i] - off * second.of[i]);
      }
      store(dx, (row + b * at.step) * channels + at.channel, gradient);
    }
  }
}
