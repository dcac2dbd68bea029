// All layers of the action expert for one flow step, in one kernel that stays on the GPU.
// Architectures: 90a
//
// Five phases a layer: q, k, v; attention; its output projection; gate and up; down. Their contracts are in expert_*.cuh.
// Normed input of the first layer and x come from expert_flow.cu (pi0: from the first phase here, the second embedding layer).
// x, fp32 [64][1024], is the residual stream behind the last layer when the kernel ends.
//
// Bytes a layer: 17.3 MB of fp8 weights (5.6 us at 3.1 TB/s), twice that in bf16, and 0.6 MB of K/V. What decides the time is
// the chain of eight exchanges between blocks, each as long as a trip through L2 (expert_exchange.cuh), while weights stream
// in behind (expert_stream.cuh).
//
// Launch: at least 128 blocks of 384 threads, all resident at once (cooperative), with arguments.shared_bytes of dynamic shared
// memory. Threads 0..255 compute, warp 8 fetches weights, warp 9 fetches the prefix. Exchange buffers must be PENDING
// throughout before the first layer of a loop.
#include "expert_attention.cuh"
#include "expert_ends.cuh"
#include "expert_gate_up.cuh"
#include "expert_qkv.cuh"
#include "expert_residual.cuh"

constexpr int ALL_THREADS = THREADS + 128;

template <int N>
struct Constant {
  static constexpr int value = N;
};

struct Shared {
  Exchange exchange;
  Rows rows;
  Squares squares;
  StreamBarriers stream;
  uint64_t prefix_full, prefix_empty;
  Frozen frozen;
#if ALL_STEPS
  float4 actions[128];
#endif
#if TABLES_AHEAD
  uint64_t layer_begun;
#endif
};

// How dynamic shared memory is used: keys and values, probabilities, then the ring of weights.
struct Plan {
  int probabilities, ring, slots;
  __device__ Plan(const Keys& keys, int bytes) {
    probabilities = 2 * keys.bytes();
    ring = probabilities + (keys.probability_bytes() + 127) / 128 * 128;
    slots = min(MAX_SLOTS, (bytes - ring) / SLOT);
  }
};

// The weights of one product of which a block takes `slots` slots.
struct Slice {
  const uint8_t* first;
  int blocks, slots, phase;
  __device__ const uint8_t* of(int layer) const { return first + ((size_t)layer * blocks + blockIdx.x) * slots * SLOT; }
  __device__ bool used(const Arguments& a) const { return a.phases & phase && blockIdx.x < blocks; }
};

// Bring what this block needs of a layer besides weights into L2.
__device__ __forceinline__ void prefetch_line(const float* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }
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

#if TABLES_AHEAD
// By one thread: while a layer computes, the next one's.
__device__ __forceinline__ void prefetch_all_tables(const Arguments& a, Shared& shared) {
  const int steps = ALL_STEPS ? a.ends.steps : 1;
  for (int number = 0; number < steps * a.layers; number++) {
    const int step = number / a.layers;
    prefetch_tables(a, number % a.layers, min(step, shared.frozen.clean));
    if (number > 0) barrier_wait(&shared.layer_begun, (number - 1) & 1);
  }
}
#endif

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
#if ALL_STEPS
  for (int step = 0; step < a.ends.steps; step++) {
    feed(mixer, 0, output, 0);
    for (int layer = 0; layer < a.layers; layer++) {
      const int following = layer + 1 == a.layers && step + 1 < a.ends.steps ? 0 : layer + 1;
      feed(qkv, layer, output, layer);
      feed(output, layer, gate_up, layer);
      feed(gate_up, layer, down, layer);
      feed(down, layer, blockIdx.x < QKV_BLOCKS ? qkv : output, following);
    }
  }
#else
  feed(mixer, 0, output, 0);
  for (int layer = 0; layer < a.layers; layer++) {
    feed(qkv, layer, output, layer);
    feed(output, layer, gate_up, layer);
    feed(gate_up, layer, down, layer);
    feed(down, layer, blockIdx.x < QKV_BLOCKS ? qkv : output, layer + 1);
  }
