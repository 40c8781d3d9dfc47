// Tensors by torch's stable interface, as all kernels take and make them.

#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// fp32 on the CPU, not filled, without torch's dispatcher, in which a tenth of the smallest product's time would go.
inline Tensor empty(std::initializer_list<int64_t> sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; i--)
    strides[i - 1] = strides[i] * sizes.begin()[i];
  AtenTensorHandle made;
  const auto failed = aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides.data(), aoti_torch_dtype_float32(),
                                               aoti_torch_device_type_cpu(), 0, &made);
  // The interface keeps torch's own words to itself, and training looks for these to take a smaller micro-batch.
  STD_TORCH_CHECK(!failed, "not enough memory for the result of a kernel");
  return Tensor(made);
}

inline bool is_plain(const Tensor& tensor, ScalarType dtype) {
  return tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == dtype;
}

}  // namespace
