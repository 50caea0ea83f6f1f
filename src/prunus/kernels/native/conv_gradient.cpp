// The gradient of a convolution's weights that are there: over all pixels, that of the result times
// what the weight's tap reads. Between pixels the result's gradient is zero.
#include "layout.h"
#include "planes.h"
#include "pool.h"
#include "sums.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

struct Rows {
  const Step& step;
  const Places& place;
  const Head& head;
};

// One row of a group, over T vectors of pixels: x and dy begin with the first of them.
template <int T>
INLINE void row_of(const float* x, const float* dy, const int32_t* offset, int64_t side, int64_t rows,
                   int32_t steps, float* to) {
  using D = Sums<float, T * LANES>;
  Floats grad[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) grad[t] = load<Floats>(dy + t * LANES);
  int32_t k = 0;
  for (; k + 4 <= steps; k += 4, offset += 4 * side, to += 4 * rows) {
    const Vec<float, 4> found = D::four(D::dot(grad, x + offset[0]), D::dot(grad, x + offset[side]),
                                        D::dot(grad, x + offset[2 * side]), D::dot(grad, x + offset[3 * side]));
    float* next = to;
    for (int i = 0; i < 4; ++i, next += rows) *next += found[i];
  }
  for (; k < steps; ++k, offset += side, to += rows) *to += sum(D::dot(grad, x + offset[0]));
}

template <int T> void panel_at(const Rows& work, int64_t panel, int64_t at) {
  const Head& h = work.head;
  const Step& s = work.step;
  const int32_t *row = work.place.layout + h.row, *groups = work.place.layout + h.group;
  const int32_t* range = work.place.layout + h.ranges + 3 * panel * h.bands;
  const float *x = work.place.x + s.from.lead + at, *dy = work.place.more + s.to.lead + at;
  const int height = h.height;
  for (int64_t band = 0; band < h.bands; ++band, range += 3)
    for (int32_t g = range[0]; g < range[2]; ++g) {
      const int32_t* own = groups + 3 * g;
      const int side = g < range[1] ? h.side : 1, rows = side * height;
      for (int q = 0; q < rows; ++q) {
        const int32_t number = row[own[2] + q];
        if (number < h.rows)  // else it pads a block of four
          row_of<T>(x, dy + number * s.to.plane, s.offset + own[0] / height + q / height, side, rows,
                    own[1], work.place.y + own[0] + q);
      }
    }
}

}  // namespace

// y[i] += Σ over pixels of more[row of i] · x[tap of i]; y begins with zeros.
bool weights_gradient(const Step& s, const Places& place) {
  const Rows work{s, place, head_of(place.layout)};
  const int64_t vectors = strip(s.to) / LANES;
#if defined(PRUNUS_SHORT)
  constexpr int T = 1;
#else
  constexpr int T = 8;
#endif
  auto task = [&](int64_t panel) {  // no two panels share a row, and no two rows a weight
    int64_t v = 0;
    for (; v + T <= vectors; v += T) panel_at<T>(work, panel, v * LANES);
    for (; v < vectors; ++v) panel_at<1>(work, panel, v * LANES);
  };
  parallel(work.head.panels, place.threads, task);
  return true;  // what goes in was looked at when it was copied
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
