// Runs a list of layers over volumes with the depth innermost: a channel is [H][W][lanes], and a volume is cut along W
// into `segments` that lie beside each other in the lanes: lane = (copy * segments + segment) * D + d.
//
// A layer reads the raw output of the layers before it and applies their InstanceNorm and LeakyReLU on load; its own
// sums are collected while it writes. Convolutions are sums over the rows of active connections, kernels (1,3,3), with
// 1-D Winograd transforms along W (Lavin and Gray, arXiv 1509.09308, F(4,3) and F(2,3)).
// Compiled with -DLANES=16, 8 or 4 floats a vector, and with -DHALF for volumes stored in 16 bits (sums, scales and
// logits stay float): float16 where the processor converts it, else bfloat16. Where it multiplies pairs of bfloat16 as
// well (AVX512_BF16), the convolutions of -DHALF do so: DOTS, below.

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifndef LANES
#define LANES 4
#endif
#if defined(HALF) && defined(__F16C__)
#define FLOAT16 1
#include <immintrin.h>
#endif
// What a convolution reads is rounded to bfloat16, in pairs that one instruction multiplies and sums in float. The two of
// a pair are neighbouring channels of a dense convolution, or neighbouring rows of one channel. Transforms are F(2,3): with
// F(4,3) the error would be above that of torch under autocast.
#if defined(FLOAT16) && defined(__AVX512BF16__) && LANES == 16
#define DOTS 1
#else
#define DOTS 0
#endif

typedef float V __attribute__((vector_size(LANES * 4)));
typedef int32_t I __attribute__((vector_size(LANES * 4)));
typedef float UnalignedV __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t UnalignedI __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#ifdef HALF
typedef uint16_t Stored;
typedef uint16_t UnalignedStored __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
#else
typedef float Stored;
#endif

namespace {

constexpr int CHUNK = 16;  // positions of a pointwise block
constexpr int PAIR = LANES < 16 ? 16 / LANES : 1;  // vectors of floats in a cache line, which are read together
constexpr int AHEAD = 4;   // channels that are fetched from memory in advance
constexpr int64_t LARGE = 16 << 20;  // bytes of a volume that does not stay in a cache

inline V load(const float* p) { return *reinterpret_cast<const UnalignedV*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<UnalignedV*>(p) = v; }
inline void store_past(float* p, V low, V high) {  // past the caches; p is aligned to a vector
#if defined(__AVX512F__) && LANES == 16 && !defined(__clang__)
    __builtin_ia32_movntps512(p, low);
    __builtin_ia32_movntps512(p + LANES, high);
#elif defined(__AVX__) && LANES == 8 && !defined(__clang__)
    __builtin_ia32_movntps256(p, low);
    __builtin_ia32_movntps256(p + LANES, high);
#else
    store(p, low);
    store(p + LANES, high);
#endif
}
inline V zero() { return V{}; }
inline V larger(V a, V b) { return a > b ? a : b; }
inline V leaky(V v, float slope) { return larger(v * slope, v); }  // for slopes up to 1; NaN stays NaN

#if defined(FLOAT16) && LANES == 16
inline V load(const uint16_t* p) {
    return reinterpret_cast<V>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline __m256i halves(V v) {
    return _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline void store(uint16_t* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves(v)); }
inline void store_past(uint16_t* p, V low, V high) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_inserti64x4(_mm512_castsi256_si512(halves(low)), halves(high), 1));
}
#elif defined(FLOAT16)
inline V load(const uint16_t* p) {
    return reinterpret_cast<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store(uint16_t* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(HALF)
inline V load(const uint16_t* p) {
    return reinterpret_cast<V>(__builtin_convertvector(*reinterpret_cast<const UnalignedStored*>(p), I) << 16);
}
inline void store(uint16_t* p, V v) {  // rounds to nearest even; NaN keeps a bit of its payload
    const I bits = reinterpret_cast<I>(v);
    const I rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const I kept = v == v ? rounded : (bits >> 16) | 64;
    *reinterpret_cast<UnalignedStored*>(p) = __builtin_convertvector(kept & 0xffff, UnalignedStored);
}
#endif
#if defined(HALF) && !(defined(FLOAT16) && LANES == 16)
inline void store_past(uint16_t* p, V low, V high) {
    store(p, low);
    store(p + LANES, high);
}
#endif
#ifdef FLOAT16
inline float as_float(uint16_t x) { return _cvtsh_ss(x); }
#elif defined(HALF)
inline float as_float(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
#endif
inline float as_float(float x) { return x; }

// GCC has __builtin_shufflevector since version 12.
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// a0 b0 a1 b1 ... in two vectors, and back.
inline void interleave(V a, V b, V& low, V& high) {
#if LANES == 4
    low = SHUFFLE(a, b, 0, 4, 1, 5);
    high = SHUFFLE(a, b, 2, 6, 3, 7);
#elif LANES == 8
    low = SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    low = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#endif
}
#if DOTS
inline V pair(V even, V odd) {  // 32 bfloat16: even[0] odd[0] even[1] odd[1] ...
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto halves = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(odd), reinterpret_cast<__m512>(even));
    return reinterpret_cast<V>(_mm512_permutexvar_epi16(_mm512_load_si512(order), reinterpret_cast<__m512i>(halves)));
}
inline V either(V evens, V odds) {  // the first halves of `evens` and the second halves of `odds`
    return reinterpret_cast<V>(
        _mm512_mask_blend_epi16(0xaaaaaaaa, reinterpret_cast<__m512i>(evens), reinterpret_cast<__m512i>(odds)));
}
inline V broadcast(float pair) { return reinterpret_cast<V>(_mm512_set1_ps(pair)); }
inline V dot(V sum, V x, V k) {  // sum[l] + x[2l] k[2l] + x[2l + 1] k[2l + 1]
    return reinterpret_cast<V>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(k)));
}
inline V multiply(V sum, V x, float k) { return dot(sum, x, broadcast(k)); }
#else
inline V pair(V v, V) { return v; }
inline V multiply(V sum, V x, float k) { return sum + k * x; }
#endif
inline void deinterleave(V low, V high, V& a, V& b) {
#if LANES == 4
    a = SHUFFLE(low, high, 0, 2, 4, 6);
    b = SHUFFLE(low, high, 1, 3, 5, 7);
#elif LANES == 8
    a = SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
    b = SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    a = SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    b = SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#endif
}

}  // namespace

