// Sparse convolutions: every weight is multiplied with a strip of pixels, its tap's distance away.
//
// The layout is that of a matrix [out][in · taps] in tiles: rows of equally many weights run
// through the registers side by side, over bands of channels that stay in the first cache.
#include "abi.h"
#include "layout.h"
#include "planes.h"
#include "pool.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

struct Tile {
  const float* x;     // of the strip's first channel, at the tile's first pixel
  float* y;
  const float* more;
  const float* bias;
  int64_t plane, at;  // at: of the tile's first pixel in the strip
  int32_t rows;
};

// One group: R·B rows of `steps` weights, over T vectors of pixels.
template <int R, int B, int T, bool begin, bool end>
INLINE void group(const int32_t* own, const int32_t* row, const int32_t* offset, const float* value,
                  const Tile& tile, Last& last) {
  Floats sum[R * B][T];
  const int32_t* number = row + own[2];
#pragma GCC unroll 4
  for (int q = 0; q < R * B; ++q) {
    const float* from = tile.y + number[q] * tile.plane;
    const bool biased = begin && tile.bias && (B == 1 || number[q] < tile.rows);
    const Floats bias = all<Floats>(biased ? tile.bias[number[q]] : 0.f);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[q][t] = begin ? bias : load<Floats>(from + t * LANES);
  }
  const int32_t steps = own[1];
  value += own[0];
  offset += own[0] / B;
  for (int32_t k = 0; k < steps; ++k, value += R * B, offset += R) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const float* at = tile.x + offset[r];
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        const Floats v = all<Floats>(value[r * B + b]);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sum[r * B + b][t] += v * load<Floats>(at + t * LANES);
      }
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < R * B; ++q) {
    if (B > 1 && end && number[q] >= tile.rows) continue;  // pads a block
    const int64_t to = number[q] * tile.plane;
    if (end) {
      if (tile.more)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sum[q][t] += load<Floats>(tile.more + to + t * LANES);
      last(sum[q], tile.at, tile.y + to);
    } else {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) store(tile.y + to + t * LANES, sum[q][t]);
    }
  }
}

// Asks for the rows of a group that is to come: they lie planes apart, which nothing else foresees.
template <int T> INLINE void fetch(const int32_t* row, int count, const Tile& tile, bool ends) {
  for (int q = 0; q < count; ++q) {
    const int64_t at = row[q] * tile.plane;
#pragma GCC unroll 8
    for (int t = 0; t < T * LANES; t += LINE) __builtin_prefetch(tile.y + at + t, 1, 3);
    if (ends && tile.more)
#pragma GCC unroll 8
      for (int t = 0; t < T * LANES; t += LINE) __builtin_prefetch(tile.more + at + t, 0, 3);
  }
}

// The rows of a panel whose sums stand in y.
template <int T> void finish(int64_t top, int64_t end, const Tile& tile, Last& last, int32_t kind) {
  for (int64_t r = top; r < end; ++r) {
    const int64_t at = r * tile.plane;
    Floats v[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) v[t] = load<Floats>(tile.y + at + t * LANES);
    if (tile.more)
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) v[t] += load<Floats>(tile.more + at + t * LANES);
    if (kind == GELU || kind == SILU) {
      last.check(v);  // before the activation takes an infinity away
      for (int t = 0; t < T; ++t) v[t] = activated<float, LANES>(v[t], kind);
    }
    last(v, tile.at, tile.y + at);
  }
}

struct Work {
  const Step& step;
  const Places& place;
  const Head& head;
};

template <int T, int R, int B>
void panel_of(const Work& work, int64_t panel, const Tile& tile, Last& last) {
  const Head& h = work.head;
  const int32_t* row = work.place.layout + h.row;
  const int32_t* groups = work.place.layout + h.group;
  const int32_t* range = work.place.layout + h.ranges + 3 * panel * h.bands;
  const int32_t kind = work.step.activation;
  const bool once = h.bands == 1 && kind != GELU && kind != SILU;
  const auto band = [&](auto begin, auto end) {
    constexpr bool b = decltype(begin)::value, e = decltype(end)::value;
    for (int32_t g = range[0]; g < range[1]; ++g) {
      if (g + 2 < range[1]) fetch<T>(row + groups[3 * g + 8], R * B, tile, e);
      group<R, B, T, b, e>(groups + 3 * g, row, work.step.offset, work.place.values, tile, last);
    }
    for (int32_t g = range[1]; g < range[2]; ++g)
      group<1, B, T, b, e>(groups + 3 * g, row, work.step.offset, work.place.values, tile, last);
  };
  if (once) return band(std::true_type{}, std::true_type{});
  band(std::true_type{}, std::false_type{});
  for (int64_t i = 1; i < h.bands; ++i) range += 3, band(std::false_type{}, std::false_type{});
  const int64_t top = panel * h.panel, end = top + h.panel < h.rows ? top + h.panel : h.rows;
  finish<T>(top, end, tile, last, kind);
}

