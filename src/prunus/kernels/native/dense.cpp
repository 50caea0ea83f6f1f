// A layout with its values as the matrix that it stands for.
#include <cstring>

#include "abi.h"
#include "layout.h"

namespace prunus {
namespace {

template <class S, class Get> void of_tiles(const int32_t* layout, const Head& h, S* out, Get value) {
  const int32_t *range = layout + h.ranges, *row = layout + h.row;
  const uint16_t* index = reinterpret_cast<const uint16_t*>(layout + h.index);
  for (int64_t p = 0; p < h.panels; ++p)
    for (int64_t b = 0; b < h.bands; ++b, range += 3)
      for (int64_t g = range[0]; g < range[2]; ++g) {
        const int32_t* own = layout + h.group + 3 * g;
        const int64_t side = g < range[1] ? h.side : 1, rows = side * h.height;
        for (int64_t k = 0; k < own[1]; ++k)
          for (int64_t q = 0; q < rows; ++q) {
            const int64_t o = row[own[2] + q], at = own[0] + k * rows + q;
            if (o < h.rows) out[o * h.cols + b * h.band + index[at / h.height]] += value(at);
          }
      }
}

template <class S, class Get> void of_mask(const int32_t* layout, const Head& h, S* out, Get value) {
  const uint32_t* word = reinterpret_cast<const uint32_t*>(layout + h.word);
  int64_t at = 0;
  for (int64_t o = 0; o < h.rows; ++o)
    for (int64_t c = 0; c < h.cols; ++c)
      if (word[o * 2 * h.words + c / 32] >> (c % 32) & 1) out[o * h.cols + c] = value(at++);
}

template <class S, class Get> void of_slices(const int32_t* layout, const Head& h, S* out, Get value) {
  const int32_t *first = layout + h.first, *row = layout + h.row;
  const uint16_t* index = reinterpret_cast<const uint16_t*>(layout + h.index);
  const uint8_t* inside = reinterpret_cast<const uint8_t*>(index);
  const uint16_t* begin = reinterpret_cast<const uint16_t*>(layout + h.word);
  const auto column = [&](int64_t at, int64_t k) {
    return h.kind == WINDOWS ? begin[k / h.words] + inside[at] : index[h.kind == SLICES ? at : k];
  };
  for (int64_t s = 0; s < h.slices; ++s)
    for (int64_t k = first[s]; k < first[s + 1]; ++k)
      for (int i = 0; i < 16; ++i) {
        const int64_t o = row[16 * s + i], at = 16 * k + i;  // padding adds zero somewhere
        if (o >= 0) out[o * h.cols + column(at, k)] += value(at);
      }
  if (h.kind != WINDOWS) return;
  const int32_t* alone = layout + h.alone;
  const uint16_t* place = reinterpret_cast<const uint16_t*>(layout + h.place);
  for (int64_t s = 0; s < h.slices; ++s)
    for (int64_t i = alone[s]; i < alone[s + 1]; ++i) {
      const int64_t o = row[16 * s + place[i] / SHORT];
      if (o >= 0) out[o * h.cols + place[i] % SHORT] += value(16 * int64_t(first[h.slices]) + i);
    }
}

template <class S, class Get> void dense(const int32_t* layout, S* out, Get value) {
  const Head& h = head_of(layout);
  if (h.kind == TILES) return of_tiles(layout, h, out, value);
  if (h.kind == MASK) return of_mask(layout, h, out, value);
  of_slices(layout, h, out, value);
}

}  // namespace
}  // namespace prunus

PRUNUS_API void prunus_dense(const int32_t* layout, const void* values, int32_t type, void* out) {
  using namespace prunus;
  const Head& h = head_of(layout);
  float* single = static_cast<float*>(out);
  switch (type) {
    case F64: {
      const double* v = static_cast<const double*>(values);
      return dense(layout, static_cast<double*>(out), [=](int64_t i) { return v[i]; });
    }
    case BF16: {
      const uint16_t* v = static_cast<const uint16_t*>(values);
      return dense(layout, single, [=](int64_t i) {
        const uint32_t bits = uint32_t(v[i]) << 16;
        float f;
        std::memcpy(&f, &bits, sizeof f);
        return f;
      });
    }
    case I8: {
      const int8_t* v = static_cast<const int8_t*>(values);
      dense(layout, single, [=](int64_t i) { return float(v[i]); });
      const float* scales = reinterpret_cast<const float*>(layout + h.scales);
      for (int64_t o = 0; o < h.rows; ++o)
        for (int64_t c = 0; c < h.cols; ++c) single[o * h.cols + c] *= scales[o];
      return;
    }
    default: {
      const float* v = static_cast<const float*>(values);
      return dense(layout, single, [=](int64_t i) { return v[i]; });
    }
  }
}
