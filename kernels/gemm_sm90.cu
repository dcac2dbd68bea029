// Products with what follows them in the same kernel, for Hopper.
// Architectures: 90a
//
// acc [rows, columns] = a [rows, K] * b [columns, K]^T with fp32 accumulation; a and b are bf16, or e4m3 with FP8. Then
//   EPILOGUE 0 (raw):       out bf16 = acc
//   EPILOGUE 1 (gelu):      y = gelu(acc * channel_scale + bias); out bf16 = y, or with FP8 e4m3(y * inverse_scale)
//   EPILOGUE 2 (residual):  out fp32 += acc * channel_scale + bias
// channel_scale and bias are [columns] and may be null. Results do not depend on the order in which blocks run.
//
// A block computes 64 * WARPGROUPS rows by TILE_N columns: one warpgroup of consumers for each 64 rows, and one warp that
// feeds a ring of STAGES steps of 128 bytes of K through the copy engine. The weights b of the first steps are fetched
// before the kernel waits for its predecessor. A cluster of ACROSS x DOWN blocks loads each operand once: every block
// fetches its share and sends it to all that need it. With SPLIT > 1 further blocks of the cluster share K and each
// finishes a part of the columns; partial sums travel through distributed shared memory.
//
// grid (columns / TILE_N to a multiple of ACROSS, rows / (64 * WARPGROUPS) to a multiple of DOWN, SPLIT), rounded up;
// cluster (ACROSS, DOWN, SPLIT); 128 * WARPGROUPS + 32 threads. steps is K over 128 bytes, rounded up. Maps have boxes of
// 128 bytes by 64 * WARPGROUPS / ACROSS and by TILE_N / DOWN rows, 128-byte swizzle. Shared memory: STAGES *
// (64 * WARPGROUPS + TILE_N) * 128 + 1024 bytes. columns is a multiple of 16.
#include "tma.cuh"
#include "wgmma.cuh"

#ifndef WARPGROUPS
#define WARPGROUPS 2
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef STAGES
#define STAGES 5
#endif
#ifndef SPLIT
#define SPLIT 1
#endif
#ifndef ACROSS
#define ACROSS 1
#endif
#ifndef DOWN
#define DOWN 1
#endif
#ifndef EPILOGUE
#define EPILOGUE 0
#endif
#ifndef FP8
#define FP8 0
#endif

constexpr int TILE_M = 64 * WARPGROUPS;
constexpr int ROW_BYTES = 128;
constexpr int STEP = ROW_BYTES / (FP8 ? 1 : 2);  // elements of K in a step
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;
constexpr int CONSUMERS = 128 * WARPGROUPS;
constexpr int TILES = TILE_N / 8;
constexpr int OWN = TILES / SPLIT;    // tiles that one block of a cluster finishes
constexpr int SHARERS = ACROSS * DOWN;  // blocks that exchange operands

static_assert(TILE_M / ACROSS % 8 == 0 && TILE_N / DOWN % 8 == 0, "shares of an operand are whole swizzle blocks");
static_assert(TILES % SPLIT == 0, "every block of a cluster finishes whole tiles");

#if EPILOGUE == 2
using Output = float;
#elif EPILOGUE == 1 && FP8
using Output = __nv_fp8_e4m3;
#else
using Output = bf16;
#endif

struct Arguments {
  const float* channel_scale;
  const float* bias;
  Output* out;
  float inverse_scale;
  int rows, columns;
};

struct Ring {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ uint8_t* a(int stage) const { return stages + stage * STAGE_BYTES; }
  __device__ uint8_t* b(int stage) const { return a(stage) + TILE_M * ROW_BYTES; }
};

// Fetches this block's share of either operand for step i, for all blocks that need it.
struct Loader {
  const Ring& ring;
  const TensorMap& a;
  const TensorMap& b;
  int first, x, y, group;  // x, y: place among the sharers; group: rank of the first of them

  __device__ void load_a(int i, int stage) const {
    constexpr int SHARE = TILE_M / ACROSS;
    uint8_t* target = ring.a(stage) + x * SHARE * ROW_BYTES;
    int row = blockIdx.y * TILE_M + x * SHARE, column = (first + i) * STEP;
    if (ACROSS == 1)
      copy_box(target, a, column, row, ring.full + stage);
    else
      copy_box_to(target, a, column, row, ring.full + stage, ((1 << ACROSS) - 1) << (group + y * ACROSS));
  }

