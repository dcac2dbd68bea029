// From camera frames to image patches, one launch for all views: decode, crop, turn, resize with padding, normalise, lay out.
// Architectures: 80 86 89 90a 100 110 120
//
// frames Geometry [views]: what a frame's bytes mean and what becomes of it, and places [views]: where it lies, in mapped memory;
//   written before the launch, so that a graph with these kernels serves any resolution, encoding and address. tables int [views, 2, SIZE, 2 + TAPS]:
//   for each column (0) and row (1) of the fitted picture the first pixel it is made of, how many, and their weights.
//   Both: flashrt_ros/engine/frame_inputs.py. out bf16 [views * (SIZE / PATCH)^2, COLUMNS] as in embedding.cu: column c is
//   (channel, y, x), values are 2 * byte - 255 (exact in bf16), columns from 3 * PATCH^2 on are zero, the border is -255.
//
//   upload: copies a frame from where the CPU left it (mapped memory) to device memory, unless it lies there already: every byte
//     crosses PCIe once, in 16-byte loads. Any alignment, but source and data have the same one (mod 16). Tells the kernel behind
//     it in Geometry where the data are.
//   preprocess_pil: Pillow's antialiased bilinear filter in its integers: weights in 2^-22, columns first, rounded to 8 bits
//     between the passes. A block makes ACROSS patches side by side: it decodes the pixels that these are made of into shared
//     memory (in pieces, if they are many), filters rows into `narrow`, then columns of that.
//   preprocess_torch: bilinear without antialiasing, fp32, from four pixels read where they lie; weights are floats.
//   Shared memory of preprocess_pil: PIECE pixels and TILE for each row that PATCH rows are made of, 4 bytes each.
//   Blocks of 256 threads: (any, views) for upload; (SIZE / PATCH / ACROSS, SIZE / PATCH, views) for the others.
//
// Decoding is that of flashrt_ros/pictures/decode.py to the bit. Roofline: PCIe, 18 us for 640 x 480 x 3 bytes at 50 GB/s.
#include "common.cuh"

#ifndef SIZE
#define SIZE 224
#endif
#ifndef PATCH
#define PATCH 14
#endif
#ifndef COLUMNS
#define COLUMNS 592
#endif
#ifndef TAPS
#define TAPS 40
#endif

constexpr int GRID = SIZE / PATCH;
constexpr int ACROSS = GRID % 2 ? 1 : 2;
constexpr int TILE = ACROSS * PATCH;
constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int PIECE = 4096;  // decoded pixels in shared memory at a time
constexpr int ENTRY = 2 + TAPS;
constexpr int BITS = 22;  // of a weight

enum Layout { PACKED, YUV422, SEMIPLANAR, BAYER };

struct FramePlace {
  const uint8_t* source;
  uint8_t* data;
};

struct Geometry {
  const uint8_t* data;  // by upload
  long long bytes;
  int step, width, height;                            // of the whole frame
  int layout, samples, wide;                          // wide: 0 for 8 bits, 1 for 16 little endian, 2 for 16 big endian
  int places[3];                                      // see pictures/encodings.py
  int first[2], along[2], down[2];                    // x and y in the frame of the turned picture's first pixel, and steps
  int fitted_width, fitted_height, left, top;         // of the resized picture in the square
  int unused;
};
static_assert(sizeof(Geometry) == 96, "as frame_inputs.py writes it");

struct Pixel {
  int r, g, b;
};

__device__ __forceinline__ int sample(const Geometry& f, const uint8_t* at) {
  if (f.wide == 0) return at[0];
  return f.wide == 1 ? at[0] | at[1] << 8 : at[0] << 8 | at[1];
}

__device__ __forceinline__ int eight_bits(const Geometry& f, int value) {
  return f.wide == 0 ? value : (value * 255 + 32895) >> 16;
}

__device__ __forceinline__ int byte_of(int value) { return min(max(value, 0), 255); }

__device__ __forceinline__ Pixel from_yuv(int y, int u, int v) {
  constexpr int SHIFT = 20;
  int luma = max(y - 16, 0) * 1220542 + (1 << (SHIFT - 1));
  u -= 128;
  v -= 128;
  return {byte_of((luma + 1673527 * v) >> SHIFT), byte_of((luma - 409993 * u - 852492 * v) >> SHIFT),
          byte_of((luma + 2116026 * u) >> SHIFT)};
}

