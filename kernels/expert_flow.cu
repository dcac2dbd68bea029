// Both ends of a flow step of the action expert: velocity and Euler update, and the embedding of the actions for the next step.
// Architectures: 90a
//
// Update (if out_weight): v = (x / rms * final_scale + final_shift) out_weight^T + out_bias; actions += dt * v. All fp32.
//   x fp32 [64][1024]; out_weight [32][1024]; actions fp32 [H][32], the ODE state, in place; row `first` + i of x is action i.
// Guidance (models/guidance.py): v -= *gamma * pull * (target - (actions - time * v)), with target, pull fp32 [H][32]; and the
//   first *frozen actions are the target, whatever they were. pull 0 and *frozen 0 leave everything as it is, to the last bit.
// Embedding (if in_weight): h = actions in_weight + in_bias, in_weight fp32 [32][1024].
//   pi0.5 (x_next not null): x_next row = h, its sum of squares to statistics[0] (the other 31 partial sums are 0), and
//   h * next_scale as fragments in linear order: bf16, or e4m3 of that times *inverse_scale, saturated. Frozen rows take the
//   scale `clean` values behind.
//   pi0 (x_next null): silu(h) as bf16 fragments in linear order, the input of the second embedding layer.
//
// Guidance, like the weights, has been written before the loop began.
// One block of 256 threads for each action row. Bytes: 2 x 128 KB of fp32 weights a block, from L2; 128 KB of shared memory.
#include "expert_common.cuh"
#include "tma.cuh"

constexpr int ACTIONS = 32;

struct Shared {
  float4 y[WIDTH / 4];
  float actions[ACTIONS], target[ACTIONS], pull[ACTIONS];
  uint64_t barrier;
};

// What a new chunk is asked to agree with.
struct Guide {
  const float *target, *pull, *gamma;
  const int* frozen;
  float time;
  int clean;
};

__device__ __forceinline__ float squared(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// Warp w multiplies the normed row by output rows 4 w .. 4 w + 3 (in shared memory) and updates those actions.
__device__ __forceinline__ void update_actions(Shared& shared, const float4* out_weight, const float* out_bias, float dt,
                                               float time, bool frozen) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float dot[4] = {};
#pragma unroll
  for (int i = 0; i < WIDTH / 128; i++) {
    float4 y = shared.y[i * 32 + lane];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float4 w = out_weight[(warp * 4 + j) * (WIDTH / 4) + i * 32 + lane];
      dot[j] += y.x * w.x + y.y * w.y + y.z * w.z + y.w * w.w;
    }
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int i = warp * 4 + j;
    float velocity = warp_sum(dot[j]) + out_bias[i], action = shared.actions[i];
    velocity -= shared.pull[i] * (shared.target[i] - (action - time * velocity));
    if (lane == 0 && !frozen) shared.actions[i] = action + dt * velocity;
  }
}

__device__ __forceinline__ float4 embed(const float* actions, const float4* in_weight, float4 h) {
#pragma unroll 16
  for (int i = 0; i < ACTIONS; i++) {
    float4 w = in_weight[i * (WIDTH / 4) + threadIdx.x];
    float a = actions[i];
    h = make_float4(h.x + a * w.x, h.y + a * w.y, h.z + a * w.z, h.w + a * w.w);
  }
  return h;
}

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// Called by one thread; `bytes` is a multiple of 64.
__device__ __forceinline__ void fetch_weights(void* target, const uint8_t* source, uint32_t bytes, uint64_t* barrier) {
  barrier_init(barrier, 1);
  barrier_init_done();
  barrier_expect(barrier, bytes);
  uint32_t piece = bytes / 4;
  for (int i = 0; i < 4; i++)
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(target) + i * piece),
                 "l"(source + (size_t)i * piece), "r"(piece), "r"(shared_address(barrier))
                 : "memory");
}

