// How observations become rows: image patches, and the first residual of the language tower.
// Architectures: 80 86 89 90a 100 110 120
//
//   patches: images float [views, 3, SIZE, SIZE] in [-1, 1] -> out bf16 [views * (SIZE / PATCH)^2, COLUMNS]
//     Column c of a patch is (channel, y, x) in the order of a convolution weight [3, PATCH, PATCH]; columns from 3 * PATCH^2
//     on are zero. Values are 255 times the normalised pixel (2 * byte - 255, exact in bf16); the weights carry the 1 / 255.
//     One block a patch. Camera frames take another way, preprocess.cu; this one is for images that are prepared already.
//
//   prefix_embedding: residual fp32 [rows, WIDTH] of the language tower, and its first RMSNorm. Row r < image_rows is
//     projected[r] * projected_scale + bias; later rows are sqrt(WIDTH) * table[tokens[r - image_rows]]. out is
//     bf16(normalised), or with FP8 e4m3(normalised * inverse_scale). projected_scale may be null. One block a row of
//     WIDTH / 8 threads rounded up to whole warps. Tokens must lie in the table.
#include "common.cuh"

#ifndef SIZE
#define SIZE 224
#endif
#ifndef PATCH
#define PATCH 14
#endif
#ifndef COLUMNS
#define COLUMNS 592
#endif
#ifndef WIDTH
#define WIDTH 2048
#endif

constexpr int GRID = SIZE / PATCH;
constexpr float EPSILON = 1e-6f;

// The pixel that column c of patch p shows: view, channel, y and x.
struct Pixel {
  int view, channel, y, x;
};

__device__ __forceinline__ Pixel locate(int patch, int column) {
  int inside = column % (PATCH * PATCH), index = patch % (GRID * GRID);
  return {patch / (GRID * GRID), column / (PATCH * PATCH), index / GRID * PATCH + inside / PATCH,
          index % GRID * PATCH + inside % PATCH};
}

extern "C" __global__ void patches(const float* images, bf16* out) {
  wait_for_predecessor();
  release_successor();
  for (int c = threadIdx.x; c < COLUMNS; c += blockDim.x) {
    float value = 0;
    if (c < 3 * PATCH * PATCH) {
      Pixel p = locate(blockIdx.x, c);
      value = 255.0f * images[(((size_t)p.view * 3 + p.channel) * SIZE + p.y) * SIZE + p.x];
    }
    out[(size_t)blockIdx.x * COLUMNS + c] = __float2bfloat16(value);
  }
}

extern "C" __global__ void __launch_bounds__((WIDTH / 8 + 31) / 32 * 32)
    prefix_embedding(const bf16* projected, const float* projected_scale, const float* bias, int image_rows,
                     const int* tokens, const bf16* table, float* residual, Output* out, float inverse_scale) {
  wait_for_predecessor();
  release_successor();
  int row = blockIdx.x, column = threadIdx.x * 8;
  bool active = column < WIDTH;
  Float8 x = {};
  if (active && row < image_rows) {
    x = load_bf16x8(projected + (size_t)row * WIDTH + column);
    Float8 b = load_float8(bias + column);
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] = x.v[i] * (projected_scale ? projected_scale[column + i] : 1.0f) + b.v[i];
  } else if (active) {
    x = load_bf16x8(table + (size_t)tokens[row - image_rows] * WIDTH + column);
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] *= sqrtf((float)WIDTH);
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) squares += x.v[i] * x.v[i];
  float factor = rsqrtf(block_sum(squares) / WIDTH + EPSILON) * (FP8 ? inverse_scale : 1.0f);
  if (!active) return;
  float* target = residual + (size_t)row * WIDTH + column;
  *reinterpret_cast<float4*>(target) = *reinterpret_cast<float4*>(x.v);
  *reinterpret_cast<float4*>(target + 4) = *reinterpret_cast<float4*>(x.v + 4);
#pragma unroll
  for (int i = 0; i < 8; i++) x.v[i] *= factor;
  store(out + (size_t)row * WIDTH + column, x);
}
