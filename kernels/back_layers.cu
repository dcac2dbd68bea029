// The way back through the layers of the action expert: one kernel whose blocks stay on the GPU, as the forward pass (expert_layers.cu).
// Architectures: 90a
#include "back_attention.cuh"
#include "back_products.cuh"

#ifndef BACK_FLYING
#define BACK_FLYING 4
#endif
#ifndef BACK_AHEAD
#define BACK_AHEAD 0
#endif
#ifndef BACK_TABLES
#define BACK_TABLES 1
#endif

constexpr int ALL_THREADS = THREADS + 128, ALL_PHASES = QKV | ATTENTION | OUTPUT | GATE_UP | DOWN | ACTIONS_IN;

// Of dynamic shared memory: what is behind attention's.
struct Ring {
  int start, slots;
  __device__ Ring(const Keys& keys, int bytes) : start(AttentionPlan(keys).ring), slots(min(MAX_SLOTS, (bytes - start) / SLOT)) {}
};

// The weights of one product of which a block takes `slots` slots.
struct BackSlice {
  const uint8_t* first;
  int slots, phase;
  __device__ const uint8_t* of(int layer) const { return first + ((int64_t)layer * BLOCKS + blockIdx.x) * slots * SLOT; }
};

// By one thread.
__device__ __forceinline__ void feed_back_weights(const BackArguments& a, Feeder<BACK_FLYING> feeder) {
  const BackSlice down{a.down_weights, WIDTH * DOWN_COLUMNS * 2 / SLOT, DOWN};
  const BackSlice gate_up{a.gate_up_weights, 2 * MLP * NORMED_COLUMNS * 2 / PARTS / SLOT, GATE_UP};
  const BackSlice output{a.output_weights, WIDTH * OUTPUT_COLUMNS * 2 / SLOT, OUTPUT};
  const BackSlice qkv{a.qkv_weights, TURNED * NORMED_COLUMNS * 2 / PARTS / SLOT, QKV};
  const auto feed = [&](const BackSlice& slice, int layer, const BackSlice& next, int next_layer) {
    const bool ahead = BACK_AHEAD && next_layer >= a.last && a.phases & next.phase;
    if (a.phases & slice.phase)
      feeder.feed(slice.of(layer), slice.slots, next.of(next_layer), ahead ? next.slots * SLOT / slice.slots & ~15 : 0);
  };
  for (int layer = a.first; layer >= a.last; layer--) {
    feed(down, layer, gate_up, layer);
    feed(gate_up, layer, output, layer);
    feed(output, layer, qkv, layer);
    feed(qkv, layer, down, layer - 1);
  }
}

__device__ __forceinline__ bool attends(const BackArguments& a) {
  return blockIdx.x / ATTENTION_CLUSTER * QUERIES < HEADS * a.rows && a.phases & ATTENTION;
}

// By one warp.
__device__ __forceinline__ void fetch_all_attention(const BackArguments& a, uint8_t* memory, AttentionShared& shared) {
  const Keys keys(*a.length, a.rows);
  for (int layer = a.first, turn = 0; layer >= a.last; layer--, turn++) {
    barrier_wait(&shared.empty, (turn & 1) ^ 1);
    fetch_attention(a, keys, layer, shared_address(memory), &shared.full);
  }
}

