// Vectors of the width that the file is compiled for, in the extension of GCC and Clang.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(PRUNUS_PORTABLE)  // vectors of 16 bytes, in whatever the compiler makes of them
#define PRUNUS_ISA portable
#define PRUNUS_VECTOR 16
#elif defined(__AVX512F__)
#define PRUNUS_ISA avx512
#define PRUNUS_VECTOR 64
#elif defined(__AVX2__)
#define PRUNUS_ISA avx2
#define PRUNUS_VECTOR 32
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define PRUNUS_ISA neon
#define PRUNUS_VECTOR 16
#else
#define PRUNUS_ISA portable
#define PRUNUS_VECTOR 16
#endif

#define INLINE __attribute__((always_inline)) inline

// PRUNUS_SHORT: float alone, and strips of at most two vectors. The loops are the same ones, and
// sanitizers, which take a minute to compile them all, a few seconds.
#if defined(PRUNUS_SHORT)
#define PRUNUS_DOUBLE(...)
#else
#define PRUNUS_DOUBLE(...) __VA_ARGS__
#endif

// Everything but the C functions stands in a namespace of its instruction set.
namespace prunus {
inline namespace PRUNUS_ISA {

template <class S, int N> struct VecOf {
  typedef S type __attribute__((vector_size(sizeof(S) * N)));
};
template <class S, int N> using Vec = typename VecOf<S, N>::type;

// Lanes of a vector that holds at most `most` numbers of type S.
template <class S, int most> constexpr int lanes() {
  return PRUNUS_VECTOR / (int)sizeof(S) < most ? PRUNUS_VECTOR / (int)sizeof(S) : most;
}

template <class V, class S> INLINE V load(const S* at) {
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}
template <class S, class V> INLINE void store(S* at, V v) { std::memcpy(at, &v, sizeof v); }
template <class V, class S> INLINE V all(S s) { return s - V{}; }

// Interleaves the lower, or the upper, halves of two vectors.
template <bool upper, class V, int... i>
INLINE V zip(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i), from = upper ? n / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((i % 2 ? n : 0) + from + i / 2)...);
#else
  using I = Vec<std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>, n>;
  return __builtin_shuffle(a, b, I{((i % 2 ? n : 0) + from + i / 2)...});
#endif
}

// The transposed of a square of N vectors of N lanes, in log2 N perfect shuffles.
template <int N, class V> INLINE void transpose(V (&v)[N]) {
  using I = std::make_integer_sequence<int, N>;
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
    V next[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      next[2 * i] = zip<false>(v[i], v[i + N / 2], I{});
      next[2 * i + 1] = zip<true>(v[i], v[i + N / 2], I{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = next[i];
  }
}

template <class V> INLINE auto sum(V v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
  if constexpr (n == 1) {
    return v[0];
  } else {
    using H = Vec<std::remove_reference_t<decltype(v[0])>, n / 2>;
    H low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return sum(H(low + high));
  }
}

// Zero where every lane is finite, NaN otherwise: 0 · x is what dense arithmetic would add.
template <class V> INLINE bool finite(V gathered) {
  const auto s = sum(gathered);
  return s == s;
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
