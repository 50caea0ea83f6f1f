// The gradient of the weights that are there, and of no others: a dot product over the tokens each.
#include <cstring>

#include "abi.h"
#include "layout.h"
#include "pool.h"
#include "scratch.h"
#include "turn.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

thread_local Scratch inputs, outputs;

// In every line of four lanes: `run` of a from `from` on, as many of b, and again of the next.
template <int from, int run, class V, int... i>
INLINE V mix(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
#if defined(__clang__)
  return __builtin_shufflevector(
      a, b, ((i / 4) * 4 + from + (i % 4) / (2 * run) * run + i % run + (i / run % 2 ? n : 0))...);
#else
  return __builtin_shuffle(
      a, b, Vec<int32_t, n>{
                ((i / 4) * 4 + from + (i % 4) / (2 * run) * run + i % run + (i / run % 2 ? n : 0))...});
#endif
}

template <class V> INLINE Vec<float, 4> fold(V v) {
  constexpr int n = sizeof(V) / sizeof(float);
  if constexpr (n == 4) {
    return v;
  } else {
    Vec<float, n / 2> low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return fold(Vec<float, n / 2>(low + high));
  }
}

template <class S, int W> struct Sums {
  static constexpr int N = lanes<S, W>(), T = W / N;
  using V = Vec<S, N>;
  static INLINE V dot(const V (&g)[T], const S* x) {
    V s = g[0] * load<V>(x);
#pragma GCC unroll 16
    for (int t = 1; t < T; ++t) s += g[t] * load<V>(x + t * N);
    return s;
  }
  // The sums of the lanes of four vectors: lines of four are turned and added, then folded.
  static INLINE Vec<S, 4> four(V a, V b, V c, V d) {
    if constexpr (sizeof(S) == 4 && N >= 4) {
      using I = std::make_integer_sequence<int, N>;
      const V ab = mix<0, 1>(a, b, I{}) + mix<2, 1>(a, b, I{});
      const V cd = mix<0, 1>(c, d, I{}) + mix<2, 1>(c, d, I{});
      return fold(V(mix<0, 2>(ab, cd, I{}) + mix<2, 2>(ab, cd, I{})));
    } else {
      return Vec<S, 4>{sum(a), sum(b), sum(c), sum(d)};
    }
  }
};

template <class S, int W>
void rows_of(const int32_t* layout, int64_t panel, const S* x, const S* dy, S* gradient) {
  using D = Sums<S, W>;
  using V = typename D::V;
  const Head& h = head_of(layout);
  const int32_t *row = layout + h.row, *groups = layout + h.group;
  const uint16_t* index = reinterpret_cast<const uint16_t*>(layout + h.index);
  const int32_t* range = layout + h.ranges + 3 * panel * h.bands;
  for (int64_t band = 0; band < h.bands; ++band, range += 3, x += int64_t(h.band) * W)
    for (int32_t g = range[0]; g < range[2]; ++g) {
      const int32_t* own = groups + 3 * g;
      const int side = g < range[1] ? h.side : 1, height = h.height;
      for (int q = 0; q < side; ++q)
        for (int b = 0; b < height; ++b) {
          const int32_t number = row[own[2] + q * height + b];
          if (number >= h.rows) continue;  // pads a block of four
          V grad[D::T];
#pragma GCC unroll 16
          for (int t = 0; t < D::T; ++t) grad[t] = load<V>(dy + int64_t(number) * W + t * D::N);
          const uint16_t* at = index + own[0] / height + q;
          S* to = gradient + own[0] + q * height + b;
          const int64_t stride = side * height;
          int32_t k = 0;
          for (; k + 4 <= own[1]; k += 4) {
            const Vec<S, 4> found = D::four(
                D::dot(grad, x + int64_t(at[k * side]) * W), D::dot(grad, x + int64_t(at[(k + 1) * side]) * W),
                D::dot(grad, x + int64_t(at[(k + 2) * side]) * W), D::dot(grad, x + int64_t(at[(k + 3) * side]) * W));
            for (int i = 0; i < 4; ++i) to[(k + i) * stride] += found[i];
          }
          for (; k < own[1]; ++k)
            to[k * stride] += sum(D::dot(grad, x + int64_t(at[k * side]) * W));
        }
    }
}

}  // namespace

template <class S> void gradient_of_tiles(const Gradient& call) {
  constexpr int W = 64;
  const Head& h = head_of(call.layout);
  S* gradient = static_cast<S*>(call.gradient);
  std::memset(gradient, 0, sizeof(S) * size_t(h.values));
  const int64_t tiles = (call.tokens + W - 1) / W;
  const int64_t span = 8;  // tiles at a time: scratch memory does not grow with the tokens
  for (int64_t begin = 0; begin < tiles; begin += span) {
    const int64_t count = tiles - begin < span ? tiles - begin : span;
    S* x = inputs.room<S>(size_t(h.cols) * W * count);
    S* dy = outputs.room<S>(size_t(h.rows) * W * count);
    auto enter = [&](int64_t i) {
      const int64_t first = (begin + i / 2) * W;
      const int64_t own = call.tokens - first < W ? call.tokens - first : W;
      if (i % 2)
        gather<S, W>(static_cast<const S*>(call.x) + first * call.x_stride, call.x_stride, own, h.cols,
                     x + (i / 2) * h.cols * W);
      else
        gather<S, W>(static_cast<const S*>(call.dy) + first * call.dy_stride, call.dy_stride, own,
                     h.rows, dy + (i / 2) * h.rows * W);
    };
    auto work = [&](int64_t panel) {
      for (int64_t i = 0; i < count; ++i)
        rows_of<S, W>(call.layout, panel, x + i * h.cols * W, dy + i * h.rows * W, gradient);
    };
    parallel(2 * count, call.threads, enter);
    parallel(h.panels, call.threads, work);
  }
}

template void gradient_of_tiles<float>(const Gradient&);
template void gradient_of_tiles<double>(const Gradient&);

}  // namespace PRUNUS_ISA
}  // namespace prunus
