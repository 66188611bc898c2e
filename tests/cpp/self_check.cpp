// Compares every operator of the baseline kernels with scalar loops in double, without torch, for processors on which the Python
// tests do not run (`make test-aarch64`). Prints the largest error of every operator and exits with 1 if one is too large.
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>

#include "problem.h"
#include "scalar.h"

#define KAN_NAMESPACE kan_self_check
#define KAN_VECTOR_BYTES 16
#include "kernels/double_double.inl"

namespace {

using kan::Activation;
using kan::Operand;
using kan::Problem;
using kan::Storage;
using scalar::Layer;
using scalar::Sums;
using scalar::Values;

// Convert one element to and from a storage type. `encode` expects a number that the type represents exactly.
void encode(Storage storage, double value, char* to) {
  const float single = float(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  const uint16_t bfloat16 = uint16_t(bits >> 16), sign = uint16_t(bits >> 16 & 0x8000);
  const uint16_t float16 = value == 0 ? sign : uint16_t(sign | ((bits & 0x7fffffff) - 0x38000000) >> 13);
  switch (storage) {
    case Storage::float64: std::memcpy(to, &value, 8); break;
    case Storage::float32: std::memcpy(to, &single, 4); break;
    case Storage::bfloat16: std::memcpy(to, &bfloat16, 2); break;
    case Storage::float16: std::memcpy(to, &float16, 2); break;
  }
}
double decode(Storage storage, const char* from) {
  double value;
  float single;
  uint16_t half;
  std::memcpy(&half, from, 2);
  const uint32_t bits = uint32_t(half) << 16;
  switch (storage) {
    case Storage::float64: std::memcpy(&value, from, 8); return value;
    case Storage::float32: std::memcpy(&single, from, 4); return single;
    case Storage::bfloat16: std::memcpy(&single, &bits, 4); return single;
    case Storage::float16: break;
  }
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return NAN;
  value = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -value : value;
}
int64_t bytes_of(Storage storage) { return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2; }
double eps_of(Storage storage) {
  switch (storage) {
    case Storage::float64: return std::ldexp(1, -52);
    case Storage::float32: return std::ldexp(1, -23);
    case Storage::bfloat16: return std::ldexp(1, -7);
    case Storage::float16: return std::ldexp(1, -10);
  }
  return 0;
}

// A tensor in memory. Its elements are NaN until they are written.
struct Tensor {
  Storage storage;
  std::vector<char> bytes;
  Tensor(Storage storage_, int64_t count) : storage(storage_), bytes(count * bytes_of(storage_), char(0xff)) {}
  Tensor(Storage storage_, const Values& values) : Tensor(storage_, int64_t(values.size())) {
    for (size_t k = 0; k < values.size(); ++k) encode(storage, values[k], &bytes[k * bytes_of(storage)]);
  }
  double operator[](int64_t k) const { return decode(storage, &bytes[k * bytes_of(storage)]); }
};

struct Case {
  const char* name;
  int64_t N, I, O, G;
  int K, derivative;
  Storage storage;
  Activation activation = Activation::silu;
  bool adaptive = false, has_w = false, has_scaler = true, has_base = true, features_first = false;
};

Layer make(const Case& c, std::mt19937& random) {
  // All numbers are multiples of 1/64, which every storage type represents exactly, and some inputs equal knots.
  const auto draw = [&](int64_t count, int largest) {
    Values values(count);
    for (double& value : values) value = (int(random() % (2 * largest + 1)) - largest) / 64.0;
    return values;
  };
  Layer l{c.N, c.I, c.O, c.G, c.K, c.derivative, c.activation, {}, {}, {}, {}, {}, {}, {}, {}};
  l.x = draw(c.N * c.I, 80);  // some inputs are outside the grid range
  l.spline_weight = draw(c.O * c.I * l.M(), 127);
  if (c.has_w) l.w = draw(c.N * c.I, 127);
  if (c.has_scaler) l.spline_scaler = draw(c.O * c.I, 127);
  if (c.has_base) l.base_weight = draw(c.O * c.I, 127);
  l.g = draw(c.N * c.O, 127);
  l.edge_weight = draw(c.O * c.I, 127);
  const int64_t knots = c.G + 2 * c.K + 1;
  for (int64_t i = 0; i < c.I; ++i)
    for (int64_t k = 0; k < knots; ++k) {
      const double moved = c.adaptive ? double(random() % 64) / 200 : 0;  // relative to the distance of two knots
      l.grid.push_back(float(-1 + 2 * (double(k - c.K) + moved) / double(c.G)));
    }
  return l;
}

constexpr double kAllowed = 12;  // in eps of the storage type times the largest sum of |terms| of any element

// Collects the largest error of every operator, in the unit of kAllowed.
struct Report {
  std::map<std::string, double> worst;
  bool failed = false;

  void compare(const std::string& op, const Case& c, const Sums& exact, const Tensor& result) {
    double largest = 0, error = 0;
    for (size_t k = 0; k < exact.value.size(); ++k) {
      largest = std::fmax(largest, exact.size[k]);
      const double difference = std::fabs(result[int64_t(k)] - exact.value[k]);
      error = std::fmax(error, std::isnan(difference) ? INFINITY : difference);
    }
    note(op, c.name, error == 0 ? 0 : error / (largest * eps_of(result.storage)));
  }
  void note(const std::string& op, const char* where, double error) {
    worst[op] = std::fmax(worst[op], error);
    if (error <= kAllowed) return;
    failed = true;
    std::printf("FAILED: %s, %s: an error of %.1f eps, allowed are %.0f\n", where, op.c_str(), error, kAllowed);
  }
};

void in_two_parts(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t half = count > grain ? count / 2 : 0;
  if (half > 0) body(0, half, context);
  if (count > half) body(half, count, context);
}

// Runs the operators on one case and compares them with the scalar loops.
class Check {
  const Case& c;
  const Layer l;
  Report& report;
  const int64_t edges, M;
  const Tensor x, w, spline_weight, spline_scaler, base_weight, grid, g, edge_weight;
  Problem layer{}, of_g{};  // layer: the operands that every operator reads; of_g: these, w and g

  static constexpr const kan::KernelSet& kernels = kan::kBaselineKernels;

  // Returns values (O, I, per_edge) in the memory order of the case.
  Values laid_out(const Values& values, int64_t per_edge) const {
    if (!c.features_first) return values;
    Values result(values.size());
    for (int64_t k = 0; k < int64_t(values.size()); ++k) result[place(k, per_edge)] = values[k];
    return result;
  }
  int64_t place(int64_t k, int64_t per_edge) const {
    const int64_t o = k / per_edge / l.I, i = k / per_edge % l.I;
    return (c.features_first ? i * l.O + o : o * l.I + i) * per_edge + k % per_edge;
  }
  Sums laid_out(const Sums& sums, int64_t per_edge) const {
    Sums result(int64_t(sums.value.size()));
    result.value = laid_out(sums.value, per_edge), result.size = laid_out(sums.size, per_edge);
    return result;
  }
  static Operand operand(const Tensor& tensor, int64_t stride0, int64_t stride1, int64_t stride2 = 0) {
    return {tensor.bytes.empty() ? nullptr : tensor.bytes.data(), {stride0, stride1, stride2}};
  }
  Tensor result(int64_t count) const { return Tensor(c.storage, count); }

 public:
  Check(const Case& c_, std::mt19937& random, Report& report_)
      : c(c_), l(make(c, random)), report(report_), edges(l.O * l.I), M(l.M()), x(c.storage, l.x), w(c.storage, l.w),
        spline_weight(c.storage, laid_out(l.spline_weight, M)), spline_scaler(c.storage, laid_out(l.spline_scaler, 1)),
        base_weight(c.storage, laid_out(l.base_weight, 1)),
        grid(c.storage == Storage::float64 ? Storage::float64 : Storage::float32, l.grid), g(c.storage, l.g),
        edge_weight(c.storage, l.edge_weight) {
    const int64_t knots = l.G + 2 * l.K + 1, of_o = c.features_first ? 1 : l.I, of_i = c.features_first ? l.O : 1;
    layer.N = l.N, layer.I = l.I, layer.O = l.O, layer.G = l.G, layer.K = l.K;
    layer.derivative = l.derivative;
    layer.activation = l.activation;
    layer.storage = c.storage, layer.grid_storage = grid.storage;
    layer.x = operand(x, l.I, 1);
    layer.spline_weight = operand(spline_weight, of_o * M, of_i * M, 1);
    layer.spline_scaler = operand(spline_scaler, of_o, of_i);
    layer.base_weight = operand(base_weight, of_o, of_i);
    layer.grid = operand(grid, knots, 1);
    layer.edge_stride[0] = of_o, layer.edge_stride[1] = of_i;
    of_g = layer;
    of_g.w = operand(w, l.I, 1);
    of_g.g = operand(g, l.O, 1);
  }

  void run() {
    forward();
    input_gradient();
    const auto factor = [&](int64_t n, int64_t o, int64_t) { return l.g[n * l.O + o]; };
    weight_gradients("spline_backward_weight", of_g, false, l.derivative, factor);
    weight_gradients("spline_backward", of_g, true, l.derivative + 1, factor);
    if (l.derivative > 0 || c.has_w) return;
    edge_l1();
    moments();
    edge_std();
  }

 private:
  void forward() {
    Problem p = of_g;
    Tensor y = result(l.N * l.O);
    p.y = y.bytes.data();
    kernels.forward(p, in_two_parts);
    report.compare("spline_forward", c, scalar::forward(l), y);
  }

  void input_gradient() {
    Problem p = of_g;
    p.w = {};
    Tensor gradient = result(l.N * l.I);
    p.input_gradient = gradient.bytes.data();
    kernels.backward(p, in_two_parts);
    Layer unweighted = l;
    unweighted.w.clear();
    const auto factor = [&](int64_t n, int64_t o, int64_t) { return l.g[n * l.O + o]; };
    report.compare("spline_backward_input", c, scalar::gradients(unweighted, l.derivative, factor).input, gradient);
  }

  // Checks the gradients of the weights and, if `with_input`, of the inputs.
  template <class Factor>
  void weight_gradients(const std::string& op, Problem p, bool with_input, int input_derivative, const Factor& factor) {
    Tensor input = result(with_input ? l.N * l.I : 0), spline = result(edges * M), scaler = result(c.has_scaler ? edges : 0),
           base = result(c.has_base ? edges : 0);
    if (with_input) p.input_gradient = input.bytes.data();
    p.input_gradient_of_next_order = with_input;
    p.spline_weight_gradient = spline.bytes.data();
    if (c.has_scaler) p.spline_scaler_gradient = scaler.bytes.data();
    if (c.has_base) p.base_weight_gradient = base.bytes.data();
    kernels.backward(p, in_two_parts);
    compare_gradients(op, scalar::gradients(l, input_derivative, factor), with_input ? &input : nullptr, spline, scaler, base);
  }
  void compare_gradients(const std::string& op, const scalar::Gradients& exact, const Tensor* input, const Tensor& spline,
                         const Tensor& scaler, const Tensor& base) {
    if (input != nullptr) report.compare(op + ", x", c, exact.input, *input);
    report.compare(op + ", spline_weight", c, laid_out(exact.spline_weight, M), spline);
    if (c.has_scaler) report.compare(op + ", spline_scaler", c, laid_out(exact.spline_scaler, 1), scaler);
    if (c.has_base) report.compare(op + ", base_weight", c, laid_out(exact.base_weight, 1), base);
  }

  void edge_l1() {
    const Sums phi = scalar::edges(l);
    Problem p = layer;
    Tensor norms = result(edges);
    p.edge_l1 = norms.bytes.data();
    kernels.edge_l1(p, in_two_parts);
    report.compare("edge_l1", c, scalar::edge_l1(l, phi), norms);

    p = layer;
    p.edge_weight = operand(edge_weight, l.I, 1);
    weight_gradients("edge_l1_backward", p, true, 1, [&](int64_t n, int64_t o, int64_t i) {
      const double value = phi.value[(n * l.O + o) * l.I + i];
      return l.edge_weight[o * l.I + i] / double(l.N) * ((value > 0) - (value < 0));
    });
  }

  void moments() {
    const int64_t count = l.I * (M + 2) * (l.K + 4);
    Problem p = layer;
    p.O = 1;
    Tensor sums(Storage::float64, count);
    p.moments = reinterpret_cast<double*>(sums.bytes.data());
    kernels.moments(p, in_two_parts);
    report.compare("basis_moments", c, scalar::moments(l), sums);

    Values weight(count);
    for (int64_t k = 0; k < count; ++k) weight[k] = double(k * 37 % 101) / 64 - 0.7;
    p.moments = nullptr;
    p.moment_weight = weight.data();
    p.input_gradient_of_next_order = true;
    Tensor gradient = result(l.N * l.I);
    p.input_gradient = gradient.bytes.data();
    kernels.moments_backward(p, in_two_parts);
    report.compare("basis_moments_backward", c, scalar::moments_backward(l, weight), gradient);
  }

  // Takes the moments from the kernels. Checks the gradient of the moments through the gradient of the inputs.
  void edge_std() {
    const auto [mean, spread] = scalar::edge_std(l, scalar::edges(l));
    Problem p = layer;
    p.O = 1;
    Values sums(l.I * (M + 2) * (l.K + 4)), of_sums(sums.size(), NAN);
    p.moments = sums.data();
    kernels.moments(p, in_two_parts);

    Problem edge = layer;
    edge.x = edge.grid = {};
    edge.of_moments = sums.data();
    Tensor deviations = result(edges);
    edge.edge_std = deviations.bytes.data();
    kernels.edge_std(edge, in_two_parts);
    report.compare("edge_std", c, spread, deviations);

    edge.edge_std = nullptr;
    edge.edge_weight = operand(edge_weight, l.I, 1);
    edge.moments = of_sums.data();
    Tensor spline = result(edges * M), scaler = result(c.has_scaler ? edges : 0), base = result(c.has_base ? edges : 0);
    edge.spline_weight_gradient = spline.bytes.data();
    if (c.has_scaler) edge.spline_scaler_gradient = scaler.bytes.data();
    if (c.has_base) edge.base_weight_gradient = base.bytes.data();
    kernels.edge_std(edge, in_two_parts);

    p.moments = nullptr;
    p.moment_weight = of_sums.data();
    p.input_gradient_of_next_order = true;
    Tensor input = result(l.N * l.I);
    p.input_gradient = input.bytes.data();
    kernels.moments_backward(p, in_two_parts);
    const Sums phi = scalar::edges(l);
    const auto exact = scalar::gradients(l, 1, [&, &mean = mean, &spread = spread](int64_t n, int64_t o, int64_t i) {
      const int64_t at = o * l.I + i;
      return l.edge_weight[at] * (phi.value[n * edges + at] - mean[at]) / (spread.value[at] * double(l.N - 1));
    });
    compare_gradients("edge_std_backward", exact, &input, spline, scaler, base);
  }
};

// Compares double-double with long double. The tolerance allows for processors whose long double is less precise.
void check_double_double(std::mt19937& random, Report& report) {
  using kan_self_check::DoubleDouble;
  const double eps = std::fmax(std::ldexp(1, -100), 4 * double(std::numeric_limits<long double>::epsilon()));
  const auto draw = [&] { return double(random()) / 1e9 - 2; };
  double worst = 0;
  for (int k = 0; k < 1000; ++k) {
    const double a = draw(), b = draw(), c = draw(), d = draw();
    const DoubleDouble value = (DoubleDouble(a) * b - c) / d + DoubleDouble(b) / c * (a - DoubleDouble(d));
    const long double exact = ((long double)(a) * b - c) / d + (long double)(b) / c * (a - (long double)(d));
    const double size = (std::fabs(a * b) + std::fabs(c)) / std::fabs(d) + std::fabs(b / c) * (std::fabs(a) + std::fabs(d));
    worst = std::fmax(worst, std::fabs(double((exact - value.high) - value.low)) / size / eps);
  }
  report.note("double-double arithmetic", "random numbers", worst);
}

constexpr Storage f64 = Storage::float64, f32 = Storage::float32, bf16 = Storage::bfloat16, f16 = Storage::float16;
constexpr Activation silu = Activation::silu, identity = Activation::identity;

// Name, N, I, O, G, K, derivative, storage, activation, adaptive, has_w, has_scaler, has_base, features_first.
const Case kCases[] = {
    {"float64", 70, 3, 5, 5, 3, 0, f64},
    {"float64, adaptive knots", 70, 3, 5, 5, 3, 0, f64, silu, true},
    {"float32, adaptive knots", 70, 3, 5, 6, 3, 0, f32, silu, true},
    {"float32, several chunks, tiles and blocks of rows", 300, 40, 70, 4, 2, 0, f32},
    {"float32, fine grid", 300, 2, 9, 60, 3, 0, f32, silu, true},
    {"few rows", 3, 7, 9, 5, 3, 0, f32},
    {"one row, float64", 1, 7, 9, 5, 3, 0, f64, silu, false, true},
    {"one output, one feature", 50, 1, 1, 8, 3, 0, f32},
    {"weights of features first", 40, 5, 6, 5, 3, 0, f32, silu, false, false, true, true, true},
    {"bfloat16", 40, 5, 6, 4, 3, 0, bf16},
    {"float16", 40, 5, 6, 4, 3, 0, f16},
    {"degree 0", 40, 4, 6, 8, 0, 0, f64},
    {"degree 1, identity, no scaler", 40, 4, 6, 8, 1, 0, f32, identity, true, false, false},
    {"degree 5, no base", 40, 4, 6, 7, 5, 0, f64, silu, true, false, true, false},
    {"degree 9, without its own loops", 40, 4, 6, 6, 9, 0, f64},
    {"first derivative, w", 70, 3, 5, 5, 3, 1, f64, silu, true, true},
    {"second derivative, w", 70, 3, 5, 5, 3, 2, f32, silu, false, true},
    {"third derivative of degree 5", 70, 3, 5, 5, 5, 3, f64, silu, true},
    {"fourth derivative of degree 3", 70, 3, 5, 5, 3, 4, f64},
};

}  // namespace

int main() {
  std::mt19937 random(0);
  Report report;
  check_double_double(random, report);
  for (const Case& c : kCases) Check(c, random, report).run();
  for (const auto& [op, error] : report.worst) std::printf("%-40s %8.2f eps\n", op.c_str(), error);
  const char* verdict = report.failed ? "FAILED" : "all operators agree with the scalar loops";
  std::printf("%zu cases: %s\n", sizeof kCases / sizeof *kCases, verdict);
  return report.failed;
}