// One input channel. The depth shift is already in the pointers: lane p of the shifted channel is data[p], and counts
// where mask[p] is all ones. scale and offset (per lane) are null where nothing was normalised. before and after are the
// masks of what lies in the segment before and after the lane's own.
struct Channel {
    const Stored* data;
    const float* scale;
    const float* offset;
    const int32_t* mask;
    const int32_t* before;
    const int32_t* after;
};

struct Layer {
    int32_t kind;  // 0 convolution, 1 pointwise or transposed convolution with kernel = stride, 2 max-pooling
    int32_t in_channels, in_h, in_w, in_lanes;  // lanes as stored, a multiple of LANES
    int32_t out_channels, out_h, out_w, out_lanes;
    int32_t in_row, out_row, out_plane;  // floats from a row to the next, and from a channel to the next
    int32_t stride_d, stride_h, stride_w;
    int32_t copies, depth;      // lanes of the output that count: copies * depth, over all segments of a copy
    int32_t segments, in_depth; // of W, and lanes of the input from a segment to the next
    int32_t rows, tile;         // convolution: output rows and columns of a block
    int32_t pairs;              // convolution with DOTS: 1 of channels (dense), 2 of rows
    int32_t row_blocks, column_blocks, lane_blocks, output_blocks;  // how the work is cut into items
    int32_t group;              // kernel taps computed together (pointwise)
    int32_t logits;             // the output is float in any case
    const Channel* channels;
    const int32_t* starts;      // compressed rows of active connections
    const int32_t* inputs;
    const float* weights;
    void* out;
    const float* gamma;
    const float* beta;
    float* scale;               // of the output, per channel and lane
    float* offset;
    float* sums;                // scratch for the statistics
    float epsilon, slope;
};

namespace {

inline void put(const Layer& layer, int64_t at, V v) {
    if (sizeof(Stored) == sizeof(float) || layer.logits)
        store(static_cast<float*>(layer.out) + at, v);
    else
        store(static_cast<Stored*>(layer.out) + at, v);
}
inline void put_one(const Layer& layer, int64_t at, float x) {
    V v = zero();
    v[0] = x;
    Stored stored[LANES];
    store(stored, v);
    if (layer.logits)
        static_cast<float*>(layer.out)[at] = x;
    else
        static_cast<Stored*>(layer.out)[at] = stored[0];
}
inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Lane block `block` of the part `part` of `parts` parts of `total`.
struct Range {
    int first, end;
    Range(int a, int b) : first(a), end(b) {}
    Range(int total, int parts, int part)
        : first(static_cast<int>(static_cast<int64_t>(total) * part / parts)),
          end(static_cast<int>(static_cast<int64_t>(total) * (part + 1) / parts)) {}
};

// Reads vectors of a channel at a fixed lane block: every SD-th lane (SD = 0: every `step`-th, one by one).
template <int SD, bool NORM>
struct Reader {
    const Channel& channel;
    float slope;
    int step, lane;
    V scale[SD ? SD : 1], offset[SD ? SD : 1];
    I mask[SD ? SD : 1];