#endif
}

__device__ __forceinline__ void fetch_prefixes(const Arguments& a, const Keys& keys, uint32_t memory, uint64_t* full, uint64_t* empty) {
#if ALL_STEPS
  for (int number = 0; number < a.layers * a.ends.steps; number++) {
    barrier_wait(empty, (number & 1) ^ 1);
    fetch_prefix(a, keys, number % a.layers, memory, full);
  }
#else
  for (int layer = 0; layer < a.layers; layer++) {
    barrier_wait(empty, (layer & 1) ^ 1);
    fetch_prefix(a, keys, layer, memory, full);
  }
#endif
}

// The residual streams's projections in layer `layer`; the norm behind is number `norm` of the step. own: of the thread's row.
__device__ __forceinline__ Residual residual(const Arguments& a, int layer, int norm, const Product& product, int which,
                                             int own, int first) {
  Residual r;
  r.column_scale = product.scale + layer * WIDTH;
  r.gate = a.gate + own + (size_t)(norm - 1) * WIDTH;
  r.next_scale = a.norm_scale + own + (size_t)norm * WIDTH;
  r.activation_scale = a.scales[layer * 4 + which];
  r.next_inverse = a.scales[(a.layers + min(norm / 2, a.layers - 1)) * 4 + norm % 2 * 2];
  r.parts_number = r.out_number = first + layer;
  r.norm = norm;
  r.writes_out = true;
  return r;
}

template <class P>
__device__ __forceinline__ void attend_of_size(const Arguments& a, int layer, const Keys& keys, const Merged& place, Shared& shared,
                                               uint8_t* memory, const Plan& plan, int first) {
  const auto call = [&](auto tiles) {
    attend<P, decltype(tiles)::value>(a, layer, keys, place, shared.rows, memory + plan.probabilities, shared_address(memory),
                                      &shared.prefix_full, &shared.prefix_empty, first);
  };
  if (keys.tiles == 3) call(Constant<3>());
  else if (keys.tiles == 5) call(Constant<5>());
  else if (keys.tiles == 6) call(Constant<6>());
  else call(Constant<9>());
}

