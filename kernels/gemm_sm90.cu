// Products with what follows them in the same kernel, for Hopper.
// Architectures: 90a
//
// acc [rows, columns] = a [rows, K] * b [columns, K]^T with fp32 accumulation; a and b are bf16, with FP8
// e4m3, and with FP8 and INT8 signed integers, which add up exactly in 32 bits. Then
//   EPILOGUE 0 (raw):  out bf16 [parts, rows, columns] = acc, each part the sum over its share of K
//   EPILOGUE 1 (gelu): y = gelu(acc * channel_scale + bias); out bf16 = y, or with FP8 rounded(y * inverse_scale)
// channel_scale and bias are [columns]; channel_scale may be null. GELU is computed in half precision, three bits more than
// bf16 keeps. Results do not depend on the order in which blocks run.
//
// A block computes 128 rows by TILE_N columns: two warpgroups of consumers, and one warp that feeds a ring of STAGES steps
// of 128 bytes of K through the copy engine. The weights b of the first steps are fetched before the kernel waits for its
// predecessor. DOWN blocks with the same columns are a cluster, in which each fetches a part of the weights for all. When
// a block has asked for all of its own operands, it asks the second-level cache for its share of weights that later
// products need (`soon` and `later`, which may be null), so that memory is busy while epilogues and other kernels run.
//
// grid (columns / TILE_N, rows / 128 to a multiple of DOWN, parts), rounded up; cluster (1, DOWN, 1); 288 threads. steps is
// K over 128 bytes, rounded up. Maps: a in boxes of 128 bytes by 128 rows and b by TILE_N / DOWN rows, 128-byte swizzle;
// target is out in boxes of TILE_N columns by 64 rows. Shared memory: STAGES * (128 + TILE_N) * 128 + 1024 bytes. TILE_N is
// a multiple of 16 and of 8 * DOWN; rows of a and b are a multiple of 16 bytes.
// Roofline: 4096 multiply-adds a clock and multiprocessor in e4m3, half of that in bf16; at 128 by 144 by 1152 that is
// 3.0 us (6.0), about as long as the operands take through a multiprocessor's port.
#include "tma.cuh"
#include "wgmma_tiles.cuh"

#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef STAGES
#define STAGES 5
#endif
#ifndef DOWN
#define DOWN 1
#endif
#ifndef EPILOGUE
#define EPILOGUE 0
#endif

constexpr int TILE_M = 128;
constexpr int ROW_BYTES = 128;
constexpr int STEP = ROW_BYTES / (FP8 ? 1 : 2);  // elements of K in a step
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;
constexpr int CONSUMERS = 256;
constexpr int TILES = TILE_N / 8;
constexpr int SHARE = TILE_N / DOWN;  // rows of b that a block fetches

static_assert(TILE_N % (8 * DOWN) == 0, "a share of the weights is whole swizzle blocks");

using Operand = Output;  // what the product before left
#if INT8
using Sum = int32_t;
#else
using Sum = float;
#endif
#if EPILOGUE == 1 && FP8
using Result = Narrow;
using Pair = uint16_t;  // two neighbouring outputs
#else
using Result = bf16;
using Pair = uint32_t;
#endif

struct Ring {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ uint8_t* a(int stage) const { return stages + stage * STAGE_BYTES; }
  __device__ uint8_t* b(int stage) const { return a(stage) + TILE_M * ROW_BYTES; }
};

// Fetches the rows of a for this block, and this block's share of b for all of its cluster.
struct Loader {
  const Ring& ring;
  const TensorMap& a;
  const TensorMap& b;
  int first;  // step

  __device__ void load_a(int i, int stage) const {
    copy_box(ring.a(stage), a, (first + i) * STEP, blockIdx.y * TILE_M, ring.full + stage);
  }

  __device__ void load_b(int i, int stage) const {
    int own = blockIdx.y % DOWN * SHARE, row = blockIdx.x * TILE_N + own, column = (first + i) * STEP;
    uint8_t* target = ring.b(stage) + own * ROW_BYTES;
    if (DOWN == 1)
      copy_box(target, b, column, row, ring.full + stage);
    else
      copy_box_to(target, b, column, row, ring.full + stage, (1 << DOWN) - 1);
  }
};

// Weights of a product to come; every block asks for its share.
struct Ahead {
  const uint8_t* weights;
  int bytes;

  __device__ void fetch() const {
    constexpr int PIECE = 8192;
    int blocks = gridDim.x * gridDim.y * gridDim.z, block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    for (int i = block * PIECE; i < bytes; i += blocks * PIECE) prefetch_bytes(weights + i, min(PIECE, bytes - i));
  }
};

// One thread feeds the ring. What the predecessor wrote (a) is fetched only after it has finished.
__device__ __forceinline__ void produce(const Ring& ring, const Loader& loader, int count) {
  int early = min(STAGES, count);
  for (int i = 0; i < early; i++) {
    barrier_expect(ring.full + i, STAGE_BYTES);
    loader.load_b(i, i);
  }
  wait_for_predecessor();
  for (int i = 0; i < early; i++) loader.load_a(i, i);
  for (int i = early; i < count; i++) {
    int stage = i % STAGES;
    barrier_wait(ring.empty + stage, (i / STAGES - 1) & 1);
    barrier_expect(ring.full + stage, STAGE_BYTES);
    loader.load_b(i, stage);
    loader.load_a(i, stage);
  }
}

