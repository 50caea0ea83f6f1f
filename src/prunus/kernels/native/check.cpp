// A layout that came from a file may hold anything: every number is looked at before it is used.
#include "abi.h"
#include "layout.h"

#include <vector>

namespace prunus {
namespace {

struct Reader {
  const int32_t* at;
  const Head& head;
  int64_t length;
  bool inside(int64_t offset, int64_t count) const {
    return offset >= HEADER && count >= 0 && offset + count <= length;
  }
};

const char* check_tiles(const Reader& r) {
  const Head& h = r.head;
  const bool shape = (h.side == 1 || h.side == 2 || h.side == 4) &&
                     (h.height == 1 || (h.height == 4 && h.side == 1)) &&
                     (h.width == 4 || h.width == 8 || h.width == 16 || h.width == 32 ||
                      h.width == 64) &&
                     h.band >= 1 && h.band <= 65536 && h.panel >= 16 && h.panel % 16 == 0;
  if (!shape) return "its shape of tiles is not possible";
  const int64_t bands = h.cols ? (h.cols + int64_t(h.band) - 1) / h.band : 1;
  const int64_t panels = (h.rows + int64_t(h.panel) - 1) / h.panel;
  if (h.bands != bands || h.panels != panels) return "its bands do not cover the matrix";
  if (h.groups < 0 || h.slots < 0 || !r.inside(h.ranges, 3 * bands * panels) ||
      !r.inside(h.group, 3 * int64_t(h.groups)) || !r.inside(h.row, h.slots) ||
      !r.inside(h.index, (h.values / h.height + 1) / 2) || h.values % h.height)
    return "its parts do not lie inside it";
  if (h.slots < h.rows) return "a row is missing";  // before memory is asked for as many
  const int32_t *ranges = r.at + h.ranges, *row = r.at + h.row;
  const uint16_t* index = reinterpret_cast<const uint16_t*>(r.at + h.index);
  std::vector<int32_t> written(h.rows, -1);  // the last band that wrote the row
  int64_t at = 0;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t top = p * h.panel, end = top + h.panel < h.rows ? top + h.panel : h.rows;
    for (int64_t b = 0; b < bands; ++b, ranges += 3) {
      if (ranges[0] != at || ranges[1] < ranges[0] || ranges[2] < ranges[1] ||
          ranges[2] > h.groups)
        return "its groups are not in order";
      at = ranges[2];
      const int64_t wide = h.cols - b * h.band < h.band ? h.cols - b * h.band : h.band;
      for (int64_t g = ranges[0]; g < ranges[2]; ++g) {
        const int32_t* group = r.at + h.group + 3 * g;
        const int64_t rows = (g < ranges[1] ? h.side : 1) * int64_t(h.height);
        const int64_t count = int64_t(group[1]) * rows;
        if (group[0] < 0 || group[1] < 0 || group[0] + count > h.values ||
            group[0] % h.height || group[2] < 0 || group[2] + rows > h.slots)
          return "a group does not lie inside it";
        for (int64_t i = 0; i < rows; ++i) {
          const int32_t own = row[group[2] + i];
          // a row beyond the last one pads a block of four: its place is in the scratch memory
          if (own < top || own >= (h.height > 1 ? top + h.panel : end)) return "a row is not of its panel";
          if (own < h.rows) {
            if (written[own] >= b) return "a row stands twice in a band";
            if (b && written[own] < 0) return "a row is not begun in the first band";
            written[own] = (int32_t)b;
          }
        }
        for (int64_t i = group[0] / h.height; i < (group[0] + count) / h.height; ++i)
          if (index[i] >= wide) return "a column lies outside its band";
      }
    }
  }
  if (at != h.groups) return "groups are left over";
  for (int32_t own : written)
    if (own < 0) return "a row is missing";
  return nullptr;
}

const char* check_mask(const Reader& r) {
  const Head& h = r.head;
  const int64_t words = (h.cols + int64_t(63)) / 64;
  if (h.words != words || !r.inside(h.first, int64_t(h.rows) + 1) ||
      !r.inside(h.word, 2 * words * h.rows))
    return "its parts do not lie inside it";
  if (h.values < int64_t(h.stored) + 64) return "its values have no room behind them";
  const int32_t* first = r.at + h.first;
  const uint32_t* word = reinterpret_cast<const uint32_t*>(r.at + h.word);
  if (first[0] != 0 || first[h.rows] != h.stored) return "its rows do not cover its values";
  for (int64_t o = 0; o < h.rows; ++o) {
    int64_t ones = 0;
    for (int64_t w = 0; w < 2 * words; ++w) ones += __builtin_popcount(word[o * 2 * words + w]);
    if (first[o + 1] - int64_t(first[o]) != ones) return "a row has not as many values as its mask";
    const int rest = h.cols % 64;
    if (rest) {
      uint64_t last = word[(o + 1) * 2 * words - 2] | uint64_t(word[(o + 1) * 2 * words - 1]) << 32;
      if (last >> rest) return "a mask reaches beyond the last column";
    }
  }
  return nullptr;
}

const char* check_alone(const Reader& r, int64_t count) {
  const Head& h = r.head;
  const int32_t* alone = r.at + h.alone;
  if (alone[0] != 0 || !r.inside(h.place, (count + 1) / 2)) return "its single values do not lie inside it";
  for (int64_t s = 0; s < h.slices; ++s)
    if (alone[s + 1] < alone[s]) return "its slices are not in order";
  const uint16_t* place = reinterpret_cast<const uint16_t*>(r.at + h.place);
  for (int64_t i = 0; i < count; ++i)
    if (place[i] % SHORT >= h.cols) return "a column lies outside the matrix";
  return nullptr;
}

const char* check_slices(const Reader& r) {
  const Head& h = r.head;
  const int64_t slices = (h.rows + int64_t(15)) / 16;
  if (h.slices < slices || !r.inside(h.first, int64_t(h.slices) + 1) ||
      !r.inside(h.row, 16 * int64_t(h.slices)) || h.cols > 65536)
    return "its parts do not lie inside it";
  int64_t alone = 0;
  if (h.kind == WINDOWS) {
    if (!r.inside(h.alone, int64_t(h.slices) + 1)) return "its parts do not lie inside it";
    alone = r.at[h.alone + h.slices];
    if (alone < 0 || alone > h.values) return "more values stand alone than there are";
    if (h.words < 1 || h.words > 2) return "its windows are of no known number of steps";
  }
  if ((h.values - alone) % 16) return "its values are in no slices";
  const int64_t steps = (h.values - alone) / 16;
  const bool windows = h.kind == WINDOWS;
  const int64_t indices = h.kind == SLICES ? h.values : windows ? steps / h.words : steps;
  const int32_t numbers = windows ? h.word : h.index;
  if (!r.inside(numbers, (indices + 1) / 2) || (windows && !r.inside(h.index, 4 * steps)))
    return "its columns do not lie inside it";
  const int32_t *first = r.at + h.first, *row = r.at + h.row;
  if (first[0] != 0 || first[h.slices] != steps) return "its slices do not cover its values";
  for (int64_t s = 0; s < h.slices; ++s)
    if (first[s + 1] < first[s] || (windows && first[s + 1] % h.words)) return "its slices are not in order";
  std::vector<char> seen(h.rows, 0);
  for (int64_t i = 0; i < 16 * int64_t(h.slices); ++i) {
    if (row[i] == -1) continue;
    if (row[i] < 0 || row[i] >= h.rows || seen[row[i]]) return "a row is wrong or stands twice";
    seen[row[i]] = 1;
  }
  for (char own : seen)
    if (!own) return "a row is missing";
  const uint16_t* index = reinterpret_cast<const uint16_t*>(r.at + numbers);
  for (int64_t i = 0; i < indices; ++i)
    if (index[i] >= h.cols || (windows && index[i] % 16))
      return "a column lies outside the matrix";
  if (!windows) return nullptr;
  const uint8_t* inside = reinterpret_cast<const uint8_t*>(r.at + h.index);
  for (int64_t i = 0; i < 16 * steps; ++i)
    if (inside[i] >= WINDOW || index[i / 16 / h.words] + inside[i] >= h.cols)
      return "a column lies outside its window";
  return check_alone(r, alone);
}

}  // namespace

const char* check(const int32_t* layout, int64_t length) {
  if (length < HEADER) return "it is shorter than its head";
  const Head& h = head_of(layout);
  if (h.magic != MAGIC) return "it does not begin as a layout does";
  if (h.length != length) return "it is not as long as it says";
  if (h.rows < 0 || h.cols < 0 || h.stored < 0 || h.values < h.stored) return "its sizes are wrong";
  const Reader reader{layout, h, length};
  if (h.scales && !reader.inside(h.scales, h.rows)) return "its scales do not lie inside it";
  switch (h.kind) {
    case TILES: return check_tiles(reader);
    case MASK: return check_mask(reader);
    case SLICES:
    case COLUMNS:
    case WINDOWS: return check_slices(reader);
    default: return "its kind is unknown";
  }
}

}  // namespace prunus

PRUNUS_API const char* prunus_check(const int32_t* layout, int64_t length) {
  return prunus::check(layout, length);
}
