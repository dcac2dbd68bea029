// The denoise loop of the action expert: all flow steps, and in each all layers, in one kernel that stays on the GPU.
// Architectures: 90a
//
// In: actions fp32 [H][32], noise; out: what the flow makes of it, in place. A flow step embeds the actions (pi0: in two layers),
// goes through its layers, and ends with the update of the actions by the velocity, guidance included: expert_ends.cuh. Frozen
// rows are the target and have the modulation of flow time 0 in every step.
// Five phases a layer: q, k, v; attention; its output projection; gate and up; down. Their contracts are in expert_*.cuh. The
// residual stream x, fp32 [64][1024], stays in registers, spread over all blocks.
//
// Bytes a layer: 17.3 MB of 8-bit weights (5.6 us at 3.1 TB/s), twice that in bf16, and 0.6 MB of K/V. What decides the time is
// the chain of eight exchanges between blocks, each as long as a trip through L2 (expert_exchange.cuh), while weights stream
// in behind (expert_stream.cuh), those of the next flow step's first products too.
//
// Launch: at least 128 blocks of 384 threads, all resident at once (cooperative), with arguments.shared_bytes of dynamic shared
// memory. Threads 0..255 compute, warp 8 fetches weights, warp 9 the prefix, and warp 10 brings tables into L2 (8 bits). Guidance,
// prefix and tables have been written before the launch. Exchange buffers must be PENDING throughout before the first flow step.
//
// Compiled with KEEPS it runs one flow step, arguments.step, up to the last layer: it writes what the way back of exact guidance
// needs (Kept) and leaves the actions to others. Launches for the steps 0, 1, .. follow each other on the same exchange buffers.
// Tests of single phases use it, too: without ACTIONS_IN, x is kept.x[0].
#include "expert_ends.cuh"
#include "expert_feed.cuh"

constexpr int ALL_THREADS = THREADS + 128;

template <int N>
struct Constant {
  static constexpr int value = N;
};

template <class P>
constexpr bool TABLES_AHEAD = Pace<P>::TABLES && !KEEPING;

