// What racecheck says of small kernels of which is known whether they are right: tools/sanitizer/racecheck.py needs the answers.
//
//   0  warps store what others load with ldmatrix, nothing in between: a race.
//   1  warps 0, 1, 6 and 7 of eight meet at a named barrier and store, all eight meet at another and load: right, as `soften` in
//      kernels/expert_attention.cuh.
//   2  every thread stores, a warp meets, one of its lanes arrives at an mbarrier for all, and all threads wait for that before
//      they load: right, as `Delivery::send` in kernels/gemma_exchange_sm90.cuh.
//   3  the upper warps meet among themselves and store a table, all meet, the lower ones load from it; the upper ones store, all
//      meet, the lower ones load, and only arrive at a barrier where the upper ones wait before they store again: right, as the
//      ends of flow steps in kernels/expert_ends.cuh.
//   4  the halves of a block store, all meet, each loads what the other stored, the two warps that have loaded each other's meet;
//      then the lower half waits at a barrier where one upper warp only arrives, and all begin again: right, as `add_groups` in
//      kernels/expert_norm.cuh with `send_parts` and `gather_parts` in kernels/expert_residual.cuh.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

constexpr int ALL_THREADS = 384, THREADS = 256, STRIDE = 36;

__device__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ uint32_t sum_of_matrices(uint32_t address) {
  uint32_t sum = 0;
  for (int k = 0; k < 8; k++) {
    const int lane = threadIdx.x % 32, row = lane % 16 + (k & 1) * 16;
    uint32_t r[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address + row * STRIDE * 4 + k / 2 * 32 + lane / 16 * 16));
    sum += r[0] + r[1] + r[2] + r[3];
  }
  return sum;
}

__global__ void __launch_bounds__(ALL_THREADS, 1) race(uint32_t* out) {
  __shared__ __align__(128) uint32_t words[32][STRIDE];
  if (threadIdx.x >= THREADS) return;
  for (int i = threadIdx.x; i < 1024; i += THREADS) words[i / 32][i % 32] = i;
  out[threadIdx.x] = sum_of_matrices(shared_address(words));
}

__global__ void __launch_bounds__(ALL_THREADS, 1) barrier_of_some_warps(uint32_t* out) {
  __shared__ __align__(128) uint32_t words[32][STRIDE];
  __shared__ float rows[2][32];
  if (threadIdx.x >= THREADS) return;
  const int lane = threadIdx.x % 32, group = threadIdx.x / 128, row = threadIdx.x / 32 % 2 * 16 + lane / 4;
  if ((threadIdx.x / 64 & 1) == group) {
    if (lane % 4 == 0) rows[group][row] = threadIdx.x, rows[group][row + 8] = threadIdx.x;
    asm volatile("bar.sync 2, 128;" ::: "memory");
    const float others = rows[1 - group][row] + rows[1 - group][row + 8];
    for (int half = 0; half < 2; half++)
      for (int i = 0; i < 4; i++) words[row + half * 8][group * 16 + i * 4 + lane % 4] = threadIdx.x + i + (int)others;
  }
  asm volatile("bar.sync 1, 256;" ::: "memory");
  out[threadIdx.x] = sum_of_matrices(shared_address(words));
}

__device__ void cluster_barrier() { asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory"); }

__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1) one_lane_arrives(uint32_t* out) {
  __shared__ __align__(16) uint4 data[THREADS];
  __shared__ uint64_t barrier;
  const uint32_t address = shared_address(&barrier);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(THREADS / 32) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_barrier();
  data[threadIdx.x] = make_uint4(threadIdx.x, 0, 0, threadIdx.x);
  __syncwarp();
  if (threadIdx.x % 32 == 0)
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(address) : "memory");
  uint32_t there = 0;
  while (!there)
    asm volatile("{.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;}"
                 : "=r"(there)
                 : "r"(address)
                 : "memory");
  const uint4 v = data[(threadIdx.x + 77) % THREADS];
  out[blockIdx.x * THREADS + threadIdx.x] = v.x + v.w;
  cluster_barrier();
}

__device__ void all_meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

__device__ void store_table(uint32_t* table, int thread, int step) {
  asm volatile("bar.sync 3, 128;" ::: "memory");
  table[thread] = thread + step;
}

__device__ uint32_t load_table(const uint32_t* table, int thread) { return table[(thread + 77) % 128]; }

__device__ uint32_t exchange_parts(uint32_t* parts, int thread, bool upper, int step) {
  uint32_t sum = 0;
  if (upper) parts[thread] = thread * step;
  all_meet();
  if (!upper) sum = parts[thread];
  if (!upper) asm volatile("bar.arrive 4, 256;" ::: "memory");
  else asm volatile("bar.sync 4, 256;" ::: "memory");
  return sum;
}

__global__ void __launch_bounds__(ALL_THREADS, 1) lower_half_arrives(uint32_t* out) {
  __shared__ uint32_t table[128], parts[128];
  if (threadIdx.x >= THREADS) return;
  const int thread = threadIdx.x % 128;
  const bool upper = threadIdx.x >= 128;
  uint32_t sum = 0;
  for (int step = 0; step < 4; step++) {
    if (upper) store_table(table, thread, step);
    all_meet();
    if (!upper) sum += load_table(table, thread);
    sum += exchange_parts(parts, thread, upper, step);
    if (!upper) sum += load_table(table, thread);
    asm volatile("bar.sync 5, 256;" ::: "memory");
  }
  out[threadIdx.x] = sum;
}

__device__ float add_halves(float4 (*exchange)[4][128], float sum) {
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128;
  for (int i = 0; i < 4; i++) exchange[group][i][thread] = make_float4(sum, i, thread, group);
  all_meet();
  for (int i = 0; i < 4; i++) {
    const float4 other = exchange[1 - group][i][thread];
    sum += other.x + other.y + other.z + other.w;
  }
  asm volatile("bar.sync %0, 64;" ::"r"(8 + thread / 32) : "memory");
  return sum;
}

__global__ void __launch_bounds__(ALL_THREADS, 1) partners_meet(float* out) {
  __shared__ float4 exchange[2][4][128];
  __shared__ float own[128];
  if (threadIdx.x >= THREADS) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum = threadIdx.x;
  for (int step = 0; step < 4; step++) {
    sum = add_halves(exchange, sum);
    if (warp % 4 == 1) own[warp / 4 * 64 + lane] = sum, own[warp / 4 * 64 + 32 + lane] = sum;
    if (warp == 5) asm volatile("bar.arrive 6, 160;" ::: "memory");
    if (warp < 4) {
      asm volatile("bar.sync 6, 160;" ::: "memory");
      sum += own[threadIdx.x];
    }
  }
  out[threadIdx.x] = sum;
}

int main(int count, char** arguments) {
  uint32_t* out;
  cudaMalloc(&out, 2 * THREADS * sizeof(*out));
  switch (count > 1 ? atoi(arguments[1]) : 0) {
    case 0: race<<<1, ALL_THREADS>>>(out); break;
    case 1: barrier_of_some_warps<<<1, ALL_THREADS>>>(out); break;
    case 3: lower_half_arrives<<<1, ALL_THREADS>>>(out); break;
    case 4: partners_meet<<<1, ALL_THREADS>>>(reinterpret_cast<float*>(out)); break;
    default: one_lane_arrives<<<2, THREADS>>>(out);
  }
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) printf("%s\n", cudaGetErrorString(error));
  return error != cudaSuccess;
}