    Reader(const Channel& c, int out_lane, int stride, float s) : channel(c), slope(s), step(stride), lane(out_lane * stride) {
        for (int k = 0; k < SD; ++k) {
            mask[k] = *reinterpret_cast<const UnalignedI*>(c.mask + lane + k * LANES);
            if (NORM) {
                scale[k] = load(c.scale + lane + k * LANES);
                offset[k] = load(c.offset + lane + k * LANES);
            }
        }
    }
    V part(const Stored* p, int k) const {
        V v = load(p + k * LANES);
        if (NORM) v = leaky(v * scale[k] + offset[k], slope);
        return reinterpret_cast<V>(reinterpret_cast<I>(v) & mask[k]);
    }
    V single(int64_t voxel, int first) const {  // lanes first, first + step, ...
        V v = zero();
        for (int l = 0; l < LANES; ++l) {
            const int p = first + l * step;
            if (!channel.mask[p]) continue;
            float x = as_float(channel.data[voxel + p]);
            if (NORM) {
                x = x * channel.scale[p] + channel.offset[p];
                x = x > 0 ? x : x * slope;
            }
            v[l] = x;
        }
        return v;
    }
    V strided(int64_t voxel) const {
        const Stored* p = channel.data + voxel + lane;
        if (SD == 1) return part(p, 0);
        if (SD == 2) {
            V even, odd;
            deinterleave(part(p, 0), part(p, SD - 1), even, odd);
            return even;
        }
        return single(voxel, lane);
    }
    V pooled(int64_t voxel) const {  // the largest of each `step` neighbouring lanes
        const Stored* p = channel.data + voxel + lane;
        if (SD == 1) return part(p, 0);
        if (SD == 2) {
            V even, odd;
            deinterleave(part(p, 0), part(p, SD - 1), even, odd);
            return larger(even, odd);
        }
        V v = single(voxel, lane);
        for (int k = 1; k < step; ++k) v = larger(v, single(voxel, lane + k));
        return v;
    }
};

// Transforms of a tile of TILE output columns with J points. TILE = 1 is the plain sum over three taps. With DOTS, TILE = 4
// is two tiles of 2, whose points take turns.

constexpr int points_of(int tile) { return tile == 4 ? DOTS ? 8 : 6 : tile == 2 ? 4 : 3; }
template <int TILE>
constexpr int points() { return points_of(TILE); }

template <int TILE>
inline void transform_input(const V* x, V* t, int64_t stride) {
    if constexpr (TILE == 4 && DOTS) {
        transform_input<2>(x, t, 2 * stride);
        transform_input<2>(x + 2, t + stride, 2 * stride);
    } else if constexpr (TILE == 4) {
        t[0] = 4.0f * x[0] - 5.0f * x[2] + x[4];
        const V a = x[4] - 4.0f * x[2], b = x[3] - 4.0f * x[1];
        t[stride] = a + b;
        t[2 * stride] = a - b;
        const V c = x[4] - x[2], d = 2.0f * (x[3] - x[1]);
        t[3 * stride] = c + d;
        t[4 * stride] = c - d;
        t[5 * stride] = 4.0f * x[1] - 5.0f * x[3] + x[5];
    } else if constexpr (TILE == 2) {
        t[0] = x[0] - x[2];
        t[stride] = x[1] + x[2];
        t[2 * stride] = x[2] - x[1];
        t[3 * stride] = x[1] - x[3];
    } else {
        for (int j = 0; j < 3; ++j) t[j * stride] = x[j];
    }
}

template <int TILE>
inline void transform_output(const V* m, int64_t stride, V* y) {
    if constexpr (TILE == 4 && DOTS) {
        transform_output<2>(m, 2 * stride, y);
        transform_output<2>(m + stride, 2 * stride, y + 2);
    } else if constexpr (TILE == 4) {
        const V a = m[stride] + m[2 * stride], b = m[stride] - m[2 * stride];
        const V c = m[3 * stride] + m[4 * stride], d = m[3 * stride] - m[4 * stride];
        y[0] = m[0] + a + c;
        y[1] = b + 2.0f * d;
        y[2] = a + 4.0f * c;
        y[3] = b + 8.0f * d + m[5 * stride];
    } else if constexpr (TILE == 2) {
        y[0] = m[0] + m[stride] + m[2 * stride];
        y[1] = m[stride] - m[2 * stride] - m[3 * stride];
    } else {
        y[0] = m[0] + m[stride] + m[2 * stride];
    }
}

// Input rows that R output rows read. SH = 1, 2: neighbouring rows share; SH = 3 (any other stride): three for each.
template <int SH>
constexpr int input_rows(int r) { return SH == 1 ? r + 2 : SH == 2 ? 2 * r + 1 : 3 * r; }

// How many channels or pairs of channels the scratch holds, and of how many vectors for `rows` input rows.
inline int scratch_units(const Layer& layer) { return layer.pairs == 1 ? ceil_div(layer.in_channels, 2) : layer.in_channels; }
inline int scratch_rows(const Layer& layer, int rows) { return layer.pairs == 2 ? ceil_div(rows, 2) : rows; }

// Sums over active connections for JB points at a time: acc[point][row] += kernel[tap] * input[row, tap].
template <int R, int SH, int JB>
void sum_connections(const Layer& layer, Range outputs, const float* weights, int64_t weights_stride, const V* inputs,
                     int64_t inputs_stride, V* sums, int64_t sums_stride) {
    constexpr int ROWS = input_rows<SH>(R);
    for (int o = outputs.first; o < outputs.end; ++o) {
        V acc[JB][R];
        for (int j = 0; j < JB; ++j)
            for (int r = 0; r < R; ++r) acc[j][r] = zero();
        for (int n = layer.starts[o], end = layer.starts[o + 1]; n < end; ++n) {
            const V* column = inputs + static_cast<int64_t>(layer.inputs[n]) * ROWS;
            const float* kernel = weights + static_cast<int64_t>(n) * 3;
#pragma GCC unroll 8
            for (int j = 0; j < JB; ++j) {
                const float k0 = kernel[j * weights_stride], k1 = kernel[j * weights_stride + 1],
                            k2 = kernel[j * weights_stride + 2];
                const V* x = column + j * inputs_stride;
                if constexpr (SH == 3) {
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) acc[j][r] += k0 * x[3 * r] + k1 * x[3 * r + 1] + k2 * x[3 * r + 2];
                } else {
#pragma GCC unroll 24
                    for (int k = 0; k < ROWS; ++k) {
                        const V v = x[k];
                        if (k % SH == 0 && k / SH < R) acc[j][k / SH] += k0 * v;
                        if (k >= 1 && (k - 1) % SH == 0 && (k - 1) / SH < R) acc[j][(k - 1) / SH] += k1 * v;
                        if (k >= 2 && (k - 2) % SH == 0 && (k - 2) / SH < R) acc[j][(k - 2) / SH] += k2 * v;
                    }
                }
            }
        }
        for (int j = 0; j < JB; ++j)
            for (int r = 0; r < R; ++r) sums[j * sums_stride + (o - outputs.first) * R + r] = acc[j][r];
    }
}

#if DOTS
// As sum_connections, of one point, for channels in pairs and O outputs that all read them all.
template <int R, int SH, int O>
void sum_channel_pairs(const Layer& layer, Range outputs, const float* weights, const V* inputs, V* sums) {
    constexpr int ROWS = input_rows<SH>(R);
    const int pairs = scratch_units(layer);
    int o = outputs.first;
    for (; o + O <= outputs.end; o += O) {
        V acc[O][R];
        for (int q = 0; q < O; ++q)
            for (int r = 0; r < R; ++r) acc[q][r] = zero();
        for (int n = 0; n < pairs; ++n) {
            const V* x = inputs + static_cast<int64_t>(n) * ROWS;
            V kernel[O][3];
            for (int q = 0; q < O; ++q)
                for (int k = 0; k < 3; ++k)
                    kernel[q][k] = broadcast(weights[(static_cast<int64_t>(o + q) * pairs + n) * 3 + k]);
            if constexpr (SH == 3) {
#pragma GCC unroll 24
                for (int k = 0; k < ROWS; ++k)
                    for (int q = 0; q < O; ++q) acc[q][k / 3] = dot(acc[q][k / 3], x[k], kernel[q][k % 3]);
            } else {
#pragma GCC unroll 24
                for (int k = 0; k < ROWS; ++k) {
                    const V v = x[k];
                    for (int q = 0; q < O; ++q) {
                        if (k % SH == 0 && k / SH < R) acc[q][k / SH] = dot(acc[q][k / SH], v, kernel[q][0]);
                        if (k >= 1 && (k - 1) % SH == 0 && (k - 1) / SH < R)
                            acc[q][(k - 1) / SH] = dot(acc[q][(k - 1) / SH], v, kernel[q][1]);
                        if (k >= 2 && (k - 2) % SH == 0 && (k - 2) / SH < R)
                            acc[q][(k - 2) / SH] = dot(acc[q][(k - 2) / SH], v, kernel[q][2]);
                    }
                }
            }
        }
        for (int q = 0; q < O; ++q)
            for (int r = 0; r < R; ++r) sums[static_cast<int64_t>(o + q - outputs.first) * R + r] = acc[q][r];
    }
    if constexpr (O > 1)
        if (o < outputs.end)
            sum_channel_pairs<R, SH, 1>(layer, {o, outputs.end}, weights, inputs, sums + static_cast<int64_t>(o - outputs.first) * R);
}

