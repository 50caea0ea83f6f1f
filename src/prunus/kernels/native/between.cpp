// What stands between convolutions: depthwise ones, pooling and sums, on the planes as they lie.
#include "planes.h"
#include "pool.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

constexpr int T = 4;

// Every channel of the result by itself, in tiles of T vectors.
template <class F> bool each(const Step& s, const Places& place, F compute) {
  std::atomic<bool> fine{true};
  const int64_t vectors = strip(s.to) / LANES;
  auto task = [&](int64_t c) {
    Last last(s);
    float* y = place.y + c * s.to.plane;
    clear(y, s.to);
    for (int64_t v = 0; v < vectors; v += T) {
      const int64_t many = std::min<int64_t>(T, vectors - v), at = v * LANES;
      if (many == T) compute(c, at, std::integral_constant<int, T>{}, last, y + s.to.lead + at);
      else
        for (int64_t i = 0; i < many; ++i)
          compute(c, at + i * LANES, std::integral_constant<int, 1>{}, last,
                  y + s.to.lead + at + i * LANES);
    }
    if (!finite(last.odd)) fine.store(false, std::memory_order_relaxed);
  };
  parallel(s.channels, place.threads, task);
  return fine.load();
}

template <int W> INLINE void finish(Floats (&v)[W], const float* more, int64_t at, Last& last,
                                    int32_t kind, float* y) {
  if (more)
#pragma GCC unroll 4
    for (int t = 0; t < W; ++t) v[t] += load<Floats>(more + t * LANES);
  if (kind == GELU || kind == SILU) {
    last.check(v);  // before the activation takes an infinity away
    for (int t = 0; t < W; ++t) v[t] = activated<float, LANES>(v[t], kind);
  }
  last(v, at, y);
}

}  // namespace

// y[c] = activation(Σ over taps of values[c][tap] · x[c · views] shifted + bias[c] + more[c])
bool depthwise(const Step& s, const Places& place) {
  return each(s, place, [&](int64_t c, int64_t at, auto wide, Last& last, float* y) {
    constexpr int W = decltype(wide)::value;
    const float* x = place.x + c * s.views * s.from.plane + s.from.lead + at;
    Floats v[W];
#pragma GCC unroll 4
    for (int t = 0; t < W; ++t) v[t] = all<Floats>(place.bias ? place.bias[c] : 0.f);
    for (int32_t k = 0; k < s.taps; ++k) {
      const Floats w = all<Floats>(place.values ? place.values[c * s.taps + k] : s.scale);
#pragma GCC unroll 4
      for (int t = 0; t < W; ++t) v[t] += w * load<Floats>(x + s.offset[k] + t * LANES);
    }
    const float* more = place.more ? place.more + c * s.to.plane + s.to.lead + at : nullptr;
    finish<W>(v, more, at, last, s.activation, y);
  });
}

// y[c] = the largest of the taps of x[c · views]
bool maximum(const Step& s, const Places& place) {
  return each(s, place, [&](int64_t c, int64_t at, auto wide, Last& last, float* y) {
    constexpr int W = decltype(wide)::value;
    const float* x = place.x + c * s.views * s.from.plane + s.from.lead + at;
    Floats v[W];
#pragma GCC unroll 4
    for (int t = 0; t < W; ++t) v[t] = load<Floats>(x + s.offset[0] + t * LANES);
    for (int32_t k = 1; k < s.taps; ++k)
#pragma GCC unroll 4
      for (int t = 0; t < W; ++t) {
        const Floats w = load<Floats>(x + s.offset[k] + t * LANES);
        v[t] = w > v[t] ? w : v[t];
      }
#pragma GCC unroll 4
    for (int t = 0; t < W; ++t) {  // between pixels there may be nothing to be the largest of
      const Bits there = load<Bits>(s.mask + at + t * LANES);
      v[t] = there != 0 ? v[t] : Floats{};
    }
    finish<W>(v, nullptr, at, last, NONE, y);
  });
}

// y[b][c] = mean of the pixels of x[c], image by image
bool mean(const Step& s, const Places& place) {
  std::atomic<bool> fine{true};
  auto task = [&](int64_t c) {
    for (int64_t b = 0; b < s.from.batch; ++b) {
      const float* x = place.x + c * s.from.plane + s.from.lead + b * s.from.image;
      double whole = 0;
      for (int64_t r = 0; r < s.from.height; ++r, x += s.from.row) {
        Floats v{};
        int64_t i = 0;
        for (; i + LANES <= s.from.width; i += LANES) v += load<Floats>(x + i);
        float own = prunus::sum(v);
        for (; i < s.from.width; ++i) own += x[i];
        whole += own;
      }
      const float found = float(whole) * s.scale;
      if (!(found * 0 == 0)) fine.store(false, std::memory_order_relaxed);
      place.y[s.to.lead + c * s.to.plane + b * s.to.image] = found;
    }
  };
  parallel(s.channels, place.threads, task);
  return fine.load();
}

// y[c] = activation(x[c] + more[c])
bool sum(const Step& s, const Places& place) {
  return each(s, place, [&](int64_t c, int64_t at, auto wide, Last& last, float* y) {
    constexpr int W = decltype(wide)::value;
    const int64_t from = c * s.to.plane + s.to.lead + at;
    Floats v[W];
#pragma GCC unroll 4
    for (int t = 0; t < W; ++t) v[t] = load<Floats>(place.x + from + t * LANES);
    finish<W>(v, place.more ? place.more + from : nullptr, at, last, s.activation, y);
  });
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
