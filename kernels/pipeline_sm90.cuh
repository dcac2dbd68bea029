// The inner part of wide Hopper products: a warp feeds a ring of shared memory, two or three warpgroups multiply (sm_90a).
//
// acc [TILE_M, TILE_N] = a [rows, K] * b [columns, K]^T, a and b in bf16, e4m3 with FP8, or signed integers with
// FP8 and INT8; accumulation as wgmma does it: in fp32, for e4m3 with the narrower sums that cuBLASLt calls fast accumulation,
// for integers exactly. A stage of the ring is one step: 128 bytes of K
// of both tiles, with the 128-byte swizzle. Tiles are 128 x 256 with two warpgroups and 192 x 192 with three: what bounds these
// products is how fast a multiprocessor takes in operands, and registers bound the tiles.
//
// A block has pieces of work, each a tile and a range of steps, and stays for all of them, so that what a piece needs is on its
// way while the one before it is finished. Tiles of the same columns run side by side, so the weights b come from memory once.
#pragma once
#include "tma.cuh"
#include "wgmma_wide.cuh"

#ifndef WARPGROUPS
#define WARPGROUPS 2
#endif
#ifndef STAGES
#define STAGES 4
#endif

constexpr int TILE_M = 64 * WARPGROUPS, TILE_N = WARPGROUPS == 2 ? 256 : 192;
constexpr int ROW_BYTES = 128;
constexpr int STEP = ROW_BYTES / (FP8 ? 1 : 2);  // elements of K in a step
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;
constexpr int CONSUMERS = 128 * WARPGROUPS;
constexpr int THREADS = CONSUMERS + 32;
constexpr int TILES = TILE_N / 8;
constexpr int SCALE_BYTES = FP8 ? TILE_N * 4 : 0;

#if INT8
using Sum = int32_t;
#else
using Sum = float;
#endif

// A tile by its first row and column, the steps of K to multiply, and which part of K that is.
struct Piece {
  int row, column, first, count, part;
};

// The pieces of a block: tiles of all rows next to each other, in `parts` ranges of K.
struct Schedule {
  int rows, columns, steps, parts, row_tiles, tiles;

  __device__ Schedule(int rows, int columns, int steps, int parts)
      : rows(rows), columns(columns), steps(steps), parts(parts), row_tiles((rows + TILE_M - 1) / TILE_M),
        tiles(row_tiles * ((columns + TILE_N - 1) / TILE_N)) {}

  __device__ bool get(int item, Piece& piece) const {
    int i = blockIdx.x + item * gridDim.x;
    if (i >= tiles * parts) return false;
    int tile = i % tiles, part = i / tiles, first = steps * part / parts;
    piece = {tile % row_tiles * TILE_M, tile / row_tiles * TILE_N, first, steps * (part + 1) / parts - first, part};
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

// Channel scales are kept for so many pieces that, even with a step a piece, those of a piece are overwritten only after it has
// been finished: the stage that the new ones come with has been given back since.
constexpr int SCALES = STAGES + 1;

// Shared memory, from an address that is a multiple of 1024: stages, channel scales, barriers.
struct Ring {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ explicit Ring(uint8_t* shared)
      : stages(shared), full(reinterpret_cast<uint64_t*>(shared + STAGES * STAGE_BYTES + SCALES * SCALE_BYTES)), empty(full + STAGES) {}

  __device__ uint8_t* a(int stage) const { return stages + stage * STAGE_BYTES; }
  __device__ uint8_t* b(int stage) const { return a(stage) + TILE_M * ROW_BYTES; }
  // Of the piece number `item`: they arrive with its first step.
  __device__ float* scales(int item) const {
    return reinterpret_cast<float*>(stages + STAGES * STAGE_BYTES + item % SCALES * SCALE_BYTES);
  }

  // Barriers, ready for all threads.
  __device__ void prepare() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, WARPGROUPS);
      barrier_init_done();
    }
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
  int scales = FP8 && at.step == 0 && from.channel_scale ? min(TILE_N, at.schedule.columns - at.piece.column) * 4 : 0;
  barrier_expect(ring.full + stage, STAGE_BYTES + scales);
  copy_box(ring.b(stage), from.b, (at.piece.first + at.step) * STEP, at.piece.column, ring.full + stage);
  if (scales > 0) copy_bytes(ring.scales(at.item), from.channel_scale + at.piece.column, scales, ring.full + stage);
}

__device__ __forceinline__ void fetch_rows(const Ring& ring, const Operands& from, const Cursor& at, int stage) {
  copy_box(ring.a(stage), from.a, (at.piece.first + at.step) * STEP, at.piece.row, ring.full + stage);
}

// One thread feeds the ring. Weights may be fetched early; rows, which the predecessor wrote, only after it has finished.
__device__ __forceinline__ void feed(const Ring& ring, const Operands& from, const Schedule& schedule) {
  Cursor at(schedule), early(schedule);
  int count = at.more ? min(STAGES, at.piece.count) : 0;
  for (int i = 0; i < count; i++) {
    fetch_weights(ring, from, early, i);
    early.advance();
  }
  wait_for_predecessor();
  Position position;
  for (int i = 0; at.more; i++) {
    if (i >= STAGES) barrier_wait(ring.empty + position.stage, position.parity ^ 1);
    if (i >= count) fetch_weights(ring, from, at, position.stage);
    fetch_rows(ring, from, at, position.stage);
    at.advance(), position.advance();
  }
}

__device__ __forceinline__ void give_back(const Ring& ring, int stage) {
  if (threadIdx.x % 128 == 0) barrier_arrive(ring.empty + stage);
}

__device__ __forceinline__ void multiply_step(Sum (&acc)[TILES][4], const uint8_t* a, const uint8_t* b, bool accumulate) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < ROW_BYTES; k += 32) {
#if INT8
    wgmma_int8(acc, swizzled_rows(a + k), swizzled_rows(b + k), accumulate || k > 0);
#elif FP8
    wgmma_e4m3(acc, swizzled_rows(a + k), swizzled_rows(b + k), accumulate || k > 0);
#else
    wgmma_bf16(acc, swizzled_rows(a + k), swizzled_rows(b + k), accumulate || k > 0);
#endif
  }
  wgmma_commit();
}

// One warpgroup multiplies its 64 rows of a piece, or only lets the steps pass. A stage is given back when the step after it is
// under way.
__device__ __forceinline__ void consume(Sum (&acc)[TILES][4], const Ring& ring, Position& position, int count, bool idle) {
  int offset = threadIdx.x / 128 * 64 * ROW_BYTES, before = 0;
  for (int i = 0; i < count; i++) {
    int stage = position.stage;
    barrier_wait(ring.full + stage, position.parity);
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
__device__ __forceinline__ void run_pieces(const Ring& ring, const Operands& from, const Schedule& schedule, const Finish& finish) {
  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x == CONSUMERS) feed(ring, from, schedule);
    __syncwarp();
    wait_for_predecessor();
  } else {
    wait_for_predecessor();
    Position position;
    Piece piece;
    for (int item = 0; schedule.get(item, piece); item++) {
      Sum acc[TILES][4];
      bool idle = piece.row + (int)threadIdx.x / 128 * 64 >= schedule.rows;
      consume(acc, ring, position, piece.count, idle);
      if (!idle) finish(acc, piece, ring.scales(item));
    }
  }
}
