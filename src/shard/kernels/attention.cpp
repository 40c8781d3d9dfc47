// Causal attention over a window, forward and backward, in fp32: blocks of rows against blocks of columns, so that the
// scores of a pair of blocks lie in a core's own caches, and no pair that nobody sees is computed. The gradients are by
// the logsumexp of each row (Dao et al., arXiv 2205.14135). A head is the work of one thread at a time, in one order:
// results do not depend on the number of threads. local_attention in model.py is the plain twin.
// Shape suffixes: B batch, T tokens, H heads, K head size.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <tuple>
#include <utility>

#include "tensors.h"

namespace {

typedef float Vector __attribute__((vector_size(32)));
typedef float Anywhere __attribute__((vector_size(32), aligned(4)));  // as it lies in memory, at any address
typedef int32_t Integers __attribute__((vector_size(32)));

// Numbers of a vector, and columns that are computed at once, for `tall` rows: 12 sums in vectors, of 16 registers.
constexpr int64_t lanes = 8, wide = 16, tall = 6;

// Rows and columns of a block of scores: 36 KiB.
constexpr int64_t side = 96;

constexpr float lowest = std::numeric_limits<float>::lowest();

struct Delete {
  void operator()(float* start) const { ::operator delete[](start, std::align_val_t{64}); }
};
using Floats = std::unique_ptr<float[], Delete>;

Floats floats(int64_t size) { return Floats(new (std::align_val_t{64}) float[size]); }

// Rows of numbers, `stride` from one to the next.
struct Rows {
  const float* start;
  int64_t stride;
  const float* operator[](int64_t row) const { return start + row * stride; }
};

// sums[rows, columns] (+)= a[rows, depth] b[depth, columns], where a is turned: [depth, rows]. Columns come `wide` at a
// time, and those of b lie `panel` apart.
template <bool adds, bool turned>
void multiply(int64_t rows, int64_t columns, int64_t depth, Rows a, Rows b, int64_t panel, float* sums, int64_t stride) {
  const int64_t a_row = turned ? 1 : a.stride, a_step = turned ? a.stride : 1;
  const auto put = [](float* to, Vector first, Vector second) {
    auto* const pair = reinterpret_cast<Anywhere*>(to);
    pair[0] = adds ? pair[0] + first : first;
    pair[1] = adds ? pair[1] + second : second;
  };
  for (int64_t column = 0; column < columns; column += wide, b.start += panel) {
    int64_t row = 0;
    for (; row + tall <= rows; row += tall) {
      Vector part[tall][2] = {};
      const float *x = a.start + row * a_row, *y = b.start;
      const float* x_half = x + tall / 2 * a_row;  // two starts: processors add up to a few strides to an address
      for (int64_t k = 0; k < depth; k++, x += a_step, x_half += a_step, y += b.stride) {
        const auto* const pair = reinterpret_cast<const Anywhere*>(y);
        const Vector first = pair[0], second = pair[1];
#pragma GCC unroll 6
        for (int i = 0; i < tall; i++) {
          const float factor = i < tall / 2 ? x[i * a_row] : x_half[(i - tall / 2) * a_row];
          part[i][0] += factor * first;
          part[i][1] += factor * second;
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < tall; i++)
        put(sums + (row + i) * stride + column, part[i][0], part[i][1]);
    }
    for (; row < rows; row++) {
      Vector first = {}, second = {};
      for (int64_t k = 0; k < depth; k++) {
        const auto* const pair = reinterpret_cast<const Anywhere*>(b[k]);
        first += a.start[row * a_row + k * a_step] * pair[0];
        second += a.start[row * a_row + k * a_step] * pair[1];
      }
      put(sums + row * stride + column, first, second);
    }
  }
}

// Columns of scores that are computed for this many.
int64_t whole(int64_t columns) { return (columns + wide - 1) / wide * wide; }

// Rows [size, depth] turned for `multiply`: panels [depth, wide], the last filled up with zeros. In squares, which take
// whole cache lines from both.
void turn(Rows x, int64_t size, int64_t depth, float* panels) {
  for (int64_t start = 0; start < size; start += wide, panels += wide * depth) {
    const int64_t rows = std::min(wide, size - start);
    if (rows < wide)
      std::fill_n(panels, wide * depth, 0.0f);
    for (int64_t square = 0; square < depth; square += wide)
      for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < wide; k++)
          panels[(square + k) * wide + i] = x[start + i][square + k];
  }
}

// [size, depth], side by side, each number times `factor`.
void copy(Rows x, int64_t size, int64_t depth, float factor, float* to) {
  for (int64_t i = 0; i < size; i++)
    for (int64_t k = 0; k < depth; k++)
      to[i * depth + k] = factor * x[i][k];
}

// exp(x) of x <= 0 as 2^n exp(r), |r| <= ln(2) / 2, and six terms of the series of exp(r); 0 below -87.
Vector exponential(Vector x) {
  const Vector least = Vector{} - 87.0f, in_range = x < least ? least : x;
  const Integers n = __builtin_convertvector(in_range * 1.44269504f - 0.5f, Integers);
  const Vector r = in_range - __builtin_convertvector(n, Vector) * 0.69314718f;
  Vector y = r * (1.0f / 720) + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  y *= reinterpret_cast<Vector>((n + 127) << 23);
  return x < least ? Vector{} : y;
}

// `size` scores become exp(score - largest), the largest of them and `top`. Returns that, and the sum.
std::pair<float, float> weigh(float* scores, int64_t size, float top) {
  auto* const vectors = reinterpret_cast<Vector*>(scores);
  Vector tops = Vector{} + top, parts = {};
  for (int64_t i = 0; i < size / lanes; i++)
    tops = vectors[i] > tops ? vectors[i] : tops;
  for (int64_t i = 0; i < lanes; i++)
    top = std::max(top, tops[i]);
  for (int64_t i = 0; i < size / lanes; i++)
    parts += vectors[i] = exponential(vectors[i] - top);
  float sum = 0;
  for (int64_t i = 0; i < lanes; i++)
    sum += parts[i];
  return {top, sum};
}

// The first and the one after the last of `columns` that the row sees, where column 0 is this far after the row.
std::pair<int64_t, int64_t> seen(int64_t ahead, int64_t columns, int64_t window) {
  const int64_t end = std::clamp<int64_t>(1 - ahead, 0, columns);
  return {std::clamp<int64_t>(1 - ahead - window, 0, end), end};
}

struct Sizes {
  int64_t batch, tokens, heads, head_size;
  explicit Sizes(const Tensor& x_BTHK)
      : batch(x_BTHK.size(0)), tokens(x_BTHK.size(1)), heads(x_BTHK.size(2)), head_size(x_BTHK.size(3)) {}
  int64_t all_heads() const { return batch * heads; }
  int64_t width() const { return heads * head_size; }
  // Where head number `head` of a tensor [B, T, H, K] begins.
  int64_t offset(int64_t head) const { return head / heads * tokens * width() + head % heads * head_size; }
  Rows rows(const Tensor& x_BTHK, int64_t head) const {
    return {static_cast<const float*>(x_BTHK.const_data_ptr()) + offset(head), width()};
  }
  float* to(Tensor& x_BTHK, int64_t head) const { return static_cast<float*>(x_BTHK.data_ptr()) + offset(head); }
  // What scores are multiplied with.
  float factor() const { return 1 / std::sqrt(static_cast<float>(head_size)); }
};

void check(const Tensor& x, const Tensor& like_BTHK) {
  STD_TORCH_CHECK(x.dim() == 4 && is_plain(x, ScalarType::Float) && x.sizes() == like_BTHK.sizes(),
                  "attention takes contiguous q, k and v [B, T, H, K] in fp32, on the CPU");
  STD_TORCH_CHECK(x.size(3) % wide == 0, "attention takes heads of a multiple of 16 numbers");
}

// Tasks 0 to size - 1, each taken by the thread that is free. `work(each)` runs once on each thread, makes room, and
// hands its task to `each`.
template <typename Work>
void for_all(int64_t size, const Work& work) {
  std::atomic<int64_t> next = 0;
  std::atomic<bool> lacks_memory = false;
  torch::stable::parallel_for(0, size, 1, [&](int64_t, int64_t) {
    try {
      work([&](const auto& task) {
        for (int64_t i; (i = next++) < size;)
          task(i);
      });
    } catch (const std::bad_alloc&) {
      lacks_memory = true;  // an exception would lose its words on the way
    }
  });
  STD_TORCH_CHECK(!lacks_memory, "not enough memory for attention");
}

// (y [B, T, H, K], the logsumexp of each row's scores [B, H, T]).
std::tuple<Tensor, Tensor> attention(const Tensor& q_BTHK, const Tensor& k_BTHK, const Tensor& v_BTHK, int64_t window) {
  for (const Tensor& x : {q_BTHK, k_BTHK, v_BTHK})
    check(x, q_BTHK);
  STD_TORCH_CHECK(window > 0, "attention takes a window of one token at least, not ", window);
  const Sizes sizes(q_BTHK);
  const int64_t tokens = sizes.tokens, depth = sizes.head_size;
  window = std::min(window, tokens);
  Tensor y_BTHK = empty({sizes.batch, tokens, sizes.heads, depth}), lse_BHT = empty({sizes.batch, sizes.heads, tokens});
  auto* const lse = static_cast<float*>(lse_BHT.data_ptr());
  for_all(sizes.all_heads(), [&](const auto& each) {
    const Floats keys = floats(whole(tokens) * depth), values = floats(tokens * depth), queries = floats(tokens * depth);
    const Floats scores = floats(side * side), sums = floats(side * depth);
    each([&](int64_t head) {
      turn(sizes.rows(k_BTHK, head), tokens, depth, keys.get());
      copy(sizes.rows(v_BTHK, head), tokens, depth, 1, values.get());
      copy(sizes.rows(q_BTHK, head), tokens, depth, sizes.factor(), queries.get());
      for (int64_t row = 0; row < tokens; row += side) {
        const int64_t rows = std::min(side, tokens - row);
        std::fill_n(sums.get(), rows * depth, 0.0f);
        float largest[side], weight[side] = {};
        std::fill_n(largest, side, lowest);  // finite, so that a row may see nothing of a block
        // Panels of keys begin at whole multiples.
        for (int64_t column = std::max<int64_t>(0, row - window + 1) / wide * wide; column < row + rows; column += side) {
          const int64_t columns = std::min(side, row + rows - column);
          multiply<false, false>(rows, whole(columns), depth, {&queries[row * depth], depth}, {&keys[column * depth], wide},
                                 wide * depth, scores.get(), side);
          for (int64_t i = 0; i < rows; i++) {
            const auto [first, end] = seen(column - row - i, columns, window);
            float* const score = &scores[i * side];
            std::fill(score, score + first, -INFINITY);
            std::fill(score + end, score + whole(columns), -INFINITY);
            const auto [top, part] = weigh(score, whole(columns), largest[i]);
            if (top > largest[i]) {
              const float shrink = exponential(Vector{} + (largest[i] - top))[0];
              for (int64_t k = 0; k < depth; k++)
                sums[i * depth + k] *= shrink;
              weight[i] *= shrink;
              largest[i] = top;
            }
            weight[i] += part;
          }
          multiply<true, false>(rows, depth, columns, {scores.get(), side}, {&values[column * depth], depth}, wide,
                                sums.get(), depth);
        }
        float* const y = sizes.to(y_BTHK, head) + row * sizes.width();
        for (int64_t i = 0; i < rows; i++) {
          for (int64_t k = 0; k < depth; k++)
            y[i * sizes.width() + k] = sums[i * depth + k] / weight[i];
          lse[head * tokens + row + i] = largest[i] + std::log(weight[i]);
        }
      }
    });
  });
  return {y_BTHK, lse_BHT};
}

// The gradients of q, k and v [B, T, H, K].
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& d_y_BTHK, const Tensor& q_BTHK, const Tensor& k_BTHK,
                                                      const Tensor& v_BTHK, const Tensor& y_BTHK, const Tensor& lse_BHT,
                                                      int64_t window) {
  for (const Tensor& x : {d_y_BTHK, q_BTHK, k_BTHK, v_BTHK, y_BTHK})
    check(x, q_BTHK);
  const Sizes sizes(q_BTHK);
  const int64_t tokens = sizes.tokens, depth = sizes.head_size;
  STD_TORCH_CHECK(is_plain(lse_BHT, ScalarType::Float) && lse_BHT.numel() == sizes.all_heads() * tokens && window > 0,
                  "attention_backward takes a logsumexp [B, H, T] in fp32, and a window of one token at least");
  window = std::min(window, tokens);
  auto* const all_lse = static_cast<const float*>(lse_BHT.const_data_ptr());
  const auto like = [&] { return empty({sizes.batch, tokens, sizes.heads, depth}); };
  Tensor d_q_BTHK = like(), d_k_BTHK = like(), d_v_BTHK = like();
  for_all(sizes.all_heads(), [&](const auto& each) {
    // Of the whole head, side by side: rows of the tensors lie a page apart.
    const Floats q = floats(tokens * depth), d_y = floats(tokens * depth), d_q = floats(tokens * depth);
    const Floats inner = floats(tokens);  // of each row's y with its gradient
    const Floats weights = floats(side * side), grads = floats(side * side);
    const Floats keys = floats(side * depth), turned_keys = floats(side * depth), turned_values = floats(side * depth);
    const Floats d_k = floats(side * depth), d_v = floats(side * depth);
    each([&](int64_t head) {
      const float* lse = all_lse + head * tokens;
      const Rows k = sizes.rows(k_BTHK, head), v = sizes.rows(v_BTHK, head), y = sizes.rows(y_BTHK, head);
      copy(sizes.rows(q_BTHK, head), tokens, depth, sizes.factor(), q.get());
      copy(sizes.rows(d_y_BTHK, head), tokens, depth, 1, d_y.get());
      std::fill_n(d_q.get(), tokens * depth, 0.0f);
      for (int64_t i = 0; i < tokens; i++) {
        float sum = 0;
        for (int64_t j = 0; j < depth; j++)
          sum += d_y[i * depth + j] * y[i][j];
        inner[i] = sum;
      }
      for (int64_t column = 0; column < tokens; column += side) {
        const int64_t columns = std::min(side, tokens - column);
        turn({k[column], k.stride}, columns, depth, turned_keys.get());
        turn({v[column], v.stride}, columns, depth, turned_values.get());
        copy({k[column], k.stride}, columns, depth, sizes.factor(), keys.get());
        std::fill_n(d_k.get(), columns * depth, 0.0f);
        std::fill_n(d_v.get(), columns * depth, 0.0f);
        // The last column is seen by the window - 1 rows after it.
        const int64_t end_row = std::min(tokens, column + columns - 1 + window);
        for (int64_t row = column; row < end_row; row += side) {
          const int64_t rows = std::min(side, end_row - row);
          multiply<false, false>(rows, whole(columns), depth, {&q[row * depth], depth}, {turned_keys.get(), wide},
                                 wide * depth, weights.get(), side);
          multiply<false, false>(rows, whole(columns), depth, {&d_y[row * depth], depth}, {turned_values.get(), wide},
                                 wide * depth, grads.get(), side);
          for (int64_t i = 0; i < rows; i++) {
            const auto [first, end] = seen(column - row - i, columns, window);
            float *const weight = &weights[i * side], *const grad = &grads[i * side];
            auto* const weight_vectors = reinterpret_cast<Vector*>(weight);
            auto* const grad_vectors = reinterpret_cast<Vector*>(grad);
            for (int64_t j = 0; j < whole(columns) / lanes; j++) {
              weight_vectors[j] = exponential(weight_vectors[j] - lse[row + i]);
              grad_vectors[j] = weight_vectors[j] * (grad_vectors[j] - inner[row + i]);
            }
            for (float* const hidden : {weight, grad}) {
              std::fill(hidden, hidden + first, 0.0f);
              std::fill(hidden + end, hidden + columns, 0.0f);
            }
          }
          multiply<true, true>(columns, depth, rows, {weights.get(), side}, {&d_y[row * depth], depth}, wide,
                               d_v.get(), depth);
          multiply<true, true>(columns, depth, rows, {grads.get(), side}, {&q[row * depth], depth}, wide,
                               d_k.get(), depth);
          multiply<true, false>(rows, depth, columns, {grads.get(), side}, {keys.get(), depth}, wide,
                               &d_q[row * depth], depth);
        }
        for (int64_t i = 0; i < columns; i++) {
          std::copy_n(&d_k[i * depth], depth, sizes.to(d_k_BTHK, head) + (column + i) * sizes.width());
          std::copy_n(&d_v[i * depth], depth, sizes.to(d_v_BTHK, head) + (column + i) * sizes.width());
        }
      }
      for (int64_t i = 0; i < tokens; i++)
        std::copy_n(&d_q[i * depth], depth, sizes.to(d_q_BTHK, head) + i * sizes.width());
    });
  });
  return {d_q_BTHK, d_k_BTHK, d_v_BTHK};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(shard, library) {
  library.def("attention(Tensor q_BTHK, Tensor k_BTHK, Tensor v_BTHK, int window) -> (Tensor, Tensor)");
  library.def(
      "attention_backward(Tensor d_y_BTHK, Tensor q_BTHK, Tensor k_BTHK, Tensor v_BTHK, Tensor y_BTHK, Tensor lse_BHT, "
      "int window) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(shard, CPU, library) {
  library.impl("attention", TORCH_BOX(&attention));
  library.impl("attention_backward", TORCH_BOX(&attention_backward));
}
