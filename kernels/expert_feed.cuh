// What the three warps of an action expert's block that do not compute bring: weights, the prefix, and tables into L2.
#pragma once
#include "expert_attention.cuh"
#include "expert_gate_up.cuh"
#include "expert_qkv.cuh"
#include "expert_residual.cuh"

// Flow steps of a launch.
__device__ __forceinline__ int launched_steps(const Arguments& a) { return KEEPING ? 1 : a.ends.steps; }

// The weights of one product of which a block takes `slots` slots.
struct Slice {
  const uint8_t* first;
  int blocks, slots, phase;
  __device__ const uint8_t* of(int layer) const { return first + ((size_t)layer * blocks + blockIdx.x) * slots * SLOT; }
  __device__ bool used(const Arguments& a) const { return a.phases & phase && blockIdx.x < blocks; }
};

// By one thread.
template <class P>
__device__ __forceinline__ void feed_weights(const Arguments& a, Feeder<Pace<P>::FLYING> feeder) {
  const Slice mixer{a.mixer.weights, BLOCKS, 2, EMBED}, qkv{a.qkv.weights, QKV_BLOCKS, 4 * P::SIZE, QKV};
  const Slice output{a.output.weights, BLOCKS, 2 * P::SIZE, OUTPUT}, gate_up{a.gate_up.weights, BLOCKS, 8 * P::SIZE, GATE_UP};
  const Slice down{a.down.weights, BLOCKS, 4 * P::SIZE, DOWN};
  const auto feed = [&](const Slice& slice, int layer, const Slice& next, int next_layer) {
    const bool ahead = Pace<P>::AHEAD && next.used(a) && next_layer < a.layers;
    if (slice.used(a))
      feeder.feed(slice.of(layer), slice.slots, next.of(next_layer), ahead ? next.slots * SLOT / slice.slots : 0);
  };
  for (int step = 0; step < launched_steps(a); step++) {
    feed(mixer, 0, output, 0);
    for (int layer = 0; layer < a.layers; layer++) {
      const int following = layer + 1 == a.layers && step + 1 < launched_steps(a) ? 0 : layer + 1;
      feed(qkv, layer, output, layer);
      feed(output, layer, gate_up, layer);
      feed(gate_up, layer, down, layer);
      feed(down, layer, blockIdx.x < QKV_BLOCKS ? qkv : output, following);
    }
  }
}

// By one warp.
__device__ __forceinline__ void fetch_prefixes(const Arguments& a, const Keys& keys, uint32_t memory, uint64_t* full,
                                               uint64_t* empty) {
  for (int number = 0; number < a.layers * launched_steps(a); number++) {
    barrier_wait(empty, (number & 1) ^ 1);
    fetch_prefix(a, keys, number % a.layers, memory, full);
  }
}

__device__ __forceinline__ void prefetch_line(const float* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

// What this block needs of a layer besides weights. row: of the tables.
__device__ __forceinline__ void prefetch_tables(const Arguments& a, int layer, int row) {
  const int step_layer = row * a.layers + layer, columns = blockIdx.x / GROUP * RESIDUAL_COLUMNS;
  const int norm = row * (2 * a.layers + 1) + 2 * layer;
  if (blockIdx.x < QKV_BLOCKS) {
    prefetch_line(a.qkv.scale + (layer * QKV_BLOCKS + blockIdx.x) * QKV_COLUMNS);
    prefetch_line(a.qkv_bias + (size_t)(step_layer * QKV_BLOCKS + blockIdx.x) * QKV_COLUMNS);
  }
  for (int i = 0; i < GATE_UP_COLUMNS; i += 32) {
    prefetch_line(a.gate_up.scale + (layer * BLOCKS + blockIdx.x) * GATE_UP_COLUMNS + i);
    prefetch_line(a.gate_up_bias + (size_t)(step_layer * BLOCKS + blockIdx.x) * GATE_UP_COLUMNS + i);
  }
  prefetch_line(a.output.scale + layer * WIDTH + columns);
  prefetch_line(a.down.scale + layer * WIDTH + columns);
  for (int i = 0; i < 2; i++) {
    prefetch_line(a.gate + (size_t)(norm + i) * WIDTH + columns);
    prefetch_line(a.norm_scale + (size_t)(norm + i + 1) * WIDTH + columns);
  }
}

// By one thread: while a layer computes, the next one's. begun: how many layers have begun over all flow steps. clean: as Frozen.
// A count and not a barrier, so that one who comes late misses nothing.
__device__ __forceinline__ void prefetch_all_tables(const Arguments& a, int& begun, int clean) {
  for (int number = 0; number < a.ends.steps * a.layers; number++) {
    prefetch_tables(a, number % a.layers, min(number / a.layers, clean));
    while (atomicAdd(&begun, 0) < number) __nanosleep(500);
  }
}