__device__ __forceinline__ void prefetch_line(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

// By one warp: what this block needs of a layer besides weights and attention's, into L2.
__device__ __forceinline__ void prefetch_kept(const BackArguments& a, int layer, int table) {
  const int lane = threadIdx.x % 32, columns = blockIdx.x / PARTS * NORMED_COLUMNS;
  for (int row = lane; row < a.rows; row += 32) {
    const uint32_t* gates = a.gate_up + ((size_t)(layer * ROWS + row) * 2 * MLP + blockIdx.x * DOWN_COLUMNS) / 2;
    prefetch_line(gates), prefetch_line(gates + MLP / 2);
    for (int norm = 2 * layer; norm < 2 * layer + 2; norm++)
      for (int half = 0; half < NORMED_COLUMNS; half += 32)
        prefetch_line(a.x + ((size_t)norm * ROWS + row) * WIDTH + columns + half);
  }
  const int flat = blockIdx.x / ATTENTION_CLUSTER * QUERIES + lane;
  if (flat < HEADS * a.rows) {
    const int row = layer * ROWS + flat % a.rows, head = flat / a.rows;
    prefetch_line(a.log_sums + row * HEADS);
    for (int i = 0; i < 4; i++) prefetch_line(a.attended + ((size_t)row * ATTENDED + head * DIM) / 2 + i * 32);
  }
  for (int norm = 2 * layer; norm < 2 * layer + 2; norm++) {
    prefetch_line(a.squares + ((size_t)norm * STATISTICS + lane) * ROWS + blockIdx.x % GROUP * 16);
    if (lane < 2) prefetch_line(a.scale + table + norm * WIDTH + columns + lane * 32);
    if (lane < 2 && norm) prefetch_line(a.gate + table + (norm - 1) * WIDTH + columns + lane * 32);
  }
}

// While a layer computes, the next one's. A count and not a barrier, so that one who comes late misses nothing.
__device__ __forceinline__ void prefetch_all_kept(const BackArguments& a, int& begun) {
  const int table = a.table_row * (2 * a.layers + 1) * WIDTH;
  for (int layer = a.first, turn = 0; layer >= a.last; layer--, turn++) {
    prefetch_kept(a, layer, table);
    while (atomicAdd(&begun, 0) < turn) __nanosleep(500);
    __syncwarp();
  }
}

// In memory that the output projection has used before, and down will use again.
__device__ __forceinline__ Turned& turned_of(BackShared& shared) {
  static_assert(sizeof(Turned) <= sizeof(shared.narrow_exchange), "size");
  return reinterpret_cast<Turned&>(shared.narrow_exchange);
}

// Through the output projection and attention. What attention needs of the forward pass is computed while the projection's input is
// on its way.
template <int T>
__device__ __forceinline__ void output_and_attention(const BackArguments& a, int layer, int number, const Keys& keys, uint8_t* memory,
                                                     Stream& stream, BackShared& shared, int fragment) {
  Prepared<T> prepared;
  prepare_attention(a, layer, keys, memory, shared.attention, a.first - layer, prepared);
  if (a.phases & OUTPUT) through_output(a, layer, number, stream, shared, fragment);
  through_attention(a, layer, number, keys, memory, shared_address(&shared.exchange), shared.attention, turned_of(shared), prepared);
}

__device__ __forceinline__ void through_output_and_attention(const BackArguments& a, int layer, int number, const Keys& keys,
                                                             uint8_t* memory, Stream& stream, BackShared& shared, int fragment) {
  if (!attends(a)) {
    if (a.phases & OUTPUT) through_output(a, layer, number, stream, shared, fragment);
    block_barrier();  // the projection has used what gather_turned will use
    return;
  }
  if (keys.tiles == 3) output_and_attention<3>(a, layer, number, keys, memory, stream, shared, fragment);
  else if (keys.tiles == 5) output_and_attention<5>(a, layer, number, keys, memory, stream, shared, fragment);
  else if (keys.tiles == 6) output_and_attention<6>(a, layer, number, keys, memory, stream, shared, fragment);
  else output_and_attention<9>(a, layer, number, keys, memory, stream, shared, fragment);
}

__device__ __forceinline__ void compute_back(const BackArguments& a, BackShared& shared, uint8_t* memory) {
  const Keys keys(*a.length, a.rows);
  const Ring ring(keys, a.shared_bytes);
  Stream stream{shared.stream, shared_address(memory + ring.start), ring.slots, {(int)threadIdx.x / 128, 0}};
  const Place place(a.rows);
  const int fragment = fragment_place(a.rows), table = a.table_row * (2 * a.layers + 1) * WIDTH;
  wait_for_predecessor();
  float4 gradient = make_float4(0, 0, 0, 0);
  if (place.live) gradient = load4(a.gradient + place.row * WIDTH + place.column);
  if (a.phases & ACTIONS_IN && place.used)
    publish_gated(place, a.gated_down, a.number, gradient * load4(a.gate + table + (2 * a.first + 1) * WIDTH + place.column), true);
  for (int layer = a.first, number = a.number; layer >= a.last; layer--, number++) {
    const int half = number & 1;
    if (threadIdx.x == 0) atomicExch(&shared.begun, number - a.number + 1);
    STAMP(a, layer, 0);
    if (a.phases & DOWN) through_gate(a, layer, a.gated_down + half * (ROWS * WIDTH / 2), number, stream, shared, fragment);
    if (a.phases & GATE_UP) {
      const ThroughNorm n{a.hidden + half * (ROWS * MLP), a.gate_up_parts, a.gate_up_dots, a.gated_output, 2 * layer + 1, number,
                          number, false};
      through_norm<2 * MLP>(a, n, stream, shared, place, fragment, table, gradient, layer, 3, [&] {
        if (a.phases & DOWN) reset_hidden_gradient(a, number);
      });
    }
    through_output_and_attention(a, layer, number, keys, memory, stream, shared, fragment);
    if (a.phases & ATTENTION) {
      gather_turned(a, number, attends(a), turned_of(shared));
      STAMP(a, layer, 19);
    }
    STAMP(a, layer, 10);
    if (a.phases & QKV) {
      const ThroughNorm n{a.turned + half * (ROWS * TURNED / 2), a.qkv_parts, a.qkv_dots, a.gated_down, 2 * layer, number, number + 1,
                          layer == 0};
      through_norm<TURNED>(a, n, stream, shared, place, fragment, table, gradient, layer, 11, [] {});
    }
  }
  if (place.live) *reinterpret_cast<float4*>(a.gradient + place.row * WIDTH + place.column) = gradient;
}

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1) back_layers(const __grid_constant__ BackArguments a) {
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ BackShared shared;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < MAX_SLOTS; i++) barrier_init(&shared.stream.full[i], 1), barrier_init(&shared.stream.empty[i], 4);
    barrier_init(&shared.attention.full, 32);
    barrier_init(&shared.attention.empty, THREADS / 32);
    barrier_init_done();
    shared.begun = 0;
  }
  __syncthreads();
  release_successor();
  if (warp < THREADS / 32) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    compute_back(a, shared, memory);
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  if (threadIdx.x == THREADS) {
    const Ring ring(Keys(*a.length, a.rows), a.shared_bytes);
    feed_back_weights(a, {shared.stream, memory + ring.start, ring.slots});
  }
  if (BACK_TABLES && warp == THREADS / 32 + 2 && a.phases == ALL_PHASES) prefetch_all_kept(a, shared.begun);
  if (warp == THREADS / 32 + 1 && attends(a)) fetch_all_attention(a, memory, shared.attention);
}
