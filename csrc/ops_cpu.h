// The operators on CPU tensors, with the signatures that the dispatcher calls.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace kan {

using torch::stable::Tensor;

Tensor spline_forward(const Tensor& x, const std::optional<Tensor>& w, const Tensor& spline_weight,
                      const std::optional<Tensor>& spline_scaler, const Tensor& grid,
                      const std::optional<Tensor>& base_weight, const std::string& activation, int64_t derivative);

Tensor spline_backward_input(const Tensor& x, const Tensor& g, const Tensor& spline_weight,
                             const std::optional<Tensor>& spline_scaler, const Tensor& grid,
                             const std::optional<Tensor>& base_weight, const std::string& activation,
                             int64_t derivative);

std::tuple<Tensor, Tensor, Tensor> spline_backward_weight(
    const Tensor& x, const std::optional<Tensor>& w, const Tensor& g, const std::optional<Tensor>& spline_weight,
    const std::optional<Tensor>& spline_scaler, const Tensor& grid, int64_t spline_order, const std::string& activation,
    int64_t derivative, bool need_spline_weight, bool need_spline_scaler, bool need_base_weight);

std::tuple<Tensor, Tensor, Tensor, Tensor> spline_backward(
    const Tensor& x, const std::optional<Tensor>& w, const Tensor& g, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
    const Tensor& grid, const std::optional<Tensor>& base_weight, const std::string& activation, int64_t derivative,
    bool need_spline_weight, bool need_spline_scaler, bool need_base_weight);

Tensor spline_channels(const Tensor& x, const Tensor& w, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
                       const Tensor& grid, const std::optional<Tensor>& base_weight, const std::string& activation,
                       const std::vector<int64_t>& channels, const std::vector<int64_t>& orders);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spline_channels_backward(
    const Tensor& x, const Tensor& w, const Tensor& g, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const Tensor& grid,
    const std::optional<Tensor>& base_weight, const std::string& activation, const std::vector<int64_t>& channels,
    const std::vector<int64_t>& orders, bool need_input, bool need_spline_weight, bool need_spline_scaler, bool need_base_weight);

Tensor edge_l1(const Tensor& x, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const Tensor& grid,
               const std::optional<Tensor>& base_weight, const std::string& activation);

std::tuple<Tensor, Tensor, Tensor, Tensor> edge_l1_backward(
    const Tensor& x, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const Tensor& grid,
    const std::optional<Tensor>& base_weight, const std::string& activation, const Tensor& r, bool need_input, bool need_spline_weight,
    bool need_spline_scaler, bool need_base_weight);

Tensor basis_moments(const Tensor& x, const Tensor& grid, int64_t spline_order, const std::string& activation);

Tensor basis_moments_backward(const Tensor& x, const Tensor& grid, int64_t spline_order, const std::string& activation,
                              const Tensor& r);

Tensor affine_cells(const Tensor& x, const Tensor& target, const std::string& function, const Tensor& a, const Tensor& b);

Tensor edge_std(const Tensor& moments, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
                const std::optional<Tensor>& base_weight, int64_t rows);

std::tuple<Tensor, Tensor, Tensor, Tensor> edge_std_backward(
    const Tensor& moments, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const std::optional<Tensor>& base_weight,
    int64_t rows, const Tensor& r, bool need_moments, bool need_spline_weight, bool need_spline_scaler, bool need_base_weight);

// Selects instruction set `level`: 0 is the baseline, 1 AVX2, 2 AVX-512. A negative level, or one that this processor does not
// support, changes nothing. Returns the level in use.
int select_instruction_set(int level);

}  // namespace kan
