// Sparse matrix × dense activations: every weight is multiplied with a whole tile of tokens.
//
// A tile holds the activations of W tokens with the tokens of a column beside each other, so that
// a weight is broadcast once and multiplied with W / lanes vectors. A band of columns stays in the
// first cache while all rows of a panel read it; `side` rows of equally many weights, or the four
// rows of a block, run through the registers together. A sum adds up column by column, whatever
// the width of the tile, the number of threads or the instruction set's vectors.
#include <atomic>

#include "abi.h"
#include "layout.h"
#include "pool.h"
#include "scratch.h"
#include "turn.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

// One group: R·B rows of `steps` weights, over a tile of W tokens.
template <class S, int W, int R, int B, bool begin>
INLINE void group(const int32_t* own, const int32_t* row, const uint16_t* index, const S* value,
                  const S* x, S* y) {
  constexpr int N = lanes<S, W>(), T = W / N;
  using V = Vec<S, N>;
  V sum[R * B][T];
  const int32_t* number = row + own[2];
#pragma GCC unroll 16
  for (int q = 0; q < R * B; ++q)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[q][t] = begin ? V{} : load<V>(y + int64_t(number[q]) * W + t * N);
  const int32_t steps = own[1];
  value += own[0];
  index += own[0] / B;
  for (int32_t k = 0; k < steps; ++k, value += R * B, index += R) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const S* at = x + int64_t(index[r]) * W;
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const V v = all<V>(value[r * B + b]);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) sum[r * B + b][t] += v * load<V>(at + t * N);
      }
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < R * B; ++q)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) store(y + int64_t(number[q]) * W + t * N, sum[q][t]);
}

template <class S> struct Work {
  const Product& call;
  const int32_t* layout;
  const Head& head;
  const S* values;
  std::atomic<bool> finite{true};
  explicit Work(const Product& p)
      : call(p), layout(p.layout), head(head_of(p.layout)), values(static_cast<const S*>(p.values)) {}
};

// The rows of a group that comes soon: they lie anywhere in the panel, where no prefetcher looks.
template <class S, int W> INLINE void fetch(const int32_t* row, int rows, const S* y) {
  for (int q = 0; q < rows; ++q)
    for (int i = 0; i < W * (int)sizeof(S); i += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(y + int64_t(row[q]) * W) + i, 1, 3);
}

template <class S, int W, int R, int B>
void panel_of(const Work<S>& work, int64_t panel, const S* x, S* y) {
  const Head& h = work.head;
  const int32_t *row = work.layout + h.row, *groups = work.layout + h.group;
  const uint16_t* index = reinterpret_cast<const uint16_t*>(work.layout + h.index);
  const int32_t* range = work.layout + h.ranges + 3 * panel * h.bands;
  y -= panel * h.panel * W;  // rows are counted from the matrix's first
  for (int64_t band = 0; band < h.bands; ++band, range += 3, x += int64_t(h.band) * W) {
    const auto run = [&](auto begin) {
      constexpr bool first = decltype(begin)::value;
      for (int32_t g = range[0]; g < range[1]; ++g) {
        if (!first && g + 3 < range[1]) fetch<S, W>(row + groups[3 * g + 11], R * B, y);
        group<S, W, R, B, first>(groups + 3 * g, row, index, work.values, x, y);
      }
      for (int32_t g = range[1]; g < range[2]; ++g)
        group<S, W, 1, B, first>(groups + 3 * g, row, index, work.values, x, y);
    };
    if (band == 0)
      run(std::true_type{});
    else
      run(std::false_type{});
  }
}

template <class S, int W>
void panel_of(const Work<S>& work, int64_t panel, const S* x, S* y) {
  const Head& h = work.head;
  if (h.height == 4) return panel_of<S, W, 1, 4>(work, panel, x, y);
  if (h.side == 4) return panel_of<S, W, 4, 1>(work, panel, x, y);
  if (h.side == 2) return panel_of<S, W, 2, 1>(work, panel, x, y);
  return panel_of<S, W, 1, 1>(work, panel, x, y);
}