template <class P>
__device__ __forceinline__ void compute(const Arguments& a, Shared& shared, const Keys& keys, uint8_t* memory, const Plan& plan) {
  Stream stream{shared.stream, shared_address(memory + plan.ring), plan.slots, {(int)threadIdx.x / 128, 0}};
  const bool attends = blockIdx.x / ATTENTION_CLUSTER * QUERIES < HEADS * a.rows && a.phases & ATTENTION;
  const bool projects = blockIdx.x < QKV_BLOCKS && a.phases & QKV;
  const QkvPlace qkv_place(a);
  const Merged merged(a.rows);
  const Place place(a.rows);
  const int fragment = fragment_place(a.rows);
#if ALL_STEPS
  wait_for_predecessor();
  if (blockIdx.x >= BLOCKS) return;
  const bool embeds = blockIdx.x % GROUP * 16 < a.rows;
  const int index = place.row - a.state_token;  // of this thread's row among the actions
  const bool acts = place.live && index >= 0;
  float4 x = make_float4(0, 0, 0, 0);
  if (acts) x = __ldcg(reinterpret_cast<const float4*>(index < shared.frozen.rows ? a.ends.target : a.ends.actions) + action_place(index));
  if (threadIdx.x < 128) shared.actions[threadIdx.x] = x;
  else load_ends(a, shared.exchange);
  block_barrier();
  for (int step = 0, layer = 0;;) {
    const int first = step * a.layers;
    const Modulated modulated{shared.frozen, step};
    const int own = modulated.offset(place.row, (2 * a.layers + 1) * WIDTH);
    if (layer == 0) {
      if (place.used) {
        x = embed_actions(a, shared.exchange, place, shared.actions[threadIdx.x], step);
        x = publish_embedding<P>(a, place, x, acts, step, own);
      }
      if (a.phases & EMBED) {
        if (place.used) x = *reinterpret_cast<const float4*>(a.base + place.row * WIDTH + place.column);
        Residual r = residual(a, 0, 0, a.mixer, 0, 0, first);
        r.in = a.ends.embedded + (step & 1) * (ROWS * WIDTH / 2);
        r.gate = nullptr;
        r.activation_scale = 1;
        r.parts = a.mixer_parts;
        r.parts_number = step;
        r.out = &a.normed_qkv;
        project_back<Bf16, P, WIDTH>(a, r, stream, shared.exchange, place, fragment, x, -1, 0);
      }
    }
    const int half = (first + layer) & 1;
#if TABLES_AHEAD
    if (threadIdx.x == 0) barrier_arrive(&shared.layer_begun);
#endif
    STAMP(a, layer, 0);
    if (projects) project_qkv<P>(a, layer, stream, shared.exchange, shared.squares, fragment, qkv_place, modulated, first);
    if (attends) attend_of_size<P>(a, layer, keys, merged, shared, memory, plan, first);
    if (a.phases & OUTPUT) {
      Residual r = residual(a, layer, 2 * layer + 1, a.output, 1, own, first);
      r.in = a.attended + (size_t)half * (ROWS * HEADS * DIM * P::SIZE / 4);
      r.parts = a.output_parts;
      r.out = &a.normed_gate_up;
      project_back<P, P, HEADS * DIM>(a, r, stream, shared.exchange, place, fragment, x, layer, 7);
    }
    if (a.phases & GATE_UP) gate_up<P>(a, layer, stream, shared.exchange, shared.squares, fragment, modulated, first);
    if (a.phases & DOWN) {
      Residual r = residual(a, layer, 2 * layer + 2, a.down, 3, own, first);
      r.in = a.hidden + (size_t)half * (ROWS * MLP * P::SIZE / 4);
      r.parts = a.down_parts;
      r.out = &a.normed_qkv;
      r.out_number++;
      r.writes_out = layer + 1 < a.normed_layers;
      project_back<typename P::Down, P, MLP>(a, r, stream, shared.exchange, place, fragment, x, layer, 12);
    }
    if (++layer < a.layers) continue;
    if (embeds) {
      if (threadIdx.x >= 128) load_ends(a, shared.exchange);
      block_barrier();
      if (threadIdx.x < 128) send_velocities(a, shared.exchange, place, x, step, modulated.table_row());
      float square;
      const float4 sum = gather_velocities(a, shared.exchange, shared.squares, step, square);
      if (acts)
        shared.actions[threadIdx.x] = update_actions(a, shared.actions[threadIdx.x], sum, square, index, step, modulated.table_row());
      __syncwarp();
    }
    if (++step == a.ends.steps) break;
    layer = 0;
  }
  if (acts && blockIdx.x < GROUP)
    reinterpret_cast<float4*>(a.ends.actions)[action_place(index)] = shared.actions[threadIdx.x];
}

