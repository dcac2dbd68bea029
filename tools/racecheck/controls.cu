// What racecheck says of three small kernels of which is known whether they are right: tools/racecheck/run.py needs the answers.
//
//   0  every thread stores a word and loads that of another, nothing in between: a race.
//   1  warps 0, 1, 6 and 7 meet at a named barrier, store, and all warps meet at another before they load: right, as
//      `soften` in kernels/expert_attention.cuh.
//   2  every thread stores, a warp meets, one of its lanes arrives at an mbarrier for all, and all threads wait for that before
//      they load: right, as `Delivery::send` in kernels/gemma_exchange_sm90.cuh.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

constexpr int THREADS = 256;

__device__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

__global__ void __launch_bounds__(THREADS) race(uint32_t* out) {
  __shared__ uint32_t words[THREADS];
  words[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = words[(threadIdx.x + 77) % THREADS];
}

__global__ void __launch_bounds__(THREADS) barrier_of_some_warps(uint32_t* out) {
  __shared__ uint32_t words[THREADS];
  const bool asks = (threadIdx.x / 64 & 1) == threadIdx.x / 128;
  if (asks) {
    asm volatile("bar.sync 2, 128;" ::: "memory");
    words[threadIdx.x] = threadIdx.x;
  }
  asm volatile("bar.sync 1, 256;" ::: "memory");
  out[threadIdx.x] = words[threadIdx.x % 64];
}

__global__ void __launch_bounds__(THREADS) one_lane_arrives(uint32_t* out) {
  __shared__ uint32_t words[THREADS];
  __shared__ uint64_t barrier;
  const uint32_t address = shared_address(&barrier);
  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(THREADS / 32) : "memory");
  __syncthreads();
  words[threadIdx.x] = threadIdx.x;
  __syncwarp();
  if (threadIdx.x % 32 == 0)
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(address) : "memory");
  uint32_t there = 0;
  while (!there)
    asm volatile("{.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;}"
                 : "=r"(there)
                 : "r"(address)
                 : "memory");
  out[threadIdx.x] = words[(threadIdx.x + 77) % THREADS];
}

int main(int count, char** arguments) {
  uint32_t* out;
  cudaMalloc(&out, THREADS * sizeof(*out));
  switch (count > 1 ? atoi(arguments[1]) : 0) {
    case 0: race<<<1, THREADS>>>(out); break;
    case 1: barrier_of_some_warps<<<1, THREADS>>>(out); break;
    default: one_lane_arrives<<<1, THREADS>>>(out);
  }
  cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) printf("%s\n", cudaGetErrorString(error));
  return error != cudaSuccess;
}
