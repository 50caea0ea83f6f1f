// Values of four, two or one byte as floats; spread to where the bits of a mask are set; looked up.
#pragma once
#include "vec.h"

namespace prunus {
inline namespace PRUNUS_ISA {

// N values as floats; bf16 is the upper half of a float.
template <class T, int N> INLINE Vec<float, N> widened(const T* at) {
  if constexpr (sizeof(T) == 4) {
    return load<Vec<float, N>>(at);
  } else if constexpr (sizeof(T) == 2) {
    const Vec<uint32_t, N> wide =
        __builtin_convertvector(load<Vec<uint16_t, N>>(at), Vec<uint32_t, N>) << 16;
    Vec<float, N> v;
    std::memcpy(&v, &wide, sizeof v);
    return v;
  } else {
#if defined(__AVX512F__)
    if constexpr (N == 16)
      return (Vec<float, N>)_mm512_cvtepi32_ps(
          _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#elif defined(__AVX2__)
    if constexpr (N == 8)
      return (Vec<float, N>)_mm256_cvtepi32_ps(
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
#endif
    Vec<float, N> v;
    for (int i = 0; i < N; ++i) v[i] = at[i];
    return v;
  }
}

template <class T> INLINE float widened(T value) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t bits = uint32_t(value) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  } else {
    return float(value);
  }
}

#if !defined(__AVX512F__)
// For every mask of N bits, the lane that each place takes its value from; 255 where it is zero.
template <int N> struct Places {
  uint8_t lane[1 << N][N];
  constexpr Places() : lane() {
    for (int mask = 0; mask < (1 << N); ++mask)
      for (int i = 0, next = 0; i < N; ++i) lane[mask][i] = mask >> i & 1 ? uint8_t(next++) : uint8_t(255);
  }
};
template <int N> constexpr Places<N> places{};
#endif

// The first values where bits are set, in order; zero elsewhere.
template <int N> INLINE Vec<float, N> spread(Vec<float, N> v, uint32_t mask) {
#if defined(__AVX512F__)
  return (Vec<float, N>)_mm512_maskz_expand_ps((__mmask16)mask, (__m512)v);
#elif defined(__AVX2__)
  const __m256i lane = _mm256_cvtepi8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(places<8>.lane[mask])));  // absent: -1
  const __m256 taken = _mm256_permutevar8x32_ps((__m256)v, lane);
  return (Vec<float, N>)_mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(lane, 31)), taken);
#else
  Vec<float, N> out{};
  for (int i = 0; i < N; ++i) {
    const uint8_t lane = places<N>.lane[mask][i];
    if (lane != 255) out[i] = v[lane];
  }
  return out;
#endif
}

template <class I, int... i>
INLINE Vec<float, sizeof...(i)> looked_up(const float* x, const I* index, std::integer_sequence<int, i...>) {
  return Vec<float, sizeof...(i)>{x[index[i]]...};
}

// x[index[0]], …, x[index[N - 1]]: one by one, as AMD's gathering instructions take longer.
template <int N, class I> INLINE Vec<float, N> looked_up(const float* x, const I* index) {
  return looked_up(x, index, std::make_integer_sequence<int, N>{});
}

// The same among the 32 numbers from x on, a line of the cache: in registers where they hold them.
template <int N> INLINE Vec<float, N> picked(const float* x, const uint8_t* index) {
#if defined(__AVX512F__)
  const __m512i place = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(index)));
  return (Vec<float, N>)_mm512_permutex2var_ps(_mm512_load_ps(x), place, _mm512_load_ps(x + 16));
#else
  return looked_up<N>(x, index);
#endif
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
