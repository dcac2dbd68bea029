// Sum of a product's parts, residual update and LayerNorm in one pass over a row; one block a row.
// Architectures: 80 86 89 90a 100 110 120
//
//   r   = residual[row] + (sums[0][row] + ... + sums[PARTS - 1][row]) * channel_scale + bias
//   y   = (r - mean(r)) / sqrt(variance(r) + 1e-6)
//   out = bf16(y), or with FP8 y * inverse_scale in e4m3 (INT8: as integers), saturating
//
// r is kept in fp32 and written back to residual, so rounding does not accumulate over layers. With START it begins at
// start[row % start_rows] instead. sums bf16 [PARTS, rows, WIDTH] is the raw output of the preceding product, cut along K;
// channel_scale and bias may be null. The affine weights of LayerNorm are folded into the next product.
//
// Whatever the predecessor did not write is loaded before it has finished, and all loads of a row are under way before the
// first is used. WIDTH is a multiple of 4; 32 * WARPS threads, WARPS at most WIDTH / 128 rounded up; grid rows.
// Roofline: 16 KB a row with 4 parts, 1.1 us for 512 rows out of the second-level cache; latency decides.
#include "common.cuh"

#ifndef WIDTH
#define WIDTH 1152
#endif
#ifndef PARTS
#define PARTS 1
#endif
#ifndef START
#define START 0
#endif
#ifndef WARPS
#define WARPS 3
#endif

constexpr int THREADS = 32 * WARPS;
constexpr int VECTORS = (WIDTH / 4 + THREADS - 1) / THREADS;  // of four columns, a thread
constexpr bool WHOLE = WIDTH % (4 * THREADS) == 0;            // every thread has all its vectors
constexpr float EPSILON = 1e-6f;

__device__ __forceinline__ int column_of(int vector) { return (vector * THREADS + threadIdx.x) * 4; }
__device__ __forceinline__ bool inside(int vector) { return WHOLE || column_of(vector) < WIDTH; }

__device__ __forceinline__ float4 load4(const float* row, int vector, float otherwise) {
  if (row && inside(vector)) return *reinterpret_cast<const float4*>(row + column_of(vector));
  return make_float4(otherwise, otherwise, otherwise, otherwise);
}

__device__ __forceinline__ uint2 load4(const bf16* row, int vector) {
  return inside(vector) ? *reinterpret_cast<const uint2*>(row + column_of(vector)) : make_uint2(0, 0);
}

__device__ __forceinline__ float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// x + real * scale
__device__ __forceinline__ float4 add_scaled(float4 x, uint2 raw, float4 scale) {
  float2 a = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&raw.x));
  float2 b = __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&raw.y));
  return make_float4(x.x + a.x * scale.x, x.y + a.y * scale.y, x.z + b.x * scale.z, x.w + b.y * scale.w);
}

__device__ __forceinline__ float4 subtract(float4 x, float y) { return make_float4(x.x - y, x.y - y, x.z - y, x.w - y); }
__device__ __forceinline__ float sum(float4 x) { return (x.x + x.y) + (x.z + x.w); }
__device__ __forceinline__ float4 square(float4 x) { return make_float4(x.x * x.x, x.y * x.y, x.z * x.z, x.w * x.w); }

__device__ __forceinline__ void store4(bf16* target, float4 y, float factor) {
  __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(y.x * factor, y.y * factor), __floats2bfloat162_rn(y.z * factor, y.w * factor)};
  *reinterpret_cast<uint2*>(target) = *reinterpret_cast<uint2*>(pairs);
}

__device__ __forceinline__ void store4(Narrow* target, float4 y, float factor) {
  *reinterpret_cast<uint32_t*>(target) = narrow_x4(y.x * factor, y.y * factor, y.z * factor, y.w * factor);
}

struct Moments {
  float count, mean, squares;  // squares: sum of squared distances from the mean
};

__device__ __forceinline__ Moments warp_moments(const float4 (&x)[VECTORS]) {
  Moments own = {};
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    own.count += 4 * min(32, max(0, WIDTH / 4 - i * THREADS - (int)threadIdx.x / 32 * 32));
    own.mean += sum(x[i]);
  }
  own.mean = warp_sum(own.mean) / own.count;
#pragma unroll
  for (int i = 0; i < VECTORS; i++)
    if (inside(i)) own.squares += sum(square(subtract(x[i], own.mean)));
  own.squares = warp_sum(own.squares);
  return own;
}

// Of the row that the block holds; those of its warps are joined as in Chan, Golub and LeVeque (1979).
__device__ __forceinline__ Moments block_moments(const float4 (&x)[VECTORS]) {
  __shared__ Moments warps[WARPS];
  Moments own = warp_moments(x), all = {WIDTH};
  if (WARPS == 1) return own;
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < WARPS; w++) all.mean += warps[w].mean * warps[w].count / WIDTH;
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    float distance = warps[w].mean - all.mean;
    all.squares += warps[w].squares + warps[w].count * distance * distance;
  }
  return all;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm(float* residual, const float* start, int start_rows, const bf16* sums, const float* channel_scale,
               const float* bias, Output* out, float inverse_scale) {
  size_t row = blockIdx.x, rows = gridDim.x;
  float4 x[VECTORS], scale[VECTORS], shift[VECTORS];
  uint2 parts[PARTS][VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; i++) scale[i] = load4(channel_scale, i, 1), shift[i] = load4(bias, i, 0);
  wait_for_predecessor();
#pragma unroll
  for (int i = 0; i < VECTORS; i++) x[i] = load4(START ? start + row % start_rows * WIDTH : residual + row * WIDTH, i, 0);
#pragma unroll
  for (int p = 0; p < PARTS; p++)
#pragma unroll
    for (int i = 0; i < VECTORS; i++) parts[p][i] = load4(sums + (p * rows + row) * WIDTH, i);
  release_successor();  // not earlier: it fetches weights, which would delay these loads
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    x[i] = add(x[i], shift[i]);
#pragma unroll
    for (int p = 0; p < PARTS; p++) x[i] = add_scaled(x[i], parts[p][i], scale[i]);
    if (inside(i)) *reinterpret_cast<float4*>(residual + row * WIDTH + column_of(i)) = x[i];
  }
  Moments moments = block_moments(x);
  float factor = rsqrtf(moments.squares / WIDTH + EPSILON) * (FP8 ? inverse_scale : 1.0f);
#pragma unroll
  for (int i = 0; i < VECTORS; i++)
    if (inside(i)) store4(out + row * WIDTH + column_of(i), subtract(x[i], moments.mean), factor);
}