__device__ __forceinline__ Pixel from_bayer(const Geometry& f, int x, int y) {
  x = min(max(x, 1), f.width - 2);
  y = min(max(y, 1), f.height - 2);
  int stride = f.wide ? 2 : 1;
  const uint8_t* at = f.data + (size_t)y * f.step + x * stride;
  auto near = [&](int right, int below) { return sample(f, at + (ptrdiff_t)below * f.step + right * stride); };
  int centre = near(0, 0), beside = near(-1, 0) + near(1, 0), stacked = near(0, -1) + near(0, 1);
  bool red_column = (x & 1) == f.places[0], red_row = (y & 1) == f.places[1];
  Pixel p;
  if (red_column == red_row) {
    int corners = (near(-1, -1) + near(1, -1) + near(-1, 1) + near(1, 1) + 2) >> 2;
    p = {red_row ? centre : corners, (beside + stacked + 2) >> 2, red_row ? corners : centre};
  } else {
    beside = (beside + 1) >> 1;
    stacked = (stacked + 1) >> 1;
    p = {red_row ? beside : stacked, centre, red_row ? stacked : beside};
  }
  return {eight_bits(f, p.r), eight_bits(f, p.g), eight_bits(f, p.b)};
}

// The pixel at (x, y) of the picture as it stands upright.
template <int LAYOUT>
__device__ __forceinline__ Pixel decode(const Geometry& f, int turned_x, int turned_y) {
  int x = f.first[0] + turned_x * f.along[0] + turned_y * f.down[0];
  int y = f.first[1] + turned_x * f.along[1] + turned_y * f.down[1];
  const uint8_t* row = f.data + (size_t)y * f.step;
  if (LAYOUT == PACKED) {
    int size = f.wide ? 2 : 1;
    const uint8_t* at = row + x * f.samples * size;
    int r = sample(f, at + f.places[0] * size), g = sample(f, at + f.places[1] * size);
    int b = sample(f, at + f.places[2] * size);
    return {eight_bits(f, r), eight_bits(f, g), eight_bits(f, b)};
  }
  if (LAYOUT == YUV422) {
    const uint8_t* four = row + (x & ~1) * 2;
    return from_yuv(four[f.places[0] + 2 * (x & 1)], four[f.places[1]], four[f.places[2]]);
  }
  if (LAYOUT == SEMIPLANAR) {
    const uint8_t* pair = f.data + (size_t)(f.height + y / 2) * f.step + (x & ~1);
    return from_yuv(row[x], pair[f.places[1]], pair[f.places[2]]);
  }
  return from_bayer(f, x, y);
}

__device__ __forceinline__ Pixel decode(const Geometry& f, int x, int y) {
  if (f.layout == PACKED) return decode<PACKED>(f, x, y);
  if (f.layout == YUV422) return decode<YUV422>(f, x, y);
  return f.layout == SEMIPLANAR ? decode<SEMIPLANAR>(f, x, y) : decode<BAYER>(f, x, y);
}

// Decodes `some` rows of the span into shared memory. Lanes walk along rows of the frame, whichever way these run in the
// picture, and read several pixels before they write one.
template <int LAYOUT>
__device__ __forceinline__ void fill(const Geometry& f, uchar4* piece, int first_x, int first_y, int pixels, int some) {
  constexpr int AHEAD = 3;
  bool sideways = f.along[1] != 0;
  int lines = sideways ? pixels : some, length = sideways ? some : pixels;
  for (int line = threadIdx.x / 32; line < lines; line += WARPS)
    for (int begin = threadIdx.x % 32; begin < length; begin += 32 * AHEAD) {
      Pixel read[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        int i = begin + 32 * k;
        if (i < length) read[k] = decode<LAYOUT>(f, first_x + (sideways ? line : i), first_y + (sideways ? i : line));
      }
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        int i = begin + 32 * k;
        if (i < length) piece[sideways ? i * pixels + line : line * pixels + i] = make_uchar4(read[k].r, read[k].g, read[k].b, 0);
      }
    }
}

// Behind the upload, which tells where the data are.
__device__ __forceinline__ void wait_for_data(Geometry& f, const Geometry* frames) {
  wait_for_predecessor();
  f.data = *reinterpret_cast<const uint8_t* const volatile*>(&frames[blockIdx.z].data);
}

