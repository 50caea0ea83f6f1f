// Sequences of convolutions of the driver, with the numbers that Python would fill in.
#pragma once

// A copy into planes with one zero around, a convolution of 3×3 with ReLU, a depthwise one to which
// its input is added, and a copy out of them; against plain loops.
inline void convolutions(int64_t channels, int64_t out, int height, int width, int side, unsigned seed) {
  using namespace prunus;
  constexpr int taps = 3, batch = 2;
  const Model m(out, channels * taps * taps, 0.3, seed, side);
  const Packed p = tiles(m, side == 4 ? Shape{1, 4, 64, 9, 32} : Shape{2, 1, 64, 900, 16});
  const int64_t row = width + 1, image = (height + 1) * row, area = int64_t(height) * width;
  const int64_t lead = (row + 1 + 15) / 16 * 16;
  const int64_t strip = ((batch - 1) * image + (height - 1) * row + width + 15) / 16 * 16;
  const int64_t plane = (lead + strip + row + 1 + 15) / 16 * 16, more = (out + 3) / 4 * 4;
  const Grid inside{image, plane, batch, height, width, int32_t(row), int32_t(lead), 0};
  const auto outside = [&](int64_t c) {
    return Grid{c * area, area, batch, height, width, width, 0, 0};
  };
  std::vector<int32_t> mask(strip, 0), view{0, 0, 0}, column, each;
  for (int b = 0; b < batch; ++b)
    for (int r = 0; r < height; ++r)
      for (int x = 0; x < width; ++x) mask[b * image + r * row + x] = -1;
  for (int r = -1; r <= 1; ++r)
    for (int x = -1; x <= 1; ++x) each.push_back(int32_t(r * row + x));
  for (int64_t c = 0; c < channels; ++c)
    for (int32_t distance : each) column.push_back(int32_t(c * plane + distance));
  std::vector<int32_t> offset(p.values.size() / prunus::head_of(p.layout.data()).height);
  prunus_offsets(p.layout.data(), column.data(), offset.data());

  const int64_t at_y = channels * plane, at_own = at_y + more * plane, room = at_own + out * plane;
  std::vector<float> x(batch * channels * area), own(out * taps * taps), found(batch * out * area);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 7 % 13) - 6) / 6;
  for (size_t i = 0; i < own.size(); ++i) own[i] = float(int(i * 5 % 7) - 3) / 3;
  const auto step = [&](int32_t kind, Grid from, Grid to, int32_t count) {
    Step s{};
    s.from = from, s.to = to, s.kind = kind, s.channels = count, s.more_base = s.number = -1;
    s.views = s.stride_y = s.stride_x = 1, s.view = view.data(), s.mask = mask.data();
    s.taps = taps * taps, s.vectors = 5, s.low = -1e39f, s.high = 1e39f;
    return s;
  };
  Step in = step(VIEWS, outside(channels), inside, int32_t(channels));
  in.x_base = 1, in.checked = 1;
  Step conv = step(CONVOLUTION, inside, inside, int32_t(out));
  conv.offset = offset.data(), conv.y = at_y, conv.number = 0, conv.low = 0;
  Step deep = step(DEPTHWISE, inside, inside, int32_t(out));
  deep.offset = each.data(), deep.x = at_y, deep.y = at_own, deep.number = 1;
  deep.more_base = 0, deep.more = at_y;
  Step leave = step(VIEWS, inside, outside(out), int32_t(out));
  leave.x = at_own, leave.y_base = 2, leave.bare = 1;
  const Step steps[] = {in, conv, deep, leave};
  float* bases[] = {x.data(), found.data()};
  const int32_t* layouts[] = {p.layout.data(), nullptr};
  const float *values[] = {p.values.data(), own.data()}, *biases[] = {m.bias.data(), nullptr};
  const Sequence call{steps, 4, room, bases, layouts, values, biases, 2, 0};
  if (prunus_sequence(&call) != DONE) std::puts("not done"), std::exit(1);

  const auto pixel = [&](const std::vector<double>& v, int64_t c, int r, int q) {
    return r < 0 || q < 0 || r >= height || q >= width ? 0.0 : v[c * area + r * width + q];
  };
  // the gradient of its weights: x and that of the result as planes, which are multiplied
  Step of_y = step(VIEWS, outside(out), inside, int32_t(out));
  of_y.x_base = 2, of_y.y = at_y, of_y.checked = 1;
  Step turned = step(GRADIENT, inside, inside, int32_t(out));
  turned.offset = offset.data(), turned.more_base = 0, turned.more = at_y;
  turned.y_base = 3, turned.number = 0;
  const Step both[] = {in, of_y, turned};
  std::vector<float> dy(found.size()), packed(p.values.size()), slope(m.values.size());
  for (size_t i = 0; i < dy.size(); ++i) dy[i] = float(int(i * 3 % 11) - 5) / 5;
  float* others[] = {x.data(), dy.data(), packed.data()};
  const Sequence back{both, 3, room, others, layouts, values, biases, 2, 0};
  if (prunus_sequence(&back) != DONE) std::puts("not done"), std::exit(1);
  if (prunus_scatter(p.order.data(), p.order.size(), packed.data(), slope.size(), slope.data(), 0))
    std::puts("scatter"), std::exit(1);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = m.first[o]; i < m.first[o + 1]; ++i) {
      const int64_t c = m.column[i] / 9, tap = m.column[i] % 9;
      double sum = 0;
      for (int64_t at = 0; at < batch * area; ++at) {
        const int64_t b = at / area, r = at % area / width + tap / 3 - 1, q = at % width + tap % 3 - 1;
        if (r >= 0 && q >= 0 && r < height && q < width)
          sum += double(dy[(b * out + o) * area + at % area]) * x[(b * channels + c) * area + r * width + q];
      }
      near(slope[i], sum, double(area), "gradient of a convolution");
    }

  for (int b = 0; b < batch; ++b) {
    const std::vector<double> picture(x.begin() + b * channels * area, x.begin() + (b + 1) * channels * area);
    std::vector<double> first(out * area);
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < area; ++i) {
        double sum = m.bias[o];
        for (int64_t k = 0; k < m.cols; ++k)
          sum += double(m.weight[o * m.cols + k]) *
                 pixel(picture, k / 9, int(i / width + k % 9 / 3 - 1), int(i % width + k % 3 - 1));
        first[o * area + i] = sum > 0 ? sum : 0;
      }
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < area; ++i) {
        double sum = first[o * area + i];
        for (int k = 0; k < 9; ++k)
          sum += double(own[o * 9 + k]) * pixel(first, o, int(i / width + k / 3 - 1), int(i % width + k % 3 - 1));
        near(found[(b * out + o) * area + i], sum, 100, "convolutions");
      }
  }
}
