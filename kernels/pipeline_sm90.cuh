// The inner part of wide Hopper products: a warp feeds a ring of shared memory, two warpgroups multiply (sm_90a).
//
// acc [128, TILE_N] = a [rows, K] * b [columns, K]^T, a and b in bf16, or e4m3 with FP8; accumulation as wgmma does it: in fp32,
// for e4m3 with the narrower sums that cuBLASLt calls fast accumulation. A stage of the ring is one step: 128 bytes of K of
// both tiles, with the 128-byte swizzle.
//
// A kernel gives a schedule: the pieces of work of a block, each a tile and a range of steps. Blocks stay for all their pieces,
// so what a piece needs is on its way while the one before it is finished. ACROSS neighbouring blocks of a cluster have the same
// rows, and each fetches its share of them for all; they have the same number of pieces and steps. The weights b come from
// memory once: the blocks with the same columns run together, and in turns bring steps that are PREFETCH ahead into the
// second-level cache, so that loads into the ring, which are few, meet no memory latency.
#pragma once
#include "tma.cuh"
#include "wgmma_wide.cuh"

#ifndef TILE_N
#define TILE_N 256
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef ACROSS
#define ACROSS 1
#endif
#ifndef PREFETCH
#define PREFETCH 0
#endif
#ifndef FP8
#define FP8 0
#endif

constexpr int WARPGROUPS = 2;
constexpr int TILE_M = 64 * WARPGROUPS;
constexpr int ROW_BYTES = 128;
constexpr int STEP = ROW_BYTES / (FP8 ? 1 : 2);  // elements of K in a step
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;
constexpr int CONSUMERS = 128 * WARPGROUPS;
constexpr int THREADS = CONSUMERS + 32;
constexpr int TILES = TILE_N / 8;
constexpr int SCALE_BYTES = FP8 ? TILE_N * 4 : 0;

// A tile by its first row and column, the steps of K to multiply, and which part of K that is.
struct Piece {
  int row, column, first, count, part;
};

// The pieces of a block: tiles of all rows next to each other, in `parts` ranges of K.
struct Schedule {
  int row_tiles, tiles, parts, steps;  // tiles: of a cluster, so ACROSS tiles wide
  int cluster, clusters, rank;

  __device__ Schedule(int rows, int columns, int steps, int parts)
      : row_tiles((rows + TILE_M - 1) / TILE_M), tiles(row_tiles * (columns / (TILE_N * ACROSS))), parts(parts), steps(steps),
        cluster(blockIdx.x / ACROSS), clusters(gridDim.x / ACROSS), rank(ACROSS > 1 ? cluster_rank() : 0) {}

  __device__ bool get(int item, Piece& piece) const {
    int i = cluster + item * clusters;
    if (i >= tiles * parts) return false;
    int tile = i % tiles, part = i / tiles, first = steps * part / parts;
    piece = {tile % row_tiles * TILE_M, (tile / row_tiles * ACROSS + rank) * TILE_N, first, steps * (part + 1) / parts - first,
             part};
    return true;
  }
};

// A step of a schedule.
struct Cursor {
  const Schedule& schedule;
  Piece piece;
  int item = 0, step = 0;
  bool more;

  __device__ explicit Cursor(const Schedule& schedule) : schedule(schedule), more(schedule.get(0, piece)) {}

  __device__ void advance() {
    if (++step == piece.count) step = 0, more = schedule.get(++item, piece);
  }
};

// Shared memory, from an address that is a multiple of 1024: stages, the channel scales of two pieces, barriers.
struct Ring {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ explicit Ring(uint8_t* shared)
      : stages(shared), full(reinterpret_cast<uint64_t*>(shared + STAGES * STAGE_BYTES + 2 * SCALE_BYTES)), empty(full + STAGES) {}

  __device__ uint8_t* a(int stage) const { return stages + stage * STAGE_BYTES; }
  __device__ uint8_t* b(int stage) const { return a(stage) + TILE_M * ROW_BYTES; }
  // Of the piece number `item`: they arrive with its first step.
  __device__ float* scales(int item) const {
    return reinterpret_cast<float*>(stages + STAGES * STAGE_BYTES + item % 2 * SCALE_BYTES);
  }

  // Barriers, ready for all blocks of the cluster.
  __device__ void prepare() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, WARPGROUPS * ACROSS);
      barrier_init_done();
    }
    if (ACROSS > 1)
      cluster_barrier();
    else
      __syncthreads();
  }
};

