// A number stored as the sum of two doubles, with about 32 digits, for processors whose long double is emulated in software or no
// wider than double.
// T. J. Dekker, "A floating-point technique for extending the available precision", 1971.
#pragma once

#include "namespace.inl"

namespace KAN_NAMESPACE {
namespace {

struct DoubleDouble {
  double high = 0, low = 0;  // low is at most half a unit in the last place of high

  DoubleDouble() = default;
  DoubleDouble(double value) : high(value) {}
  explicit operator double() const { return high; }

  friend DoubleDouble operator+(DoubleDouble a, DoubleDouble b) {
    const double sum = a.high + b.high, of_b = sum - a.high;
    return normalised(sum, (a.high - (sum - of_b)) + (b.high - of_b) + (a.low + b.low));
  }
  friend DoubleDouble operator-(DoubleDouble a) {
    a.high = -a.high, a.low = -a.low;
    return a;
  }
  friend DoubleDouble operator-(DoubleDouble a, DoubleDouble b) { return a + -b; }
  friend DoubleDouble operator*(DoubleDouble a, DoubleDouble b) {
    const double product = __builtin_fma(a.high, b.high, 0.0);  // a compiler may fuse a plain product with a later sum
    return normalised(product, __builtin_fma(a.high, b.high, -product) + (a.high * b.low + a.low * b.high));
  }
  friend DoubleDouble operator/(DoubleDouble a, DoubleDouble b) {
    const double quotient = a.high / b.high;
    const DoubleDouble rest = a - b * quotient;
    return normalised(quotient, rest.high / b.high);
  }
  friend bool operator>(DoubleDouble a, DoubleDouble b) { return a.high > b.high || (a.high == b.high && a.low > b.low); }
  DoubleDouble& operator+=(DoubleDouble other) { return *this = *this + other; }
  DoubleDouble& operator*=(DoubleDouble other) { return *this = *this * other; }

 private:
  static DoubleDouble normalised(double high, double low) {
    DoubleDouble result(high + low);
    result.low = low - (result.high - high);
    return result;
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
