// Sequences of convolutions and of what stands between them: the arguments that Python fills in.
//
// A picture lies as planes, one for each channel, all images of the batch in each. A plane begins
// with `lead` zeros; then come the images' rows, `row` numbers apart, with zeros between what the
// rows and images hold where `row` and `image` leave room for them. A tap of a convolution is then
// one distance for all pixels of all images.
#pragma once
#include <cstdint>

struct Grid {
  int64_t image, plane;  // floats from image to image, from plane to plane
  int32_t batch, height, width, row, lead, unused;
};

enum StepKind : int32_t { VIEWS = 1, CONVOLUTION = 2, DEPTHWISE = 3, MAXIMUM = 4, MEAN = 5, SUM = 6, GRADIENT = 7 };

struct Step {
  Grid from, to;          // of x; of y, and of what is added
  int64_t x, more, y;     // floats from the beginning of the memory that the bases number; of
                          // GRADIENT, more is that of the convolution's result, y one of each weight
  const int32_t* offset;  // of each weight of a layout, or of each tap, from the pixel's place
  const int32_t* mask;    // [positions]: -1 at pixels, 0 between them
  const int32_t* view;    // [views][3]: row, column within a stride, and columns to the right
  int32_t kind;
  int32_t x_base, more_base, y_base;  // more_base is -1 where nothing is added
  int32_t number;         // of the layout, values and bias; -1 without
  int32_t channels;       // of x where it is copied or checked, else of y
  int32_t views, taps;
  int32_t stride_y, stride_x;
  int32_t below, beside;  // rows and columns of a view beyond those of the result
  int32_t vectors;        // of a tile, at most
  int32_t activation;
  int32_t checked;        // whether what is read may not be finite
  int32_t bare;           // whether y has pixels alone
  float low, high;        // results are cut off there
  float fill;             // between the pixels of views
  float scale;
};

struct Sequence {
  const Step* steps;
  int64_t count;
  int64_t room;                   // floats of base 0, which is the thread's own memory
  float* const* bases;            // from base 1 on
  const int32_t* const* layouts;  // by a step's number
  const float* const* values;
  const float* const* biases;     // nullptr where there is none
  int32_t threads, unused;
};