// Where in the ring a thread is: the stage, and the parity of the phase that it fills or that it waits for.
struct Position {
  int stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

struct Operands {
  const TensorMap& a;
  const TensorMap& b;
  const float* channel_scale;  // null: what follows does not use any
};

// Announce what comes into a stage, and fetch the weights, and with the first step of a piece their scales.
__device__ __forceinline__ void fetch_weights(const Ring& ring, const Operands& from, const Cursor& at, int stage) {
#ifdef MMA_ONLY
  if (ACROSS == 1 && at.item + at.step > 0) { barrier_arrive(ring.full + stage); return; }
#endif
  bool scaled = FP8 && at.step == 0 && from.channel_scale;
  barrier_expect(ring.full + stage, STAGE_BYTES + (scaled ? SCALE_BYTES : 0));
  copy_box(ring.b(stage), from.b, (at.piece.first + at.step) * STEP, at.piece.column, ring.full + stage);
  if (scaled) copy_bytes(ring.scales(at.item), from.channel_scale + at.piece.column, SCALE_BYTES, ring.full + stage);
}

__device__ __forceinline__ void fetch_rows(const Ring& ring, const Operands& from, const Cursor& at, int stage) {
#ifdef MMA_ONLY
  if (ACROSS == 1 && at.item + at.step > 0) return;
#endif
  constexpr int SHARE = TILE_M / ACROSS;
  int column = (at.piece.first + at.step) * STEP, share = at.schedule.rank * SHARE;
  if (ACROSS == 1)
    copy_box(ring.a(stage), from.a, column, at.piece.row, ring.full + stage);
  else
    copy_box_to(ring.a(stage) + share * ROW_BYTES, from.a, column, at.piece.row + share, ring.full + stage, (1 << ACROSS) - 1);
}

// Blocks with the same columns take turns.
__device__ __forceinline__ void prefetch_weights(const Operands& from, const Cursor& at) {
  if (at.more && at.step % at.schedule.row_tiles == at.piece.row / TILE_M)
    prefetch_box(from.b, (at.piece.first + at.step) * STEP, at.piece.column);
}

// One thread feeds the ring. Weights may be fetched early; rows, which the predecessor wrote, only after it has finished.
__device__ __forceinline__ void feed(const Ring& ring, const Operands& from, const Schedule& schedule) {
  Cursor at(schedule), ahead(schedule);
  int early = at.more ? min(STAGES, at.piece.count) : 0;
  for (int i = 0; i < early; i++) {
    fetch_weights(ring, from, ahead, i);
    ahead.advance();
  }
  for (int i = 0; i < PREFETCH; i++) {
    prefetch_weights(from, ahead);
    if (ahead.more) ahead.advance();
  }
  wait_for_predecessor();
  Position position;
  int issued = 0;
  for (; at.more; at.advance(), position.advance(), issued++) {
    if (issued >= STAGES) barrier_wait(ring.empty + position.stage, position.parity ^ 1);
    if (issued >= early) fetch_weights(ring, from, at, position.stage);
    fetch_rows(ring, from, at, position.stage);
    if (PREFETCH > 0 && ahead.more) {
      prefetch_weights(from, ahead);
      ahead.advance();
    }
  }
}

__device__ __forceinline__ void give_back(const Ring& ring, int stage) {
  int thread = threadIdx.x % 128;
  if (ACROSS == 1 && thread == 0) barrier_arrive(ring.empty + stage);
  if (ACROSS > 1 && thread < ACROSS) barrier_arrive_at(ring.empty + stage, thread);
}

__device__ __forceinline__ void multiply_step(float (&acc)[TILES][4], const uint8_t* a, const uint8_t* b, bool accumulate) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < ROW_BYTES; k += 32) {
#if FP8
    wgmma_e4m3(acc, swizzled_rows(a + k), swizzled_rows(b + k), accumulate || k > 0);
#else
    wgmma_bf16(acc, swizzled_rows(a + k), swizzled_rows(b + k), accumulate || k > 0);
#endif
  }
  wgmma_commit();
}

// One warpgroup multiplies its 64 rows of a piece, or only lets the steps pass. A stage goes back to all blocks that fill it when
// the step after it is under way.
__device__ __forceinline__ void consume(float (&acc)[TILES][4], const Ring& ring, Position& position, int count, bool idle) {
  int offset = threadIdx.x / 128 * 64 * ROW_BYTES, before = 0;
  for (int i = 0; i < count; i++) {
    int stage = position.stage;
    barrier_wait(ring.full + stage, position.parity);
#ifdef LOAD_ONLY
    if (i == 0)
#endif
    if (!idle) multiply_step(acc, ring.a(stage) + offset, ring.b(stage), i > 0);
    if (i > 0) {
      wgmma_wait<1>();
      give_back(ring, before);
    }
    before = stage;
    position.advance();
  }
  wgmma_wait<0>();
  give_back(ring, before);
}

// All work of a block. finish(acc, piece, scales): what the calling warpgroup does with its 64 rows; not called where all of
// them are beyond `rows`. scales: of the piece's columns, in shared memory.
template <class Finish>
__device__ __forceinline__ void run_pieces(const Ring& ring, const Operands& from, const Schedule& schedule, int rows,
                                           const Finish& finish) {
  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x == CONSUMERS) feed(ring, from, schedule);
    __syncwarp();
    wait_for_predecessor();
  } else {
    wait_for_predecessor();
    Position position;
    Piece piece;
    for (int item = 0; schedule.get(item, piece); item++) {
      float acc[TILES][4];
      bool idle = piece.row + (int)threadIdx.x / 128 * 64 >= rows;
      consume(acc, ring, position, piece.count, idle);
      if (!idle) finish(acc, piece, ring.scales(item));
    }
  }
  if (ACROSS > 1) cluster_barrier();  // nobody leaves while another may still send to it
}
