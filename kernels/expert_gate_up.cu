// The action expert's MLP up to its hidden layer: RMSNorm, gate and up projections and GELU in one kernel.
// Architectures: 90a
//
// fragments, statistics, column_scale, activation_scale and bias as in expert_qkv.cu, K = 1024.
// hidden = gelu_tanh(gate) * up of 4096 columns, written as fragments in accumulator order: bf16, or e4m3 of hidden *
// *inverse_scale, saturated. Row tiles of 16 beyond the last of `rows` are not written.
//
// 128 blocks of 32 hidden columns: 64 weight columns, in tiles of 8 gates and the 8 ups that belong to them, so that a thread
// holds both, and so that its accumulators are, in place, a fragment of the next product.
// Bytes: 8.4 MB of fp8 weights (2.8 us at 3 TB/s), 128 x 64 KB of activations from L2.
#include "expert_common.cuh"

constexpr int COLUMNS = 64;

struct Shared {
  float4 exchange[2][4][128];
  float squares[THREADS];
  uint64_t barrier;
};

// gelu_tanh(x) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ __forceinline__ float gated(float gate, float up) {
  float u = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
  return __fdividef(gate, 1.0f + __expf(-2.0f * u)) * up;
}

// One thread's hidden values: two neighbouring columns of two tiles, of two rows (half).
struct Hidden {
  float v[2][2][2];  // [tile][half][column]
};

__device__ __forceinline__ void store_hidden(Fp8, uint4* fragments, int thread, int group, const Hidden& h) {
  uint2* target = reinterpret_cast<uint2*>(fragments + blockIdx.x * STEP_FRAGMENTS + thread) + group;
  *target = make_uint2(e4m3x4(h.v[0][0][0], h.v[0][0][1], h.v[1][0][0], h.v[1][0][1]),
                       e4m3x4(h.v[0][1][0], h.v[0][1][1], h.v[1][1][0], h.v[1][1][1]));
}
__device__ __forceinline__ void store_hidden(Bf16, uint4* fragments, int thread, int group, const Hidden& h) {
  fragments[(blockIdx.x * 2 + group) * STEP_FRAGMENTS + thread] =
      make_uint4(pack_bf16(h.v[0][0][0], h.v[0][0][1]), pack_bf16(h.v[0][1][0], h.v[0][1][1]),
                 pack_bf16(h.v[1][0][0], h.v[1][0][1]), pack_bf16(h.v[1][1][0], h.v[1][1][1]));
}

template <class P>
__device__ __forceinline__ void gate_up(const uint4* fragments, const float* statistics, const uint8_t* weights,
                                        const float* column_scale, const float* bias, const float* activation_scale,
                                        const float* inverse_scale, int rows, uint4* hidden) {
  extern __shared__ __align__(128) uint8_t slice[];
  __shared__ Shared shared;
  constexpr int BYTES = WIDTH / P::STEP * 32 * COLUMNS, STEPS = WIDTH / P::STEP / 2;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    fetch_weights(slice, weights + (size_t)blockIdx.x * BYTES, BYTES, &shared.barrier);
  }
  const int column = blockIdx.x * COLUMNS + group * 32 + thread % 4 * 2;
  float2 scale[4], shift[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    scale[i] = *reinterpret_cast<const float2*>(column_scale + column + i * 8);
    shift[i] = *reinterpret_cast<const float2*>(bias + column + i * 8);
  }
  const float activation = *activation_scale, inverse = *inverse_scale;
  __syncthreads();
  release_successor();
  wait_for_predecessor();

  PartialSquares squares = load_squares(statistics);
  const bool live = thread / 32 * 16 + thread % 32 / 4 < rows;
  float accumulator[COLUMNS / 2];
  multiply<P, COLUMNS, STEPS>(accumulator, fragments + group * STEPS * STEP_FRAGMENTS + thread,
                              shared_address(slice) + group * STEPS * COLUMNS * 32, &shared.barrier, live);
  share_squares(shared.squares, squares);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float given[4];
#pragma unroll
    for (int j = 0; j < 4; j++) given[j] = group ? accumulator[i * 4 + j] : accumulator[16 + i * 4 + j];
    shared.exchange[group][i][thread] = make_float4(given[0], given[1], given[2], given[3]);
  }
  __syncthreads();
  if (thread / 32 * 16 >= rows) return;

  float values[4][4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float4 other = shared.exchange[1 - group][i][thread];
    const float rest[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int j = 0; j < 4; j++) values[i][j] = (group ? accumulator[16 + i * 4 + j] : accumulator[i * 4 + j]) + rest[j];
  }
  Hidden result;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float factor = inverse_rms(shared.squares, thread / 32 * 16 + half * 8 + thread % 32 / 4) * activation;
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float gate = values[2 * tile][half * 2 + j] * factor * (&scale[2 * tile].x)[j] + (&shift[2 * tile].x)[j];
        float up = values[2 * tile + 1][half * 2 + j] * factor * (&scale[2 * tile + 1].x)[j] + (&shift[2 * tile + 1].x)[j];
        result.v[tile][half][j] = gated(gate, up) * inverse;
      }
  }
  store_hidden(P(), hidden, thread, group, result);
}

#define KERNEL(NAME, P) \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) \
      NAME(const uint4* fragments, const float* statistics, const uint8_t* weights, const float* column_scale, \
           const float* bias, const float* activation_scale, const float* inverse_scale, int rows, uint4* hidden) { \
    gate_up<P>(fragments, statistics, weights, column_scale, bias, activation_scale, inverse_scale, rows, hidden); \
  }
KERNEL(expert_gate_up_bf16, Bf16)
KERNEL(expert_gate_up_fp8, Fp8)
