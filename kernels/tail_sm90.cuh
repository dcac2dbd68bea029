// The warpgroup that serves the others of a block in wide Hopper products (sm_90a): it feeds the ring, and multiplies up to TAIL rows
// behind the last tile of rows.
//
// A tile of its own for a few rows would fetch all weights once more and take as long as one of 64. Here the weights that are in the
// ring anyway are the first operand and those rows the second, so the accumulator is transposed: 64 rows of weights by eight rows
// of a. The last SHARERS tiles of the same columns take 64 columns each, because a thread of this warpgroup has few registers: four for
// the accumulator. (With 16 they spill, and ptxas then makes the other warpgroups wait after each instruction.)
//
// Part of pipeline_sm90.cuh.
#pragma once

constexpr int SERVING_REGISTERS = 32, MULTIPLYING_REGISTERS = 160;  // of a thread: 128 each at the start

static_assert((SERVING_REGISTERS - 128) + 3 * (MULTIPLYING_REGISTERS - 128) <= 0, "more registers than there are");

#if INT8
#define TAIL_SHAPE "m64n8k32.s32.s8.s8"
#define TAIL_SUM "+r"
#define TAIL_SIGNS ""
#elif FP8
#define TAIL_SHAPE "m64n8k32.f32.e4m3.e4m3"
#define TAIL_SUM "+f"
#define TAIL_SIGNS ", 1, 1"
#else
#define TAIL_SHAPE "m64n8k16.f32.bf16.bf16"
#define TAIL_SUM "+f"
#define TAIL_SIGNS ", 1, 1, 0, 0"
#endif

// d [64, 8] = a [64, 32 bytes] * b [8, 32 bytes]^T (+ d)
__device__ __forceinline__ void wgmma_tail(Sum (&d)[4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\nwgmma.mma_async.sync.aligned." TAIL_SHAPE
               " {%0, %1, %2, %3}, %4, %5, p" TAIL_SIGNS ";\n}\n"
               : TAIL_SUM(d[0]), TAIL_SUM(d[1]), TAIL_SUM(d[2]), TAIL_SUM(d[3])
               : "l"(a), "l"(b), "r"((int)accumulate));
}

__device__ __forceinline__ void servers_meet() { asm volatile("bar.sync 1, 128;" ::: "memory"); }

// Eight bytes of a step of the rows behind the last tile, zero beyond the last row; a thread always has the same ones of a step.
__device__ __forceinline__ uint2 load_tail(const Operands& from, const Schedule& schedule, int step) {
  int thread = threadIdx.x - CONSUMERS, row = schedule.row_tiles * TILE_M + thread / 16;
  if (row >= schedule.rows) return make_uint2(0, 0);
  size_t place = (size_t)(row * schedule.steps + step) * ROW_BYTES + thread % 16 * 8;
  return __ldcg(reinterpret_cast<const uint2*>(from.rows + place));
}

// Into shared memory, in the 128-byte swizzle.
__device__ __forceinline__ void store_tail(uint8_t* tail, uint2 value) {
  int thread = threadIdx.x - CONSUMERS, row = thread / 16, group = thread % 16 / 2;
  *reinterpret_cast<uint2*>(tail + row * ROW_BYTES + (group ^ row) * 16 + thread % 2 * 8) = value;
}

__device__ __forceinline__ void multiply_tail(Sum (&acc)[4], const uint8_t* weights, const uint8_t* tail, bool accumulate) {
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < ROW_BYTES; k += 32) wgmma_tail(acc, swizzled_rows(weights + k), swizzled_rows(tail + k), accumulate || k > 0);
  wgmma_commit();
  wgmma_wait<0>();
}

// What the feeding thread goes on with, in shared memory, because the warpgroup has few registers: places of the step to fetch next.
struct Feeder {
  Piece piece;
  int item, step, stage, parity, more;
};

__device__ __forceinline__ void feed_one(Feeder& feeder, const Ring& ring, const Operands& from, const Schedule& schedule) {
  if (!feeder.more) return;
  int stage = feeder.stage, parity = feeder.parity;
  barrier_wait(ring.empty + stage, parity ^ 1);
  Cursor at(schedule, feeder.piece, feeder.item, feeder.step);
  fetch_weights(ring, from, at, stage);
  fetch_rows(ring, from, at, stage);
  at.advance();
  feeder = {at.piece, at.item, at.step, stage + 1 == STAGES ? 0 : stage + 1, stage + 1 == STAGES ? parity ^ 1 : parity, at.more};
}

// Fill the ring; what the predecessor wrote is fetched after it has finished.
__device__ __forceinline__ void begin_feeding(Feeder& feeder, const Ring& ring, const Operands& from, const Schedule& schedule) {
  Cursor early(schedule);
  for (int i = 0; i < STAGES && early.more; i++, early.advance()) fetch_weights(ring, from, early, i);
  wait_for_predecessor();
  Cursor at(schedule);
  for (int i = 0; i < STAGES && at.more; i++, at.advance()) fetch_rows(ring, from, at, i);
  feeder = {at.piece, at.item, at.step, 0, 1, at.more};
}

// All that the warpgroup does. finish_tail(acc, row, column, part, scales): with the products of rows `row` .. and the 64 columns from
// `column` on, whose scales those are.
template <class FinishTail>
__device__ __forceinline__ void serve(const Ring& ring, const Operands& from, const Schedule& schedule, const FinishTail& finish_tail) {
  const bool feeds = threadIdx.x == CONSUMERS;
  Feeder& feeder = *reinterpret_cast<Feeder*>(ring.empty + STAGES);
  if (feeds) begin_feeding(feeder, ring, from, schedule);
  __syncwarp();
  wait_for_predecessor();
  Position used;
  Piece piece;
  for (int item = 0; schedule.get(item, piece); item++) {
    int share = schedule.tail_share(piece);
    if (share < 0) {
      for (int step = 0; step < piece.count; step++, used.advance())
        if (feeds) feed_one(feeder, ring, from, schedule);
      continue;
    }
    __syncwarp();
    Sum acc[4];
    uint2 next = load_tail(from, schedule, piece.first);
    for (int step = 0; step < piece.count; step++, used.advance()) {
      store_tail(ring.tail(), next);
      fence_shared_for_tensor_cores();
      servers_meet();
      if (step + 1 < piece.count) next = load_tail(from, schedule, piece.first + step + 1);
      barrier_wait(ring.full + used.stage, used.parity);
      __syncwarp();
      multiply_tail(acc, ring.b(used.stage) + share * 64 * ROW_BYTES, ring.tail(), step > 0);
      servers_meet();  // the stage and the tail have been used by all
      if (feeds) feed_one(feeder, ring, from, schedule);
      __syncwarp();
    }
    finish_tail(acc, schedule.row_tiles * TILE_M, piece.column + share * 64, piece.part, ring.scales(item) + share * 64);
    servers_meet();  // all have read the scales
  }
}