// The part of a line of the fitted picture that a block makes: outputs [begin, end) of it are made of pixels [first, last).
struct Span {
  int begin, end, first, last;
};

__device__ __forceinline__ Span span_of(const int* table, int place, int count, int border, int fitted) {
  Span s = {max(place - border, 0), min(place + count - border, fitted), 0, 0};
  if (s.begin < s.end) {
    s.first = table[s.begin * ENTRY];
    s.last = table[(s.end - 1) * ENTRY] + table[(s.end - 1) * ENTRY + 1];
  }
  return s;
}

// Where pixel (x, y) of the tile goes: its first channel; the others follow PATCH * PATCH apart.
__device__ __forceinline__ bf16* target(bf16* out, int x, int y) {
  int patch = (blockIdx.z * GRID + blockIdx.y) * GRID + blockIdx.x * ACROSS + x / PATCH;
  return out + (size_t)patch * COLUMNS + y * PATCH + x % PATCH;
}

__device__ __forceinline__ void write_pixel(bf16* out, int x, int y, float r, float g, float b) {
  bf16* at = target(out, x, y);
  at[0] = __float2bfloat16(2.0f * r - 255.0f);
  at[PATCH * PATCH] = __float2bfloat16(2.0f * g - 255.0f);
  at[2 * PATCH * PATCH] = __float2bfloat16(2.0f * b - 255.0f);
}

