// The way back through all layers of the action expert for one flow step of exact guidance: a kernel that stays on the GPU.
// Architectures: 90a
//
// In: the gradient of the residual stream behind the last layer (exact_ends.cu), fp32 [64][1024], and what the forward pass has kept
// (expert_arguments.cuh). Out: in its place the gradient behind the first norm of all, not counting what arrives through that norm;
// and that, bf16 [64][1024]: the gradient of what the norm gives. Rows from `rows` on are neither read nor written; gradients of row 0
// stay 0 if it is pi0's state token.
//
// Phases of a layer, from the last: down (with GELU), gate and up (with the norm in front), output projection, attention, q k v (with
// the norm in front). Contracts: back_products.cuh, back_attention.cuh. Blocks exchange data as in expert_exchange.cuh, weights stream
// as in expert_stream.cuh. The gradient stays in registers, 16 rows x 32 columns a block (Place). Gradients are bf16 (FP8: e5m2) where
// products take them, bf16 in partial sums and in attention, fp32 elsewhere; sums have a fixed order: the same bits at every run.
//
// Bytes a layer: 34.6 MB of weights (11.5 us at 3 TB/s), 1.5 MB of kept activations, and 50 MB of fragments read out of L2; FP8: half
// of weights and fragments. What decides is the chain of eight exchanges between blocks, and that gate and up wait for their weights.
//
// Launch: 128 blocks of 384 threads, all resident at once (cooperative), with arguments.shared_bytes of dynamic shared memory. Threads
// 0..255 compute, warp 8 fetches weights, warp 9 (FP8: 9 to 11) attention's keys, values and queries. Exchange buffers must be PENDING
// throughout before the launch with number 0; launches for the steps 0, 1, .. follow each other on the same.
#include "back_attention.cuh"
#include "back_products.cuh"

constexpr int ALL_THREADS = THREADS + 128;
constexpr int BACK_FLYING = NARROW ? 3 : 4;  // slots on their way at a time, found by trial

// Of dynamic shared memory: what is behind attention's.
struct Ring {
  int start, slots;
  __device__ Ring(const Keys& keys, int bytes) : start(AttentionPlan(keys).ring), slots(min(MAX_SLOTS, (bytes - start) / SLOT)) {}
};

// The weights of one product of which a block takes `bytes`, in an even number of slots.
struct BackSlice {
  const uint8_t* first;
  int bytes, phase;
  __device__ int slots() const { return (bytes + 2 * SLOT - 1) / (2 * SLOT) * 2; }
  __device__ int last() const { return (bytes - (slots() - 2) * SLOT) / 2; }
  __device__ const uint8_t* of(int layer) const { return first + ((size_t)layer * BLOCKS + blockIdx.x) * bytes; }
};

// By one thread.
__device__ __forceinline__ void feed_back_weights(const BackArguments& a, Feeder<BACK_FLYING> feeder) {
  constexpr int SIZE = Gradients::SIZE;
  const BackSlice down{a.down_weights, WIDTH * DOWN_COLUMNS * SIZE, DOWN};
  const BackSlice gate_up{a.gate_up_weights, 2 * MLP * NORMED_COLUMNS * SIZE / PARTS, GATE_UP};
  const BackSlice output{a.output_weights, WIDTH * OUTPUT_COLUMNS * SIZE, OUTPUT};
  const BackSlice qkv{a.qkv_weights, TURNED * NORMED_COLUMNS * SIZE / PARTS, QKV};
  const auto feed = [&](const BackSlice& slice, int layer) {
    if (a.phases & slice.phase) feeder.feed(slice.of(layer), slice.slots(), nullptr, 0, slice.last());
  };
  for (int layer = a.first; layer >= a.last; layer--) feed(down, layer), feed(gate_up, layer), feed(output, layer), feed(qkv, layer);
}

__device__ __forceinline__ bool attends(const BackArguments& a) {
  return blockIdx.x / ATTENTION_CLUSTER * QUERIES < HEADS * a.rows && a.phases & ATTENTION;
}

__device__ __forceinline__ void fetch_all_attention(const BackArguments& a, uint8_t* memory, AttentionShared& shared) {
  const Keys keys(*a.length, a.rows);
  for (int layer = a.first, turn = 0; layer >= a.last; layer--, turn++) {
    barrier_wait(&shared.barriers.empty, (turn & 1) ^ 1);
    fetch_attention(a, keys, layer, shared_address(memory), shared.barriers);
  }
}

// In memory that the output projection has used before, and down will use again.
__device__ __forceinline__ Turned& turned_of(BackShared& shared) {
  static_assert(sizeof(Turned) <= sizeof(shared.narrow_exchange), "size");
  return reinterpret_cast<Turned&>(shared.narrow_exchange);
}

