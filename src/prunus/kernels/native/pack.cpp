// From a matrix by rows to the layouts that the loops read.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "abi.h"
#include "layout.h"

namespace prunus {
namespace {

// Numbers appended to a caller's array; what does not fit is counted all the same.
struct Writer {
  int32_t* to;
  int64_t room, length = 0;
  void put(int32_t number) {
    if (length < room) to[length] = number;
    ++length;
  }
  template <class T> int32_t small(const std::vector<T>& numbers) {
    const int64_t bytes = sizeof(T) * numbers.size(), begin = length, count = (bytes + 3) / 4;
    if (count && begin + count <= room) {
      to[begin + count - 1] = 0;
      std::memcpy(to + begin, numbers.data(), bytes);
    }
    length += count;
    return int32_t(begin);
  }
  int32_t array(const std::vector<int32_t>& numbers) {
    const int64_t begin = length;
    for (int32_t n : numbers) put(n);
    return int32_t(begin);
  }
  int64_t finish(Head& head) {
    head.magic = MAGIC;
    head.length = int32_t(length);
    if (length > room) return -1;
    std::memcpy(to, &head, sizeof head);
    return length;
  }
};

// The columns of one band in `height` rows that stand as one: a value for each row, or -1.
struct Lines {
  const Pattern& m;
  const Shape& shape;
  std::vector<int64_t> next;   // of each row, the first value that is still to be placed
  std::vector<int32_t> columns, numbers;  // of the line at hand: [steps], [steps][height]

  Lines(const Pattern& matrix, const Shape& s) : m(matrix), shape(s), next(m.first, m.first + m.rows) {}

  void take(int64_t line, int64_t end) {
    columns.clear(), numbers.clear();
    const int height = shape.height;
    for (;;) {
      int32_t column = INT32_MAX;
      for (int i = 0; i < height; ++i) {
        const int64_t row = line * height + i;
        if (row < m.rows && next[row] < m.first[row + 1] && m.column[next[row]] < end)
          column = std::min(column, m.column[next[row]]);
      }
      if (column == INT32_MAX) return;
      columns.push_back(column);
      for (int i = 0; i < height; ++i) {
        const int64_t row = line * height + i;
        const bool own = row < m.rows && next[row] < m.first[row + 1] && m.column[next[row]] == column;
        numbers.push_back(own ? int32_t(next[row]++) : -1);
      }
    }
  }
};

struct Line {
  int64_t number;
  std::vector<int32_t> columns, numbers;
};

int64_t tiles(const Pattern& m, const Shape& shape, Writer out, int32_t* order, int64_t order_room,
              int64_t* count) {
  Head head{};
  head.kind = TILES, head.rows = int32_t(m.rows), head.cols = int32_t(m.cols);
  head.stored = int32_t(m.first[m.rows]);
  head.side = shape.side, head.height = shape.height, head.width = shape.width;
  head.band = shape.band, head.panel = shape.panel;
  head.bands = int32_t(m.cols ? (m.cols + shape.band - 1) / shape.band : 1);
  head.panels = int32_t((m.rows + shape.panel - 1) / shape.panel);
  for (int i = 0; i < HEADER; ++i) out.put(0);
  std::vector<int32_t> ranges, groups, rows;
  std::vector<uint16_t> index;
  int64_t values = 0;
  const int height = shape.height, side = shape.side;
  Lines cursor(m, shape);
  std::vector<Line> lines;
  const auto write = [&](const Line* first, int many) {
    groups.push_back(int32_t(values));
    groups.push_back(int32_t(first->columns.size()));
    groups.push_back(int32_t(rows.size()));
    for (int q = 0; q < many; ++q)
      for (int i = 0; i < height; ++i) rows.push_back(int32_t(first[q].number * height + i));
    for (size_t k = 0; k < first->columns.size(); ++k)
      for (int q = 0; q < many; ++q) {
        index.push_back(uint16_t(first[q].columns[k]));
        for (int i = 0; i < height; ++i, ++values)
          if (values < order_room) order[values] = first[q].numbers[k * height + i];
      }
  };
  for (int64_t p = 0; p < head.panels; ++p) {
    const int64_t top = p * shape.panel / height;
    const int64_t bottom = (std::min<int64_t>(m.rows, (p + 1) * shape.panel) + height - 1) / height;
    for (int64_t b = 0; b < head.bands; ++b) {
      lines.clear();
      for (int64_t line = top; line < bottom; ++line) {
        cursor.take(line, (b + 1) * int64_t(shape.band));
        if (b && cursor.columns.empty()) continue;  // the first band begins every row
        for (int32_t& column : cursor.columns) column -= int32_t(b * shape.band);
        lines.push_back({line, cursor.columns, cursor.numbers});
      }
      std::stable_sort(lines.begin(), lines.end(), [](const Line& x, const Line& y) {
        return x.columns.size() > y.columns.size();
      });
      ranges.push_back(int32_t(groups.size() / 3));
      std::vector<const Line*> singles;
      for (size_t i = 0; i < lines.size();) {
        if (i + side <= lines.size() && lines[i].columns.size() == lines[i + side - 1].columns.size()) {
          write(&lines[i], side);
          i += side;
        } else {
          singles.push_back(&lines[i++]);
        }
      }
      ranges.push_back(int32_t(groups.size() / 3));
      for (const Line* line : singles) write(line, 1);
      ranges.push_back(int32_t(groups.size() / 3));
    }
  }
  head.groups = int32_t(groups.size() / 3), head.slots = int32_t(rows.size());
  head.values = int32_t(values);
  head.ranges = out.array(ranges), head.group = out.array(groups), head.row = out.array(rows);
  head.index = out.small(index);
  *count = values;
  return values > order_room ? -1 : out.finish(head);
}

int64_t mask(const Pattern& m, Writer out) {
  Head head{};
  head.kind = MASK, head.rows = int32_t(m.rows), head.cols = int32_t(m.cols);
  head.stored = int32_t(m.first[m.rows]);
  head.values = head.stored + 64;  // a whole vector is read where the last values stand
  head.words = int32_t((m.cols + 63) / 64);
  for (int i = 0; i < HEADER; ++i) out.put(0);
  head.first = int32_t(out.length);
  for (int64_t o = 0; o <= m.rows; ++o) out.put(int32_t(m.first[o]));
  head.word = int32_t(out.length);
  std::vector<uint32_t> words(2 * size_t(head.words));
  for (int64_t o = 0; o < m.rows; ++o) {
    std::fill(words.begin(), words.end(), 0u);
    for (int64_t k = m.first[o]; k < m.first[o + 1]; ++k)
      words[m.column[k] / 32] |= 1u << (m.column[k] % 32);
    for (uint32_t word : words) out.put(int32_t(word));
  }
  return out.finish(head);
}

// Values of a slice that stand alone, the next one of every row before the one after it: a sum is
// then not waited for. A step takes as long as FEW of them.
struct Alone {
  static constexpr int FEW = 8;
  std::vector<int32_t> first{0}, numbers;
  std::vector<uint16_t> place;
  std::vector<std::array<int32_t, 3>> found;  // of the slice: how many of its row before, row, number
  std::vector<uint16_t> columns;
  int before[16] = {};

