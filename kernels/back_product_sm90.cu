// A gradient of at most ROWS rows times a weight, on Hopper, as one link of a chain of kernels: out = gradient * weight.
// Architectures: 90a
//
// gradient bf16 [rows, K]; weight [K, columns], packed (engine/weights/back_layout.py) in boxes of 64 x 64 in the order in which
// the threads of a warpgroup multiply them: bf16, or e4m3 with FP8, where column_scale fp32 [columns] makes values of them; K and
// columns are multiples of 64. out bf16 [parts, 64, columns], to be added up; only the first ROWS rows of each are written.
//
// With GATED, weight is that of the down projection and what leaves is the gradient of gate and up before the GELU
// (activation.cu, gelu_gate_backward), in one part: out, x bf16 [64, 2 * columns], gate before up. x is read before the wait.
//
// A block takes 64 columns and `steps` * 64 of K. The CLUSTER blocks of a cluster have neighbouring ranges of K; each tells the
// others its sums by one-way stores and finishes 64 / CLUSTER of the columns. What is multiplied is weight^T * gradient^T: the
// weight comes from registers, where e4m3 becomes bf16, the gradient from shared memory, and its rows are the short side: 56
// or 64. e4m3 becomes bf16 by moving bits, 2^-120 times too small: the multiplication by 2^120 makes up for it.
//
// Weights never depend on the kernel before, so a block asks for as many as its ring holds before it waits; both rings are as deep
// as the launch says, so that blocks of neighbouring kernels fit side by side on a multiprocessor. With `early` the kernel
// behind may start at once, else when this one has begun to work: a chain needs one such product between a
// kernel that writes something and one that reads it before its wait.
//
// Grid (columns / 64, K / 64 / steps), clusters (1, CLUSTER), 128 * GROUPS + 64 threads: warpgroups take turns at the steps, a warp
// fetches weights, one the gradient, in a ring of more than GROUPS boxes unless it holds all. Map: boxes of ROWS by 64 with the 128-byte swizzle. Dynamic shared memory: 1 KB, a ring of gradient boxes of
// ROWS * 128 bytes, one of weight boxes of 8 KB (FP8: 4), and sums of GROUPS * 64 * ROWS * 4.
// Gate and up of the action expert (K 8192, 1024 columns): 16.8 MB, 5.6 us at 3 TB/s (FP8: half). Sums have a fixed order.
#include "tma.cuh"
#include "wgmma.cuh"

#ifndef GATED
#define GATED 0
#endif
#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifndef ROWS
#define ROWS 64
#endif
#ifndef GROUPS
#define GROUPS 1
#endif

constexpr int BOX = 64, ROW_BOX = ROWS * 128, STEP_BYTES = FP8 ? 4096 : 8192, CONSUMERS = 128 * GROUPS, MOST_SLOTS = 16;
constexpr int TILES = ROWS / 8, OWN = BOX / CLUSTER, VECTORS = OWN / 8, ITEMS = (ROWS * VECTORS + CONSUMERS - 1) / CONSUMERS;

struct Barriers {
  uint64_t weights_full[MOST_SLOTS], weights_empty[MOST_SLOTS], rows_full[MOST_SLOTS], rows_empty[MOST_SLOTS], sums;
};

// d [64, ROWS] += a [64, 16] (registers) * b [ROWS, 16]^T
#define D4(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
__device__ __forceinline__ void multiply_chunk(float (&d)[TILES][4], const uint32_t (&a)[4], uint64_t b) {
#if ROWS == 56
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n56k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
      "%27}, {%28, %29, %30, %31}, %32, p, 1, 1, 0;\n}\n"
      : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
      "%27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
      : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6), D4(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// All products have been made: the sums may be read.
__device__ __forceinline__ void finish_products(float (&d)[TILES][4]) {
#if ROWS == 56
  asm volatile("wgmma.wait_group.sync.aligned 0;" : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6)::"memory");
#else
  asm volatile("wgmma.wait_group.sync.aligned 0;" : D4(0), D4(1), D4(2), D4(3), D4(4), D4(5), D4(6), D4(7)::"memory");
#endif
}

// The e4m3 in the upper byte of each half becomes bf16.
__device__ __forceinline__ uint32_t widen(uint32_t x) {
  uint32_t bits = (x >> 4 & 0x07f007f0u) | (x & 0x80008000u), out;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(bits), "r"(0x7b807b80u));  // 2^120
  return out;
}

