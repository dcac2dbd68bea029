// The action expert's MLP up to its hidden layer: RMSNorm, gate and up projections and GELU.
//
// fragments, statistics, column_scale, activation_scale and bias as in expert_qkv.cuh, K = 1024.
// hidden = gelu_tanh(gate) * up of 4096 columns, as fragments in accumulator order: bf16, or e4m3 of hidden * inverse_scale,
// saturated. Row tiles of 16 beyond the last of `rows` are not written.
//
// 128 blocks of 32 hidden columns: 64 weight columns, in tiles of 8 gates and the 8 ups that belong to them, so that a thread
// holds both, and so that its accumulators are, in place, a fragment of the next product.
#pragma once
#include "expert_norm.cuh"

constexpr int GATE_UP_COLUMNS = 64;

// gelu_tanh(x) = x * sigmoid(2 u) = x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3). In 8 bits with the hardware's tanh,
// which is wrong by 2^-11.
template <class P>
__device__ __forceinline__ float gated(float gate, float up) {
  float u = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
  if constexpr (P::SIZE == 1) {
    float tanh;
    asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(u));
    const float half = 0.5f * gate * up;
    return fmaf(half, tanh, half);
  }
  return __fdividef(gate, 1.0f + __expf(-2.0f * u)) * up;
}

// One thread's hidden values: two neighbouring columns of two tiles, of two rows (half).
struct Hidden {
  float v[2][2][2];  // [tile][half][column]
};

// Where in one half of the buffer this thread's values go.
__device__ __forceinline__ uint2* hidden_place(Fp8, uint32_t* fragments, int number) {
  return reinterpret_cast<uint2*>(fragments) + (number & 1) * (ROWS * MLP / 8) +
         (blockIdx.x * STEP_FRAGMENTS + threadIdx.x % 128) * 2 + threadIdx.x / 128;
}
__device__ __forceinline__ uint4* hidden_place(Bf16, uint32_t* fragments, int number) {
  return reinterpret_cast<uint4*>(fragments) + (number & 1) * (ROWS * MLP / 8) +
         (blockIdx.x * 2 + threadIdx.x / 128) * STEP_FRAGMENTS + threadIdx.x % 128;
}
__device__ __forceinline__ uint2 packed_hidden(Fp8, const Hidden& h) {
  return make_uint2(e4m3x4(h.v[0][0][0], h.v[0][0][1], h.v[1][0][0], h.v[1][0][1]),
                    e4m3x4(h.v[0][1][0], h.v[0][1][1], h.v[1][1][0], h.v[1][1][1]));
}
__device__ __forceinline__ uint4 packed_hidden(Bf16, const Hidden& h) {
  return make_uint4(pack_bf16(h.v[0][0][0], h.v[0][0][1]), pack_bf16(h.v[0][1][0], h.v[0][1][1]),
                    pack_bf16(h.v[1][0][0], h.v[1][0][1]), pack_bf16(h.v[1][1][0], h.v[1][1][1]));
}

template <class P>
__device__ __forceinline__ void reset_hidden(const Arguments& a, int number) {
  if (threadIdx.x % 128 / 32 * 16 < a.rows) set_pending(hidden_place(typename P::Down(), a.hidden, number + 1));
}

template <class P>
__device__ __forceinline__ void gate_up(const Arguments& a, int layer, Stream& stream, Exchange& exchange, Squares& squares,
                                        int place, const Modulated& frozen, int first) {
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, number = first + layer;
  const int column = (layer * BLOCKS + blockIdx.x) * GATE_UP_COLUMNS + group * 32 + thread % 4 * 2;
  float2 scale[4], shift[2][4];  // shift: [row][columns]
#pragma unroll
  for (int i = 0; i < 4; i++) scale[i] = *reinterpret_cast<const float2*>(a.gate_up.scale + column + i * 8);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = thread / 32 * 16 + half * 8 + thread % 32 / 4;
    const float* bias = a.gate_up_bias + frozen.offset(row, a.layers * BLOCKS * GATE_UP_COLUMNS) + column;
#pragma unroll
    for (int i = 0; i < 4; i++) shift[half][i] = *reinterpret_cast<const float2*>(bias + i * 8);
  }
  const float activation = a.scales[layer * 4 + 2], inverse = a.scales[(a.layers + layer) * 4 + 3];
  float accumulator[GATE_UP_COLUMNS / 2];
  multiply_normed<P, GATE_UP_COLUMNS>(accumulator, a.normed_gate_up, place, number, stream, squares);
  STAMP(a, layer, 10);
  float values[GATE_UP_COLUMNS / 4];
  add_groups(values, accumulator, exchange);
  if (thread / 32 * 16 >= a.rows) return;

#ifdef KEEPS
  float raw[2][4][2];  // [row][gates and ups of two tiles][column]
#endif
  Hidden result;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float factor = inverse_rms(squares, thread / 32 * 16 + half * 8 + thread % 32 / 4) * activation;
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float gate = values[8 * tile + half * 2 + j] * factor * (&scale[2 * tile].x)[j] + (&shift[half][2 * tile].x)[j];
        float up = values[8 * tile + 4 + half * 2 + j] * factor * (&scale[2 * tile + 1].x)[j] + (&shift[half][2 * tile + 1].x)[j];
        result.v[tile][half][j] = gated<P>(gate, up) * inverse;
#ifdef KEEPS
        raw[half][tile][j] = gate, raw[half][2 + tile][j] = up;
#endif
      }
  }
  put(hidden_place(typename P::Down(), a.hidden, number), packed_hidden(typename P::Down(), result));
#ifdef KEEPS
#pragma unroll
  for (int part = 0; part < 2; part++) {
    const auto pair = [&](int tile, int half) { return pack_bf16(raw[half][part * 2 + tile][0], raw[half][part * 2 + tile][1]); };
    a.kept.gate_up[((layer * BLOCKS + blockIdx.x) * 2 + part) * THREADS + threadIdx.x] =
        make_uint4(pair(0, 0), pair(0, 1), pair(1, 0), pair(1, 1));
  }
#endif
  STAMP(a, layer, 11);
}
