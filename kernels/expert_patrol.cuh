// One warp that looks, for its whole block, for signs that a product's input is being written.
//
// A warp that looks for a sign itself finds it half a trip late on average, and the slowest of many a whole one. A warp with
// nothing else to do can have several looks on their way, some clocks apart: when one has come back with a sign, nobody waits for
// the others. It looks at words of several writers, others in each block, and counts the signs it has seen in shared memory.
#pragma once
#include "expert_attention.cuh"
#include "expert_residual.cuh"

enum Sign { QKV_SIGN = 1, QUERIES_SIGN, OUTPUT_SIGN, GATE_UP_SIGN, DOWN_SIGN, SIGNS = DOWN_SIGN };

#if PATROL
constexpr int PATROL_GAP = 150;  // clocks between looks at first

__device__ __forceinline__ void look_out(uint32_t seen, int sign, const uint32_t* source, int need = PATROL_NEED) {
  constexpr uint32_t LANES = (1ull << PATROL_LANES) - 1;
  uint32_t v[PATROL];
#pragma unroll
  for (int i = 0; i < PATROL; i++) {
    v[i] = look(source);
    for (const int start = clock(); i + 1 < PATROL && (int)clock() - start < PATROL_GAP;) {}
  }
  bool found = false;
  for (int patience = PATIENCE; !found; patience--) {
    if (patience == 0) __trap();
#pragma unroll
    for (int i = 0; i < PATROL; i++) {
      found = __popc(__ballot_sync(0xffffffffu, v[i] != PENDING) & LANES) >= need;
      if (found) break;
      v[i] = look(source);
    }
  }
  asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"(seen), "r"(sign) : "memory");
}

// A word for each of PATROL_LANES lanes, of rows 0, 16, .. of fragments: spread over `steps` steps, others in each block.
__device__ __forceinline__ const uint32_t* sign_in(const uint32_t* fragments, int steps, int rows) {
  const int lane = threadIdx.x % PATROL_LANES, tiles = (rows + 15) / 16;
  const int step = (lane * steps / PATROL_LANES + blockIdx.x / GROUP) % steps;
  return fragments + (step * ROW_TILES + (lane + blockIdx.x / GROUP) % tiles) * 32 * 4;
}

template <class P>
__device__ __forceinline__ void patrol(const Arguments& a, uint32_t seen) {
  using Down = typename P::Down;
  constexpr int NORMED = WIDTH / P::STEP, OUTPUT_STEPS = HEADS * DIM / P::STEP / GROUP, DOWN_STEPS = MLP / Down::STEP / GROUP;
  const int group = blockIdx.x / ATTENTION_CLUSTER, quarter = blockIdx.x % GROUP;
  const bool attends = group * QUERIES < HEADS * a.rows;
  for (int number = 0; number < a.layers * a.ends.steps; number++) {
    const int half = number & 1, before = number * SIGNS;
    if (blockIdx.x < QKV_BLOCKS)
      look_out(seen, before + QKV_SIGN, sign_in(a.normed_qkv.fragments + half * NORMED * STEP_FRAGMENTS * 4, NORMED, a.rows));
    if (attends)
      look_out(seen, before + QUERIES_SIGN,
               a.queries + ((half * 16 + group) * 2 * (DIM / 16) + (threadIdx.x % PATROL_LANES * 2 + blockIdx.x % 2) % 16) * 32 * 4, QUERIES_NEED);
    look_out(seen, before + OUTPUT_SIGN,
             sign_in(a.attended + (half * GROUP + quarter) * OUTPUT_STEPS * STEP_FRAGMENTS * 4, OUTPUT_STEPS, a.rows));
    look_out(seen, before + GATE_UP_SIGN,
             sign_in(a.normed_gate_up.fragments + half * NORMED * STEP_FRAGMENTS * 4, NORMED, a.rows));
    look_out(seen, before + DOWN_SIGN,
             sign_in(a.hidden + (half * GROUP + quarter) * DOWN_STEPS * STEP_FRAGMENTS * 4, DOWN_STEPS, a.rows));
  }
}
#endif