__device__ __forceinline__ void write_zero_columns(bf16* out) {
  constexpr int SPARE = COLUMNS - 3 * PATCH * PATCH;
  for (int i = threadIdx.x; i < ACROSS * SPARE; i += THREADS)
    target(out, i / SPARE * PATCH, 0)[3 * PATCH * PATCH + i % SPARE] = __float2bfloat16(0.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS) upload(Geometry* frames, const FramePlace* places) {
  const uint8_t* source = places[blockIdx.y].source;
  uint8_t* data = places[blockIdx.y].data;
  long long bytes = frames[blockIdx.y].bytes;
  release_successor();
  if (blockIdx.x == 0 && threadIdx.x == 0) frames[blockIdx.y].data = data;
  if (source == data) return;
  long long head = min((long long)(-reinterpret_cast<uintptr_t>(source) & 15), bytes);
  long long vectors = (bytes - head) / 16, tail = head + vectors * 16;
  const uint4* from = reinterpret_cast<const uint4*>(source + head);
  uint4* to = reinterpret_cast<uint4*>(data + head);
  long long thread = (long long)blockIdx.x * THREADS + threadIdx.x, stride = (long long)gridDim.x * THREADS;
  for (long long i = thread; i < vectors; i += 4 * stride) {
    uint4 some[4];
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (i + k * stride < vectors) some[k] = __ldcs(from + i + k * stride);
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (i + k * stride < vectors) to[i + k * stride] = some[k];
  }
  if (thread < head) data[thread] = source[thread];
  if (thread < bytes - tail) data[tail + thread] = source[tail + thread];
}

extern "C" __global__ void __launch_bounds__(THREADS) preprocess_pil(const Geometry* frames, const int* tables, bf16* out) {
  extern __shared__ uchar4 shared[];
  uchar4* piece = shared;            // [rows of a piece][pixels of the columns' span]
  uchar4* narrow = shared + PIECE;   // [rows of the rows' span][TILE], filtered along rows
  __shared__ int weights_x[TAPS][TILE], first_x[TILE], count_x[TILE];
  __shared__ int weights_y[TAPS][PATCH], first_y[PATCH], count_y[PATCH];
  Geometry f = frames[blockIdx.z];
  const int* table_x = tables + (size_t)blockIdx.z * 2 * SIZE * ENTRY;
  const int* table_y = table_x + SIZE * ENTRY;
  int tile_x = blockIdx.x * TILE, tile_y = blockIdx.y * PATCH;
  Span across = span_of(table_x, tile_x, TILE, f.left, f.fitted_width);
  Span along = span_of(table_y, tile_y, PATCH, f.top, f.fitted_height);
  bool empty = across.begin >= across.end || along.begin >= along.end;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (!empty) {
    for (int i = threadIdx.x; i < TILE * ENTRY; i += THREADS) {
      int column = i / ENTRY, k = i % ENTRY;
      if (across.begin + column >= across.end) break;
      int value = table_x[(across.begin + column) * ENTRY + k];
      (k == 0 ? first_x[column] : k == 1 ? count_x[column] : weights_x[k - 2][column]) = value;
    }
    for (int i = threadIdx.x; i < PATCH * ENTRY; i += THREADS) {
      int row = i / ENTRY, k = i % ENTRY;
      if (along.begin + row >= along.end) break;
      int value = table_y[(along.begin + row) * ENTRY + k];
      (k == 0 ? first_y[row] : k == 1 ? count_y[row] : weights_y[k - 2][row]) = value;
    }
  }
  wait_for_data(f, frames);
  release_successor();
  int columns = across.end - across.begin, pixels = across.last - across.first;
  int rows = along.last - along.first, rows_at_once = empty ? 1 : PIECE / pixels;
  for (int begin = 0; !empty && begin < rows; begin += rows_at_once) {
    int some = min(rows_at_once, rows - begin);
    __syncthreads();
    int first = along.first + begin;
    if (f.layout == PACKED) fill<PACKED>(f, piece, across.first, first, pixels, some);
    if (f.layout == YUV422) fill<YUV422>(f, piece, across.first, first, pixels, some);
    if (f.layout == SEMIPLANAR) fill<SEMIPLANAR>(f, piece, across.first, first, pixels, some);
    if (f.layout == BAYER) fill<BAYER>(f, piece, across.first, first, pixels, some);
    __syncthreads();
    for (int y = warp; y < some; y += WARPS)
      for (int x = lane; x < columns; x += 32) {
        const uchar4* from = piece + y * pixels + first_x[x] - across.first;
        int r = 1 << (BITS - 1), g = r, b = r, count = count_x[x];
        for (int k = 0; k < count; k++) {
          uchar4 p = from[k];
          int weight = weights_x[k][x];
          r += p.x * weight;
          g += p.y * weight;
          b += p.z * weight;
        }
        narrow[(begin + y) * TILE + x] = make_uchar4(byte_of(r >> BITS), byte_of(g >> BITS), byte_of(b >> BITS), 0);
      }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < TILE * PATCH; i += THREADS) {
    int tile_column = i % TILE, tile_row = i / TILE;
    int x = tile_x + tile_column - f.left - across.begin, y = tile_y + tile_row - f.top - along.begin;
    int r = 0, g = 0, b = 0;
    if (!empty && x >= 0 && x < columns && y >= 0 && y < along.end - along.begin) {
      const uchar4* from = narrow + (first_y[y] - along.first) * TILE + x;
      int count = count_y[y];
      r = g = b = 1 << (BITS - 1);
      for (int k = 0; k < count; k++) {
        uchar4 p = from[k * TILE];
        int weight = weights_y[k][y];
        r += p.x * weight;
        g += p.y * weight;
        b += p.z * weight;
      }
      r = byte_of(r >> BITS);
      g = byte_of(g >> BITS);
      b = byte_of(b >> BITS);
    }
    write_pixel(out, tile_column, tile_row, r, g, b);
  }
  write_zero_columns(out);
}

extern "C" __global__ void __launch_bounds__(THREADS) preprocess_torch(const Geometry* frames, const int* tables, bf16* out) {
  Geometry f = frames[blockIdx.z];
  const int* table_x = tables + (size_t)blockIdx.z * 2 * SIZE * ENTRY;
  const int* table_y = table_x + SIZE * ENTRY;
  wait_for_data(f, frames);
  release_successor();
  for (int i = threadIdx.x; i < TILE * PATCH; i += THREADS) {
    int tile_column = i % TILE, tile_row = i / TILE;
    int x = blockIdx.x * TILE + tile_column - f.left, y = blockIdx.y * PATCH + tile_row - f.top;
    float r = 0, g = 0, b = 0;
    if (x >= 0 && x < f.fitted_width && y >= 0 && y < f.fitted_height) {
      const int *column = table_x + x * ENTRY, *row = table_y + y * ENTRY;
#pragma unroll
      for (int k = 0; k < 4; k++) {
        int right = k % 2, below = k / 2;
        Pixel p = decode(f, column[0] + min(right, column[1] - 1), row[0] + min(below, row[1] - 1));
        float weight = __int_as_float(column[2 + right]) * __int_as_float(row[2 + below]);
        r += weight * p.r;
        g += weight * p.g;
        b += weight * p.b;
      }
    }
    write_pixel(out, tile_column, tile_row, r, g, b);
  }
  write_zero_columns(out);
}
