// Strips of planes: vectors of pixels that end alike, whatever computed them.
#pragma once
#include <atomic>

#include "activations.h"
#include "steps.h"

namespace prunus {
inline namespace PRUNUS_ISA {

constexpr int LANES = PRUNUS_VECTOR / 4;
using Floats = Vec<float, LANES>;
using Bits = Vec<int32_t, LANES>;
constexpr int LINE = 16;  // floats of a line of the cache; strips are whole lines

// What a step reads and writes, found from its numbers.
struct Places {
  const float* x;
  const float* more;  // what is added, or nullptr
  float* y;
  const int32_t* layout;
  const float* values;
  const float* bias;  // or nullptr
  int threads;
};

// Floats from a plane's first pixel to its last, in whole lines.
inline int64_t strip(const Grid& g) {
  const int64_t last = (g.batch - int64_t(1)) * g.image + (g.height - int64_t(1)) * g.row + g.width;
  return (last + LINE - 1) / LINE * LINE;
}

// The part of a strip that a task has: vectors [first, end).
struct Part {
  int64_t first, end;
  static Part of(int64_t number, int64_t parts, int64_t vectors) {
    return {number * vectors / parts, (number + 1) * vectors / parts};
  }
};

// How sums end: with more added, cut off or activated, zero between the pixels.
struct Last {
  const int32_t* mask;  // of the strip
  float low, high;
  bool cut;
  Floats odd{};         // stays zero while every sum is finite

  explicit Last(const Step& s)
      : mask(s.mask), low(s.low), high(s.high), cut(!(s.low < -1e38f && s.high > 1e38f)) {}
  template <int T> INLINE void check(const Floats (&v)[T]) {
    Floats whole = v[0];  // of finite numbers; a sum of them that overflows is computed again
#pragma GCC unroll 8
    for (int t = 1; t < T; ++t) whole += v[t];
    odd += whole * 0.f;
  }
  template <int T> INLINE void operator()(Floats (&v)[T], int64_t at, float* y) {
    check(v);
    if (cut) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        v[t] = v[t] < low ? all<Floats>(low) : v[t];
        v[t] = v[t] > high ? all<Floats>(high) : v[t];
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      Bits bits;
      std::memcpy(&bits, &v[t], sizeof bits);
      bits &= load<Bits>(mask + at + t * LANES);
      store(reinterpret_cast<int32_t*>(y) + t * LANES, bits);
    }
  }
};

// Zeros before and behind a strip: whoever reads beyond a picture's edge reads them.
inline void clear(float* plane, const Grid& g) {
  std::memset(plane, 0, sizeof(float) * g.lead);
  const int64_t end = g.lead + strip(g);
  if (g.plane > end) std::memset(plane + end, 0, sizeof(float) * (g.plane - end));
}

// Each computes one step, and says whether all that it met is finite.
bool views(const Step&, const Places&);
bool convolution(const Step&, const Places&);
bool weights_gradient(const Step&, const Places&);
bool depthwise(const Step&, const Places&);
bool maximum(const Step&, const Places&);
bool mean(const Step&, const Places&);
bool sum(const Step&, const Places&);

}  // namespace PRUNUS_ISA
}  // namespace prunus