// A step's weights of this thread: four chunks of 16 along K.
__device__ __forceinline__ void load_weights(uint32_t (&a)[4][4], const uint8_t* box, int warp, int lane) {
#if FP8
  const uint4* place = reinterpret_cast<const uint4*>(box + warp * 1024 + lane * 16);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const uint4 x = place[h * 32];
    a[2 * h][0] = widen(x.x), a[2 * h][1] = widen(x.x << 8), a[2 * h][2] = widen(x.y), a[2 * h][3] = widen(x.y << 8);
    a[2 * h + 1][0] = widen(x.z), a[2 * h + 1][1] = widen(x.z << 8), a[2 * h + 1][2] = widen(x.w), a[2 * h + 1][3] = widen(x.w << 8);
  }
#else
  const uint4* place = reinterpret_cast<const uint4*>(box + warp * 2048 + lane * 16);
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const uint4 x = place[c * 32];
    a[c][0] = x.x, a[c][1] = x.y, a[c][2] = x.z, a[c][3] = x.w;
  }
#endif
}

__device__ __forceinline__ void fetch_weights(const uint8_t* weights, uint8_t* ring, Barriers& barriers, int steps, int slots) {
  for (int i = 0; i < steps; i++) {
    const int slot = i % slots;
    if (i >= slots) barrier_wait(barriers.weights_empty + slot, (i / slots - 1) & 1);
    barrier_expect(barriers.weights_full + slot, STEP_BYTES);
    copy_bytes(ring + slot * STEP_BYTES, weights + (size_t)i * STEP_BYTES, STEP_BYTES, barriers.weights_full + slot);
  }
}

__device__ __forceinline__ void fetch_rows(const TensorMap& map, uint8_t* ring, Barriers& barriers, int first, int steps, int slots) {
  for (int i = 0; i < steps; i++) {
    const int slot = i % slots;
    if (i >= slots) barrier_wait(barriers.rows_empty + slot, (i / slots - 1) & 1);
    barrier_expect(barriers.rows_full + slot, ROW_BOX);
    copy_box(ring + slot * ROW_BOX, map, (first + i) * BOX, 0, barriers.rows_full + slot);
  }
}

__device__ __forceinline__ void warp_arrive(uint64_t* barrier, int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(barrier);
}

struct Consumer {
  Barriers& barriers;
  const uint8_t *weights, *rows;
  int weight_slots, row_slots, warp, lane;

  __device__ __forceinline__ void step(float (&d)[TILES][4], uint32_t (&a)[4][4], int i) const {
    const int weight_slot = i % weight_slots, row_slot = i % row_slots;
    barrier_wait(barriers.weights_full + weight_slot, i / weight_slots & 1);
    load_weights(a, weights + weight_slot * STEP_BYTES, warp, lane);
    warp_arrive(barriers.weights_empty + weight_slot, lane);
    barrier_wait(barriers.rows_full + row_slot, i / row_slots & 1);
    wgmma_begin();
#pragma unroll
    for (int c = 0; c < 4; c++) multiply_chunk(d, a[c], swizzled_rows(rows + row_slot * ROW_BOX + c * 32));
    wgmma_commit();
    wgmma_wait<1>();
    if (i >= GROUPS) warp_arrive(barriers.rows_empty + (i - GROUPS) % row_slots, lane);
  }
};

__device__ __forceinline__ void store_remote(uint32_t address, float a, float b, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(address),
               "r"(__float_as_uint(a)), "r"(__float_as_uint(b)), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ uint32_t address_at(const void* own, int rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(own)), "r"(rank));
  return remote;
}

// Hand sums to who finishes their columns: sums [CLUSTER blocks * GROUPS][OWN columns][ROWS].
__device__ __forceinline__ void exchange(const float (&d)[TILES][4], float* sums, uint64_t* barrier, int group, int warp, int lane) {
  const int rank = (CLUSTER > 1 ? cluster_rank() * GROUPS : 0) + group, column = (warp * 16 + lane / 4) % OWN, row = lane % 4 * 2;
  float* place = sums + (rank * OWN + column) * ROWS + row;
  if (CLUSTER == 1) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      *reinterpret_cast<float2*>(place + t * 8) = make_float2(d[t][0], d[t][1]);
      *reinterpret_cast<float2*>(place + 8 * ROWS + t * 8) = make_float2(d[t][2], d[t][3]);
    }
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
    return;
  }
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");  // all blocks have their barriers
  const int target = warp * 16 / OWN;
  const uint32_t remote = address_at(place, target), remote_barrier = address_at(barrier, target);
#pragma unroll
  for (int t = 0; t < TILES; t++) {
    store_remote(remote + t * 32, d[t][0], d[t][1], remote_barrier);
    store_remote(remote + 8 * ROWS * 4 + t * 32, d[t][2], d[t][3], remote_barrier);
  }
  barrier_wait(barrier, 0);
}

