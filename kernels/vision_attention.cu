// Full attention inside each image, all keys of a head in shared memory (SigLIP: 256 tokens, 16 heads of 72).
// Architectures: 80 86 89 90a 100 110 120
//
// qkv is the raw output [views * TOKENS, 3 * HEADS * DIM] of the QKV product; real values are qkv * channel_scale + bias
// (channel_scale may be null). out is bf16 [views * TOKENS, HEADS * DIM], or with FP8 e4m3(value * inverse_scale).
// softmax(q k^T / sqrt(DIM)) v; logits and softmax in fp32, probabilities rounded to bf16 for the product with v and summed
// before that rounding.
// grid (TOKENS / 64, HEADS, views), 128 threads: each warp owns 16 queries and sees all keys. Shared memory:
// (2 * TOKENS + 64) * STRIDE bf16. DIM is a multiple of 8 and is padded with zeros to a multiple of 16.
#include "mma.cuh"

#ifndef TOKENS
#define TOKENS 256
#endif
#ifndef HEADS
#define HEADS 16
#endif
#ifndef DIM
#define DIM 72
#endif
#ifndef FP8
#define FP8 0
#endif

constexpr int PADDED = (DIM + 15) / 16 * 16;
constexpr int STRIDE = PADDED + 8;  // an odd number of 16-byte groups: ldmatrix without bank conflicts
constexpr int WIDTH = HEADS * DIM;
constexpr int CHUNK = 128;          // keys whose logits a warp holds at once
constexpr int KEY_TILES = CHUNK / 8;
constexpr int DIM_TILES = PADDED / 8;

// Copy `rows` rows of one head into shared memory in real units, zero beyond DIM.
__device__ __forceinline__ void load_head(bf16* target, const bf16* source, const float* channel_scale, const float* bias,
                                          int column, int rows) {
  constexpr int GROUPS = PADDED / 8;
  for (int i = threadIdx.x; i < rows * GROUPS; i += blockDim.x) {
    int row = i / GROUPS, d = i % GROUPS * 8;
    Float8 x = {};
    if (d < DIM) {
      x = load_bf16x8(source + (size_t)row * 3 * WIDTH + column + d);
      Float8 b = load_float8(bias + column + d);
      if (channel_scale) {
        Float8 s = load_float8(channel_scale + column + d);
#pragma unroll
        for (int j = 0; j < 8; j++) x.v[j] *= s.v[j];
      }
#pragma unroll
      for (int j = 0; j < 8; j++) x.v[j] += b.v[j];
    }
    store(target + row * STRIDE + d, x);
  }
}

struct Softmax {
  float top[2], sum[2];  // of the two rows that a thread holds parts of; logits are in units of log2(e)
};

// logits[CHUNK] of 16 queries against keys starting at `first`.
__device__ __forceinline__ void multiply_keys(float (&logits)[KEY_TILES][4], const bf16* queries, const bf16* keys, int lane) {
#pragma unroll
  for (int t = 0; t < KEY_TILES; t++) logits[t][0] = logits[t][1] = logits[t][2] = logits[t][3] = 0;
#pragma unroll
  for (int k = 0; k < PADDED; k += 16) {
    uint32_t a[4];
    load_matrices(a, queries + (lane % 16) * STRIDE + k + lane / 16 * 8);
#pragma unroll
    for (int t = 0; t < KEY_TILES; t += 2) {
      uint32_t b[4];
      load_matrices(b, keys + (t * 8 + lane / 16 * 8 + lane % 8) * STRIDE + k + lane / 8 % 2 * 8);
      mma(logits[t], a, b[0], b[1]);
      mma(logits[t + 1], a, b[2], b[3]);
    }
  }
}

// Turn logits into unnormalised probabilities against the running maximum; rescale what was accumulated before.
__device__ __forceinline__ void exponentiate(float (&logits)[KEY_TILES][4], float (&out)[DIM_TILES][4], Softmax& state) {
  const float scale = rsqrtf((float)DIM) * 1.4426950408889634f;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float top = state.top[half];
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++) top = fmaxf(top, scale * fmaxf(logits[t][2 * half], logits[t][2 * half + 1]));
    top = quad_max(top);
    float correction = exp2f(state.top[half] - top), sum = 0;
