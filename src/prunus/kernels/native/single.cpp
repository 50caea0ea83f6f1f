// Sparse matrix × one token. Memory decides: the fewer bytes a weight takes, the better.
//
// MASK: a bit for each weight and the values that are there, spread to their places by the bits.
// SLICES: sixteen rows beside each other, a value and a column of two bytes for each weight.
// COLUMNS: blocks of sixteen rows that share a column.
// WINDOWS: sixteen rows beside each other, each with a column of the same 32: AVX-512 takes these
// from two registers at once, where looking up one by one takes a cycle for each.
#include "abi.h"
#include "activations.h"
#include "layout.h"
#include "pool.h"
#include "scratch.h"
#include "spread.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

thread_local Scratch inputs;

// What a processor fetches of its own accord ends with the system's page: so many steps, and so
// many values, ahead it is asked for.
constexpr int64_t STEPS_AHEAD = 32, VALUES_AHEAD = 384;

// What is done to a row's sum before it is written.
struct Close {
  const Product& p;
  const float* scales;
  explicit Close(const Product& call)
      : p(call),
        scales(call.type == I8 ? reinterpret_cast<const float*>(call.layout + head_of(call.layout).scales)
                               : nullptr) {}
  void operator()(int64_t row, float sum) const {
    if (scales) sum *= scales[row];
    if (p.bias) sum += static_cast<const float*>(p.bias)[row];
    if (p.residual) sum += static_cast<const float*>(p.residual)[row];
    if (p.activation != NONE) {
      Vec<float, 4> v = all<Vec<float, 4>>(sum);
      sum = activated<float, 4>(v, p.activation)[0];
    }
    static_cast<float*>(p.y)[row] = sum;
  }
  template <int... i> static INLINE bool neighbors(const int32_t* row, std::integer_sequence<int, i...>) {
    return row[0] >= 0 && ((row[i] == row[0] + i) & ...);
  }
  // Of the rows of a slice, of which some may be none (-1).
  template <class V> INLINE void several(const int32_t* row, V sum) const {
    constexpr int N = sizeof(V) / sizeof(float);
    if (neighbors(row, std::make_integer_sequence<int, N>{})) {
      const int64_t at = row[0];
      if (scales) sum *= load<V>(scales + at);
      if (p.bias) sum += load<V>(static_cast<const float*>(p.bias) + at);
      if (p.residual) sum += load<V>(static_cast<const float*>(p.residual) + at);
      return store(static_cast<float*>(p.y) + at, activated<float, N>(sum, p.activation));
    }
    int32_t own[N];
    for (int i = 0; i < N; ++i) own[i] = row[i] < 0 ? 0 : row[i];
    if (scales) sum *= looked_up<N>(scales, own);
    if (p.bias) sum += looked_up<N>(static_cast<const float*>(p.bias), own);
    if (p.residual) sum += looked_up<N>(static_cast<const float*>(p.residual), own);
    sum = activated<float, N>(sum, p.activation);
    float* y = static_cast<float*>(p.y);
    for (int i = 0; i < N; ++i)
      if (row[i] >= 0) y[row[i]] = sum[i];
  }
};

// One row: several at once would each wait for their own values.
template <class T>
INLINE float row_of_mask(int64_t first, const uint32_t* word, int64_t words, const T* values,
                         const float* x) {
  constexpr int N = PRUNUS_VECTOR / 4, parts = 64 / N;
  using V = Vec<float, N>;
  V sums[2] = {};
  const T* at = values + first;
  for (int64_t w = 0; w < words; ++w) {
    uint64_t bits;
    std::memcpy(&bits, word + 2 * w, sizeof bits);
    __builtin_prefetch(at + VALUES_AHEAD);
    __builtin_prefetch(at + VALUES_AHEAD + 16);
#pragma GCC unroll 16
    for (int i = 0; i < parts; ++i) {
      const uint32_t mine = uint32_t(bits >> (i * N)) & uint32_t((uint64_t(1) << N) - 1);
      const uint64_t before = i ? bits & ((uint64_t(1) << (i * N)) - 1) : 0;
      const V v = spread<N>(widened<T, N>(at + __builtin_popcountll(before)), mine);
      sums[i % 2] += v * load<V>(x + 64 * w + i * N);
    }
    at += __builtin_popcountll(bits);
  }
  return sum(V(sums[0] + sums[1]));
}

template <class T> void mask_rows(const Product& p, const float* x, int64_t top, int64_t end) {
  const Head& h = head_of(p.layout);
  const int32_t* first = p.layout + h.first;
  const uint32_t* word = reinterpret_cast<const uint32_t*>(p.layout + h.word);
  const Close close(p);
  for (int64_t o = top; o < end; ++o)
    close(o, row_of_mask(first[o], word + 2 * o * h.words, h.words, static_cast<const T*>(p.values), x));
}

