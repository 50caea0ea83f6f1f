// ReLU, GELU and SiLU of whole vectors, within the rounding of float.
#pragma once
#include <limits>

#include "vec.h"

namespace prunus {
inline namespace PRUNUS_ISA {

enum Activation : int32_t { NONE = 0, RELU = 1, GELU = 2, SILU = 3 };

// e^x: 2^n · e^r with |r| <= ln 2 / 2, and a polynomial for e^r (Cephes).
template <int N> INLINE Vec<float, N> exponential(Vec<float, N> x) {
  using V = Vec<float, N>;
  using I = Vec<int32_t, N>;
  const V most = all<V>(88.72f), least = all<V>(-87.33f), given = x;
  x = x > most ? most : x;
  x = x < least ? least : x;
  const V magic = all<V>(12582912.f);  // 1.5 · 2^23: adding it rounds to a whole number
  const V n = (x * 1.44269504f + magic) - magic;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = all<V>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  // in two factors: 2^128 is no float, and 2^n · p may be one
  const I whole = __builtin_convertvector(n, I), half = whole >> 1;
  const I first = (half + 127) << 23, second = (whole - half + 127) << 23;
  V a, b;
  std::memcpy(&a, &first, sizeof a);
  std::memcpy(&b, &second, sizeof b);
  p = p * a * b;
  p = given > most ? all<V>(std::numeric_limits<float>::infinity()) : p;
  return given < least ? all<V>(0.f) : p;
}

// erfc(z) for z >= 0, relative error below 1.2e-7 (Press et al., Numerical Recipes, 6.2).
template <int N> INLINE Vec<float, N> erfc(Vec<float, N> z) {
  using V = Vec<float, N>;
  const V t = 1.f / (1.f + 0.5f * z);
  V p = all<V>(0.17087277f);
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  return t * exponential<N>(p * t - 1.26551223f - z * z);
}

template <class S, int N> INLINE Vec<S, N> gelu(Vec<S, N> x) {
  if constexpr (sizeof(S) == 4) {
    using V = Vec<float, N>;
    const V zero = V{}, size = x < zero ? zero - x : x;
    const V tail = 0.5f * erfc<N>(size * 0.70710678f);
    return x * (x < zero ? tail : 1.f - tail);
  } else {
    for (int i = 0; i < N; ++i) x[i] = 0.5 * x[i] * std::erfc(-x[i] * 0.70710678118654752440);
    return x;
  }
}

template <class S, int N> INLINE Vec<S, N> silu(Vec<S, N> x) {
  if constexpr (sizeof(S) == 4) {
    return x / (1.f + exponential<N>(-x));
  } else {
    for (int i = 0; i < N; ++i) x[i] = x[i] / (1 + std::exp(-x[i]));
    return x;
  }
}

template <class S, int N> INLINE Vec<S, N> activated(Vec<S, N> x, int32_t kind) {
  using V = Vec<S, N>;
  switch (kind) {
    case RELU: return x < V{} ? V{} : x;  // a NaN stays
    case GELU: return gelu<S, N>(x);
    case SILU: return silu<S, N>(x);
    default: return x;
  }
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
