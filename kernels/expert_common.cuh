// What the kernels of the action expert's denoise loop share: weight prefetch, matrix products, clusters, activation layout.
//
// The loop is bound by streaming weights and by the latency of its chain of kernels, so every kernel
//  1. starts copying its slice of weights to shared memory before it waits for the kernel before it,
//  2. reads its activations straight from L2 into registers in the order in which wgmma wants them ("fragments"),
//  3. multiplies all of the at most 64 rows at once: m64 is the native height of wgmma.
//
// Fragments. A "step" is 32 bytes of K: 32 e4m3 or 16 bf16 values. Activations of K values are stored as
// [K / step][row tile of 16][lane 32][16 bytes]; lane l holds rows l / 4 and l / 4 + 8 as registers
// {row, low}, {row + 8, low}, {row, high}, {row + 8, high}, the operand A of wgmma. Which K value sits where inside a step is
// free, as long as weights are packed alike. Two orders are in use:
//  linear       lane quarter c holds values c * n/4 .. of the step's n values: what writers of whole rows produce;
//  accumulator  lane quarter c holds what it holds of wgmma's accumulator: columns 2c, 2c + 1 of each tile of 8.
// Weights of a slice are stored as [step][half of step][column / 8][column % 8][16 bytes], wgmma's layout without swizzle.
#pragma once
#include "mma.cuh"

constexpr int WIDTH = 1024;
constexpr int HEADS = 8;
constexpr int DIM = 256;
constexpr int ROWS = 64;
constexpr int ROW_TILES = ROWS / 16;
constexpr int STEP_FRAGMENTS = ROW_TILES * 32;
constexpr int STATISTICS = 32;  // partial sums of squares per row, one for each writer of 32 columns
constexpr int THREADS = 256;    // two warpgroups, each multiplying one half of K
constexpr float EPSILON = 1e-6f;

struct Bf16 {
  static constexpr int STEP = 16;
};
struct Fp8 {
  static constexpr int STEP = 32;
};

// ---- weights: bulk copies that complete on a barrier

__device__ __forceinline__ uint64_t stream_once() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Called by one thread; `bytes` is a multiple of 64 and less than 1 MiB.
__device__ __forceinline__ void fetch_weights(void* target, const uint8_t* source, uint32_t bytes, uint64_t* barrier) {
  uint32_t bar = shared_address(barrier), to = shared_address(target), piece = bytes / 4;
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
  uint64_t policy = stream_once();
  for (int i = 0; i < 4; i++)
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            to + i * piece),
        "l"(source + (size_t)i * piece), "r"(piece), "r"(bar), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void wait_for_weights(uint64_t* barrier) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n@done bra DONE;\n"
      "bra AGAIN;\nDONE:\n}" ::"r"(shared_address(barrier))
      : "memory");
}

// Ask for this block's share of the weights of a later kernel to be brought into L2; bytes may be 0.
__device__ __forceinline__ void prefetch_later(const uint8_t* source, int bytes) {
  if (bytes > 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source + (size_t)blockIdx.x * bytes), "r"(bytes) : "memory");
}

// ---- matrix product: accumulator[64 x COLUMNS] of one warpgroup, A from registers, weights from shared memory

template <int COLUMNS>
__device__ __forceinline__ uint64_t weight_descriptor(uint32_t address) {
  constexpr uint64_t BETWEEN_HALVES = COLUMNS * 16, BETWEEN_COLUMN_GROUPS = 128;
  return ((address & 0x3ffff) >> 4) | (BETWEEN_HALVES >> 4) << 16 | (BETWEEN_COLUMN_GROUPS >> 4) << 32;
}

#define ACC4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACC16(d, i) ACC4(d, i), ACC4(d, i + 4), ACC4(d, i + 8), ACC4(d, i + 12)
#define WGMMA_32(SHAPE, TYPES, TAIL) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, %20, p, 1, 1" TAIL \
               ";\n}" \
               : ACC16(d, 0) \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b))
#define WGMMA_64(SHAPE, TYPES, TAIL) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
               "%23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1" TAIL ";\n}" \
               : ACC16(d, 0), ACC16(d, 16) \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b))

__device__ __forceinline__ void multiply_step(Fp8, float (&d)[16], const uint4& a, uint64_t b) {
  WGMMA_32("m64n32k32", "e4m3.e4m3", "");
}
__device__ __forceinline__ void multiply_step(Bf16, float (&d)[16], const uint4& a, uint64_t b) {
  WGMMA_32("m64n32k16", "bf16.bf16", ", 0");
}
__device__ __forceinline__ void multiply_step(Fp8, float (&d)[32], const uint4& a, uint64_t b) {
  WGMMA_64("m64n64k32", "e4m3.e4m3", "");
}
__device__ __forceinline__ void multiply_step(Bf16, float (&d)[32], const uint4& a, uint64_t b) {
  WGMMA_64("m64n64k16", "bf16.bf16", ", 0");
}

constexpr int BATCH = 4;  // steps between two points at which products may start

__device__ __forceinline__ void load_batch(uint4 (&a)[BATCH], const uint4* source, bool live) {
#pragma unroll
  for (int i = 0; i < BATCH; i++) a[i] = live ? __ldcg(source + i * STEP_FRAGMENTS) : make_uint4(0, 0, 0, 0);
}