// Where a thread finishes eight columns of a row.
struct Item {
  int row, column;
  bool there;
  __device__ explicit Item(int i) {
    const int item = threadIdx.x + i * CONSUMERS;
    row = item % ROWS, column = item / ROWS * 8, there = item < ROWS * VECTORS;
  }
};

__device__ __forceinline__ Float8 gather(const float* sums, const Item& item, const float* scale) {
  Float8 out = {};
#pragma unroll
  for (int block = 0; block < CLUSTER * GROUPS; block++) {
#pragma unroll
    for (int j = 0; j < 8; j++) out.v[j] += sums[(block * OWN + item.column + j) * ROWS + item.row];
  }
  if (FP8) {
    const Float8 factors = load_float8(scale + item.column);
#pragma unroll
    for (int j = 0; j < 8; j++) out.v[j] *= factors.v[j];
  }
  return out;
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 64)
    back_product(const __grid_constant__ TensorMap gradient, const uint8_t* weights, const float* column_scale, bf16* out,
                 int columns, int steps, int weight_slots, int row_slots, int early, const bf16* x) {
  extern __shared__ uint8_t raw_memory[];
  __shared__ Barriers barriers;
  uint8_t* row_ring = raw_memory + (1024 - shared_address(raw_memory) % 1024) % 1024;
  uint8_t* weight_ring = row_ring + row_slots * ROW_BOX;
  float* sums = reinterpret_cast<float*>(weight_ring + weight_slots * STEP_BYTES);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.y * steps;
  if (threadIdx.x == 0) {
    for (int i = 0; i < weight_slots; i++) barrier_init(barriers.weights_full + i, 1), barrier_init(barriers.weights_empty + i, 4);
    for (int i = 0; i < row_slots; i++) barrier_init(barriers.rows_full + i, 1), barrier_init(barriers.rows_empty + i, 4);
    barrier_init(&barriers.sums, 1);
    barrier_init_done();
    if (CLUSTER > 1) barrier_expect(&barriers.sums, GROUPS * BOX * ROWS * 4);
  }
  __syncthreads();
  if (CLUSTER > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  if (early) release_successor();
  if (warp == CONSUMERS / 32) {
    const size_t box = (size_t)blockIdx.x * gridDim.y * steps + first;
    if (lane == 0) fetch_weights(weights + box * STEP_BYTES, weight_ring, barriers, steps, weight_slots);
    return;
  }
  if (warp > CONSUMERS / 32) {
    if (lane == 0) {
      prefetch_map(gradient);
      wait_for_predecessor();
      fetch_rows(gradient, row_ring, barriers, first, steps, row_slots);
    }
    return;
  }
  const int column = blockIdx.x * BOX + (CLUSTER > 1 ? cluster_rank() * OWN : 0);
  uint4 gates[ITEMS], ups[ITEMS];
  if (GATED) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const Item item(i);
      if (!item.there) continue;
      const bf16* place = x + (size_t)item.row * 2 * columns + column + item.column;
      gates[i] = *reinterpret_cast<const uint4*>(place), ups[i] = *reinterpret_cast<const uint4*>(place + columns);
    }
  }
  if (!early) {
    wait_for_predecessor();
    release_successor();
  }
  float result[TILES][4] = {};
  uint32_t even[4][4], odd[4][4];
  const int group = warp / 4;
  const Consumer consumer{barriers, weight_ring, row_ring, weight_slots, row_slots, warp % 4, lane};
  int i = group;
#pragma unroll 1
  for (; i + GROUPS < steps; i += 2 * GROUPS) {
    consumer.step(result, even, i);
    consumer.step(result, odd, i + GROUPS);
  }
  if (i < steps) consumer.step(result, even, i);
  finish_products(result);
  exchange(result, sums, &barriers.sums, group, warp % 4, lane);
  wait_for_predecessor();  // no product has been finished before
  if (!GATED) out += (size_t)(blockIdx.y / CLUSTER) * 64 * columns;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const Item item(i);
    if (!item.there) continue;
    Float8 total = gather(sums, item, column_scale + column);
    if (!GATED) {
      store(out + (size_t)item.row * columns + column + item.column, total);
      continue;
    }
    Float8 gate = load_bf16x8(reinterpret_cast<const bf16*>(gates + i)), up = load_bf16x8(reinterpret_cast<const bf16*>(ups + i));
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float2 gelu = gelu_with_slope(gate.v[j]);
      gate.v[j] = total.v[j] * up.v[j] * gelu.y;
      up.v[j] = total.v[j] * gelu.x;
    }
    bf16* place = out + (size_t)item.row * 2 * columns + column + item.column;
    store(place, gate);
    store(place + columns, up);
  }
}