  __device__ void load_b(int i, int stage) const {
    constexpr int SHARE = TILE_N / DOWN;
    uint8_t* target = ring.b(stage) + y * SHARE * ROW_BYTES;
    int row = blockIdx.x * TILE_N + y * SHARE, column = (first + i) * STEP, blocks = 0;
    for (int other = 0; other < DOWN; other++) blocks |= 1 << (group + other * ACROSS + x);
    if (DOWN == 1)
      copy_box(target, b, column, row, ring.full + stage);
    else
      copy_box_to(target, b, column, row, ring.full + stage, blocks);
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

// One warpgroup multiplies its 64 rows. A stage is handed back to all sharers when the step after it is under way.
__device__ __forceinline__ void consume(float (&acc)[TILES][4], const Ring& ring, int count, int group) {
  int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
  for (int i = 0; i < count; i++) {
    int stage = i % STAGES;
    barrier_wait(ring.full + stage, (i / STAGES) & 1);
    const uint8_t* a = ring.a(stage) + warpgroup * 64 * ROW_BYTES;
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < ROW_BYTES; k += 32) {
#if FP8
      wgmma_e4m3(acc, swizzled_rows(a + k), swizzled_rows(ring.b(stage) + k), true);
#else
      wgmma_bf16(acc, swizzled_rows(a + k), swizzled_rows(ring.b(stage) + k), true);
#endif
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (i == 0) continue;
    uint64_t* done = ring.empty + (i - 1) % STAGES;
    if (SHARERS == 1 && thread == 0) barrier_arrive(done);
    if (SHARERS > 1 && thread < SHARERS) barrier_arrive_at(done, group + thread);
  }
  wgmma_wait<0>();
}

// Blocks of a cluster give each other the tiles that they do not finish themselves, and sum in the order of rank.
__device__ __forceinline__ void reduce_over_cluster(float (&acc)[TILES][4], float* exchange, int rank,
                                                    int group) {
  int place = cluster_rank() - group;
#pragma unroll
  for (int target = 0; target < SPLIT; target++) {
    if (target == rank) continue;
    float* slots = exchange + (rank < target ? rank : rank - 1) * OWN * 4 * CONSUMERS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < OWN * 4; i++) store_remote(slots + i * CONSUMERS, target * SHARERS + place, acc[target * OWN + i / 4][i % 4]);
  }
  cluster_barrier();
#pragma unroll
  for (int own = 0; own < SPLIT; own++) {
    if (own != rank) continue;
#pragma unroll
    for (int i = 0; i < OWN * 4; i++) {
      float sum = 0;
#pragma unroll
      for (int from = 0; from < SPLIT; from++) {
        int slot = from < own ? from : from - 1;
        sum += from == own ? acc[own * OWN + i / 4][i % 4] : exchange[(slot * OWN * 4 + i) * CONSUMERS + threadIdx.x];
      }
      acc[own * OWN + i / 4][i % 4] = sum;
    }
  }
}

// Two neighbouring columns of a row in real units.
__device__ __forceinline__ float2 scaled(const Arguments& arguments, int column, float first, float second) {
  float2 s = make_float2(1, 1), b = make_float2(0, 0);
  if (arguments.channel_scale) s = __ldg(reinterpret_cast<const float2*>(arguments.channel_scale + column));
  if (arguments.bias) b = __ldg(reinterpret_cast<const float2*>(arguments.bias + column));
  return make_float2(first * s.x + b.x, second * s.y + b.y);
}

// What the residual holds where this thread will add; fetched before the product so that nobody waits for it after.
struct Residual {
  float2 old[EPILOGUE == 2 ? OWN : 1][2];

  __device__ void load(const Arguments& arguments, int rank) {
    if (EPILOGUE != 2) return;
    int lane = threadIdx.x % 32, row = blockIdx.y * TILE_M + threadIdx.x / 32 * 16 + lane / 4;
    int column = blockIdx.x * TILE_N + rank * OWN * 8 + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int t = 0; t < OWN; t++) {
        int own_row = row + half * 8, own_column = column + t * 8;
        if (own_row < arguments.rows && own_column < arguments.columns)
          old[t][half] = *reinterpret_cast<const float2*>(arguments.out + (size_t)own_row * arguments.columns + own_column);
      }
    }
  }
};

// Tiles FIRST .. FIRST + OWN - 1 of this warp's 16 rows.
template <int FIRST>
__device__ __forceinline__ void finish(const float (&acc)[TILES][4], const Residual& residual, const Arguments& arguments,
                                       uint8_t* staging) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = blockIdx.y * TILE_M + warp * 16, column = blockIdx.x * TILE_N + FIRST * 8;
