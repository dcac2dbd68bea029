// The inner part of wide Hopper products: a warp feeds a ring of shared memory, two or three warpgroups multiply (sm_90a).
//
// acc [TILE_M, TILE_N] = a [rows, K] * b [columns, K]^T, a and b in bf16, e4m3 with FP8, or signed integers with
// FP8 and INT8; accumulation as wgmma does it: in fp32, for e4m3 with the narrower sums that cuBLASLt calls fast accumulation,
// for integers exactly. A stage of the ring is one step: 128 bytes of K
// of both tiles, with the 128-byte swizzle. Tiles are 128 x 256 with two warpgroups, 192 x 192 or 192 x 256 with three: what bounds
// these products is how fast a multiprocessor takes in operands, and registers bound the tiles. The largest needs a fourth warpgroup,
// which gives its registers to the others: it feeds, and multiplies up to eight rows behind the last tile (tail_sm90.cuh).
//
// A block has pieces of work, each a tile and a range of steps, and stays for all of them, so that what a piece needs is on its
// way while the one before it is finished. Tiles of the same columns run side by side, so the weights b come from memory once.
#pragma once
#include "tma.cuh"
#include "wgmma_wide.cuh"

#ifndef WARPGROUPS
#define WARPGROUPS 2
#endif
#ifndef COLUMNS
#define COLUMNS (WARPGROUPS == 2 ? 256 : 192)
#endif
#ifndef STAGES
#define STAGES 4
#endif
#define SERVED (WARPGROUPS * COLUMNS > 576)  // by a warpgroup more

constexpr int TILE_M = 64 * WARPGROUPS, TILE_N = COLUMNS;
#ifndef TAIL
#define TAIL (SERVED ? 8 : 0)  // rows that the last tiles may have more
#endif
constexpr int SHARERS = TILE_N / 64;  // tiles that share those
constexpr int ROW_BYTES = 128;
constexpr int STEP = ROW_BYTES / (FP8 ? 1 : 2);  // elements of K in a step
constexpr int STAGE_BYTES = (TILE_M + TILE_N) * ROW_BYTES;
constexpr int CONSUMERS = 128 * WARPGROUPS;
constexpr int THREADS = CONSUMERS + (SERVED ? 128 : 32);
constexpr int TILES = TILE_N / 8;
constexpr int SCALE_BYTES = FP8 ? TILE_N * 4 : 0;
constexpr int TAIL_BYTES = SERVED ? 8 * ROW_BYTES : 0;

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
        tiles(row_tiles * ((columns + TILE_N - 1) / TILE_N)) {
    if (TAIL && (rows - 1) % TILE_M < TAIL && row_tiles > SHARERS) tiles -= tiles / row_tiles, row_tiles--;
  }

  // Which 64 columns of the rows behind the last tile a piece takes, negative: none.
  __device__ int tail_share(const Piece& piece) const {
    return rows > row_tiles * TILE_M ? piece.row / TILE_M - (row_tiles - SHARERS) : -1;
  }

  __device__ bool get(int item, Piece& piece) const {
    // A block's place among the tiles of the same columns changes, because the last of them may have few rows.
    int turn = SERVED && gridDim.x % row_tiles == 0 ? item : 0, i = (blockIdx.x + turn) % gridDim.x + item * gridDim.x;
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
  __device__ Cursor(const Schedule& schedule, const Piece& piece, int item, int step)
      : schedule(schedule), piece(piece), item(item), step(step), more(true) {}

  __device__ void advance() {
    if (++step == piece.count) step = 0, more = schedule.get(++item, piece);
  }
};

// Channel scales are kept for so many pieces that, even with a step a piece, those of a piece are overwritten only after it has
// been finished: the stage that the new ones come with has been given back since. SERVED, they come with the last step of a piece,
// which has more than STAGES: one place is enough then.
constexpr int SCALES = SERVED ? 1 : STAGES + 1;
constexpr int SCALE_PLACE = STAGES * STAGE_BYTES + TAIL_BYTES, BARRIER_PLACE = SCALE_PLACE + SCALES * SCALE_BYTES;

// Shared memory, from an address that is a multiple of 1024: stages, a step of the rows behind the last tile, channel scales, barriers.
struct Ring {
  uint8_t* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ explicit Ring(uint8_t* shared)
      : stages(shared), full(reinterpret_cast<uint64_t*>(shared + BARRIER_PLACE)), empty(full + STAGES) {}