struct Shared {
  Exchange exchange;
  Rows rows;
  Squares squares, own_parts;  // not in one: half of a block may have its next squares before the other has taken the parts
  StreamBarriers stream;
  uint64_t prefix_full, prefix_empty;
  Frozen frozen;
  float4 actions[128];  // of the block's rows
  int begun;            // layers, over all flow steps
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

// The residual stream's projections in layer `layer`; the norm behind is number `norm` of the step. own: of the thread's row.
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
                                               uint8_t* memory, const Plan& plan, int first, const QkvPlace& own,
                                               bool resets) {
  const auto call = [&](auto tiles) {
    attend<P, decltype(tiles)::value>(a, layer, keys, place, shared.rows, memory + plan.probabilities, shared_address(memory),
                                      &shared.prefix_full, &shared.prefix_empty, first, own, resets, shared.exchange);
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
  wait_for_predecessor();
  if (blockIdx.x >= BLOCKS) return;
  const bool embeds = blockIdx.x % GROUP * 16 < a.rows, has_actions = !KEEPING || a.phases & ACTIONS_IN;
  const int index = place.row - a.state_token;  // of this thread's row among the actions
  const bool acts = place.live && index >= 0 && has_actions;
  float4 x = make_float4(0, 0, 0, 0);
  if (acts)
    x = __ldcg(reinterpret_cast<const float4*>(index < shared.frozen.rows ? a.ends.target : a.ends.actions) + action_place(index));
  if (threadIdx.x < 128) shared.actions[threadIdx.x] = x;
  else if (has_actions) load_ends(a, shared.exchange);
  block_barrier();
  for (int step = KEEPING ? a.step : 0, layer = 0;;) {
    const int first = step * a.layers;
    const Modulated modulated{shared.frozen, step};
    const int own = modulated.offset(place.row, (2 * a.layers + 1) * WIDTH);
    if (layer == 0) {
      if (place.used && has_actions) {
        x = embed_actions(a, shared.exchange, place, shared.actions[threadIdx.x], step);
        x = publish_embedding<P>(a, place, x, acts, step, own);
      } else if (embeds && has_actions) {
        weights_read();
      }
#ifdef KEEPS
      float4* kept = reinterpret_cast<float4*>(a.kept.x + place.row * WIDTH + place.column);
      if (place.used && has_actions) *kept = x;
      else if (place.used) x = *kept;
#endif
      if (a.phases & EMBED) {
        if (place.used) x = *reinterpret_cast<const float4*>(a.base + place.row * WIDTH + place.column);
        Residual r = residual(a, 0, 0, a.mixer, 0, 0, first);
        r.in = a.embedded + (step & 1) * (ROWS * WIDTH / 2);
        r.gate = nullptr;
        r.activation_scale = 1;
        r.parts = a.mixer_parts;
        r.parts_number = step;
        r.out = &a.normed_qkv;
        project_back<Bf16, P, WIDTH>(a, r, stream, shared.exchange, shared.own_parts, place, fragment, x, -1, 0, [] {});
      }
    }
    const int half = (first + layer) & 1;
    if constexpr (TABLES_AHEAD<P>)
      if (threadIdx.x == 0) atomicExch(&shared.begun, first + layer + 1);
    STAMP(a, layer, 0);
    if (projects)
      project_qkv<P>(a, layer, stream, shared.exchange, shared.squares, fragment, qkv_place, modulated, first,
                     !attends);
    if (attends) attend_of_size<P>(a, layer, keys, merged, shared, memory, plan, first, qkv_place, projects);
    if (a.phases & OUTPUT) {
      Residual r = residual(a, layer, 2 * layer + 1, a.output, 1, own, first);
      r.in = a.attended + (size_t)half * (ROWS * HEADS * DIM * P::SIZE / 4);
      r.parts = a.output_parts;
      r.out = &a.normed_gate_up;
      project_back<P, P, HEADS * DIM>(a, r, stream, shared.exchange, shared.own_parts, place, fragment, x, layer, 7, [] {});
    }
    if (a.phases & GATE_UP) gate_up<P>(a, layer, stream, shared.exchange, shared.squares, fragment, modulated, first);
    if (a.phases & DOWN) {
      Residual r = residual(a, layer, 2 * layer + 2, a.down, 3, own, first);
      r.in = a.hidden + (size_t)half * (ROWS * MLP * P::SIZE / 4);
      r.parts = a.down_parts;
      r.out = &a.normed_qkv;
      r.out_number++;
      r.writes_out = layer + 1 < a.normed_layers;
      project_back<typename P::Down, P, MLP>(a, r, stream, shared.exchange, shared.own_parts, place, fragment, x, layer, 12, [&] {
        if (a.phases & GATE_UP) reset_hidden<P>(a, first + layer);
      });
    }
    if (++layer < a.layers) continue;
    if (KEEPING) return;
    if (embeds) {
      if (threadIdx.x >= 128) load_ends(a, shared.exchange);
      block_barrier();
      if (threadIdx.x < 128) send_velocities(a, shared.exchange, place, x, step, modulated.table_row());
      float square;
      const float4 sum = gather_velocities(a, shared.exchange, shared.squares, step, square);
      if (acts)
        shared.actions[threadIdx.x] =
            update_actions(a, shared.actions[threadIdx.x], sum, square, index, step, modulated.table_row());
      __syncwarp();
    }
    if (++step == a.ends.steps) break;
    layer = 0;
  }
  if (acts && blockIdx.x < GROUP)
    reinterpret_cast<float4*>(a.ends.actions)[action_place(index)] = shared.actions[threadIdx.x];
}

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
    barrier_init_done();
    shared.begun = 0;
    shared.frozen = {a.frozen ? *a.frozen : 0, a.clean};
  }
  __syncthreads();
  release_successor();
  if (warp < THREADS / 32) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const Keys own_keys(*a.length, a.rows);  // afresh: nothing but `memory` is kept across the change of registers
    compute<P>(a, shared, own_keys, memory, Plan(own_keys, a.shared_bytes));
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  if (warp == THREADS / 32) {
    if (threadIdx.x % 32 == 0 && blockIdx.x < BLOCKS) feed_weights<P>(a, {shared.stream, memory + plan.ring, plan.slots});
  } else if (warp == THREADS / 32 + 1 && blockIdx.x / ATTENTION_CLUSTER * QUERIES < HEADS * a.rows && a.phases & ATTENTION) {
    fetch_prefixes(a, keys, shared_address(memory), &shared.prefix_full, &shared.prefix_empty);
  }
  if constexpr (TABLES_AHEAD<P>)
    if (warp == THREADS / 32 + 2 && threadIdx.x % 32 == 0 && blockIdx.x < BLOCKS)
      prefetch_all_tables(a, shared.begun, shared.frozen.clean);
}

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
