// LSTM and GRU: the recurrent product of every step by a sparse kernel, its gates right after it.
#include <cstring>

#include "abi.h"
#include "activations.h"
#include "layout.h"
#include "scratch.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

thread_local Scratch sums;

template <int N> INLINE Vec<float, N> sigmoid(Vec<float, N> x) { return 1.f / (1.f + exponential<N>(-x)); }

// Near zero by an odd polynomial, as 1 - 2 / (e^2x + 1) would lose all digits there (Cephes).
template <int N> INLINE Vec<float, N> tangent(Vec<float, N> x) {
  using V = Vec<float, N>;
  const V z = x * x, size = x < V{} ? -x : x;
  V p = all<V>(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  p = p * z * x + x;
  const V far = 1.f - 2.f / (exponential<N>(size + size) + 1.f);
  return size < 0.625f ? p : (x < V{} ? -far : far);
}

// f(lane 0, number of lanes) over the hidden units; the last few through a padded copy.
template <class F> INLINE void over(int64_t hidden, F&& f) {
  constexpr int N = PRUNUS_VECTOR / 4;
  for (int64_t i = 0; i < hidden; i += N) f(i, int(hidden - i < N ? hidden - i : N));
}

template <class V> INLINE V take(const float* at, int count) {
  if (count == int(sizeof(V) / sizeof(float))) return load<V>(at);
  V v{};
  std::memcpy(&v, at, count * sizeof(float));
  return v;
}
template <class V> INLINE void give(float* at, V v, int count) { std::memcpy(at, &v, count * sizeof(float)); }

// i, f, g, o: c = σ(f) c + σ(i) tanh(g); h = σ(o) tanh(c)
void lstm(const float* y, float* h, float* c, float* out, int64_t hidden) {
  constexpr int N = PRUNUS_VECTOR / 4;
  using V = Vec<float, N>;
  over(hidden, [&](int64_t i, int n) {
    const V in = sigmoid<N>(take<V>(y + i, n)), forget = sigmoid<N>(take<V>(y + hidden + i, n));
    const V cell = tangent<N>(take<V>(y + 2 * hidden + i, n)), gate = sigmoid<N>(take<V>(y + 3 * hidden + i, n));
    const V state = forget * take<V>(c + i, n) + in * cell;
    const V value = gate * tangent<N>(state);
    give(c + i, state, n), give(h + i, value, n), give(out + i, value, n);
  });
}

// r, z, n: n = tanh(x_n + σ(r) h_n); h = (1 - σ(z)) n + σ(z) h
void gru(const float* x, const float* y, float* h, float* out, int64_t hidden) {
  constexpr int N = PRUNUS_VECTOR / 4;
  using V = Vec<float, N>;
  over(hidden, [&](int64_t i, int n) {
    const V reset = sigmoid<N>(V(take<V>(x + i, n) + take<V>(y + i, n)));
    const V keep = sigmoid<N>(V(take<V>(x + hidden + i, n) + take<V>(y + hidden + i, n)));
    const V fresh = tangent<N>(V(take<V>(x + 2 * hidden + i, n) + reset * take<V>(y + 2 * hidden + i, n)));
    const V value = fresh + keep * (take<V>(h + i, n) - fresh);
    give(h + i, value, n), give(out + i, value, n);
  });
}

}  // namespace

int32_t recurrent(const Recurrent& r) {
  const bool is_lstm = r.kind == 0;
  const int64_t width = (is_lstm ? 4 : 3) * r.hidden;
  float* y = sums.room<float>(size_t(width) * r.batch);
  for (int64_t i = 0; i < r.steps; ++i) {
    const int64_t t = r.reverse ? r.steps - 1 - i : i;
    const float* x = r.gates + t * r.batch * width;
    const Product call{r.layout, r.values, r.h, y, is_lstm ? nullptr : r.bias, is_lstm ? x : nullptr,
                       r.batch, r.hidden, width, width, r.type, NONE, r.threads, 0};
    const int32_t status = prunus_product(&call);
    if (status != DONE) return status;
    for (int64_t b = 0; b < r.batch; ++b) {
      float* out = r.out + t * r.out_step + b * r.out_batch;
      float* h = r.h + b * r.hidden;
      if (is_lstm)
        lstm(y + b * width, h, r.c + b * r.hidden, out, r.hidden);
      else
        gru(x + b * width, y + b * width, h, out, r.hidden);
    }
  }
  return DONE;
}

}  // namespace PRUNUS_ISA
}  // namespace prunus

PRUNUS_API int32_t prunus_recurrent(const Recurrent* r) {
  try {
    return prunus::recurrent(*r);
  } catch (const std::bad_alloc&) {
    return REFUSED;
  }
}
