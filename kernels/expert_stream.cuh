// A block's weights: one stream of slots through shared memory, fetched ahead of use over all products and layers; and the
// products that consume it.
//
// A slot holds SLOT bytes, that is SLOT / (32 * columns) steps of K. A product takes an even number of slots; of its slots
// warpgroup g multiplies those with number % 2 == g, so that both halves of a block keep pace with the stream. The last two slots of
// a product may be shorter.
#pragma once
#include "expert_exchange.cuh"
#include "tma.cuh"

#ifndef SLOT_BYTES
#define SLOT_BYTES 8192
#endif
constexpr int SLOT = SLOT_BYTES, MAX_SLOTS = (212 << 10) / SLOT;

// How eagerly weights are fetched, found by trial: more slots on their way at a time (FLYING) queue in front of what blocks tell
// each other. In 8 bits the product that follows is brought into L2 meanwhile (AHEAD), so that one slot at a time is enough, and so
// are biases, scales and gates of the next layer (TABLES); in bf16, where memory is busy two thirds of the time, that is in the way
// too.
template <class P>
struct Pace;
template <>
struct Pace<Fp8> {
  static constexpr int FLYING = 1;
  static constexpr bool AHEAD = true, TABLES = true;
};
template <>
struct Pace<Int8> : Pace<Fp8> {};
template <>
struct Pace<Bf16> {
  static constexpr int FLYING = 2;
  static constexpr bool AHEAD = false, TABLES = false;
};

struct StreamBarriers {
  uint64_t full[MAX_SLOTS], empty[MAX_SLOTS];
};

// A place in the ring, and the parity of its turn.
struct Cursor {
  int slot, parity;
  __device__ void advance(int by, int slots) {
    slot += by;
    if (slot >= slots) slot -= slots, parity ^= 1;
  }
};

// By one thread: sends for the weights of one product after the other, as slots become free.
template <int FLYING>
struct Feeder {
  StreamBarriers& barriers;
  uint32_t memory;
  int slots;
  Cursor head{0, 0}, tail{0, 0};
  int flying = 0;
  uint64_t policy;

  __device__ Feeder(StreamBarriers& barriers, const void* memory, int slots)
      : barriers(barriers), memory(shared_address(memory)), slots(slots) {
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  }

  // later: what comes after it, to be brought into L2 meanwhile, later_bytes a slot. last: bytes of each of the last two.
  __device__ void feed(const uint8_t* source, int count, const uint8_t* later, int later_bytes, int last = SLOT) {
    for (int i = 0; i < count; i++) {
      if (flying == FLYING) {
        barrier_wait(&barriers.full[tail.slot], tail.parity);
        tail.advance(1, slots);
        flying--;
      }
      barrier_wait(&barriers.empty[head.slot], head.parity ^ 1);
      uint64_t* full = &barriers.full[head.slot];
      const bool ends = last != SLOT && i >= count - 2;
      const int bytes = ends ? last : SLOT;
      barrier_expect(full, bytes);
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
              memory + head.slot * SLOT),
          "l"(source + (size_t)i * SLOT - (ends ? (i + 2 - count) * (SLOT - last) : 0)), "r"(bytes), "r"(shared_address(full)), "l"(policy)
          : "memory");
      head.advance(1, slots);
      flying++;
      if (later_bytes)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(later + (size_t)i * later_bytes), "r"(later_bytes)
                     : "memory");
    }
  }
};

// One warpgroup's view of the stream.
struct Stream {
  StreamBarriers& barriers;
  uint32_t memory;
  int slots;
  Cursor cursor;

  __device__ uint32_t take() {
    barrier_wait(&barriers.full[cursor.slot], cursor.parity);
    return __shfl_sync(0xffffffffu, memory + cursor.slot * SLOT, 0);  // uniform, as descriptors have to be
  }
  // By all warps of the group, when the products on the slot at `used` are complete.
  __device__ void give_back(const Cursor& used) {
    if (threadIdx.x % 32 == 0) barrier_arrive(&barriers.empty[used.slot]);
  }
};

// No value and no instruction: the first product of a sum does not add.
__device__ __forceinline__ void leave(float& v) { asm volatile("" : "=f"(v)); }
__device__ __forceinline__ void leave(int32_t& v) { asm volatile("" : "=r"(v)); }

// accumulator = A * weights over this warpgroup's SLOTS slots. fragments: this thread's, of the block's first step. Until one of
// them is there, only that one is looked at: what all blocks look at again and again is in the way of what they wait for. Then
// the rest can be expected too, and `then` is called. SHORT: steps of the last slot, if it is a shorter one.
template <class P, int COLUMNS, int SLOTS, int SHORT = 0, class Then>
__device__ __forceinline__ void multiply(float (&accumulator)[COLUMNS / 2], const uint4* fragments, Stream& stream, Then then) {
  constexpr int STEPS = SLOT / (COLUMNS * 32);
  uint4 a[SLOTS][STEPS];
  typename P::Sum sums[COLUMNS / 2];
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i++) leave(sums[i]);
  fragments += threadIdx.x / 128 * STEPS * STEP_FRAGMENTS;
  const uint4* ending = fragments;  // of the last slot
  if constexpr (SHORT > 0) ending -= threadIdx.x / 128 * (STEPS - SHORT) * STEP_FRAGMENTS;
  constexpr int LAST = SLOTS - 1, LAST_STEPS = SHORT ? SHORT : STEPS;
  await_sign(ending + (LAST * 2 * STEPS + LAST_STEPS - 1) * STEP_FRAGMENTS);
#pragma unroll
  for (int s = 0; s < SLOTS; s++)
#pragma unroll
    for (int i = 0; i < STEPS; i++)
      if (s < LAST || i < LAST_STEPS) a[s][i] = look((s < LAST ? fragments : ending) + (2 * s * STEPS + i) * STEP_FRAGMENTS);
  then();
  Cursor before = stream.cursor;
#pragma unroll
  for (int s = 0; s < SLOTS; s++) {
    await(a[s], (s < LAST ? fragments : ending) + 2 * s * STEPS * STEP_FRAGMENTS, STEP_FRAGMENTS, s < LAST ? STEPS : LAST_STEPS);
    const uint64_t weights = weight_descriptor<COLUMNS>(stream.take());
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < STEPS; i++)
      if (s < LAST || i < LAST_STEPS) multiply_step(P(), sums, a[s][i], weights + i * (COLUMNS * 32 >> 4), s + i);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (s > 0) {
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      stream.give_back(before);
    }
    before = stream.cursor;
    stream.cursor.advance(2, stream.slots);
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  stream.give_back(before);
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i++) accumulator[i] = sums[i];
}

__device__ __forceinline__ void block_barrier() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
