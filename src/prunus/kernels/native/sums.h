// Dot products of a few vectors that stay with vectors from memory, four sums at a time.
#pragma once
#include "vec.h"

namespace prunus {
inline namespace PRUNUS_ISA {

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
#if defined(__AVX512F__)
    if constexpr (n == 16)  // the compiler's own way leads through memory
      return fold((Vec<float, 8>)_mm512_castps512_ps256((__m512)v) +
                  (Vec<float, 8>)_mm512_extractf32x8_ps((__m512)v, 1));
#endif
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

}  // namespace PRUNUS_ISA
}  // namespace prunus