// A run of tokens: where it begins, how many, and how wide its tile is.
struct Tile {
  int64_t first, tokens;
  int32_t width;
};

// The number-th tile: whole ones, then the rest in as narrow a one as holds it.
INLINE Tile tile_of(int64_t number, int64_t tokens, int32_t width) {
  const int64_t first = number * width, left = tokens - first;
  if (left >= width) return {first, width, width};
  int32_t narrow = 4;
  while (narrow < left) narrow *= 2;
  return {first, left, narrow};
}

template <class S, class F> INLINE void with_width(int32_t width, F&& f) {
  switch (width) {
    case 4: return f(std::integral_constant<int, 4>{});
    case 8: return f(std::integral_constant<int, 8>{});
    case 16: return f(std::integral_constant<int, 16>{});
    case 32: return f(std::integral_constant<int, 32>{});
    default: return f(std::integral_constant<int, 64>{});
  }
}

thread_local Scratch inputs, outputs;

template <class S> void enter(Work<S>& work, const Tile& tile, S* x) {
  const Product& p = work.call;
  with_width<S>(tile.width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    const S* from = static_cast<const S*>(p.x) + tile.first * p.x_stride;
    if (!gather<S, W>(from, p.x_stride, tile.tokens, work.head.cols, x))
      work.finite.store(false, std::memory_order_relaxed);
  });
}

template <class S> void compute(Work<S>& work, const Tile& tile, int64_t panel, const S* x) {
  const Product& p = work.call;
  const Head& h = work.head;
  with_width<S>(tile.width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    S* y = outputs.room<S>(size_t(h.panel + 16) * W);
    panel_of<S, W>(work, panel, x, y);
    const int64_t top = panel * h.panel, rows = h.rows - top < h.panel ? h.rows - top : h.panel;
    Ending<S> end{static_cast<const S*>(p.bias), static_cast<const S*>(p.residual),
                  p.residual_stride, p.activation};
    if (end.bias) end.bias += top;
    if (end.residual) end.residual += tile.first * p.residual_stride + top;
    scatter<S, W>(y, rows, tile.tokens,
                  static_cast<S*>(p.y) + tile.first * p.y_stride + top, p.y_stride, end);
  });
}

}  // namespace

template <class S> int32_t product_of_tiles(const Product& call) {
  Work<S> work(call);
  const Head& h = work.head;
  const int64_t count = (call.tokens + h.width - 1) / h.width;
  const int threads = call.threads < 1 ? 1 : call.threads;
  if (threads == 1 || count >= 2 * int64_t(threads)) {
    auto whole = [&](int64_t i) {
      const Tile tile = tile_of(i, call.tokens, h.width);
      S* x = inputs.room<S>(size_t(h.cols) * tile.width);
      enter(work, tile, x);
      for (int64_t panel = 0; panel < h.panels; ++panel) compute(work, tile, panel, x);
    };
    parallel(count, threads, whole);
  } else {
    const int64_t size = int64_t(h.cols) * h.width;
    S* x = inputs.room<S>(size_t(size) * count);
    auto in = [&](int64_t i) { enter(work, tile_of(i, call.tokens, h.width), x + i * size); };
    auto out = [&](int64_t i) {
      const int64_t tile = i / h.panels;
      compute(work, tile_of(tile, call.tokens, h.width), i % h.panels, x + tile * size);
    };
    parallel(count, threads, in);
    parallel(count * h.panels, threads, out);
  }
  return work.finite.load() ? DONE : NOT_FINITE;
}

template int32_t product_of_tiles<float>(const Product&);
PRUNUS_DOUBLE(template int32_t product_of_tiles<double>(const Product&);)

}  // namespace PRUNUS_ISA
}  // namespace prunus