// One warpgroup multiplies its 64 rows. A stage goes back to all of the cluster when the step after it is under way, if it
// is filled again: nobody then signals a block that has finished.
__device__ __forceinline__ void consume(Sum (&acc)[TILES][4], const Ring& ring, int count) {
  int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
  int stage = 0, parity = 0, before = 0;
  for (int i = 0; i < count; i++) {
    barrier_wait(ring.full + stage, parity);
    const uint8_t* a = ring.a(stage) + warpgroup * 64 * ROW_BYTES;
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < ROW_BYTES; k += 32)
      wgmma_step<Operand>(acc, swizzled_rows(a + k), swizzled_rows(ring.b(stage) + k));
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0 && i - 1 + STAGES < count) {
      if (DOWN == 1 && thread == 0) barrier_arrive(ring.empty + before);
      if (DOWN > 1 && thread < DOWN) barrier_arrive_at(ring.empty + before, thread);
    }
    before = stage;
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
  wgmma_wait<0>();
}

// Orders execution only: an arrival with release would flush what was written, about a microsecond.
__device__ __forceinline__ void meet_in_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void consumers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

// Scale and bias of this block's columns, fetched while the predecessor runs; zero beyond the last column.
struct alignas(16) Channels {
  float2 pairs[TILE_N];

  __device__ void load(const float* channel_scale, const float* bias, int columns) {
    for (int i = threadIdx.x; i < TILE_N; i += CONSUMERS) {
      int column = blockIdx.x * TILE_N + i;
      bool inside = column < columns;
      float scale = inside && channel_scale ? channel_scale[column] : 1.0f;
      pairs[i] = make_float2(scale, inside ? bias[column] : 0.0f);
    }
  }

  // Two neighbouring columns in real units.
  __device__ float2 real(int column, float first, float second) const {
    float4 own = *reinterpret_cast<const float4*>(pairs + column);
    return make_float2(first * own.x + own.y, second * own.z + own.w);
  }
};

// gelu(x) * factor, given factor / 2.
__device__ __forceinline__ __half2 gelu_pair(float2 x, __half2 half_factor) {
  constexpr float ROOT = 0.7978845608028654f;
  __half2 h = __float22half2_rn(x);
  __half2 inner = __hmul2(h, __hfma2(__hmul2(h, h), __float2half2_rn(0.044715f * ROOT), __float2half2_rn(ROOT)));
  uint32_t t;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(t) : "r"(*reinterpret_cast<uint32_t*>(&inner)));
  h = __hmul2(h, half_factor);
  return __hfma2(h, *reinterpret_cast<__half2*>(&t), h);
}

__device__ __forceinline__ Pair output_pair(float first, float second, int column, const Channels& channels,
                                            __half2 half_factor) {
#if EPILOGUE == 1
  __half2 y = gelu_pair(channels.real(column, first, second), half_factor);
#if INT8
  return int8x4(__low2float(y), __high2float(y), 0, 0);
#elif FP8
  return __nv_cvt_halfraw2_to_fp8x2(y, __NV_SATFINITE, __NV_E4M3);
#else
  return pack_bf16(__low2float(y), __high2float(y));
#endif
#else
  return pack_bf16(first, second);
#endif
}

// Round, and let the copy engine write this warpgroup's 64 rows out of shared memory. All pairs are computed before the
// first is stored, because a store might change what `channels` holds as far as the compiler knows.
__device__ __forceinline__ void finish(const Sum (&acc)[TILES][4], const Channels& channels, float inverse_scale,
                                       uint8_t* staging, const TensorMap& target) {
  constexpr int PITCH = TILE_N * sizeof(Result);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint8_t* own = staging + warp * 16 * PITCH;
  __half2 half_factor = __float2half2_rn(0.5f * inverse_scale);
  Pair pairs[TILES][2];
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      pairs[t][half] = output_pair(acc[t][2 * half], acc[t][2 * half + 1], t * 8 + lane % 4 * 2, channels, half_factor);
  consumers_meet();  // the stages become scratch memory
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = half * 8 + lane / 4, column = t * 8 + lane % 4 * 2;
      *reinterpret_cast<Pair*>(own + row * PITCH + column * sizeof(Result)) = pairs[t][half];
    }
  fence_shared_for_tensor_cores();
  asm volatile("bar.sync %0, 128;" ::"r"(2 + warp / 4) : "memory");
  if (threadIdx.x % 128 != 0) return;
  store_box(target, blockIdx.x * TILE_N, blockIdx.y * TILE_M + warp * 16, blockIdx.z, own);
  wait_stores_read();
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32)
    gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap target,
         const float* channel_scale, const float* bias, float inverse_scale, int columns, int steps, const uint8_t* soon,
         int soon_bytes, const uint8_t* later, int later_bytes) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[STAGES], empty[STAGES];
  __shared__ Channels channels;
  Ring ring = {shared + (1024 - shared_address(shared) % 1024) % 1024, full, empty};
  if (threadIdx.x == CONSUMERS) {
    prefetch_map(a), prefetch_map(b), prefetch_map(target);
    for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, 2 * DOWN);
    barrier_init_done();
  }
  if (DOWN > 1)
    meet_in_cluster();  // nobody sends before all barriers exist
  else
    __syncthreads();
  release_successor();
  int first = steps * blockIdx.z / gridDim.z, count = steps * (blockIdx.z + 1) / gridDim.z - first;
  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x == CONSUMERS) {
      produce(ring, Loader{ring, a, b, first}, count);
      Ahead{soon, soon_bytes}.fetch(), Ahead{later, later_bytes}.fetch();
    }
    __syncwarp();
    wait_for_predecessor();
    return;
  }
  if (EPILOGUE == 1) {
    channels.load(channel_scale, bias, columns);
    consumers_meet();
  }
  Sum acc[TILES][4] = {};
  wait_for_predecessor();
  consume(acc, ring, count);
  finish(acc, channels, inverse_scale, ring.stages, target);
}
