// A projection back to the residual stream of the action expert, the gated residual, and the next norm's preparation.
// Architectures: 90a
//
// x_out = x_in + gate * (fragments W * column_scale * activation_scale), fp32 [64][1024]; x_out may be x_in.
// fragments: K = 2048 (attention output), 4096 (hidden layer) or 1024 (pi0's action embedding).
// Then, for the norm that follows: statistics[32][64], sums of squares over 32 columns each, and x_out * next_scale (its 1 + scale)
// as fragments in linear order: bf16, or e4m3 of that times *inverse_scale, saturated. Row tiles of 16 beyond `rows` are not
// written.
//
// 32 clusters of 4 blocks: a cluster owns 32 columns, a block a quarter of K and, in the end, 16 of the rows: each warp sends its
// 16 rows of partial sums to the block that finishes them (8 partial sums a value), over distributed shared memory.
// Bytes: 2.1 or 4.2 MB of fp8 weights (0.7 or 1.4 us at 3 TB/s), 128 x 32 or 64 KB of activations from L2.
#include "expert_common.cuh"

constexpr int COLUMNS = 32, CLUSTER = 4, SOURCES = CLUSTER * 2, TILES = COLUMNS / 8;
constexpr int TILE_STRIDE = 33;  // float4; one more than a warp, against bank conflicts

struct Shared {
  float4 partial[SOURCES][TILES][TILE_STRIDE];
  uint64_t barrier, arrived;
};

__device__ __forceinline__ float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ __forceinline__ float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
__device__ __forceinline__ float4 operator*(float4 a, float b) { return make_float4(a.x * b, a.y * b, a.z * b, a.w * b); }

// Sum over all sources of four neighbouring columns of one of our 16 rows.
__device__ __forceinline__ float4 gather(const Shared& shared, int row, int quad) {
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int source = 0; source < SOURCES; source++) {
    const float4* lanes = shared.partial[source][quad / 2] + row % 8 * 4 + quad % 2 * 2;
    float2 low = reinterpret_cast<const float2*>(lanes)[row / 8], high = reinterpret_cast<const float2*>(lanes + 1)[row / 8];
    sum = sum + make_float4(low.x, low.y, high.x, high.y);
  }
  return sum;
}

template <class In, class Out, int K>
__device__ __forceinline__ void project(const uint4* fragments, const uint8_t* weights, const float* column_scale,
                                        const float* activation_scale, const float* gate, const float* x_in, float* x_out,
                                        const float* next_scale, const float* inverse_scale, uint8_t* next, float* statistics,
                                        int rows) {
  extern __shared__ __align__(128) uint8_t slice[];
  __shared__ Shared shared;
  constexpr int STEPS = K / In::STEP / CLUSTER / 2, BYTES = 2 * STEPS * COLUMNS * 32;
  constexpr bool RELEASES_LATE = K == 4096;  // measured: the weights of what follows, fetched at once, slow this one's reads down
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, warp = thread / 32;
  const int rank = cluster_rank(), first = blockIdx.x / CLUSTER * COLUMNS;
  if (threadIdx.x == 0) {
    fetch_weights(slice, weights + (size_t)blockIdx.x * BYTES, BYTES, &shared.barrier);
    expect_bytes(&shared.arrived, SOURCES * TILES * 32 * sizeof(float4));
  }
  const int local = thread / 8, row = rank * 16 + local, quad = thread % 8, column = first + quad * 4;
  const bool finishes = group == 0 && rank * 16 < rows;
  float4 factor = *reinterpret_cast<const float4*>(column_scale + column) * *reinterpret_cast<const float4*>(gate + column) *
                  *activation_scale;
  float4 next_factor = *reinterpret_cast<const float4*>(next_scale + column) * *inverse_scale;
  cluster_arrive();
  cluster_wait();  // every block of the cluster runs and its barrier is ready: peers may write here from now on
  if (!RELEASES_LATE) release_successor();
  wait_for_predecessor();

  float4 x = make_float4(0, 0, 0, 0);
  if (finishes) x = __ldcg(reinterpret_cast<const float4*>(x_in + (size_t)row * WIDTH + column));
  float accumulator[COLUMNS / 2];
  multiply<In, COLUMNS, STEPS>(accumulator, fragments + (rank * 2 + group) * STEPS * STEP_FRAGMENTS + thread,
                               shared_address(slice) + group * STEPS * COLUMNS * 32, &shared.barrier,
                               warp * 16 + thread % 32 / 4 < rows);
  if (warp * 16 < rows) {
    uint32_t target = peer_address(&shared.partial[rank * 2 + group][0][thread % 32], warp);
    uint32_t arrived = peer_address(&shared.arrived, warp);
#pragma unroll
    for (int i = 0; i < TILES; i++)
      send(target + i * TILE_STRIDE * 16, arrived, accumulator[i * 4], accumulator[i * 4 + 1], accumulator[i * 4 + 2],
           accumulator[i * 4 + 3]);
  }
  if (RELEASES_LATE) release_successor();
  if (!finishes) return;
  wait_for_bytes(&shared.arrived);

  x = x + gather(shared, local, quad) * factor;
  *reinterpret_cast<float4*>(x_out + (size_t)row * WIDTH + column) = x;
  store_linear(Out(), next, row, column, x * next_factor);
  float square = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  if (quad == 0) statistics[first / COLUMNS * ROWS + row] = square;
}

#define KERNEL(NAME, IN, OUT, K) \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) \
      NAME(const uint4* fragments, const uint8_t* weights, const float* column_scale, const float* activation_scale, \
           const float* gate, const float* x_in, float* x_out, const float* next_scale, const float* inverse_scale, \
           uint8_t* next, float* statistics, int rows) { \
    project<IN, OUT, K>(fragments, weights, column_scale, activation_scale, gate, x_in, x_out, next_scale, inverse_scale, \
                        next, statistics, rows); \
  }
KERNEL(expert_output_bf16, Bf16, Bf16, 2048)
KERNEL(expert_output_fp8, Fp8, Fp8, 2048)
KERNEL(expert_down_bf16, Bf16, Bf16, 4096)
KERNEL(expert_down_fp8, Fp8, Fp8, 4096)
KERNEL(expert_embed_bf16, Bf16, Bf16, 1024)
KERNEL(expert_embed_fp8, Bf16, Fp8, 1024)