// As sum_connections, for rows in pairs (0, 1), (2, 3), ... and U tiles that have the weights in common. The four pairs of
// weights are (k0, k1) and (k2, 0) of an even row, (0, k0) and (k1, k2) of an odd one.
template <int R, int U>
void sum_row_pairs(const Layer& layer, Range outputs, const float* weights, const V* inputs, int64_t inputs_stride, V* sums,
                   int64_t sums_stride) {
    constexpr int LENGTH = (R + 3) / 2;
    for (int o = outputs.first; o < outputs.end; ++o) {
        V acc[U][R];
        for (int u = 0; u < U; ++u)
            for (int r = 0; r < R; ++r) acc[u][r] = zero();
        for (int n = layer.starts[o], end = layer.starts[o + 1]; n < end; ++n) {
            const V* column = inputs + static_cast<int64_t>(layer.inputs[n]) * LENGTH;
            const float* kernel = weights + static_cast<int64_t>(n) * 4;
            const V k0 = broadcast(kernel[0]), k1 = broadcast(kernel[1]), k2 = broadcast(kernel[2]), k3 = broadcast(kernel[3]);
#pragma GCC unroll 2
            for (int u = 0; u < U; ++u) {
                const V* x = column + u * inputs_stride;
#pragma GCC unroll 8
                for (int m = 0; m < LENGTH; ++m) {
                    const V v = x[m];
                    if (2 * m < R) acc[u][2 * m] = dot(acc[u][2 * m], v, k0);
                    if (2 * m + 1 < R) acc[u][2 * m + 1] = dot(acc[u][2 * m + 1], v, k2);
                    if (m > 0 && 2 * m - 2 < R) acc[u][2 * m - 2] = dot(acc[u][2 * m - 2], v, k1);
                    if (m > 0 && 2 * m - 1 < R) acc[u][2 * m - 1] = dot(acc[u][2 * m - 1], v, k3);
                }
            }
        }
        for (int u = 0; u < U; ++u)
            for (int r = 0; r < R; ++r) sums[u * sums_stride + static_cast<int64_t>(o - outputs.first) * R + r] = acc[u][r];
    }
}

template <int R, int SH, int TILE>
void sum_all_points(const Layer& layer, Range outputs, const V* inputs, V* sums) {
    constexpr int J = points<TILE>(), U = TILE == 4 ? 2 : 1;
    const int64_t inputs_stride = static_cast<int64_t>(scratch_units(layer)) * scratch_rows(layer, input_rows<SH>(R));
    const int64_t weights_stride = static_cast<int64_t>(layer.starts[layer.out_channels]) * (layer.pairs == 1 ? 3 : 4);
    const int64_t sums_stride = static_cast<int64_t>(outputs.end - outputs.first) * R;
    for (int j = 0; j < J; j += U) {
        const float* weights = layer.weights + j / U * weights_stride;
        if (layer.pairs == 1) {
            for (int u = 0; u < U; ++u)
                sum_channel_pairs<R, SH, 2>(layer, outputs, weights, inputs + (j + u) * inputs_stride, sums + (j + u) * sums_stride);
        } else if constexpr (SH == 1) {
            sum_row_pairs<R, U>(layer, outputs, weights, inputs + j * inputs_stride, inputs_stride, sums + j * sums_stride, sums_stride);
        }
    }
}
#else
template <int R, int SH, int TILE>
void sum_all_points(const Layer& layer, Range outputs, const V* inputs, V* sums) {
    const int64_t inputs_stride = static_cast<int64_t>(layer.in_channels) * input_rows<SH>(R);
    const int64_t weights_stride = static_cast<int64_t>(layer.starts[layer.out_channels]) * 3;
    const int64_t sums_stride = static_cast<int64_t>(outputs.end - outputs.first) * R;
    constexpr int J = points<TILE>(), JB = R <= 4 || LANES == 16 ? 2 : 1;
    int j = 0;
    for (; j + JB <= J; j += JB)
        sum_connections<R, SH, JB>(layer, outputs, layer.weights + j * weights_stride, weights_stride,
                                   inputs + j * inputs_stride, inputs_stride, sums + j * sums_stride, sums_stride);
    for (; j < J; ++j)
        sum_connections<R, SH, 1>(layer, outputs, layer.weights + j * weights_stride, weights_stride,
                                  inputs + j * inputs_stride, inputs_stride, sums + j * sums_stride, sums_stride);
}
#endif

// At most 8 output rows, as many accumulators as hide the latency of an FMA; 2 where no rows are shared.
template <int TILE, int SH>
void sum_rows(int rows, const Layer& layer, Range outputs, const V* inputs, V* sums) {
    if (rows == 1) return sum_all_points<1, SH, TILE>(layer, outputs, inputs, sums);
    if (rows == 2 || SH == 3) return sum_all_points<2, SH, TILE>(layer, outputs, inputs, sums);
    if constexpr (SH != 3) switch (rows) {
        case 3: return sum_all_points<3, SH, TILE>(layer, outputs, inputs, sums);
        case 4: return sum_all_points<4, SH, TILE>(layer, outputs, inputs, sums);
        case 5: return sum_all_points<5, SH, TILE>(layer, outputs, inputs, sums);
        case 6: return sum_all_points<6, SH, TILE>(layer, outputs, inputs, sums);
        case 7: return sum_all_points<7, SH, TILE>(layer, outputs, inputs, sums);
        default: return sum_all_points<8, SH, TILE>(layer, outputs, inputs, sums);
    }
}

struct Tile {
    int row, rows, column, lane;  // first output row, their number, first output column, first output lane
};

// What to fetch while `channel` is computed.
inline const Stored* fetched_channel(const Layer& layer, int channel) {
    return layer.channels[channel + AHEAD < layer.in_channels ? channel + AHEAD : channel].data;
}

// The channel as seen from the lanes of the segment after it (side = -1) or before it (side = 1): of the same copy, with
// the same scale and offset.
inline Channel neighbour(const Channel& c, int side, int depth) {
    return {c.data + side * depth, c.scale, c.offset, side < 0 ? c.before : c.after, nullptr, nullptr};
}

