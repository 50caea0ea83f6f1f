// Pictures between layouts: from rows to planes, every second row and column, shifted columns.
#include "planes.h"
#include "pool.h"

namespace prunus {
inline namespace PRUNUS_ISA {
namespace {

// Copies at least N numbers by vectors of N, the last of which may overlap the one before.
template <int N> INLINE float lines(const float* from, int64_t count, float* to, bool checked) {
  using V = Vec<float, N>;
  V odd{};
  const auto copy = [&](int64_t i) {
    const V v = load<V>(from + i);
    odd += v * 0.f;
    store(to + i, v);
  };
  int64_t i = 0;
  for (; i + N <= count; i += N) copy(i);
  if (i < count) copy(count - N);
  return checked ? sum(odd) : 0.f;
}

// to[x] = from[stride · x], how many there are; tells what is not finite by a sum of zeros
INLINE float line(const float* from, int64_t stride, int64_t count, float* to, bool checked) {
  if (stride == 1) {
    if (count >= LANES) return lines<LANES>(from, count, to, checked);
    if (LANES > 8 && count >= 8) return lines<8>(from, count, to, checked);
    if (LANES > 4 && count >= 4) return lines<4>(from, count, to, checked);
  }
  if (stride == 2)
    for (int64_t i = 0; i < count; ++i) to[i] = from[2 * i];
  else
    for (int64_t i = 0; i < count; ++i) to[i] = from[stride * i];
  float rest = 0;
  for (int64_t i = 0; checked && i < count; ++i) rest += from[stride * i] * 0.f;
  return rest;
}

INLINE void fill(float* from, float* to, float with) {
  for (; from < to; ++from) *from = with;
}

}  // namespace

// Whether a picture's rows follow each other without gaps, so that it is one line.
inline bool gapless(const Grid& g) { return g.row == g.width; }

// The same copy of pictures as one long row each.
Step merged(Step s) {
  for (Grid* g : {&s.from, &s.to}) g->width = g->row = g->height * g->width, g->height = 1;
  return s;
}

// y[c · views + v][r][x] = x[c][stride · r + row][stride · (x + right) + column], fill beyond x
bool views(const Step& given, const Places& place) {
  const bool plain = given.views == 1 && given.stride_y == 1 && given.stride_x == 1 &&
                     !(given.view[0] | given.view[1] | given.view[2]) &&
                     given.from.height == given.to.height && given.from.width == given.to.width;
  const bool merges = plain && gapless(given.from) && gapless(given.to);
  const Step s = merges ? merged(given) : given;
  std::atomic<bool> fine{true};
  auto task = [&](int64_t i) {
    const int32_t* view = s.view + i % s.views * 3;
    const float* x = place.x + i / s.views * s.from.plane + s.from.lead;
    float* y = place.y + i * s.to.plane;
    float* done = y;  // everything before is written
    float odd = 0;
    const int64_t skip = int64_t(view[2]) * s.stride_x + view[1];  // column of x at the first of y
    const int64_t before = skip < 0 ? (-skip + s.stride_x - 1) / s.stride_x : 0;
    const int64_t wide = int64_t(s.to.width) + s.beside;
    const int64_t there = (s.from.width - skip + s.stride_x - 1) / s.stride_x;
    const int64_t end = std::max(before, std::min(wide, there));
    for (int64_t b = 0; b < s.to.batch; ++b)
      for (int64_t r = 0; r < int64_t(s.to.height) + s.below; ++r) {
        const int64_t down = r * s.stride_y + view[0];
        if (down >= s.from.height || before >= wide) break;
        float* row = y + s.to.lead + b * s.to.image + r * s.to.row;
        if (!s.bare) fill(done, row + before, s.fill);
        odd += line(x + b * s.from.image + down * s.from.row + before * s.stride_x + skip,
                    s.stride_x, end - before, row + before, s.checked);
        done = row + end;
      }
    if (!s.bare) fill(done, y + s.to.plane, s.fill);
    if (!(odd == odd)) fine.store(false, std::memory_order_relaxed);
  };
  parallel(int64_t(s.channels) * s.views, place.threads, task);
  return fine.load();
}

}  // namespace PRUNUS_ISA
}  // namespace prunus
