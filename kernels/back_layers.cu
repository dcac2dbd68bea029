// The way back through the layers of the action expert: one kernel whose blocks stay on the GPU, as the forward pass (expert_layers.cu).
// Architectures: 90a
#include "back_products.cuh"

constexpr int ALL_THREADS = THREADS + 128;

// The weights of one product of which a block takes `slots` slots.
struct BackSlice {
  const uint8_t* first;
  int slots, phase;
};

// By one thread.
__device__ __forceinline__ void feed_back_weights(const BackArguments& a, Feeder<4> feeder) {
  const BackSlice down{a.down_weights, WIDTH * DOWN_COLUMNS * 2 / SLOT, DOWN};
  const BackSlice gate_up{a.gate_up_weights, 2 * MLP * NORMED_COLUMNS * 2 / PARTS / SLOT, GATE_UP};
  const BackSlice output{a.output_weights, WIDTH * OUTPUT_COLUMNS * 2 / SLOT, OUTPUT};
  const BackSlice qkv{a.qkv_weights, TURNED * NORMED_COLUMNS * 2 / PARTS / SLOT, QKV};
  const auto feed = [&](const BackSlice& slice, int layer) {
    if (a.phases & slice.phase)
      feeder.feed(slice.first + ((size_t)layer * BLOCKS + blockIdx.x) * slice.slots * SLOT, slice.slots, nullptr, 0);
  };
  bool entering = a.enters;
  for (int layer = a.first; layer >= a.last; layer--, entering = false) {
    if (!entering) feed(down, layer), feed(gate_up, layer), feed(output, layer);
    if (layer > a.last || !a.leaves) feed(qkv, layer);
  }
}

__device__ __forceinline__ void compute_back(const BackArguments& a, BackShared& shared, const uint8_t* ring) {
  Stream stream{shared.stream, shared_address(ring), min(MAX_SLOTS, a.shared_bytes / SLOT), {(int)threadIdx.x / 128, 0}};
  const Place place(a.rows);
  const int fragment = fragment_place(a.rows), table = a.table_row * (2 * a.layers + 1) * WIDTH;
  wait_for_predecessor();
  release_successor();  // behind the wait: what starts then finds all that was written before this kernel
  float4 gradient = make_float4(0, 0, 0, 0);
  if (place.used) gradient = load4(a.gradient + place.row * WIDTH + place.column);
  if (a.phases & ACTIONS_IN && place.used)
    publish_gated(place, a.gated_down, a.number, gradient * load4(a.gate + table + (2 * a.first + 1) * WIDTH + place.column), true);
  bool entering = a.enters;
  for (int layer = a.first, number = a.number; layer >= a.last; layer--, number++, entering = false) {
    const int half = number & 1;
    STAMP(a, layer, entering ? 10 : 0);
    if (!entering) {
      if (a.phases & DOWN) through_gate(a, layer, a.gated_down + half * (ROWS * WIDTH / 2), number, stream, shared, fragment);
      if (a.phases & GATE_UP) {
        const ThroughNorm n{a.hidden + half * (ROWS * MLP), a.gate_up_parts, a.gate_up_dots, a.gated_output, 2 * layer + 1,
                            number, number, false};
        through_norm<2 * MLP>(a, n, stream, shared, place, fragment, table, gradient, layer, 3);
      }
      if (a.phases & OUTPUT) through_output(a, layer, a.gated_output + half * (ROWS * WIDTH / 2), stream, shared, fragment);
    }
    if (layer == a.last && a.leaves) break;
    if (a.phases & QKV) {
      const ThroughNorm n{a.turned, a.qkv_parts, a.qkv_dots, a.gated_down, 2 * layer, number, number + 1, layer == 0};
      through_norm<TURNED>(a, n, stream, shared, place, fragment, table, gradient, layer, 11);
    }
  }
  if (place.used) *reinterpret_cast<float4*>(a.gradient + place.row * WIDTH + place.column) = gradient;
}

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1) back_layers(const __grid_constant__ BackArguments a) {
  extern __shared__ __align__(1024) uint8_t ring[];
  __shared__ BackShared shared;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < MAX_SLOTS; i++) barrier_init(&shared.stream.full[i], 1), barrier_init(&shared.stream.empty[i], 4);
    barrier_init_done();
  }
  __syncthreads();
  if (warp < THREADS / 32) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    compute_back(a, shared, ring);
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  if (threadIdx.x == THREADS) feed_back_weights(a, {shared.stream, ring, min(MAX_SLOTS, a.shared_bytes / SLOT)});
}
