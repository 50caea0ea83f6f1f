// The gradient of the weights that are there, and of no others: a dot product over the tokens each.
#include <cstring>

#include "abi.h"
#include "layout.h"
#include "pool.h"
#include "scratch.h"
#include "sums.h"
#include "turn.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

thread_local Scratch inputs, outputs;

// One row of a group: `values` of its weights lie `stride` apart, as do their columns.
template <class S, int W, bool first>
INLINE void row_of(const S* dy, const S* x, const uint16_t* at, int64_t values, int64_t columns,
                   int32_t steps, S* to) {
  using D = Sums<S, W>;
  using V = typename D::V;
  V grad[D::T];
#pragma GCC unroll 16
  for (int t = 0; t < D::T; ++t) grad[t] = load<V>(dy + t * D::N);
  int32_t k = 0;
  for (; k + 4 <= steps; k += 4, at += 4 * columns, to += 4 * values) {
    const Vec<S, 4> found =
        D::four(D::dot(grad, x + int64_t(at[0]) * W), D::dot(grad, x + int64_t(at[columns]) * W),
                D::dot(grad, x + int64_t(at[2 * columns]) * W), D::dot(grad, x + int64_t(at[3 * columns]) * W));
    S* next = to;
    for (int i = 0; i < 4; ++i, next += values) *next = first ? found[i] : *next + found[i];
  }
  for (; k < steps; ++k, at += columns, to += values) {
    const S found = sum(D::dot(grad, x + int64_t(at[0]) * W));
    *to = first ? found : *to + found;
  }
}

template <class S, int W, bool first>
void rows_of(const int32_t* layout, int64_t panel, const S* x, const S* dy, S* gradient) {
  const Head& h = head_of(layout);
  const int32_t *row = layout + h.row, *groups = layout + h.group;
  const uint16_t* index = reinterpret_cast<const uint16_t*>(layout + h.index);
  const int32_t* range = layout + h.ranges + 3 * panel * h.bands;
  const int height = h.height;
  for (int64_t band = 0; band < h.bands; ++band, range += 3, x += int64_t(h.band) * W)
    for (int32_t g = range[0]; g < range[2]; ++g) {
      const int32_t* own = groups + 3 * g;
      const int side = g < range[1] ? h.side : 1, rows = side * height;
      if (g + 2 < range[2])  // rows of dy lie anywhere: nothing else foresees them
        for (int q = 0, n = g + 2 < range[1] ? rows : height; q < n; ++q) {
          const int32_t number = row[own[8] + q];
          for (int i = 0; number < h.rows && i < W * (int)sizeof(S); i += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(dy + int64_t(number) * W) + i, 0, 3);
        }
      for (int q = 0; q < rows; ++q) {
        const int32_t number = row[own[2] + q];
        if (number < h.rows)  // else it pads a block of four
          row_of<S, W, first>(dy + int64_t(number) * W, x, index + own[0] / height + q / height, rows,
                              side, own[1], gradient + own[0] + q);
      }
    }
}

template <class S, int W> void by_width(const Gradient& call) {
  const Head& h = head_of(call.layout);
  S* gradient = static_cast<S*>(call.gradient);
  const int64_t tiles = (call.tokens + W - 1) / W;
  const int64_t span = 512 / W;  // tiles at a time: scratch memory does not grow with the tokens
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
      for (int64_t i = 0; i < count; ++i) {
        const S *own = x + i * h.cols * W, *upper = dy + i * h.rows * W;
        if (begin + i == 0)
          rows_of<S, W, true>(call.layout, panel, own, upper, gradient);
        else
          rows_of<S, W, false>(call.layout, panel, own, upper, gradient);
      }
    };
    parallel(2 * count, call.threads, enter);
    parallel(h.panels, call.threads, work);
  }
}

}  // namespace

template <class S> void gradient_of_tiles(const Gradient& call) {
  if (!call.tokens) std::memset(call.gradient, 0, sizeof(S) * size_t(head_of(call.layout).values));
  if (call.tokens > 64 && sizeof(S) == 4 && PRUNUS_VECTOR == 64)
    by_width<S, 128>(call);  // what ends a sum is done half as often; eight registers hold a row
  else
    by_width<S, 64>(call);
}

template void gradient_of_tiles<float>(const Gradient&);
PRUNUS_DOUBLE(template void gradient_of_tiles<double>(const Gradient&);)

}  // namespace PRUNUS_ISA
}  // namespace prunus