// Calls with the number of tiles of keys as a constant.
template <class Call>
__device__ __forceinline__ void of_size(const Keys& keys, Call call) {
  if (keys.tiles == 3) call(std::integral_constant<int, 3>());
  else if (keys.tiles == 5) call(std::integral_constant<int, 5>());
  else if (keys.tiles == 6) call(std::integral_constant<int, 6>());
  else call(std::integral_constant<int, 9>());
}

__device__ __forceinline__ void compute_back(const BackArguments& a, BackShared& shared, uint8_t* memory) {
  const Keys keys(*a.length, a.rows);
  const Ring ring(keys, a.shared_bytes);
  Stream stream{shared.stream, shared_address(memory + ring.start), ring.slots, {(int)threadIdx.x / 128, 0}};
  const Place place(a.rows);
  const int fragment = fragment_place(a.rows), table = a.table_row * (2 * a.layers + 1) * WIDTH;
  wait_for_predecessor();
  Angles angles;
  if (NARROW && a.phases & ATTENTION) angles.load(a, attends(a));
  float4 gradient = make_float4(0, 0, 0, 0);
  if (place.live) gradient = load4(a.gradient + place.row * WIDTH + place.column);
  float4 gate = make_float4(0, 0, 0, 0);
  if (a.phases & ACTIONS_IN && place.used) gate = load4(a.gate + table + (2 * a.first + 1) * WIDTH + place.column);
  if (NARROW) {
    find_scale(a, shared);
    gate = gate * shared.scale.up;
  }
  if (a.phases & ACTIONS_IN && place.used) publish_gated(place, a.gated_down, a.number, gradient * gate);
  for (int layer = a.first, number = a.number; layer >= a.last; layer--, number++) {
    constexpr int SIZE = Gradients::SIZE;
    const int half = number & 1;
    STAMP(a, layer, 0);
    const auto norm_of_up = [&] {
      return ThroughNorm{a.hidden + half * (ROWS * 2 * MLP * SIZE / 4), a.gate_up_parts, a.gate_up_dots, a.gated_output, 2 * layer + 1,
                         number, number, false};
    };
    const auto norm_of_qkv = [&] {
      return ThroughNorm{a.turned + half * (ROWS * TURNED * SIZE / 4), a.qkv_parts, a.qkv_dots, a.gated_down, 2 * layer, number,
                         number + 1, layer == 0};
    };
    ThroughNorm up, qkv;  // in 8 bits known from here on, as what they need is asked for before they begin
    if constexpr (NARROW) up = norm_of_up(), qkv = norm_of_qkv();
    KeptNorm kept;
    Prepared prepared;
    if (NARROW && a.phases & GATE_UP) kept.load(a, up, place, table);
    if (NARROW && attends(a)) prepared.load(a, layer);
    if (a.phases & DOWN)
      through_gate(a, layer, a.gated_down + half * (ROWS * WIDTH * SIZE / 4), number, stream, shared, fragment);
    if (a.phases & GATE_UP)
      through_norm<2 * MLP>(a, NARROW ? up : norm_of_up(), stream, shared, place, fragment, table, gradient, kept, layer, 3, [&] {
        if (a.phases & DOWN) reset_hidden_gradient(a, number);
      });
    if (!attends(a)) {
      if (a.phases & OUTPUT) through_output(a, layer, number, stream, shared, fragment);
      block_barrier();  // the projection has used what gather_turned will use
    } else {
      of_size(keys, [&](auto tiles) {
        constexpr int T = decltype(tiles)::value;
        prepare_attention<T>(a, layer, keys, memory, shared.attention, a.first - layer, prepared);
        if (a.phases & OUTPUT) through_output(a, layer, number, stream, shared, fragment);
        through_attention<T>(a, layer, number, keys, memory, shared_address(&shared.exchange), shared.attention, a.first - layer,
                             turned_of(shared), prepared);
      });
    }
    if (a.phases & ATTENTION) {
      gather_turned(a, number, attends(a), turned_of(shared), angles);
      STAMP(a, layer, 12);
    }
    if (NARROW && a.phases & QKV) kept.load(a, qkv, place, table);
    if (a.phases & QKV)
      through_norm<TURNED>(a, NARROW ? qkv : norm_of_qkv(), stream, shared, place, fragment, table, gradient, kept, layer, 13, [] {});
  }
  if (place.live) *reinterpret_cast<float4*>(a.gradient + place.row * WIDTH + place.column) = gradient;
}

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1) back_layers(const __grid_constant__ BackArguments a) {
  extern __shared__ __align__(1024) uint8_t memory[];
  __shared__ BackShared shared;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < MAX_SLOTS; i++) barrier_init(&shared.stream.full[i], 1), barrier_init(&shared.stream.empty[i], 4);
    barrier_init(&shared.attention.barriers.full, FETCHERS * 32);
    barrier_init(&shared.attention.barriers.values_full, FETCHERS * 32);
    barrier_init(&shared.attention.barriers.empty, THREADS / 32);
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
  if (warp > THREADS / 32 && warp <= THREADS / 32 + FETCHERS && attends(a)) fetch_all_attention(a, memory, shared.attention);
}