// Reads input rows of one channel at a tile and transforms them.
template <int TILE, int SH, int SD, bool NORM>
struct RowReader {
    static constexpr int COLUMNS = TILE + 2;
    const Layer& layer;
    const Channel& channel;
    const Reader<SD, NORM> read;
    const Stored* const ahead;
    const int first_row, first_column, lane;
    const bool inside;

    RowReader(const Layer& l, int c, const Tile& tile)
        : layer(l),
          channel(l.channels[c]),
          read(channel, tile.lane, l.stride_d, l.slope),
          ahead(fetched_channel(l, c) + read.lane),
          first_row(tile.row),
          first_column(tile.column * l.stride_w - 1),
          lane(tile.lane),
          inside(first_column >= 0 && first_column + COLUMNS <= l.in_w) {}

    // Row k of the tile's input: t[point * stride].
    void row(int k, V* t, int64_t stride) const {
        const int h = SH == 3 ? (first_row + k / 3) * layer.stride_h - 1 + k % 3 : first_row * SH - 1 + k;
        const int64_t line = static_cast<int64_t>(h) * layer.in_row, start = line + static_cast<int64_t>(first_column) * layer.in_lanes;
        const Stored* fetched = ahead + start;
        for (int j = 0; j < COLUMNS; ++j, fetched += layer.in_lanes) {
            if (TILE == 4 && j < 2) continue;  // the tile before read them
            __builtin_prefetch(fetched);  // two lines, where the depth shift moves a vector across their border
            __builtin_prefetch(fetched + (SD ? SD : 1) * LANES - 1);
        }
        V x[COLUMNS];
        if (h < 0 || h >= layer.in_h) {
            for (int j = 0; j < points<TILE>(); ++j) t[j * stride] = zero();
            return;
        }
        if (inside) {
            int64_t voxel = start;
            for (int j = 0; j < COLUMNS; ++j, voxel += layer.in_lanes) x[j] = read.strided(voxel);
        } else {
            for (int j = 0; j < COLUMNS; ++j) x[j] = at_border(line, first_column + j);
        }
        transform_input<TILE>(x, t, stride);
    }

    V at_border(int64_t line, int w) const {
        if (w >= 0 && w < layer.in_w) return read.strided(line + w * layer.in_lanes);
        if (layer.segments == 1 || w > layer.in_w) return zero();
        const Channel beyond = neighbour(channel, w < 0 ? -1 : 1, layer.in_depth);
        const Reader<SD, NORM> there(beyond, lane, layer.stride_d, layer.slope);
        return there.strided(line + (w < 0 ? layer.in_w - 1 : 0) * layer.in_lanes);
    }
};

// The transformed input of one channel, `rows` input rows of it: t[point * stride + row].
template <int TILE, int SH, int SD, bool NORM>
void read_channel(const Layer& layer, int channel, const Tile& tile, V* t, int64_t stride) {
    const RowReader<TILE, SH, SD, NORM> reader(layer, channel, tile);
    for (int k = 0; k < input_rows<SH>(tile.rows); ++k) reader.row(k, t + k, stride);
}

template <int TILE, int SH, int SD>
inline void read_any(const Layer& layer, int channel, const Tile& tile, V* t, int64_t stride) {
    if (layer.channels[channel].scale)
        read_channel<TILE, SH, SD, true>(layer, channel, tile, t, stride);
    else
        read_channel<TILE, SH, SD, false>(layer, channel, tile, t, stride);
}

#if DOTS
// The same of two channels, or of one and zeros: t[point * stride + row], pairs.
template <int TILE, int SH, int SD>
void read_channel_pair(const Layer& layer, int channel, const Tile& tile, V* t, int64_t stride) {
    const int rows = input_rows<SH>(tile.rows), count = points<TILE>() * rows;
    V one[points<TILE>() * input_rows<SH>(8)], other[points<TILE>() * input_rows<SH>(8)];
    read_any<TILE, SH, SD>(layer, channel, tile, one, rows);
    if (channel + 1 < layer.in_channels)
        read_any<TILE, SH, SD>(layer, channel + 1, tile, other, rows);
    else
        for (int n = 0; n < count; ++n) other[n] = zero();
    for (int j = 0; j < points<TILE>(); ++j)
        for (int k = 0; k < rows; ++k) t[j * stride + k] = pair(one[j * rows + k], other[j * rows + k]);
}

// The same of one channel, rows in pairs, the last one with zeros where their number is odd: t[point * stride + row / 2].
template <int TILE, int SD, bool NORM>
void read_row_pairs(const Layer& layer, int channel, const Tile& tile, V* t, int64_t stride) {
    const RowReader<TILE, 1, SD, NORM> reader(layer, channel, tile);
    const int rows = input_rows<1>(tile.rows);
    for (int k = 0; k < rows; k += 2) {
        V one[points<TILE>()], other[points<TILE>()] = {};
        reader.row(k, one, 1);
        if (k + 1 < rows) reader.row(k + 1, other, 1);
        for (int j = 0; j < points<TILE>(); ++j) t[j * stride + k / 2] = pair(one[j], other[j]);
    }
}
#endif

// The transformed input of all channels: t[point][channel][row], or t[point][pair of channels][row], or
// t[point][channel][pair of rows], `size` vectors for each of `together` vectors of lanes.
template <int TILE, int SH, int SD>
void read_input(const Layer& layer, const Tile& tile, int together, V* t, int64_t size) {
    const int units = scratch_units(layer), length = scratch_rows(layer, input_rows<SH>(tile.rows));
    const int64_t stride = static_cast<int64_t>(units) * length;
    Tile part = tile;
    for (int i = 0; i < units; ++i) {
        for (int p = 0; p < together; ++p) {
            part.lane = tile.lane + p * LANES;
            V* to = t + p * size + static_cast<int64_t>(i) * length;
#if DOTS
            if (layer.pairs == 1)
                read_channel_pair<TILE, SH, SD>(layer, 2 * i, part, to, stride);
            else if (layer.channels[i].scale)
                read_row_pairs<TILE, SD, true>(layer, i, part, to, stride);
            else
                read_row_pairs<TILE, SD, false>(layer, i, part, to, stride);
#else
            read_any<TILE, SH, SD>(layer, i, part, to, stride);
#endif
        }
    }
}

