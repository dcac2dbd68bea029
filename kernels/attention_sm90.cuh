// What the attention kernels for Hopper share: matrix products with operand A in registers, and stores of whole rows.
// Accumulators and fragments are those of attention.cuh; tiles in shared memory those of wgmma.cuh.
#pragma once
#include "attention.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#define TILE_OF(d, t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define TILES_2(d, t) TILE_OF(d, t), TILE_OF(d, t + 1)
#define TILES_8(d, t) TILES_2(d, t), TILES_2(d, t + 2), TILES_2(d, t + 4), TILES_2(d, t + 6)
#define TILES_24(d) TILES_8(d, 0), TILES_8(d, 8), TILES_8(d, 16)
#define TILES_32(d) TILES_24(d), TILES_8(d, 24)
#define PLACES_0_7 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PLACES_0_31 \
  PLACES_0_7 ", %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
             "%30, %31"
#define PLACES_32_63 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define PLACES_64_79 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define PLACES_64_95 \
  PLACES_64_79 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PLACES_96_127 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, " \
  "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define PRODUCT(N, D, OPERANDS, TAIL, PREDICATE) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " PREDICATE ", 0;\n" \
  "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 {" D "}, " OPERANDS ", p, 1, 1, " TAIL ";\n}\n"

// logits d [64, N] = a [64, 16] * b [N, 16]^T (+ d), both in shared memory; N is eight times the tiles of d.
__device__ __forceinline__ void multiply(float (&d)[24][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("192", PLACES_0_31 ", " PLACES_32_63 ", " PLACES_64_95, "%96, %97", "0, 0", "%98")
               : TILES_24(d)
               : "l"(a), "l"(b), "r"((int)accumulate));
}

__device__ __forceinline__ void multiply(float (&d)[20][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("160", PLACES_0_31 ", " PLACES_32_63 ", " PLACES_64_79, "%80, %81", "0, 0", "%82")
               : TILES_8(d, 0), TILES_8(d, 8), TILES_2(d, 16), TILES_2(d, 18)
               : "l"(a), "l"(b), "r"((int)accumulate));
}

__device__ __forceinline__ void multiply(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("128", PLACES_0_31 ", " PLACES_32_63, "%64, %65", "0, 0", "%66")
               : TILES_8(d, 0), TILES_8(d, 8)
               : "l"(a), "l"(b), "r"((int)accumulate));
}

// logits d [64, 256] = a [64, 16] (registers) * b [256, 16]^T (+ d)
__device__ __forceinline__ void multiply(float (&d)[32][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("256", PLACES_0_31 ", " PLACES_32_63 ", " PLACES_64_95 ", " PLACES_96_127,
                       "{%128, %129, %130, %131}, %132", "0", "%133")
               : TILES_32(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}

// d [64, N] = a [64, 16] (registers) * b [16, N], rows of b along N (+ d); N is eight times the tiles of d.
__device__ __forceinline__ void multiply_columns(float (&d)[2][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("16", PLACES_0_7, "{%8, %9, %10, %11}, %12", "1", "%13")
               : TILES_2(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}

__device__ __forceinline__ void multiply_columns(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("64", PLACES_0_31, "{%32, %33, %34, %35}, %36", "1", "%37")
               : TILES_8(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}

__device__ __forceinline__ void multiply_columns(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(PRODUCT("128", PLACES_0_31 ", " PLACES_32_63, "{%64, %65, %66, %67}, %68", "1", "%69")
               : TILES_8(d, 0), TILES_8(d, 8)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}

// One arrival for a whole warp, when all its lanes have come here.
__device__ __forceinline__ void warp_done(uint64_t* barrier, int lane) {
  __syncwarp();
  if (lane == 0) barrier_arrive(barrier);
}

// Order execution in a cluster, no memory: an arrival with release waits for all earlier stores of the thread.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The address of a shared variable of ours in another block of the cluster.
__device__ __forceinline__ uint32_t peer_address(const void* pointer, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  return address;
}

// Stores into another block of the cluster that complete on a barrier there.
__device__ __forceinline__ void send(uint32_t address, uint32_t barrier, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void send(uint32_t address, uint32_t barrier, float a, float b) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address), "f"(a),
               "f"(b), "r"(barrier)
               : "memory");
}

// Wait for what other blocks of the cluster sent.
__device__ __forceinline__ void wait_for_peers(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Among the four lanes that share rows: afterwards lane c has what lane k had in r[c] as r[k].
__device__ __forceinline__ void transpose_quad(uint32_t (&r)[4], int lane) {
  bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? r[i] : r[i + 1], 1);
    (odd ? r[i] : r[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint32_t other = __shfl_xor_sync(0xffffffffu, high ? r[i] : r[i + 2], 2);
    (high ? r[i] : r[i + 2]) = other;
  }
}

// Four neighbouring tiles of eight columns of this lane's two rows, at `upper` and `lower` unless null: lanes exchange so
// that each writes eight columns. All lanes of the warp call it. d: the accumulators of the first of the tiles.
__device__ __forceinline__ void store_four_tiles(Output* upper, Output* lower, const float (*d)[4], float inverse_scale,
                                                 int lane) {
  int column = lane % 4 * 8;
#if FP8
  uint32_t r[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    r[i] = narrow_x4(d[i][0] * inverse_scale, d[i][1] * inverse_scale, d[i][2] * inverse_scale, d[i][3] * inverse_scale);
  transpose_quad(r, lane);
  if (upper)
    *reinterpret_cast<uint2*>(upper + column) = make_uint2(__byte_perm(r[0], r[1], 0x5410), __byte_perm(r[2], r[3], 0x5410));
  if (lower)
    *reinterpret_cast<uint2*>(lower + column) = make_uint2(__byte_perm(r[0], r[1], 0x7632), __byte_perm(r[2], r[3], 0x7632));
#else
#pragma unroll
  for (int h = 0; h < 2; h++) {
    uint32_t r[4];
#pragma unroll
    for (int i = 0; i < 4; i++) r[i] = pack_bf16(d[i][2 * h], d[i][2 * h + 1]);
    transpose_quad(r, lane);
    Output* row = h ? lower : upper;
    if (row) *reinterpret_cast<uint4*>(row + column) = make_uint4(r[0], r[1], r[2], r[3]);
  }
#endif
}
