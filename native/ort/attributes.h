/* The attributes of an operator, and the shapes that follow from them. */
#ifndef HYBRIDKIT_ORT_ATTRIBUTES_H
#define HYBRIDKIT_ORT_ATTRIBUTES_H

#include <optional>
#include <string>
#include <vector>

#include "hybridkit_kernels.h"
#include "ort_abi.h"

namespace hybridkit::ort {

struct Operator;
using Shape = std::vector<int64_t>;  // -1 is a size that is not known yet

enum Layout : int64_t { kRowMajor = 0, kTiled = 1, kConvTiled = 2 };

struct Attributes {
  int64_t N, K, layout;
  std::optional<hybridkit_geometry> convolution;  // without sizes: they come with the input
  int64_t group_size = 0;                         // of n-bit codes

  bool grouped() const { return group_size > 0; }
  // [N], or [N, groups]
  Shape scale_shape() const {
    return grouped() ? Shape{N, (K + group_size - 1) / group_size} : Shape{N};
  }
  int64_t group() const { return convolution ? convolution->group : 1; }
};

/* Where attributes come from: a kernel that is made, or shape inference. */
struct KernelAttributes {
  const OrtApi* api;
  const OrtKernelInfo* info;
  int64_t integer(const char* name) const;
  std::vector<int64_t> integers(const char* name) const;
};
struct InferenceAttributes {
  const OrtApi* api;
  const OrtShapeInferContext* context;
  int64_t integer(const char* name) const;
  std::vector<int64_t> integers(const char* name) const;
};

/* Checked attributes; std::runtime_error says which one is missing or wrong. */
Attributes read_attributes(const KernelAttributes& source, const Operator& op);
Attributes read_attributes(const InferenceAttributes& source, const Operator& op);

/* Of an operator that reads nothing but a matrix of codes: N, K and the layout, which is row-major or tiled. */
Attributes read_matrix(const KernelAttributes& source);
Attributes read_matrix(const InferenceAttributes& source);

/* The shape of the output for an input of shape `x`. Where a size of x is unknown, what depends on it is,
 * too. std::runtime_error names the shape that was expected and the one given. */
Shape output_shape(const Attributes& attributes, const Shape& x);

/* The geometry with the sizes of an input whose shape output_shape has accepted. */
hybridkit_geometry sized(const Attributes& attributes, const Shape& x);

/* The product of a shape's sizes; -1 if one is unknown, the largest number if it is larger. */
int64_t count_of(const Shape& shape);

/* "[3, 1, ?]" */
std::string to_string(const Shape& shape);

}  // namespace hybridkit::ort
#endif