#pragma unroll
    for (int t = 0; t < KEY_TILES; t++) {
#pragma unroll
      for (int j = 2 * half; j < 2 * half + 2; j++) sum += logits[t][j] = exp2f(scale * logits[t][j] - top);
    }
    state.sum[half] = state.sum[half] * correction + sum;
    state.top[half] = top;
#pragma unroll
    for (int t = 0; t < DIM_TILES; t++) out[t][2 * half] *= correction, out[t][2 * half + 1] *= correction;
  }
}

__device__ __forceinline__ void multiply_values(float (&out)[DIM_TILES][4], const float (&p)[KEY_TILES][4],
                                                const bf16* values, int lane) {
#pragma unroll
  for (int t = 0; t < KEY_TILES; t += 2) {
    uint32_t a[4] = {pack_bf16(p[t][0], p[t][1]), pack_bf16(p[t][2], p[t][3]), pack_bf16(p[t + 1][0], p[t + 1][1]),
                     pack_bf16(p[t + 1][2], p[t + 1][3])};
#pragma unroll
    for (int d = 0; d < DIM_TILES; d += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, values + (t * 8 + lane % 16) * STRIDE + d * 8 + lane / 16 * 8);
      mma(out[d], a, b[0], b[1]);
      mma(out[d + 1], a, b[2], b[3]);
    }
  }
}

#if FP8
using Output = __nv_fp8_e4m3;
__device__ __forceinline__ void store_pair(Output* target, float a, float b, float inverse_scale) {
  *reinterpret_cast<uint16_t*>(target) =
      __nv_cvt_float2_to_fp8x2(make_float2(a * inverse_scale, b * inverse_scale), __NV_SATFINITE, __NV_E4M3);
}
#else
using Output = bf16;
__device__ __forceinline__ void store_pair(Output* target, float a, float b, float) {
  *reinterpret_cast<uint32_t*>(target) = pack_bf16(a, b);
}
#endif

extern "C" __global__ void __launch_bounds__(128)
    vision_attention(const bf16* qkv, const float* channel_scale, const float* bias, Output* out, float inverse_scale) {
  extern __shared__ __align__(128) uint8_t shared[];
  bf16* keys = reinterpret_cast<bf16*>(shared);
  bf16* values = keys + TOKENS * STRIDE;
  bf16* queries = values + TOKENS * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
  size_t image = (size_t)blockIdx.z * TOKENS, first = image + blockIdx.x * 64;
  wait_for_predecessor();
  release_successor();
  load_head(keys, qkv + image * 3 * WIDTH, channel_scale, bias, WIDTH + head * DIM, TOKENS);
  load_head(queries, qkv + first * 3 * WIDTH, channel_scale, bias, head * DIM, 64);
  load_head(values, qkv + image * 3 * WIDTH, channel_scale, bias, 2 * WIDTH + head * DIM, TOKENS);
  __syncthreads();

  float result[DIM_TILES][4] = {};
  Softmax state = {{-INFINITY, -INFINITY}, {0, 0}};
#pragma unroll 1
  for (int chunk = 0; chunk < TOKENS; chunk += CHUNK) {
    float logits[KEY_TILES][4];
    multiply_keys(logits, queries + warp * 16 * STRIDE, keys + chunk * STRIDE, lane);
    exponentiate(logits, result, state);
    multiply_values(result, logits, values + chunk * STRIDE, lane);
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float factor = 1.0f / quad_sum(state.sum[half]);
    Output* row = out + (first + warp * 16 + lane / 4 + half * 8) * WIDTH + head * DIM;
#pragma unroll
    for (int t = 0; t < DIM / 8; t++)
      store_pair(row + t * 8 + lane % 4 * 2, result[t][2 * half] * factor, result[t][2 * half + 1] * factor, inverse_scale);
  }
}
