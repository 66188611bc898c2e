// Times every stage of the CPU kernels separately, on one thread, in float32. stages.py compiles this program and runs it with the
// arguments N I O G K. It prints one tab-separated line per stage: name, milliseconds and billions of useful multiply-adds (live
// rows only, no padding).
#if defined(KAN_STAGES_AVX512)
#include "../csrc/kernels_avx512.cpp"
namespace kernels = kan_avx512;
#elif defined(KAN_STAGES_AVX2)
#include "../csrc/kernels_avx2.cpp"
namespace kernels = kan_avx2;
#else
#include "../csrc/kernels_baseline.cpp"
namespace kernels = kan_baseline;
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

using namespace kernels;

// A stack allocator for scratch memory, which scopes release in reverse order. Repeated samples reuse pages that are already
// mapped.
namespace kan {
char* const kScratch = static_cast<char*>(std::aligned_alloc(64, size_t(1) << 30));
size_t scratch_used = 0;
void* take_scratch(size_t bytes) {
  void* taken = kScratch + scratch_used;
  scratch_used += (bytes + 63) / 64 * 64;
  return taken;
}
void release_scratch(void* memory) { scratch_used = size_t(static_cast<char*>(memory) - kScratch); }
}  // namespace kan

namespace {

constexpr int kSamples = 15;

// Returns the median time of some samples, in seconds.
double seconds(const std::function<void()>& body) {
  std::vector<double> samples;
  body();
  for (int s = 0; s < kSamples; ++s) {
    const auto start = std::chrono::steady_clock::now();
    body();
    samples.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(samples.begin(), samples.begin() + kSamples / 2, samples.end());
  return samples[kSamples / 2];
}

// Runs `repeats` multiply-adds in each of kChains chains, which are enough to hide the latency.
constexpr int kChains = 12;
[[gnu::noinline]] float multiply_add(int repeats) {
  V<float> sum[kChains], factor = broadcast(1.0f), term = broadcast(1e-9f);
  asm volatile("" : "+m"(factor), "+m"(term));  // hides the values from the compiler
  for (int c = 0; c < kChains; ++c) sum[c] = broadcast(float(c));
  for (int r = 0; r < repeats; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * factor + term;
  for (int c = 1; c < kChains; ++c) sum[0] += sum[c];
  return sum_lanes<float>(sum[0]);
}

double peak_rate() {
  constexpr int repeats = 200000;
  volatile float kept;
  return double(kChains) * repeats * Simd<float>::lanes / seconds([&] { kept = multiply_add(repeats); });
}

void serial(int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) { body(0, count, context); }

struct Stages {
  const Problem problem;
  TiledLayer<float> layer;
  const double inputs;

  explicit Stages(const Problem& p) : problem(p), layer(p), inputs(double(p.N) * double(p.I)) {
    layer.prepare(serial);
  }

  // `rows` is the number of multiply-adds per input and output, or 0 for a stage without any.
  void report(const char* name, double time, int rows) const {
    std::printf("%s\t%.6f\t%.6f\n", name, 1e3 * time, 1e-9 * rows * inputs * double(problem.O));
  }
};

void evaluation_stages(Stages& s, int64_t block, int64_t chunk, bool with_slopes, bool sorts, const char* what) {
  const Problem& p = s.problem;
  const int64_t group = s.layer.group_features(chunk);
  EvaluationScratch<float> scratch(s.layer, block, chunk, group, with_slopes, sorts);
  const auto blocks = [&](auto body) {
    for (int64_t n0 = 0; n0 < p.N; n0 += block)
      for (int64_t i0 = 0; i0 < p.I; i0 += chunk) body(n0, smaller(block, p.N - n0), i0, smaller(chunk, p.I - i0));
  };
  const double reading = seconds([&] {
    blocks([&](int64_t n0, int64_t rows, int64_t i0, int64_t features) { scratch.read(n0, rows, i0, features); });
  });
  const double both = seconds([&] {
    blocks([&](int64_t n0, int64_t rows, int64_t i0, int64_t features) {
      scratch.read(n0, rows, i0, features);
      for (int64_t f = 0; f < features; f += group) scratch.evaluate(f, smaller(group, features - f));
    });
  });
  char name[64];
  std::snprintf(name, sizeof name, "%s: read x", what);
  s.report(name, reading, 0);
  std::snprintf(name, sizeof name, "%s: evaluate%s", what, sorts ? " and sort" : "");
  s.report(name, both - reading, 0);
}

}  // namespace

int main(int argc, char** argv) {
  int64_t size[5] = {4096, 64, 64, 5, 3};
  for (int k = 0; k < 5 && k + 1 < argc; ++k) size[k] = std::atoll(argv[k + 1]);
  const auto [N, I, O, G, K] = size;
  std::mt19937 random(0);
  const auto draw = [&](Buffer<float>& values, float low, float high, int64_t count) {  // aligned like torch's tensors
    values.allocate(count);
    std::uniform_real_distribution<float> between(low, high);
    for (int64_t k = 0; k < count; ++k) values[k] = between(random);
  };
  Buffer<float> x, weight, base, g, grid, y(N * O), gradient(N * I), weight_gradient(O * I * (G + K)), base_gradient(O * I);
  draw(x, -1, 1, N * I);
  draw(weight, -1, 1, O * I * (G + K));
  draw(base, -1, 1, O * I);
  draw(g, -1, 1, N * O);
  const int64_t knots = G + 2 * K + 1;
  grid.allocate(I * knots);
  for (int64_t k = 0; k < I * knots; ++k) grid[k] = float(-1 + 2.0 * double(k % knots - K) / double(G));

  Problem p{};
  p.N = N, p.I = I, p.O = O, p.G = G, p.K = int(K);
  p.activation = Activation::silu;
  p.storage = p.grid_storage = Storage::float32;
  p.x = {x.data, {I, 1, 0}};
  p.spline_weight = {weight.data, {I * (G + K), G + K, 1}};
  p.base_weight = {base.data, {I, 1, 0}};
  p.edge_stride[0] = I, p.edge_stride[1] = 1;
  p.grid = {grid.data, {knots, 1, 0}};
  p.g = {g.data, {O, 1, 0}};

  Problem forward_problem = p, input_problem = p, weight_problem = p, both_problem = p;
  forward_problem.y = y.data;
  input_problem.derivative = 1;
  input_problem.input_gradient = both_problem.input_gradient = gradient.data;
  weight_problem.spline_weight_gradient = both_problem.spline_weight_gradient = weight_gradient.data;
  weight_problem.base_weight_gradient = both_problem.base_weight_gradient = base_gradient.data;
  both_problem.input_gradient_of_next_order = true;

  Stages s(p);
  constexpr double some = 1e9;
  std::printf("peak\t%.6f\t%.6f\n", 1e3 * some / peak_rate(), 1e-9 * some);
  const int live = s.layer.live;
  const double prepare = seconds([&] {
    TiledLayer<float> layer(p);
    layer.prepare(serial);
  });
  s.report("knot tables", prepare, 0);
  s.report("pack weights", seconds([&] { Coefficients<float>(s.layer, true, serial); }), 0);
  const int64_t rows = s.layer.block_rows(32);
  evaluation_stages(s, rows, smaller(I, kChunkFeatures), false, false, "one order");
  evaluation_stages(s, rows, smaller(I, kChunkFeatures), false, true, "one order");
  evaluation_stages(s, rows, smaller(I, 16), true, true, "two orders");
  s.report("spline_forward", seconds([&] { forward_any(forward_problem, serial); }), live + 1);
  s.report("spline_backward_input", seconds([&] { backward_any(input_problem, serial); }), live + 1);
  s.report("spline_backward_weight", seconds([&] { backward_any(weight_problem, serial); }), live + 1);
  s.report("spline_backward", seconds([&] { backward_any(both_problem, serial); }), 2 * (live + 1));
}