  __device__ uint8_t* a(int stage) const { return stages + stage * STAGE_BYTES; }
  __device__ uint8_t* b(int stage) const { return a(stage) + TILE_M * ROW_BYTES; }
  __device__ uint8_t* tail() const { return stages + STAGES * STAGE_BYTES; }
  // Of the piece number `item`.
  __device__ float* scales(int item) const { return reinterpret_cast<float*>(stages + SCALE_PLACE + item % SCALES * SCALE_BYTES); }

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
  const uint8_t* rows;         // what the map a describes
};

// How many warpgroups have rows of a piece; only their boxes of 64 rows are fetched where a warpgroup more serves.
__device__ __forceinline__ int row_boxes(const Cursor& at) { return min(WARPGROUPS, (at.schedule.rows - at.piece.row + 63) / 64); }

// Announce what comes into a stage, and fetch the weights, and with one step of a piece their scales.
__device__ __forceinline__ void fetch_weights(const Ring& ring, const Operands& from, const Cursor& at, int stage) {
  int scales = FP8 && at.step == (SERVED ? at.piece.count - 1 : 0) && from.channel_scale ? min(TILE_N, at.schedule.columns - at.piece.column) * 4 : 0;
  int bytes = SERVED ? (row_boxes(at) * 64 + TILE_N) * ROW_BYTES : STAGE_BYTES;
  barrier_expect(ring.full + stage, bytes + scales);
  copy_box(ring.b(stage), from.b, (at.piece.first + at.step) * STEP, at.piece.column, ring.full + stage);
  if (scales > 0) copy_bytes(ring.scales(at.item), from.channel_scale + at.piece.column, scales, ring.full + stage);
}

__device__ __forceinline__ void fetch_rows(const Ring& ring, const Operands& from, const Cursor& at, int stage) {
  int column = (at.piece.first + at.step) * STEP;
#if SERVED
  for (int i = 0; i < row_boxes(at); i++)
    copy_box(ring.a(stage) + i * 64 * ROW_BYTES, from.a, column, at.piece.row + i * 64, ring.full + stage);
#else
  copy_box(ring.a(stage), from.a, column, at.piece.row, ring.full + stage);
#endif
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

// d [64, 8 * COUNT] = a [64, 32 bytes] * b^T (+ d)
template <int COUNT>
__device__ __forceinline__ void multiply(Sum (&d)[COUNT][4], const uint8_t* a, const uint8_t* b, bool accumulate) {
#if INT8
  wgmma_int8(d, swizzled_rows(a), swizzled_rows(b), accumulate);
#elif FP8
  wgmma_e4m3(d, swizzled_rows(a), swizzled_rows(b), accumulate);
#else
  wgmma_bf16(d, swizzled_rows(a), swizzled_rows(b), accumulate);
#endif
}

__device__ __forceinline__ void multiply_step(Sum (&acc)[TILES][4], const uint8_t* a, const uint8_t* b, bool accumulate) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < ROW_BYTES; k += 32) {
#if SERVED  // one of 256 columns needs more registers than ptxas has for 512 threads
    multiply(reinterpret_cast<Sum(&)[TILES / 2][4]>(acc[0]), a + k, b + k, accumulate || k > 0);
    multiply(reinterpret_cast<Sum(&)[TILES / 2][4]>(acc[TILES / 2]), a + k, b + TILE_N / 2 * ROW_BYTES + k, accumulate || k > 0);
#else
    multiply(acc, a + k, b + k, accumulate || k > 0);
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

#if SERVED
#include "tail_sm90.cuh"
#endif

// All work of a block. finish(acc, piece, scales): what the calling warpgroup does with its 64 rows; not called where all of
// them are beyond `rows`. scales: of the piece's columns, in shared memory. finish_tail: see tail_sm90.cuh.
template <class Finish, class FinishTail>
__device__ __forceinline__ void run_pieces(const Ring& ring, const Operands& from, const Schedule& schedule, const Finish& finish,
                                           const FinishTail& finish_tail) {
  if (threadIdx.x >= CONSUMERS) {
#if SERVED
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(SERVING_REGISTERS));
    serve(ring, from, schedule, finish_tail);
#else
    if (threadIdx.x == CONSUMERS) feed(ring, from, schedule);
    __syncwarp();
    wait_for_predecessor();
#endif
  } else {
#if SERVED
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MULTIPLYING_REGISTERS));
#endif
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