// accumulator = A * weights over STEPS steps. fragments: this thread's first; weights: shared address of the first step.
// `live` is false in lanes whose rows are both beyond the last: they load nothing. The weights must be on their way to `barrier`.
template <class P, int COLUMNS, int STEPS>
__device__ __forceinline__ void multiply(float (&accumulator)[COLUMNS / 2], const uint4* fragments, uint32_t weights,
                                         uint64_t* barrier, bool live) {
  constexpr int BATCHES = STEPS / BATCH, BUFFERS = BATCHES < 4 ? BATCHES : 4;
  uint4 a[BUFFERS][BATCH];
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i++) accumulator[i] = 0;
#pragma unroll
  for (int i = 0; i < BUFFERS; i++) load_batch(a[i], fragments + i * BATCH * STEP_FRAGMENTS, live);
  wait_for_weights(barrier);
#pragma unroll
  for (int batch = 0; batch < BATCHES; batch++) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < BATCH; i++)
      multiply_step(P(), accumulator, a[batch % BUFFERS][i],
                    weight_descriptor<COLUMNS>(weights + (batch * BATCH + i) * COLUMNS * 32));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (batch + BUFFERS < BATCHES) {
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      load_batch(a[batch % BUFFERS], fragments + (batch + BUFFERS) * BATCH * STEP_FRAGMENTS, live);
    }
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// ---- row statistics: a writer of 32 columns leaves its sum of squares, a reader adds up all STATISTICS of them

struct PartialSquares {
  float v[STATISTICS / (THREADS / ROWS)];
};

__device__ __forceinline__ PartialSquares load_squares(const float* statistics) {
  constexpr int EACH = STATISTICS / (THREADS / ROWS);
  PartialSquares out;
#pragma unroll
  for (int i = 0; i < EACH; i++) out.v[i] = __ldcg(statistics + (threadIdx.x / ROWS * EACH + i) * ROWS + threadIdx.x % ROWS);
  return out;
}

__device__ __forceinline__ void share_squares(float (&shared)[THREADS], const PartialSquares& squares) {
  float sum = 0;
#pragma unroll
  for (float square : squares.v) sum += square;
  shared[threadIdx.x] = sum;
}

// After a block barrier: 1 / rms of a row.
__device__ __forceinline__ float inverse_rms(const float (&shared)[THREADS], int row) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < THREADS; i += ROWS) sum += shared[i + row];
  return rsqrtf(sum * (1.0f / WIDTH) + EPSILON);
}

// ---- writing activations as fragments

// Four neighbouring values of a row, in linear order; column is a multiple of 4.
__device__ __forceinline__ void store_linear(Fp8, uint8_t* fragments, int row, int column, float4 v) {
  int lane = row % 8 * 4 + column % 32 / 8, reg = column % 8 / 4 * 2 + row % 16 / 8;
  uint32_t* target = reinterpret_cast<uint32_t*>(fragments) + ((column / 32 * ROW_TILES + row / 16) * 32 + lane) * 4;
  target[reg] = e4m3x4(v.x, v.y, v.z, v.w);
}
__device__ __forceinline__ void store_linear(Bf16, uint8_t* fragments, int row, int column, float4 v) {
  int lane = row % 8 * 4 + column % 16 / 4, reg = row % 16 / 8;
  uint32_t* target = reinterpret_cast<uint32_t*>(fragments) + ((column / 16 * ROW_TILES + row / 16) * 32 + lane) * 4;
  target[reg] = pack_bf16(v.x, v.y);
  target[reg + 2] = pack_bf16(v.z, v.w);
}

// Two neighbouring values of a row, in accumulator order; column is even.
__device__ __forceinline__ void store_accumulator(Fp8, uint8_t* fragments, int row, int column, float a, float b) {
  int lane = row % 8 * 4 + column % 8 / 2, reg = column % 32 / 16 * 2 + row % 16 / 8;
  uint16_t* target = reinterpret_cast<uint16_t*>(fragments) + ((column / 32 * ROW_TILES + row / 16) * 32 + lane) * 8;
  target[reg * 2 + column % 16 / 8] = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
}
__device__ __forceinline__ void store_accumulator(Bf16, uint8_t* fragments, int row, int column, float a, float b) {
  int lane = row % 8 * 4 + column % 8 / 2, reg = column % 16 / 8 * 2 + row % 16 / 8;
  uint32_t* target = reinterpret_cast<uint32_t*>(fragments) + ((column / 16 * ROW_TILES + row / 16) * 32 + lane) * 4;
  target[reg] = pack_bf16(a, b);
}

// ---- clusters: partial sums are exchanged by stores that complete on the receiver's barrier, which takes one trip, not three

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Orders execution only (a releasing arrival would wait for every earlier store of the thread, device-wide): enough for barriers
// initialised with a fence, and for memory that was read and will be overwritten.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Called by one thread before the cluster's first barrier: `bytes` will arrive in all.
__device__ __forceinline__ void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wait_for_bytes(uint64_t* barrier) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n@done bra DONE;\n"
      "bra AGAIN;\nDONE:\n}" ::"r"(shared_address(barrier))
      : "memory");
}

// The address of a shared variable of ours in the block `rank` of the cluster.
__device__ __forceinline__ uint32_t peer_address(const void* pointer, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  return address;
}

__device__ __forceinline__ void send(uint32_t address, uint32_t barrier, float a, float b, float c, float d) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address), "f"(a),
               "f"(b), "f"(c), "f"(d), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void send(uint32_t address, uint32_t barrier, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  send(address, barrier, __uint_as_float(a), __uint_as_float(b), __uint_as_float(c), __uint_as_float(d));
}

__device__ __forceinline__ void send(uint32_t address, uint32_t barrier, float a, float b) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address), "f"(a), "f"(b),
               "r"(barrier)
               : "memory");
}