template <int TILE, int SH, int SD>
void convolve_item(const Layer& layer, int item, float* scratch) {
    constexpr int J = points<TILE>();
    const int output_block = item % layer.output_blocks;
    item /= layer.output_blocks;
    const int lane_block = item % layer.lane_blocks;
    item /= layer.lane_blocks;
    const int column_block = item % layer.column_blocks;
    const int row_block = item / layer.column_blocks;

    const Range outputs(layer.out_channels, layer.output_blocks, output_block);
    const Range lanes(layer.out_lanes / LANES, layer.lane_blocks, lane_block);
    const Range columns(ceil_div(layer.out_w, TILE), layer.column_blocks, column_block);
    const int count = outputs.end - outputs.first;
    Tile tile;
    tile.row = row_block * layer.rows;
    tile.rows = layer.out_h - tile.row < layer.rows ? layer.out_h - tile.row : layer.rows;

    V* transformed = reinterpret_cast<V*>(scratch);  // of PAIR neighbouring vectors of lanes
    const int64_t size =
        static_cast<int64_t>(J) * scratch_units(layer) * scratch_rows(layer, input_rows<SH>(tile.rows));
    V* products = transformed + PAIR * size;
    const int64_t products_stride = static_cast<int64_t>(count) * tile.rows;
    // Pivot, sum and sum of squares of what is above the pivot, for each output and lane.
    const int64_t block = (static_cast<int64_t>(row_block) * layer.column_blocks + column_block) * (layer.out_lanes / LANES);
    for (int c = columns.first; c < columns.end; ++c) {
        tile.column = c * TILE;
        const int width = layer.out_w - tile.column < TILE ? layer.out_w - tile.column : TILE;
        for (int b = lanes.first; b < lanes.end; ++b) {
            tile.lane = b * LANES;
            if ((b - lanes.first) % PAIR == 0)
                read_input<TILE, SH, SD>(layer, tile, lanes.end - b < PAIR ? lanes.end - b : PAIR, transformed, size);
            sum_rows<TILE, SH>(tile.rows, layer, outputs, transformed + (b - lanes.first) % PAIR * size, products);
            for (int o = 0; o < count; ++o) {
                float* sums = layer.sums + ((block + b) * layer.out_channels + outputs.first + o) * 3 * LANES;
                int64_t out = static_cast<int64_t>(outputs.first + o) * layer.out_plane +
                             static_cast<int64_t>(tile.row) * layer.out_row + tile.column * layer.out_lanes + tile.lane;
                V pivot, sum, squares;
                if (c != columns.first) {
                    pivot = load(sums);
                    sum = load(sums + LANES);
                    squares = load(sums + 2 * LANES);
                } else {
                    pivot = sum = squares = zero();
                }
                const int64_t next = o + 1 < count ? layer.out_plane : 0;  // fetched before it is written
                for (int r = 0; r < tile.rows; ++r) {
                    for (int x = 0; x < width; ++x)
                        __builtin_prefetch(static_cast<Stored*>(layer.out) + out + next + static_cast<int64_t>(x) * layer.out_lanes, 1);
                    V y[TILE];
                    transform_output<TILE>(products + static_cast<int64_t>(o) * tile.rows + r, products_stride, y);
                    if (c == columns.first && r == 0) pivot = y[0];
                    for (int x = 0; x < width; ++x) {
                        put(layer, out + static_cast<int64_t>(x) * layer.out_lanes, y[x]);
                        const V above = y[x] - pivot;
                        sum += above;
                        squares += above * above;
                    }
                    out += layer.out_row;
                }
                store(sums, pivot);
                store(sums + LANES, sum);
                store(sums + 2 * LANES, squares);
            }
        }
    }
}

template <int TILE, int SH>
void convolve_depth(const Layer& layer, int item, float* scratch) {
    if (layer.stride_d == 1) return convolve_item<TILE, SH, 1>(layer, item, scratch);
    if (layer.stride_d == 2) return convolve_item<TILE, SH, 2>(layer, item, scratch);
    convolve_item<TILE, SH, 0>(layer, item, scratch);
}

void convolve(const Layer& layer, int item, float* scratch) {
    const int sh = layer.stride_h <= 2 ? layer.stride_h : 3;
    if (layer.tile == 4 && sh == 1) return convolve_depth<4, 1>(layer, item, scratch);
    if (layer.tile == 2 && sh == 1) return convolve_depth<2, 1>(layer, item, scratch);
    if (layer.tile == 1 && sh == 1) return convolve_depth<1, 1>(layer, item, scratch);
    if (layer.tile == 1 && sh == 2) return convolve_depth<1, 2>(layer, item, scratch);
    convolve_depth<1, 3>(layer, item, scratch);
}

// InstanceNorm of one output channel as scale and offset per lane, from the sums of all blocks.
void normalize(const Layer& layer, int channel) {
    const int lane_blocks = layer.out_lanes / LANES;
    const int blocks = layer.row_blocks * layer.column_blocks;
    const int tiles = ceil_div(layer.out_w, layer.tile);
    float* scale = layer.scale + static_cast<int64_t>(channel) * layer.out_lanes;
    float* offset = layer.offset + static_cast<int64_t>(channel) * layer.out_lanes;
    std::memset(scale, 0, sizeof(float) * layer.out_lanes);
    std::memset(offset, 0, sizeof(float) * layer.out_lanes);
    for (int copy = 0; copy < layer.copies; ++copy) {
        const double total = static_cast<double>(layer.out_h) * layer.out_w * layer.depth;
        double mean = 0, squares = 0;
        for (int pass = 0; pass < 2; ++pass) {
            for (int block = 0; block < blocks; ++block) {
                const int row = block / layer.column_blocks * layer.rows;
                const Range columns(tiles, layer.column_blocks, block % layer.column_blocks);
                const int rows = layer.out_h - row < layer.rows ? layer.out_h - row : layer.rows;
                const int end = columns.end * layer.tile < layer.out_w ? columns.end * layer.tile : layer.out_w;
                const double n = static_cast<double>(rows) * (end - columns.first * layer.tile);
                for (int lane = copy * layer.depth; lane < (copy + 1) * layer.depth; ++lane) {
                    const float* sums =
                        layer.sums + ((static_cast<int64_t>(block) * lane_blocks + lane / LANES) * layer.out_channels + channel) * 3 * LANES +
                        lane % LANES;
                    const double above = sums[LANES] / n, local = sums[0] + above;
                    if (pass == 0)
                        mean += n * local / total;
                    else
                        squares += sums[2 * LANES] - n * above * above + n * (local - mean) * (local - mean);
                }
            }
        }
        double variance = squares / total;
        if (variance < 0) variance = 0;
        const double factor = layer.gamma[channel] / std::sqrt(variance + layer.epsilon);
        for (int lane = copy * layer.depth; lane < (copy + 1) * layer.depth; ++lane) {
            scale[lane] = static_cast<float>(factor);
            offset[lane] = static_cast<float>(layer.beta[channel] - mean * factor);
        }
    }
}

