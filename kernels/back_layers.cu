// The way back through the layers of the action expert: one kernel whose blocks stay on the GPU, as the forward pass (expert_layers.cu).
// Architectures: 90a
#include "back_attention.cuh"
#include "back_products.cuh"

#ifndef BACK_FLYING
#define BACK_FLYING 4
#endif

constexpr int ALL_THREADS = THREADS + 128;

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Of dynamic shared memory: what is behind attention's.
struct Ring {
  int start, slots;
  __device__ Ring(const Keys& keys, int bytes) : start(AttentionPlan(keys).ring), slots(min(MAX_SLOTS, (bytes - start) / SLOT)) {}
};

// The weights of one product of which a block takes `slots` slots.
struct BackSlice {
  const uint8_t* first;
  int slots, phase;
};

// By one thread.
__device__ __forceinline__ void feed_back_weights(const BackArguments& a, Feeder<BACK_FLYING> feeder) {
  const BackSlice down{a.down_weights, WIDTH * DOWN_COLUMNS * 2 / SLOT, DOWN};
  const BackSlice gate_up{a.gate_up_weights, 2 * MLP * NORMED_COLUMNS * 2 / PARTS / SLOT, GATE_UP};
  const BackSlice output{a.output_weights, WIDTH * OUTPUT_COLUMNS * 2 / SLOT, OUTPUT};
  const BackSlice qkv{a.qkv_weights, TURNED * NORMED_COLUMNS * 2 / PARTS / SLOT, QKV};
  const auto feed = [&](const BackSlice& slice, int layer) {
    if (a.phases & slice.phase)
      feeder.feed(slice.first + ((size_t)layer * BLOCKS + blockIdx.x) * slice.slots * SLOT, slice.slots, nullptr, 0);
  };
  for (int layer = a.first; layer >= a.last; layer--) feed(down, layer), feed(gate_up, layer), feed(output, layer), feed(qkv, layer);
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

__device__ __forceinline__ void attention_of_size(const BackArguments& a, int layer, int number, const Keys& keys, uint8_t* memory,
                                                  BackShared& shared) {
  const auto call = [&](auto tiles) {
    through_attention<decltype(tiles)::value>(a, layer, number, keys, memory, shared_address(&shared.exchange), shared.attention,
                                              a.first - layer);
  };
  if (keys.tiles == 3) call(Constant<3>());
  else if (keys.tiles == 5) call(Constant<5>());
  else if (keys.tiles == 6) call(Constant<6>());
  else call(Constant<9>());
}

__device__ __forceinline__ void compute_back(const BackArguments& a, BackShared& shared, uint8_t* memory) {
  const Keys keys(*a.length, a.rows);
  const Ring ring(keys, a.shared_bytes);
  Stream stream{shared.stream, shared_address(memory + ring.start), ring.slots, {(int)threadIdx.x / 128, 0}};
  const Place place(a.rows);
  const int fragment = fragment_place(a.rows), table = a.table_row * (2 * a.layers + 1) * WIDTH;
  wait_for_predecessor();
  float4 gradient = make_float4(0, 0, 0, 0);
  if (place.used) gradient = load4(a.gradient + place.row * WIDTH + place.column);
  if (a.phases & ACTIONS_IN && place.used)
    publish_gated(place, a.gated_down, a.number, gradient * load4(a.gate + table + (2 * a.first + 1) * WIDTH + place.column), true);
  for (int layer = a.first, number = a.number; layer >= a.last; layer--, number++) {
    const int half = number & 1;
    STAMP(a, layer, 0);
    if (a.phases & DOWN) through_gate(a, layer, a.gated_down + half * (ROWS * WIDTH / 2), number, stream, shared, fragment);
    if (a.phases & GATE_UP) {
      const ThroughNorm n{a.hidden + half * (ROWS * MLP), a.gate_up_parts, a.gate_up_dots, a.gated_output, 2 * layer + 1, number,
                          number, false};
      through_norm<2 * MLP>(a, n, stream, shared, place, fragment, table, gradient, layer, 3);
    }
    if (a.phases & OUTPUT) through_output(a, layer, a.gated_output + half * (ROWS * WIDTH / 2), number, stream, shared, fragment);
    if (attends(a)) attention_of_size(a, layer, number, keys, memory, shared);
    if (a.phases & ATTENTION && threadIdx.x < 64) gather_key_parts(a, number);
    STAMP(a, layer, 10);
    if (a.phases & QKV) {
      const ThroughNorm n{a.turned + half * (ROWS * TURNED / 2), a.qkv_parts, a.qkv_dots, a.gated_down, 2 * layer, number, number + 1,
                          layer == 0};
      through_norm<TURNED>(a, n, stream, shared, place, fragment, table, gradient, layer, 11);
    }
  }
  if (place.used) *reinterpret_cast<float4*>(a.gradient + place.row * WIDTH + place.column) = gradient;
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
  if (warp == THREADS / 32 + 1 && attends(a)) fetch_all_attention(a, memory, shared.attention);
}