#else
  const int own = shared.frozen.offset(place.row, (2 * a.layers + 1) * WIDTH);
  wait_for_predecessor();
  float4* home = reinterpret_cast<float4*>(a.x + place.row * WIDTH + place.column);
  float4 x = make_float4(0, 0, 0, 0);
  if (blockIdx.x >= BLOCKS) return;
  if (a.phases & EMBED) {
    if (place.used) x = *reinterpret_cast<const float4*>(a.base + place.row * WIDTH + place.column);
    Residual r = residual(a, 0, 0, a.mixer, 0, 0, a.first);
    r.in = reinterpret_cast<const uint32_t*>(a.embedded);
    r.gate = nullptr;
    r.activation_scale = 1;
    r.parts = a.mixer_parts;
    r.parts_number = a.step;
    r.out = &a.normed_qkv;
    project_back<Bf16, P, WIDTH>(a, r, stream, shared.exchange, place, fragment, x, -1, 0);
  } else if (place.used) {
    x = __ldcg(home);
#ifdef KEEPS
    reinterpret_cast<float4*>(a.kept.x)[(place.row * WIDTH + place.column) / 4] = x;
#endif
  }
  for (int layer = 0; layer < a.layers; layer++) {
    const int half = (a.first + layer) & 1;
#if TABLES_AHEAD
    if (threadIdx.x == 0) barrier_arrive(&shared.layer_begun);
#endif
    STAMP(a, layer, 0);
    if (projects) project_qkv<P>(a, layer, stream, shared.exchange, shared.squares, fragment, qkv_place, shared.frozen, a.first);
    if (attends) attend_of_size<P>(a, layer, keys, merged, shared, memory, plan, a.first);
    if (a.phases & OUTPUT) {
      Residual r = residual(a, layer, 2 * layer + 1, a.output, 1, own, a.first);
      r.in = a.attended + (size_t)half * (ROWS * HEADS * DIM * P::SIZE / 4);
      r.parts = a.output_parts;
      r.out = &a.normed_gate_up;
      project_back<P, P, HEADS * DIM>(a, r, stream, shared.exchange, place, fragment, x, layer, 7);
    }
    if (a.phases & GATE_UP) gate_up<P>(a, layer, stream, shared.exchange, shared.squares, fragment, shared.frozen, a.first);
    if (a.phases & DOWN) {
      Residual r = residual(a, layer, 2 * layer + 2, a.down, 3, own, a.first);
      r.in = a.hidden + (size_t)half * (ROWS * MLP * P::SIZE / 4);
      r.parts = a.down_parts;
      r.out = &a.normed_qkv;
      r.out_number++;
      r.writes_out = layer + 1 < a.normed_layers;
      project_back<typename P::Down, P, MLP>(a, r, stream, shared.exchange, place, fragment, x, layer, 12);
    }
  }
  if (place.used) *home = x;
}
#endif

template <class P>
__device__ __forceinline__ void run(const Arguments& a) {
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ Shared shared;
  const int warp = threadIdx.x / 32;
  const Keys keys(*a.length, a.rows);
  const Plan plan(keys, a.shared_bytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < MAX_SLOTS; i++) barrier_init(&shared.stream.full[i], 1), barrier_init(&shared.stream.empty[i], 4);
    barrier_init(&shared.prefix_full, 32);
    barrier_init(&shared.prefix_empty, THREADS / 32);
#if TABLES_AHEAD
    barrier_init(&shared.layer_begun, 1);
#endif
    barrier_init_done();
    shared.frozen = {a.frozen ? *a.frozen : 0, a.clean};
  }
  __syncthreads();
  release_successor();
  if (warp < THREADS / 32) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#if ALL_STEPS
    const Keys own_keys(*a.length, a.rows);  // afresh: nothing but `memory` is kept across the change of registers
    compute<P>(a, shared, own_keys, memory, Plan(own_keys, a.shared_bytes));
#else
    compute<P>(a, shared, keys, memory, plan);
#endif
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  if (warp == THREADS / 32) {
    if (threadIdx.x % 32 == 0 && blockIdx.x < BLOCKS) feed_weights<P>(a, {shared.stream, memory + plan.ring, plan.slots});
  } else if (warp == THREADS / 32 + 1 && blockIdx.x / ATTENTION_CLUSTER * QUERIES < HEADS * a.rows && a.phases & ATTENTION) {
    fetch_prefixes(a, keys, shared_address(memory), &shared.prefix_full, &shared.prefix_empty);
  }
#if TABLES_AHEAD
  if (warp == THREADS / 32 + 2 && threadIdx.x % 32 == 0 && blockIdx.x < BLOCKS) prefetch_all_tables(a, shared);
#endif
}

// KEEPS, if defined: also write what the way back needs.
// FP8: 0 for bf16; 1 for e4m3, and with INT8 for integers of 8 bits in all products but down.
#if INT8
using Precision = Int8;
#elif FP8
using Precision = Fp8;
#else
using Precision = Bf16;
#endif

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1) expert_layers(const __grid_constant__ Arguments arguments) {
  run<Precision>(arguments);
}