// Pointwise: T taps of P positions at a time. A transposed convolution with kernel = stride has one tap for each of its
// output voxels; taps that differ in depth alone are neighbours, so that a pair can be interleaved. With DOTS the active
// connections of an output are paired, any two channels: `inputs` has two for each.
template <int T, int P>
void pointwise_taps(const Layer& layer, Range outputs, const V* x, int h, int column, int count, int lane) {
    const int taps = layer.stride_d * layer.stride_h * layer.stride_w;
    const int64_t connections = layer.starts[layer.out_channels];
    const bool past = layer.out_lanes % (2 * LANES) == 0 &&
                      static_cast<int64_t>(layer.out_plane) * layer.out_channels * sizeof(Stored) > LARGE;
    for (int o = outputs.first; o < outputs.end; ++o) {
        for (int tap = 0; tap < taps; tap += T) {
            V acc[T][P];
            for (int t = 0; t < T; ++t)
                for (int p = 0; p < P; ++p) acc[t][p] = zero();
            const float* weights = layer.weights + tap * connections;
            for (int n = layer.starts[o], end = layer.starts[o + 1]; n < end; ++n) {
                const float* k = weights + static_cast<int64_t>(n) * T;
#if DOTS
                const V* v = x + static_cast<int64_t>(layer.inputs[2 * n]) * P;
                const V* w = x + static_cast<int64_t>(layer.inputs[2 * n + 1]) * P;
#else
                const V* v = x + static_cast<int64_t>(layer.inputs[n]) * P;
#endif
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) {
#if DOTS
                    const V value = either(v[p], w[p]);
#else
                    const V value = v[p];
#endif
#pragma GCC unroll 4
                    for (int t = 0; t < T; ++t) acc[t][p] = multiply(acc[t][p], value, k[t]);
                }
            }
            for (int p = 0; p < P && p < count; ++p) {
                for (int t = 0; t < T; t += T > 1 && layer.stride_d == 2 ? 2 : 1) {
                    const int kd = (tap + t) % layer.stride_d, plane = (tap + t) / layer.stride_d;
                    const int row = h * layer.stride_h + plane / layer.stride_w;
                    const int w = (column + p) * layer.stride_w + plane % layer.stride_w;
                    const int64_t out = static_cast<int64_t>(o) * layer.out_plane + static_cast<int64_t>(row) * layer.out_row + w * layer.out_lanes;
                    if (layer.stride_d == 1) {
                        put(layer, out + lane, acc[t][p]);
                    } else if (T > 1 && layer.stride_d == 2) {
                        V low, high;
                        interleave(acc[t][p], acc[t + 1 < T ? t + 1 : t][p], low, high);
                        if (past) {
                            store_past(static_cast<Stored*>(layer.out) + out + 2 * lane, low, high);
                            continue;
                        }
                        put(layer, out + 2 * lane, low);
                        if (2 * lane + LANES < layer.out_lanes) put(layer, out + 2 * lane + LANES, high);
                    } else {
                        for (int l = 0; l < LANES; ++l) {
                            const int to = (lane + l) * layer.stride_d + kd;
                            if (to < layer.out_lanes) put_one(layer, out + to, acc[t][p][l]);
                        }
                    }
                }
            }
        }
    }
}

template <int P, bool NORM>
void read_positions(const Layer& layer, int channel, int h, int column, int count, int lane, V* x) {
    const Reader<1, NORM> read(layer.channels[channel], lane, 1, layer.slope);
    const int64_t line = static_cast<int64_t>(h) * layer.in_row + static_cast<int64_t>(column) * layer.in_lanes;
    const Stored* ahead = fetched_channel(layer, channel) + lane + line;
    for (int p = 0; p < count; ++p) {
        __builtin_prefetch(ahead + static_cast<int64_t>(p) * layer.in_lanes);
        const V v = read.strided(line + p * layer.in_lanes);
        x[(static_cast<int64_t>(p / P) * layer.in_channels + channel) * P + p % P] = DOTS ? pair(v, v) : v;
    }
    for (int p = count; p % P; ++p) x[(static_cast<int64_t>(p / P) * layer.in_channels + channel) * P + p % P] = zero();
}

template <int T, int P>
void pointwise_item(const Layer& layer, int item, float* scratch) {
    const int output_block = item % layer.output_blocks;
    item /= layer.output_blocks;
    const int lane_block = item % layer.lane_blocks;
    item /= layer.lane_blocks;
    const int column_block = item % layer.column_blocks;
    const int h = item / layer.column_blocks;
    const Range outputs(layer.out_channels, layer.output_blocks, output_block);
    const Range lanes(layer.in_lanes / LANES, layer.lane_blocks, lane_block);
    const int column = column_block * CHUNK;
    const int count = layer.in_w - column < CHUNK ? layer.in_w - column : CHUNK;
    V* x = reinterpret_cast<V*>(scratch);  // of PAIR neighbouring vectors of lanes
    const int64_t size = static_cast<int64_t>(layer.in_channels) * CHUNK;
    for (int b = lanes.first; b < lanes.end; ++b) {
        if ((b - lanes.first) % PAIR == 0) {
            const int together = lanes.end - b < PAIR ? lanes.end - b : PAIR;
            for (int i = 0; i < layer.in_channels; ++i) {
                for (int n = 0; n < together; ++n) {
                    if (layer.channels[i].scale)
                        read_positions<P, true>(layer, i, h, column, count, (b + n) * LANES, x + n * size);
                    else
                        read_positions<P, false>(layer, i, h, column, count, (b + n) * LANES, x + n * size);
                }
            }
        }
        const V* mine = x + (b - lanes.first) % PAIR * size;
        for (int p = 0; p < count; p += P)
            pointwise_taps<T, P>(layer, outputs, mine + static_cast<int64_t>(p) * layer.in_channels, h, column + p, count - p, b * LANES);
    }
}

