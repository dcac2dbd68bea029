// The action expert's queries, keys and values: RMSNorm, projection and rotary embedding.
//
// In: x * (1 + scale) of up to 64 rows, K = 1024, linear order, e4m3 (times a static inverse scale) or bf16; what is left of the
// norm, 1 / rms of the row from 32 partial sums of squares, is applied to the product.
// out = (fragments W) * column_scale * activation_scale / rms + bias, where bias = shift W comes from a table of the flow step,
// or of flow time 0 for frozen rows.
// Then q and k are rotated by position *length + row, and q is multiplied by 1/16.
// q: bf16, the fragments of mma.m16n8k16 over the flat rows head * rows + row: [flat row / 16][16 steps][lane][16 bytes].
// k, v: bf16 [64][256]. Rows from `rows` on are not written.
//
// 80 blocks of 32 columns: 16 dimensions and their 16 rotary partners (+ 128) of one head, in tiles of 8 that alternate
// between the two, so that a thread holds both of a pair. Heads 0..7 are q, 8 is k, 9 is v.
#pragma once
#include "expert_norm.cuh"

constexpr int QKV_COLUMNS = 32, QKV_SLICES = DIM / QKV_COLUMNS, HALF = DIM / 2;

// What of this thread's two rows and two dimensions is the same in all layers: cosines and sines, and where results go.
struct QkvPlace {
  float2 angles[2][2];
  uint32_t* target[2];  // of the lower dimensions; null beyond the last row
  int apart, half;      // words between lower and higher dimensions, and in half of the buffer
  __device__ QkvPlace(const Arguments& a) {
    const int thread = threadIdx.x % 128, head = blockIdx.x / QKV_SLICES;
    const int dim = blockIdx.x % QKV_SLICES * 16 + threadIdx.x / 128 * 8 + thread % 4 * 2;
    apart = head < HEADS ? HALF / 16 * 32 * 4 : HALF / 2;
    half = (head < HEADS ? HEADS : 1) * ROWS * DIM / 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int row = thread / 32 * 16 + i * 8 + thread % 32 / 4, flat = head * a.rows + row;
      int lane = flat % 8 * 4 + dim % 8 / 2, reg = dim % 16 / 8 * 2 + flat % 16 / 8;
      target[i] = head < HEADS ? a.queries + ((flat / 16 * (DIM / 16) + dim / 16) * 32 + lane) * 4 + reg
                               : (head == HEADS ? a.keys : a.values) + (row * DIM + dim) / 2;
      if (row >= a.rows) target[i] = nullptr;
#pragma unroll
      for (int j = 0; j < 2; j++) angles[i][j] = a.rotary[(size_t)(*a.length + row) * HALF + dim + j];
    }
  }
  __device__ void reset(int number) const {
    const int other = (~number & 1) * half;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (target[i]) set_pending(target[i] + other), set_pending(target[i] + other + apart);
  }
};

// resets: whether to reset the other half, too.
template <class P>
__device__ __forceinline__ void project_qkv(const Arguments& a, int layer, Stream& stream, Exchange& exchange,
                                            Squares& squares, int place, const QkvPlace& own, const Modulated& frozen, int first,
                                            bool resets) {
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, number = first + layer;
  const int head = blockIdx.x / QKV_SLICES;
  const int column = layer * QKV_BLOCKS * QKV_COLUMNS + blockIdx.x * QKV_COLUMNS + group * 16 + thread % 4 * 2;
  float2 scale[2], shift[2][2];  // shift: [row][columns]
#pragma unroll
  for (int i = 0; i < 2; i++) {
    scale[i] = *reinterpret_cast<const float2*>(a.qkv.scale + column + i * 8);
    const int row = thread / 32 * 16 + i * 8 + thread % 32 / 4;
    const float* bias = a.qkv_bias + frozen.offset(row, a.layers * QKV_BLOCKS * QKV_COLUMNS) + column;
#pragma unroll
    for (int j = 0; j < 2; j++) shift[i][j] = *reinterpret_cast<const float2*>(bias + j * 8);
  }
  const float activation = a.scales[layer * 4];
  float accumulator[QKV_COLUMNS / 2];
  multiply_normed<P, QKV_COLUMNS>(accumulator, a.normed_qkv, place, number, stream, squares);
  STAMP(a, layer, 1);
  float values[QKV_COLUMNS / 4];
  add_groups(values, accumulator, exchange);
  uint32_t pairs[2][2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float factor = inverse_rms(squares, thread / 32 * 16 + i * 8 + thread % 32 / 4) * activation;
    float low[2], high[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      low[j] = values[i * 2 + j] * factor * (&scale[0].x)[j] + (&shift[i][0].x)[j];
      high[j] = values[4 + i * 2 + j] * factor * (&scale[1].x)[j] + (&shift[i][1].x)[j];
      if (head <= HEADS) {
        float2 angle = own.angles[i][j];
        float first = low[j], second = high[j], gain = head < HEADS ? 1.0f / 16 : 1.0f;
        low[j] = (first * angle.x - second * angle.y) * gain;
        high[j] = (second * angle.x + first * angle.y) * gain;
      }
    }
    pairs[i][0] = pack_bf16(low[0], low[1]);
    pairs[i][1] = pack_bf16(high[0], high[1]);
  }
  const int mine = (number & 1) * own.half;
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (own.target[i]) put(own.target[i] + mine, pairs[i][0]), put(own.target[i] + mine + own.apart, pairs[i][1]);
  if (resets) own.reset(number);
#ifdef KEEPS
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int row = thread / 32 * 16 + i * 8 + thread % 32 / 4;
    const int dim = blockIdx.x % QKV_SLICES * 16 + group * 8 + thread % 4 * 2;
    if (row >= a.rows) continue;
    uint32_t* target = a.kept.queries + ((layer * ROWS + row) * HEADS * DIM + head * DIM + dim) / 2;
    if (head >= HEADS)
      target = (head == HEADS ? a.kept.keys : a.kept.values) + (((size_t)layer * a.capacity + *a.length + row) * DIM + dim) / 2;
    const __nv_bfloat162 gain = __float2bfloat162_rn(head < HEADS ? 16.0f : 1.0f);  // exact
    *reinterpret_cast<__nv_bfloat162*>(target) = __hmul2(reinterpret_cast<__nv_bfloat162&>(pairs[i][0]), gain);
    *reinterpret_cast<__nv_bfloat162*>(target + HALF / 2) = __hmul2(reinterpret_cast<__nv_bfloat162&>(pairs[i][1]), gain);
  }
#endif
  STAMP(a, layer, 2);
}
