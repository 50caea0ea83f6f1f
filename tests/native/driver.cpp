// Two threads on different models, each of which computes with two threads of the pool; every
// answer is compared with plain loops. Built with sanitizers, and for other processors.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "abi.h"
#include "layout.h"

namespace {

struct Model {
  int64_t rows, cols;
  std::vector<float> weight, values, bias;
  std::vector<int64_t> first;
  std::vector<int32_t> column;

  Model(int64_t r, int64_t c, double kept, unsigned seed, int height) : rows(r), cols(c) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<double> uniform;
    std::vector<char> there(((r + height - 1) / height) * c);
    for (char& t : there) t = uniform(random) < kept;
    weight.assign(r * c, 0.f), bias.resize(r), first.push_back(0);
    for (int64_t o = 0; o < r; ++o) {
      for (int64_t k = 0; k < c; ++k)
        if (there[(o / height) * c + k]) {
          weight[o * c + k] = normal(random);
          values.push_back(weight[o * c + k]), column.push_back(int32_t(k));
        }
      first.push_back(int64_t(values.size()));
      bias[o] = normal(random);
    }
  }
  Pattern pattern() const { return {first.data(), column.data(), rows, cols}; }
};

struct Packed {
  std::vector<int32_t> layout, order;
  std::vector<float> values;
};

void finish(const Model& m, Packed& p, int64_t length, int64_t count) {
  if (length < 0) std::puts("no room"), std::exit(1);
  p.layout.resize(length), p.order.resize(count), p.values.resize(count);
  p.layout.shrink_to_fit();  // what is read beyond the end is found
  p.order.shrink_to_fit();
  if (prunus_gather(p.order.data(), count, m.values.data(), m.values.size(), p.values.data(), 0))
    std::puts("gather"), std::exit(1);
  if (const char* wrong = prunus_check(p.layout.data(), length)) std::puts(wrong), std::exit(1);
}

Packed tiles(const Model& m, Shape shape) {
  Packed p;
  const Pattern pattern = m.pattern();
  p.layout.resize(1000 + 20 * m.values.size() + 200 * m.rows), p.order.resize(4 * m.values.size());
  int64_t count = 0;
  const int64_t length = prunus_tiles(&pattern, &shape, p.layout.data(), p.layout.size(),
                                      p.order.data(), p.order.size(), &count);
  finish(m, p, length, count);
  return p;
}

Packed slices(const Model& m, int form) {
  Packed p;
  const Pattern pattern = m.pattern();
  p.layout.resize(1000 + 40 * m.values.size() + 64 * m.rows), p.order.resize(64 * m.values.size() + 64 * m.cols);
  int64_t count = 0;
  const int64_t length = prunus_slices(&pattern, form, p.layout.data(), p.layout.size(),
                                       p.order.data(), p.order.size(), &count);
  finish(m, p, length, count);
  return p;
}

Packed mask(const Model& m) {
  Packed p;
  const Pattern pattern = m.pattern();
  p.layout.resize(1000 + m.rows * (m.cols / 32 + 4));
  const int64_t length = prunus_mask(&pattern, p.layout.data(), p.layout.size());
  p.order.assign(m.values.size() + 64, -1);
  for (size_t i = 0; i < m.values.size(); ++i) p.order[i] = int32_t(i);
  finish(m, p, length, int64_t(p.order.size()));
  return p;
}

void near(double found, double right, double size, const char* what) {
  if (!(std::fabs(found - right) <= 1e-5 * (1 + size)))
    std::printf("%s: %g is not %g\n", what, found, right), std::exit(1);
}

void product(const Model& m, const Packed& p, int64_t tokens, const char* what) {
  std::vector<float> x(tokens * m.cols), y(tokens * m.rows), residual(tokens * m.rows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 7 % 13) - 6) / 6;
  for (size_t i = 0; i < residual.size(); ++i) residual[i] = float(i % 5);
  const Product call{p.layout.data(), p.values.data(), x.data(), y.data(), m.bias.data(),
                     residual.data(), tokens, m.cols, m.rows, m.rows, 0, 1, 2, 0};
  if (prunus_product(&call) != DONE) std::puts("not done"), std::exit(1);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t o = 0; o < m.rows; ++o) {
      double sum = m.bias[o] + residual[t * m.rows + o], size = 0;
      for (int64_t k = 0; k < m.cols; ++k)
        sum += double(m.weight[o * m.cols + k]) * x[t * m.cols + k], size += std::fabs(m.weight[o * m.cols + k]);
      near(y[t * m.rows + o], sum > 0 ? sum : 0, size, what);
    }
}

void gradient(const Model& m, const Packed& p, int64_t tokens) {
  std::vector<float> x(tokens * m.cols), dy(tokens * m.rows), found(p.values.size()), own(m.values.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 5 % 11) - 5);
  for (size_t i = 0; i < dy.size(); ++i) dy[i] = float(int(i * 3 % 7) - 3);
  const Gradient call{p.layout.data(), found.data(), x.data(), dy.data(), tokens, m.cols, m.rows, 0, 2};
  if (prunus_gradient(&call) != DONE) std::puts("not done"), std::exit(1);
  if (prunus_scatter(p.order.data(), p.order.size(), found.data(), own.size(), own.data(), 0))
    std::puts("scatter"), std::exit(1);
  for (int64_t o = 0; o < m.rows; ++o)
    for (int64_t i = m.first[o]; i < m.first[o + 1]; ++i) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) sum += double(dy[t * m.rows + o]) * x[t * m.cols + m.column[i]];
      near(own[i], sum, 15 * double(tokens), "gradient");
    }
}

#include "convolutions.h"

void work(unsigned seed) {
  for (int height : {1, 16})
    for (int64_t cols : {1, 70, 97}) {
      const Model m(35 + seed, cols, 0.3, seed, height);
      for (Shape shape : {Shape{2, 1, 64, 48, 32}, Shape{4, 1, 16, 33, 16}, Shape{1, 1, 8, 64, 64},
                          Shape{1, 4, 32, 50, 32}}) {
        const Packed p = tiles(m, shape);
        for (int64_t tokens : {0, 1, 5, 67}) product(m, p, tokens, "tiles");
        for (int64_t tokens : {1, 70}) gradient(m, p, tokens);
      }
      product(m, mask(m), 2, "mask");
      product(m, slices(m, 0), 2, "slices");
      product(m, slices(m, 1), 2, "columns");
      product(m, slices(m, 2), 2, "windows");
    }
  for (int side : {1, 4})
    for (int size : {1, 7, 19}) convolutions(5 + side, 18 + seed, size, size + 4, side, seed);
}

}  // namespace

int main() {
  std::thread one([] { work(1); }), two([] { work(30); });
  one.join(), two.join();
  std::printf("right on %s\n", prunus_name());
  return 0;
}