void pointwise(const Layer& layer, int item, float* scratch) {
    if (layer.group == 4)
        pointwise_item<4, 4>(layer, item, scratch);
    else if (layer.group == 2)
        pointwise_item<2, 4>(layer, item, scratch);
    else
        pointwise_item<1, 8>(layer, item, scratch);
}

template <int SD, bool NORM>
void pool_row(const Layer& layer, int channel, int row) {
    const int64_t out = static_cast<int64_t>(channel) * layer.out_plane + static_cast<int64_t>(row) * layer.out_row;
    for (int w = 0; w < layer.out_w; ++w) {
        for (int lane = 0; lane < layer.out_lanes; lane += LANES) {
            const Reader<SD, NORM> read(layer.channels[channel], lane, layer.stride_d, layer.slope);
            V best = zero();
            for (int kh = 0; kh < layer.stride_h; ++kh)
                for (int kw = 0; kw < layer.stride_w; ++kw) {
                    const int64_t line = static_cast<int64_t>(row * layer.stride_h + kh) * layer.in_row;
                    const V v = read.pooled(line + (w * layer.stride_w + kw) * layer.in_lanes);
                    best = kh || kw ? larger(v, best) : v;
                }
            put(layer, out + static_cast<int64_t>(w) * layer.out_lanes + lane, best);
        }
    }
}

template <int SD>
void pool_depth(const Layer& layer, int channel, int row) {
    if (layer.channels[channel].scale)
        pool_row<SD, true>(layer, channel, row);
    else
        pool_row<SD, false>(layer, channel, row);
}

void pool(const Layer& layer, int item) {
    const int channel = item / layer.out_h, row = item % layer.out_h;
    if (layer.stride_d == 1) return pool_depth<1>(layer, channel, row);
    if (layer.stride_d == 2) return pool_depth<2>(layer, channel, row);
    pool_depth<0>(layer, channel, row);
}

int items(const Layer& layer) {
    if (layer.kind == 2) return layer.out_channels * layer.out_h;
    return layer.row_blocks * layer.column_blocks * layer.lane_blocks * layer.output_blocks;
}

// All threads wait for the last one: a short spin, then sleep.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        const int round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            {
                std::lock_guard<std::mutex> lock(mutex_);
                round_.fetch_add(1, std::memory_order_release);
            }
            changed_.notify_all();
            return;
        }
        for (int spin = 0; spin < 4000; ++spin) {
            if (round_.load(std::memory_order_acquire) != round) return;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != round; });
    }

  private:
    const int threads_;
    std::atomic<int> arrived_{0}, round_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

}  // namespace

extern "C" {

int32_t packed_lanes() { return LANES; }
int32_t packed_layer_size() { return sizeof(Layer); }
int32_t packed_stored_size() { return sizeof(Stored); }
int32_t packed_dots() { return DOTS; }
int32_t packed_float16() {
#ifdef FLOAT16
    return 1;
#else
    return 0;
#endif
}

// Bytes of scratch that a thread needs for this layer.
int64_t packed_scratch(const Layer* layer) {
    int64_t vectors = 0;
    if (layer->kind == 0) {
        const int j = points_of(layer->tile);
        const int rows = layer->stride_h == 1 ? layer->rows + 2 : 3 * layer->rows;
        vectors = static_cast<int64_t>(j) * (PAIR * static_cast<int64_t>(scratch_units(*layer)) * scratch_rows(*layer, rows) +
                                             static_cast<int64_t>(layer->out_channels) * layer->rows);
    } else if (layer->kind == 1) {
        vectors = static_cast<int64_t>(PAIR) * layer->in_channels * CHUNK;
    }
    return vectors * static_cast<int64_t>(sizeof(V));
}

// Runs the layers in order on `threads` threads; `scratch` holds `scratch_bytes` for each, aligned to 64.
void packed_run(const Layer* layers, int32_t count, int32_t threads, char* scratch, int64_t scratch_bytes) {
    std::vector<std::atomic<int>> next(2 * static_cast<size_t>(count));
    for (auto& n : next) n.store(0, std::memory_order_relaxed);
    std::vector<std::thread> team;
    std::atomic<int> size{0};  // 0 until the team is complete: the system may refuse threads
    Barrier* barrier = nullptr;

    auto work = [&](int index) {
        float* mine = reinterpret_cast<float*>(scratch + index * scratch_bytes);
        for (int l = 0; l < count; ++l) {
            const Layer& layer = layers[l];
            const int total = items(layer);
            for (int item; (item = next[2 * l].fetch_add(1, std::memory_order_relaxed)) < total;) {
                if (layer.kind == 0)
                    convolve(layer, item, mine);
                else if (layer.kind == 1)
                    pointwise(layer, item, mine);
                else
                    pool(layer, item);
            }
#if defined(__x86_64__)
            __builtin_ia32_sfence();  // what was stored past the caches
#endif
            barrier->wait();
            if (layer.kind != 0) continue;
            for (int c; (c = next[2 * l + 1].fetch_add(1, std::memory_order_relaxed)) < layer.out_channels;)
                normalize(layer, c);
            barrier->wait();
        }
    };
    std::mutex gate;
    std::condition_variable opened;
    auto member = [&](int index) {
        {
            std::unique_lock<std::mutex> lock(gate);
            opened.wait(lock, [&] { return size.load() != 0; });
        }
        work(index);
    };
    try {
        for (int t = 1; t < threads; ++t) team.emplace_back(member, t);
    } catch (const std::system_error&) {
    }
    Barrier shared(static_cast<int>(team.size()) + 1);
    barrier = &shared;
    {
        std::lock_guard<std::mutex> lock(gate);
        size.store(static_cast<int>(team.size()) + 1);
    }
    opened.notify_all();
    work(0);
    for (auto& thread : team) thread.join();
}
}