  // Whether the next step would be that of few rows; it then takes those that it begins with.
  bool take(const Pattern& m, const int32_t* own, int64_t* next, int32_t column, int steps) {
    const auto has = [&](int i, int32_t wide, int64_t ahead) {
      return own[i] >= 0 && next[i] + ahead < m.first[own[i] + 1] && m.column[next[i] + ahead] < column + wide;
    };
    int served = 0;
    for (int i = 0; i < 16 * steps; ++i) served += has(i % 16, WINDOW, i / 16);
    if (served >= FEW * steps) return false;
    for (int i = 0; i < 16; ++i)
      if (has(i, 16, 0)) {
        found.push_back({before[i]++, i, int32_t(next[i])});
        columns.push_back(uint16_t(m.column[next[i]++]));
      }
    return true;
  }
  void finish() {
    std::vector<int32_t> order(found.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = int32_t(i);
    std::sort(order.begin(), order.end(), [&](int32_t x, int32_t y) { return found[x] < found[y]; });
    for (int32_t i : order) {
      numbers.push_back(found[i][2]);
      place.push_back(uint16_t(found[i][1] * SHORT + columns[i]));
    }
    found.clear(), columns.clear();
    std::fill(before, before + 16, 0);
    first.push_back(int32_t(numbers.size()));
  }
};

// Sixteen rows of about equal counts beside each other: the sorting stays within `near` rows, so
// that the answers that are written together lie together.
int64_t slices(const Pattern& m, int32_t kind, Writer out, int32_t* order, int64_t order_room,
               int64_t* count) {
  constexpr int64_t lanes = 16, near = 1024;
  const bool columns = kind == COLUMNS;
  Head head{};
  // two steps of one window take half as many reads of x, where most rows have two values in it
  head.words = kind == WINDOWS && 12 * m.first[m.rows] > m.rows * m.cols ? 2 : 1;
  head.kind = kind;
  head.rows = int32_t(m.rows), head.cols = int32_t(m.cols);
  head.stored = int32_t(m.first[m.rows]);
  head.slices = int32_t((m.rows + lanes - 1) / lanes);
  for (int i = 0; i < HEADER; ++i) out.put(0);
  std::vector<int32_t> sorted(head.slices * lanes, -1);
  for (int64_t o = 0; o < m.rows; ++o) sorted[o] = int32_t(o);
  const auto size = [&](int32_t o) { return m.first[o + 1] - m.first[o]; };
  if (kind == SLICES)  // windows wait for nobody: their slices stay as they are
    for (int64_t top = 0; top < m.rows; top += near)
      std::stable_sort(sorted.begin() + top, sorted.begin() + std::min(m.rows, top + near),
                       [&](int32_t x, int32_t y) { return size(x) > size(y); });
  std::vector<int32_t> first{0};
  std::vector<uint16_t> index, begin;
  std::vector<uint8_t> inside;
  Alone alone;
  int64_t values = 0;
  const auto place = [&](int32_t number) {
    if (values < order_room) order[values] = number;
    ++values;
  };
  for (int64_t s = 0; s < head.slices; ++s) {
    const int32_t* own = &sorted[s * lanes];
    if (kind != SLICES) {
      int64_t next[lanes];
      for (int i = 0; i < lanes; ++i) next[i] = own[i] < 0 ? 0 : m.first[own[i]];
      for (;;) {  // the row that is farthest behind says where the next step begins
        int32_t column = INT32_MAX;
        for (int i = 0; i < lanes; ++i)
          if (own[i] >= 0 && next[i] < m.first[own[i] + 1]) column = std::min(column, m.column[next[i]]);
        if (column == INT32_MAX) break;
        if (!columns) column = column / 16 * 16;
        const int32_t end = column + (columns ? 1 : WINDOW);
        if (!columns && m.cols <= SHORT && alone.take(m, own, next, column, head.words)) continue;
        (columns ? index : begin).push_back(uint16_t(column));
        for (int i = 0; i < lanes * head.words; ++i) {
          const int q = i % lanes;
          const bool has = own[q] >= 0 && next[q] < m.first[own[q] + 1] && m.column[next[q]] < end;
          if (!columns) inside.push_back(has ? uint8_t(m.column[next[q]] - column) : uint8_t(0));
          place(has ? int32_t(next[q]++) : -1);
        }
      }
    } else {
      int64_t steps = 0;
      for (int i = 0; i < lanes; ++i) steps = std::max(steps, own[i] < 0 ? 0 : size(own[i]));
      for (int64_t k = 0; k < steps; ++k)
        for (int i = 0; i < lanes; ++i) {
          const bool has = own[i] >= 0 && k < size(own[i]);
          const int64_t number = has ? m.first[own[i]] + k : -1;
          index.push_back(has ? uint16_t(m.column[number]) : uint16_t(0));
          place(int32_t(number));
        }
    }
    first.push_back(int32_t(values / lanes));
    alone.finish();
  }
  for (int32_t number : alone.numbers) place(number);
  head.values = int32_t(values);
  head.first = out.array(first), head.row = out.array(sorted);
  head.index = kind == WINDOWS ? out.small(inside) : out.small(index);
  if (kind == WINDOWS) {
    head.word = out.small(begin);
    head.alone = out.array(alone.first), head.place = out.small(alone.place);
  }
  *count = values;
  return values > order_room ? -1 : out.finish(head);
}

}  // namespace
}  // namespace prunus

PRUNUS_API int64_t prunus_tiles(const Pattern* m, const Shape* shape, int32_t* layout, int64_t room,
                                int32_t* order, int64_t order_room, int64_t* values) {
  return prunus::tiles(*m, *shape, {layout, room}, order, order_room, values);
}

PRUNUS_API int64_t prunus_mask(const Pattern* m, int32_t* layout, int64_t room) {
  return prunus::mask(*m, {layout, room});
}

PRUNUS_API int64_t prunus_slices(const Pattern* m, int32_t form, int32_t* layout, int64_t room,
                                 int32_t* order, int64_t order_room, int64_t* values) {
  return prunus::slices(*m, prunus::SLICES + form, {layout, room}, order, order_room, values);
}

namespace {

template <class S>
int32_t gather(const int32_t* order, int64_t count, const void* values, int64_t n, void* packed) {
  const S* from = static_cast<const S*>(values);
  S* to = static_cast<S*>(packed);
  for (int64_t i = 0; i < count; ++i) {
    if (order[i] >= n) return REFUSED;
    if (i + 48 < count) __builtin_prefetch(from + (order[i + 48] < 0 ? 0 : order[i + 48]));
    to[i] = order[i] < 0 ? S(0) : from[order[i]];
  }
  return DONE;
}

template <class S>
int32_t scatter(const int32_t* order, int64_t count, const void* packed, int64_t n, void* values) {
  const S* from = static_cast<const S*>(packed);
  S* to = static_cast<S*>(values);
  for (int64_t i = 0; i < count; ++i) {
    if (order[i] >= n) return REFUSED;
    if (order[i] >= 0) to[order[i]] = from[i];
  }
  return DONE;
}

}  // namespace

PRUNUS_API int32_t prunus_gather(const int32_t* order, int64_t count, const void* values, int64_t n,
                                 void* packed, int32_t type) {
  return type == prunus::F64 ? gather<double>(order, count, values, n, packed)
                             : gather<float>(order, count, values, n, packed);
}

PRUNUS_API int32_t prunus_scatter(const int32_t* order, int64_t count, const void* packed, int64_t n,
                                  void* values, int32_t type) {
  return type == prunus::F64 ? scatter<double>(order, count, packed, n, values)
                             : scatter<float>(order, count, packed, n, values);
}