template <class T> void slice_rows(const Product& p, const float* x, int64_t top, int64_t end) {
  constexpr int N = PRUNUS_VECTOR / 4, parts = 16 / N;
  using V = Vec<float, N>;
  const Head& h = head_of(p.layout);
  const int32_t *first = p.layout + h.first, *row = p.layout + h.row;
  const uint16_t* index = reinterpret_cast<const uint16_t*>(p.layout + h.index);
  const T* values = static_cast<const T*>(p.values);
  const Close close(p);
  for (int64_t s = top; s < end; ++s) {
    V sum[4][parts] = {};
    int64_t k = first[s];
    const auto step = [&](int64_t at, int n) {
      __builtin_prefetch(values + 16 * (at + STEPS_AHEAD));
      __builtin_prefetch(index + 16 * (at + STEPS_AHEAD));
      if (h.kind == SLICES) {
#pragma GCC unroll 4
        for (int i = 0; i < parts; ++i)
          sum[n][i] += widened<T, N>(values + 16 * at + i * N) * looked_up<N>(x, index + 16 * at + i * N);
      } else {
        const V v = all<V>(x[index[at]]);
#pragma GCC unroll 4
        for (int i = 0; i < parts; ++i) sum[n][i] += widened<T, N>(values + 16 * at + i * N) * v;
      }
    };
    for (; k + 4 <= first[s + 1]; k += 4) step(k, 0), step(k + 1, 1), step(k + 2, 2), step(k + 3, 3);
    for (; k < first[s + 1]; ++k) step(k, 0);
    for (int i = 0; i < parts; ++i)
      close.several(row + 16 * s + i * N, V((sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i])));
  }
}

template <class T, int G> void window_rows(const Product& p, const float* x, int64_t top, int64_t end) {
  constexpr int N = PRUNUS_VECTOR / 4, parts = 16 / N;
  using V = Vec<float, N>;
  const Head& h = head_of(p.layout);
  const int32_t *first = p.layout + h.first, *row = p.layout + h.row;
  const uint8_t* index = reinterpret_cast<const uint8_t*>(p.layout + h.index);
  const uint16_t* begin = reinterpret_cast<const uint16_t*>(p.layout + h.word);
  const T* values = static_cast<const T*>(p.values);
  const T* lone = values + 16 * int64_t(first[h.slices]);
  const int32_t* alone = p.layout + h.alone;
  const uint16_t* place = reinterpret_cast<const uint16_t*>(p.layout + h.place);
  const Close close(p);
  for (int64_t s = top; s < end; ++s) {
    float own[4][16] = {};  // four of each sum: one would wait for the value before it
    const auto add = [&](int64_t i, int n) {
      own[n][place[i] / SHORT] += widened(lone[i]) * x[place[i] % SHORT];
    };
    int64_t i = alone[s];
    for (; i + 4 <= alone[s + 1]; i += 4) add(i, 0), add(i + 1, 1), add(i + 2, 2), add(i + 3, 3);
    for (int n = 0; i < alone[s + 1]; ++i, ++n) add(i, n);
    V sum[4][parts] = {};
    int64_t k = first[s];
    const auto step = [&](int64_t at, int n, const float* from) {
      __builtin_prefetch(values + 16 * (at + STEPS_AHEAD));
#pragma GCC unroll 4
      for (int i = 0; i < parts; ++i)
        sum[n][i] += widened<T, N>(values + 16 * at + i * N) * picked<N>(from, index + 16 * at + i * N);
    };
    for (; k + 4 <= first[s + 1]; k += 4) {
      __builtin_prefetch(index + 16 * (k + STEPS_AHEAD));
      const uint16_t* own_begin = begin + k / G;
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) step(k + n, n, x + own_begin[n / G]);
    }
    for (; k < first[s + 1]; ++k) step(k, 0, x + begin[k / G]);
    for (int i = 0; i < parts; ++i)
      close.several(row + 16 * s + i * N, V((sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]) +
                                             (load<V>(own[0] + i * N) + load<V>(own[1] + i * N)) +
                                             (load<V>(own[2] + i * N) + load<V>(own[3] + i * N))));
  }
}

template <class T> int32_t single(const Product& p) {
  const Head& h = head_of(p.layout);
  const int64_t wide = (h.cols + int64_t(63)) / 64 * 64 + WINDOW;  // a window may begin at the last
  float* x = inputs.room<float>(wide);
  const bool mask = h.kind == MASK;
  const int64_t units = mask ? h.rows : h.slices, grain = mask ? 32 : 2;
  int32_t status = DONE;
  for (int64_t t = 0; t < p.tokens; ++t) {  // few: more are the business of tiles
    const float* from = static_cast<const float*>(p.x) + t * p.x_stride;
    Vec<float, 16> odd{};
    std::memcpy(x, from, h.cols * sizeof(float));
    for (int64_t i = h.cols; i < wide; ++i) x[i] = 0;
    for (int64_t i = 0; i < wide; i += 16) odd += load<Vec<float, 16>>(x + i) * 0.f;
    if (!finite(odd)) status = NOT_FINITE;
    Product own = p;
    own.y = static_cast<float*>(p.y) + t * p.y_stride;
    if (p.residual) own.residual = static_cast<const float*>(p.residual) + t * p.residual_stride;
    auto part = [&](int64_t i) {
      const int64_t top = i * grain, end = top + grain < units ? top + grain : units;
      if (mask) return mask_rows<T>(own, x, top, end);
      if (h.kind != WINDOWS) return slice_rows<T>(own, x, top, end);
      h.words == 2 ? window_rows<T, 2>(own, x, top, end) : window_rows<T, 1>(own, x, top, end);
    };
    parallel((units + grain - 1) / grain, p.threads, part);
  }
  return status;
}

}  // namespace

int32_t product_of_single(const Product& p) {
  switch (p.type) {
    case BF16: return single<uint16_t>(p);
    case I8: return single<int8_t>(p);
    default: return single<float>(p);
  }
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
