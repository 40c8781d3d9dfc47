// The two loops of a decode step on a CPU that decide how long it takes, for the compiler to make fast on the processor
// at hand. inference/quantize.py and inference/decoder.py hold the plain twins.
// Shape suffixes: B rows, I inputs, O outputs, H heads, S slots, K head size.

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>

#include "tensors.h"

namespace {

// Products of 512 codes and 15-bit inputs fit an int32: 512 * 127 * 32767 < 2^31.
constexpr int64_t chunk = 512;
constexpr float top = 32767;

// Bytes of a cache line, and how far ahead memory is asked for codes.
constexpr int64_t line = 64, ahead = 4096;

// Codes that make a thread's work worth its start.
constexpr int64_t grain = 1 << 15;

// Inputs as whole numbers, x ~ scale * codes. Absolute values are compared as the integers that their bits are: the order
// is the same, and infinity and NaN are the largest, so that they reach the scale and with it every output.
float quantize(const float* x, int64_t size, int16_t* codes) {
  int32_t largest = 0;
  for (int64_t i = 0; i < size; i++)
    largest = std::max(largest, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  const float scale = std::bit_cast<float>(largest) / top;
  if (!std::isfinite(scale)) {
    std::fill(codes, codes + size, 0);
    return NAN;
  }
  const float factor = scale < std::numeric_limits<float>::min() ? 0 : 1 / scale;
  for (int64_t i = 0; i < size; i++) {
    const float code = x[i] * factor;
    codes[i] = static_cast<int16_t>(static_cast<int32_t>(code + std::copysign(0.5f, code)));
  }
  return scale;
}

// Dot products of the codes of one output with `rows` rows of inputs, 4 of which share the work of reading the codes.
template <int rows>
void dot(const int8_t* codes, const int16_t* x, int64_t size, float* sums) {
  std::fill(sums, sums + rows, 0.0f);
  for (int64_t start = 0; start < size; start += chunk) {
    const int64_t end = std::min(start + chunk, size);
    for (int64_t i = start; i < end; i += line)
      __builtin_prefetch(codes + i + ahead);  // beyond the end of the matrix it does nothing
    int32_t parts[rows] = {};
    for (int64_t i = start; i < end; i++)
      for (int row = 0; row < rows; row++)
        parts[row] += static_cast<int32_t>(codes[i]) * static_cast<int32_t>(x[row * size + i]);
    for (int row = 0; row < rows; row++)
      sums[row] += static_cast<float>(parts[row]);
  }
}

// x_BI W^T [B, O] of W ~ codes_OI * scale_O.
Tensor int8_product(const Tensor& x_BI, const Tensor& codes_OI, const Tensor& scale_O) {
  STD_TORCH_CHECK(is_plain(x_BI, ScalarType::Float) && is_plain(codes_OI, ScalarType::Char) &&
                      is_plain(scale_O, ScalarType::BFloat16),
                  "int8_product takes contiguous x in fp32, codes in int8 and a scale in bf16, on the CPU");
  STD_TORCH_CHECK(x_BI.dim() == 2 && codes_OI.dim() == 2 && scale_O.dim() == 1 && x_BI.size(1) == codes_OI.size(1) &&
                      scale_O.size(0) == codes_OI.size(0),
                  "int8_product takes x [B, I], codes [O, I] and a scale [O]");
  const int64_t rows = x_BI.size(0), inputs = x_BI.size(1), outputs = codes_OI.size(0);
  Tensor y_BO = empty({rows, outputs});
  const auto* x = static_cast<const float*>(x_BI.const_data_ptr());
  const auto* codes = static_cast<const int8_t*>(codes_OI.const_data_ptr());
  const auto* scale = static_cast<const uint16_t*>(scale_O.const_data_ptr());
  auto* y = static_cast<float*>(y_BO.data_ptr());
  std::vector<int16_t> x_codes(rows * inputs);
  std::vector<float> x_scale(rows);
  for (int64_t b = 0; b < rows; b++)
    x_scale[b] = quantize(x + b * inputs, inputs, x_codes.data() + b * inputs);
  torch::stable::parallel_for(0, outputs, grain / std::max<int64_t>(1, inputs) + 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(rows);
    for (int64_t o = begin; o < end; o++) {
      int64_t b = 0;
      for (; b + 4 <= rows; b += 4)
        dot<4>(codes + o * inputs, x_codes.data() + b * inputs, inputs, &sums[b]);
      for (; b < rows; b++)
        dot<1>(codes + o * inputs, x_codes.data() + b * inputs, inputs, &sums[b]);
      for (b = 0; b < rows; b++)
        y[b * outputs + o] = sums[b] * x_scale[b] * std::bit_cast<float>(uint32_t{scale[o]} << 16);
    }
  });
  return y_BO;
}

float dot(const float* a, const float* b, int64_t size) {
  float sum = 0;
  for (int64_t i = 0; i < size; i++)
    sum += a[i] * b[i];
  return sum;
}

// softmax(q k^T / sqrt(K)) v [B, H, K] over the first min(seen, S) slots of each row.
Tensor decode_attention(const Tensor& q_BHK, const Tensor& k_BHSK, const Tensor& v_BHSK, const Tensor& seen_B) {
  STD_TORCH_CHECK(is_plain(q_BHK, ScalarType::Float) && is_plain(k_BHSK, ScalarType::Float) &&
                      is_plain(v_BHSK, ScalarType::Float) && is_plain(seen_B, ScalarType::Long),
                  "decode_attention takes contiguous q, k and v in fp32 and seen in int64, on the CPU");
  STD_TORCH_CHECK(q_BHK.dim() == 3 && k_BHSK.dim() == 4 && seen_B.dim() == 1 && v_BHSK.sizes() == k_BHSK.sizes() &&
                      k_BHSK.size(0) == q_BHK.size(0) && k_BHSK.size(1) == q_BHK.size(1) &&
                      k_BHSK.size(3) == q_BHK.size(2) && seen_B.size(0) == q_BHK.size(0),
                  "decode_attention takes q [B, H, K], k and v [B, H, S, K], and seen [B]");
  const int64_t rows = q_BHK.size(0), heads = q_BHK.size(1), head_size = q_BHK.size(2), slots = k_BHSK.size(2);
  Tensor y_BHK = empty({rows, heads, head_size});
  const auto* q = static_cast<const float*>(q_BHK.const_data_ptr());
  const auto* k = static_cast<const float*>(k_BHSK.const_data_ptr());
  const auto* v = static_cast<const float*>(v_BHSK.const_data_ptr());
  const auto* seen = static_cast<const int64_t*>(seen_B.const_data_ptr());
  auto* y = static_cast<float*>(y_BHK.data_ptr());
  const float factor = 1 / std::sqrt(static_cast<float>(head_size));
  torch::stable::parallel_for(0, rows * heads, 1, [&](int64_t begin, int64_t end) {
    const auto weights = std::make_unique_for_overwrite<float[]>(slots);
    for (int64_t head = begin; head < end; head++) {
      const int64_t size = std::min(seen[head / heads], slots);
      const float* keys = k + head * slots * head_size;
      const float* values = v + head * slots * head_size;
      float largest = -INFINITY;
      for (int64_t s = 0; s < size; s++) {
        weights[s] = factor * dot(q + head * head_size, keys + s * head_size, head_size);
        largest = std::max(largest, weights[s]);
      }
      float sum = 0;
      float* __restrict result = y + head * head_size;
      std::fill(result, result + head_size, 0.0f);
      for (int64_t s = 0; s < size; s++) {
        const float weight = std::exp(weights[s] - largest);
        sum += weight;
        for (int64_t i = 0; i < head_size; i++)
          result[i] += weight * values[s * head_size + i];
      }
      for (int64_t i = 0; i < head_size; i++)
        result[i] /= sum;
    }
  });
  return y_BHK;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(shard, library) {
  library.def("int8_product(Tensor x_BI, Tensor codes_OI, Tensor scale_O) -> Tensor");
  library.def("decode_attention(Tensor q_BHK, Tensor k_BHSK, Tensor v_BHSK, Tensor seen_B) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(shard, CPU, library) {
  library.impl("int8_product", TORCH_BOX(&int8_product));
  library.impl("decode_attention", TORCH_BOX(&decode_attention));
}