#if EPILOGUE == 2
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int own_row = row + half * 8 + lane / 4;
#pragma unroll
    for (int t = 0; t < OWN; t++) {
      int own_column = column + t * 8 + lane % 4 * 2;
      if (own_row >= arguments.rows || own_column >= arguments.columns) continue;
      float2 y = scaled(arguments, own_column, acc[FIRST + t][2 * half], acc[FIRST + t][2 * half + 1]);
      float2 x = residual.old[t][half];
      *reinterpret_cast<float2*>(arguments.out + (size_t)own_row * arguments.columns + own_column) =
          make_float2(x.x + y.x, x.y + y.y);
    }
  }
#else
  constexpr int PITCH = OWN * 8 * sizeof(Output) + 16;  // bytes of a staged row
  uint8_t* own = staging + warp * 16 * PITCH;
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int t = 0; t < OWN; t++) {
      int inside = t * 8 + lane % 4 * 2;
      float2 y = make_float2(acc[FIRST + t][2 * half], acc[FIRST + t][2 * half + 1]);
      uint8_t* place = own + (half * 8 + lane / 4) * PITCH + inside * sizeof(Output);
#if EPILOGUE == 1
      if (column + inside < arguments.columns) y = scaled(arguments, column + inside, y.x, y.y);
      y = make_float2(gelu_tanh(y.x), gelu_tanh(y.y));
#endif
      if (sizeof(Output) == 1)
        *reinterpret_cast<uint16_t*>(place) = __nv_cvt_float2_to_fp8x2(
            make_float2(y.x * arguments.inverse_scale, y.y * arguments.inverse_scale), __NV_SATFINITE, __NV_E4M3);
      else
        *reinterpret_cast<uint32_t*>(place) = pack_bf16(y.x, y.y);
    }
  }
  __syncwarp();
  constexpr int GROUPS = OWN * 8 * sizeof(Output) / 16, GROUP = 16 / sizeof(Output);  // 16-byte groups, their columns
  for (int i = lane; i < 16 * GROUPS; i += 32) {
    int own_row = row + i / GROUPS, own_column = column + i % GROUPS * GROUP;
    if (own_row >= arguments.rows || own_column >= arguments.columns) continue;
    *reinterpret_cast<uint4*>(arguments.out + (size_t)own_row * arguments.columns + own_column) =
        *reinterpret_cast<const uint4*>(own + i / GROUPS * PITCH + i % GROUPS * 16);
  }
#endif
}

template <int RANK>
__device__ __forceinline__ void finish_rank(const float (&acc)[TILES][4], const Residual& residual,
                                            const Arguments& arguments, uint8_t* staging, int rank) {
  if (rank == RANK) return finish<RANK * OWN>(acc, residual, arguments, staging);
  if constexpr (RANK + 1 < SPLIT) finish_rank<RANK + 1>(acc, residual, arguments, staging, rank);
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32)
    gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float* channel_scale,
         const float* bias, Output* out, float inverse_scale, int rows, int columns, int steps) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[STAGES], empty[STAGES];
  Ring ring = {shared + (1024 - shared_address(shared) % 1024) % 1024, full, empty};
  Arguments arguments = {channel_scale, bias, out, inverse_scale, rows, columns};
  if (threadIdx.x == CONSUMERS) prefetch_map(a), prefetch_map(b);
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, WARPGROUPS * SHARERS);
    barrier_init_done();
  }
  if (SHARERS > 1)
    cluster_barrier();  // nobody sends before all barriers exist
  else
    __syncthreads();
  release_successor();
  int rank = blockIdx.z, group = rank * SHARERS;  // along K, and of the first sharer in the cluster
  int first = steps * rank / SPLIT, count = steps * (rank + 1) / SPLIT - first;
  bool consumer = threadIdx.x < CONSUMERS;
  float acc[TILES][4] = {};
  Residual residual;
  if (consumer) {
    wait_for_predecessor();
    residual.load(arguments, rank);
    consume(acc, ring, count, group);
  } else {
    Loader loader = {ring, a, b, first, (int)blockIdx.x % ACROSS, (int)blockIdx.y % DOWN, group};
    if (threadIdx.x == CONSUMERS) produce(ring, loader, count);
    __syncwarp();
    wait_for_predecessor();
  }
  if (SHARERS * SPLIT > 1) cluster_barrier();  // every block of the cluster has finished with its stages
  if (SPLIT > 1) {
    if (consumer)
      reduce_over_cluster(acc, reinterpret_cast<float*>(ring.stages), rank, group);
    else
      cluster_barrier();
  }
  if (!consumer) return;
  asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");  // the stages become scratch memory
  finish_rank<0>(acc, residual, arguments, ring.stages, rank);
}
