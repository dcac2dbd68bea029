// The action expert's queries, keys and values: RMSNorm, projection and rotary embedding in one kernel.
// Architectures: 90a
//
// fragments: x * (1 + scale) of up to 64 rows, K = 1024, linear order, e4m3 (times a static inverse scale) or bf16; what is left
// of the norm, 1 / rms of the row from `statistics` (32 partial sums of squares a row), is applied to the product.
// out = (fragments W) * column_scale * activation_scale / rms + bias, where bias = shift W comes from a table of the flow step.
// Then q and k are rotated by position *length + row (rotary: fp32 (cos, sin) [position][128]), and q is multiplied by 1/16.
// q: bf16, the fragments of mma.m16n8k16 over the flat rows head * rows + row: [flat row / 16][16 steps][lane][16 bytes].
// k, v: bf16 [64][256]. Rows from `rows` on are not written.
//
// 80 blocks of 32 columns: 16 dimensions and their 16 rotary partners (+ 128) of one head, in tiles of 8 that alternate
// between the two, so that a thread holds both of a pair. Heads 0..7 are q, 8 is k, 9 is v.
// Bytes: 2.6 MB of fp8 weights (0.9 us at 3 TB/s), 80 x 64 KB of activations from L2.
#include "expert_common.cuh"

constexpr int COLUMNS = 32, SLICES = DIM / COLUMNS, HALF = DIM / 2;

struct Shared {
  float4 exchange[2][2][128];
  float2 rotary[ROWS][16];
  float squares[THREADS];
  uint64_t barrier;
};

struct Output {
  uint32_t* q;
  uint32_t* k;
  uint32_t* v;
};

__device__ __forceinline__ void store_pair(const Output& out, int head, int rows, int row, int dim, float a, float b) {
  uint32_t pair = pack_bf16(a, b);
  if (head >= HEADS) {
    (head == HEADS ? out.k : out.v)[(row * DIM + dim) / 2] = pair;
    return;
  }
  int flat = head * rows + row, lane = flat % 8 * 4 + dim % 8 / 2, reg = dim % 16 / 8 * 2 + flat % 16 / 8;
  out.q[((flat / 16 * (DIM / 16) + dim / 16) * 32 + lane) * 4 + reg] = pair;
}

template <class P>
__device__ __forceinline__ void project(const uint4* fragments, const float* statistics, const uint8_t* weights,
                                        const float* column_scale, const float* bias, const float* activation_scale,
                                        const float2* rotary, const int* length, int rows, Output out) {
  extern __shared__ __align__(128) uint8_t slice[];
  __shared__ Shared shared;
  constexpr int BYTES = WIDTH / P::STEP * 32 * COLUMNS, STEPS = WIDTH / P::STEP / 2;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, head = blockIdx.x / SLICES, part = blockIdx.x % SLICES;
  if (threadIdx.x == 0) {
    fetch_weights(slice, weights + (size_t)blockIdx.x * BYTES, BYTES, &shared.barrier);
  }
  const int column = blockIdx.x * COLUMNS + group * 16 + threadIdx.x % 4 * 2;
  float2 scale[2], shift[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    scale[i] = *reinterpret_cast<const float2*>(column_scale + column + i * 8);
    shift[i] = *reinterpret_cast<const float2*>(bias + column + i * 8);
  }
  const float activation = *activation_scale;
  const float2* angles = rotary + (size_t)(*length + threadIdx.x / 4) * HALF + part * 16 + threadIdx.x % 4 * 4;
#pragma unroll
  for (int i = 0; i < 4; i++) shared.rotary[threadIdx.x / 4][threadIdx.x % 4 * 4 + i] = angles[i];
  __syncthreads();
  release_successor();
  wait_for_predecessor();

  PartialSquares squares = load_squares(statistics);
  float accumulator[COLUMNS / 2];
  multiply<P, COLUMNS, STEPS>(accumulator, fragments + group * STEPS * STEP_FRAGMENTS + thread,
                              shared_address(slice) + group * STEPS * COLUMNS * 32, &shared.barrier,
                              thread / 32 * 16 + thread % 32 / 4 < rows);
  share_squares(shared.squares, squares);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float given[4];
#pragma unroll
    for (int j = 0; j < 4; j++) given[j] = group ? accumulator[i * 4 + j] : accumulator[8 + i * 4 + j];
    shared.exchange[group][i][thread] = make_float4(given[0], given[1], given[2], given[3]);
  }
  __syncthreads();

  float values[2][4];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float4 other = shared.exchange[1 - group][i][thread];
    const float rest[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int j = 0; j < 4; j++) values[i][j] = (group ? accumulator[8 + i * 4 + j] : accumulator[i * 4 + j]) + rest[j];
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = thread / 32 * 16 + half * 8 + thread % 32 / 4, dim = group * 8 + thread % 4 * 2;
    float factor = inverse_rms(shared.squares, row) * activation;
    float low[2], high[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      low[j] = values[0][half * 2 + j] * factor * (&scale[0].x)[j] + (&shift[0].x)[j];
      high[j] = values[1][half * 2 + j] * factor * (&scale[1].x)[j] + (&shift[1].x)[j];
      if (head <= HEADS) {
        float2 angle = shared.rotary[row][dim + j];
        float first = low[j], second = high[j], gain = head < HEADS ? 1.0f / 16 : 1.0f;
        low[j] = (first * angle.x - second * angle.y) * gain;
        high[j] = (second * angle.x + first * angle.y) * gain;
      }
    }
    if (row >= rows) continue;
    store_pair(out, head, rows, row, part * 16 + dim, low[0], low[1]);
    store_pair(out, head, rows, row, part * 16 + dim + HALF, high[0], high[1]);
  }
}

#define KERNEL(NAME, P) \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) \
      NAME(const uint4* fragments, const float* statistics, const uint8_t* weights, const float* column_scale, \
           const float* bias, const float* activation_scale, const float2* rotary, const int* length, int rows, uint32_t* q, \
           uint32_t* k, uint32_t* v) { \
    project<P>(fragments, statistics, weights, column_scale, bias, activation_scale, rotary, length, rows, \
               Output{q, k, v}); \
  }
KERNEL(expert_qkv_bf16, Bf16)
KERNEL(expert_qkv_fp8, Fp8)