template <int T> void panel_at(const Work& work, int64_t panel, const Tile& tile, Last& last) {
  if (work.head.height == 4) return panel_of<T, 1, 4>(work, panel, tile, last);
  if (work.head.side == 4) return panel_of<T, 4, 1>(work, panel, tile, last);
  if (work.head.side == 2) return panel_of<T, 2, 1>(work, panel, tile, last);
  return panel_of<T, 1, 1>(work, panel, tile, last);
}

// Whether a tile of an input is finite; it is then in the cache that the tile is computed from.
void look(const float* x, const Step& s, int64_t vectors, Last& last) {
  for (int64_t c = 0; c < s.channels; ++c, x += s.from.plane) {
    Floats whole{};
    for (int64_t v = 0; v < vectors; ++v) whole += load<Floats>(x + v * LANES);
    last.odd += whole * 0.f;
  }
}

}  // namespace

// How many vectors of so many rows the registers hold beside the weight and a vector of pixels.
int most_vectors(int rows) {
#if defined(PRUNUS_SHORT)
  return rows == 4 ? 1 : 2;
#elif defined(__AVX512F__) || defined(__aarch64__)
  return rows == 4 ? 6 : 8;
#else
  return rows == 4 ? 3 : rows == 2 ? 6 : 8;
#endif
}

bool convolution(const Step& s, const Places& place) {
  const Work work{s, place, head_of(place.layout)};
  const Head& h = work.head;
  const int64_t vectors = strip(s.to) / LANES;
  const int most = std::min(most_vectors(h.side * h.height), s.vectors < 1 ? 1 : s.vectors);
  const int64_t tiles = (vectors + most - 1) / most;
  std::atomic<bool> fine{true};
  auto task = [&](int64_t i) {
    const int64_t panel = i % h.panels, number = i / h.panels;
    const Part part = Part::of(number, tiles, vectors);
    const int64_t at = part.first * LANES, from = s.to.lead + at;
    const Tile tile{place.x + s.from.lead + at, place.y + from, place.more ? place.more + from : nullptr,
                    place.bias, s.to.plane, at, h.rows};
    Last last(s);
    if (s.checked && panel == 0) look(place.x + s.from.lead + at, s, part.end - part.first, last);
    switch (part.end - part.first) {
      case 1: panel_at<1>(work, panel, tile, last); break;
      case 2: panel_at<2>(work, panel, tile, last); break;
#if !defined(PRUNUS_SHORT)
      case 3: panel_at<3>(work, panel, tile, last); break;
      case 4: panel_at<4>(work, panel, tile, last); break;
      case 5: panel_at<5>(work, panel, tile, last); break;
      case 6: panel_at<6>(work, panel, tile, last); break;
      case 7: panel_at<7>(work, panel, tile, last); break;
      default: panel_at<8>(work, panel, tile, last); break;
#endif
    }
    if (!finite(last.odd)) fine.store(false, std::memory_order_relaxed);
    if (number == 0) {
      const int64_t top = panel * h.panel, end = std::min<int64_t>(top + h.panel, h.rows);
      for (int64_t r = top; r < end; ++r) clear(place.y + r * s.to.plane, s.to);
    }
  };
  parallel(tiles * h.panels, place.threads, task);
  return fine.load();
}

}  // namespace PRUNUS_ISA
}  // namespace prunus

PRUNUS_API int32_t prunus_vectors(int32_t rows) { return prunus::most_vectors(rows); }

// offset[i] = column[c], c the column of the i-th index of a layout of tiles
PRUNUS_API void prunus_offsets(const int32_t* layout, const int32_t* column, int32_t* offset) {
  using namespace prunus;
  const Head& h = head_of(layout);
  const uint16_t* index = reinterpret_cast<const uint16_t*>(layout + h.index);
  const int32_t* range = layout + h.ranges;
  for (int64_t i = 0; i < int64_t(h.panels) * h.bands; ++i, range += 3) {
    const int64_t first = i % h.bands * h.band;
    for (int32_t g = range[0]; g < range[2]; ++g) {
      const int32_t* group = layout + h.group + 3 * g;
      const int64_t many = int64_t(group[1]) * (g < range[1] ? h.side : 1);
      const int64_t begin = group[0] / h.height;
      for (int64_t k = begin; k < begin + many; ++k) offset[k] = column[first + index[k]];
    }
  }
}