template <class P>
__device__ __forceinline__ void flow(const float* x, const float4* final_scale, const float4* final_shift,
                                     const uint8_t* out_weight, const float* out_bias, float dt, float* actions, int first,
                                     const Guide& guide, const float4* in_weight, const float4* in_bias, float* x_next, const float4* next_scale,
                                     const float* inverse_scale, uint32_t* next, float* statistics) {
  extern __shared__ __align__(128) uint8_t weights[];
  __shared__ Shared shared;
  const int thread = threadIdx.x, row = first + blockIdx.x;
  float* own = actions + blockIdx.x * ACTIONS;
  const bool frozen = (int)blockIdx.x < *guide.frozen;
  float target = 0;
  if (thread < ACTIONS) {
    shared.target[thread] = target = guide.target[blockIdx.x * ACTIONS + thread];
    shared.pull[thread] = *guide.gamma * guide.pull[blockIdx.x * ACTIONS + thread];
  }
  if (thread == 0 && out_weight) fetch_weights(weights, out_weight, ACTIONS * WIDTH * 4, &shared.barrier);
  __syncthreads();
  release_successor();
  wait_for_predecessor();
  if (thread < ACTIONS) shared.actions[thread] = frozen ? target : __ldcg(own + thread);
  if (out_weight) {
    float4 v = __ldcg(reinterpret_cast<const float4*>(x + (size_t)row * WIDTH) + thread);
    float factor = rsqrtf(block_sum(squared(v)) * (1.0f / WIDTH) + EPSILON);
    float4 scale = final_scale[thread], shift = final_shift[thread];
    shared.y[thread] = make_float4(v.x * factor * scale.x + shift.x, v.y * factor * scale.y + shift.y,
                                   v.z * factor * scale.z + shift.z, v.w * factor * scale.w + shift.w);
    __syncthreads();
    barrier_wait(&shared.barrier, 0);
    update_actions(shared, reinterpret_cast<const float4*>(weights), out_bias, dt, guide.time, frozen);
  }
  __syncthreads();
  if (thread < ACTIONS) own[thread] = shared.actions[thread];
  if (!in_weight) return;

  float4 h = embed(shared.actions, in_weight, in_bias[thread]);
  const auto store = [=](int i, uint32_t word) { next[i] = word; };
  if (!x_next) {
    store_linear(Bf16(), row, thread * 4, make_float4(silu(h.x), silu(h.y), silu(h.z), silu(h.w)), store);
    return;
  }
  reinterpret_cast<float4*>(x_next + (size_t)row * WIDTH)[thread] = h;
  float4 scale = next_scale[thread + (frozen ? guide.clean / 4 : 0)];
  float inverse = *inverse_scale;
  store_linear(P(), row, thread * 4,
               make_float4(h.x * scale.x * inverse, h.y * scale.y * inverse, h.z * scale.z * inverse, h.w * scale.w * inverse), store);
  float sum = block_sum(squared(h));
  if (thread < STATISTICS) statistics[thread * ROWS + row] = thread == 0 ? sum : 0.0f;
}

#define KERNEL(NAME, P) \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) \
      NAME(const float* x, const float4* final_scale, const float4* final_shift, const uint8_t* out_weight, \
           const float* out_bias, float dt, float* actions, int first, const float* target, const float* pull, \
           const float* gamma, const int* frozen, float time, int clean, const float4* in_weight, const float4* in_bias, \
           float* x_next, const float4* next_scale, const float* inverse_scale, uint32_t* next, float* statistics) { \
    flow<P>(x, final_scale, final_shift, out_weight, out_bias, dt, actions, first, {target, pull, gamma, frozen, time, clean}, \
            in_weight, in_bias, x_next, next_scale, inverse_scale, next, statistics); \
  }
KERNEL(expert_flow_bf16, Bf16)
KERNEL(expert_flow_fp8, Fp8)
KERNEL(expert_flow_int8, Int8)
