"""Write efficient_kan.json, which contains results of efficient-kan's layer, computed from its description alone.

The script uses only numpy and scipy, in float64, so that the results do not depend on torch or on code of this project.

    python make_efficient_kan.py [path of the file to write]

The symbols for sizes are N (rows), I (in_features), O (out_features), G (grid_size), K (spline_order) and M = G + K (bases).
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.interpolate import BSpline


def uniform_grid(I, G, K):  # noqa: E741
    """Return the knots (I, G+2K+1), arange(-K, G+K+1) h + low over [-1, 1]. They are the same for every feature."""
    return np.tile(np.arange(-K, G + K + 1) * (2 / G) - 1, (I, 1))


def data_grid(x, G, K, grid_eps, margin):
    """Return the knots (I, G+2K+1) of `update_grid`.

    They are a weighted mean of sorted rows at truncated equidistant positions and of equidistant knots.
    """
    rows = np.sort(x, axis=0)
    adaptive = rows[np.linspace(0, len(x) - 1, G + 1).astype(np.int64)]
    step = (rows[-1] - rows[0] + 2 * margin) / G
    uniform = np.arange(G + 1)[:, None] * step + rows[0] - margin
    inner = grid_eps * uniform + (1 - grid_eps) * adaptive
    beyond = np.arange(1, K + 1)[:, None] * step
    return np.concatenate([inner[0] - beyond[::-1], inner, inner[-1] + beyond]).T


def points(rng, grid, K):
    """Return inputs (N, I) with N = 9, shuffled.

    Every feature has 2 inputs in the grid range, 3 on knots, 2 between the range and the outermost knots, and 2 beyond.
    """
    columns = []
    for i, t in enumerate(grid):
        low, high = t[K], t[-K - 1]
        on_knots = [t[K + 1 + i], t[-1], (t[0], low, high)[i % 3]]
        between = [rng.uniform(t[0], low), rng.uniform(high, t[-1])]
        beyond = [t[0] - rng.uniform(0, 2), t[-1] + rng.uniform(0, 2)]
        columns.append([*rng.uniform(low, high, 2), *on_knots, *between, *beyond])
    return rng.permuted(np.array(columns).T, axis=0)


def bases(x, grid, K, derivative=0):
    """Return the bases or their derivatives (N, I, M). A basis is 0 outside of its half-open support t_m <= x < t_{m+K+1}.

    scipy uses t_j <= x < t_{j+1} as well, but it closes the last interval. The function therefore evaluates every basis alone.
    """
    values = np.zeros((*x.shape, grid.shape[1] - K - 1))
    for i, m in np.ndindex(values.shape[1:]):
        t = grid[i, m : m + K + 2]
        element = BSpline.basis_element(t, extrapolate=False)
        support = (t[0] <= x[:, i]) & (x[:, i] < t[-1])
        values[support, i, m] = (element.derivative() if derivative else element)(x[support, i])
    return values


def regularization_loss(spline_weight, activation, entropy):
    """Return activation times the sum of the edges' mean |spline_weight| plus entropy times the entropy of their shares."""
    edges = np.abs(spline_weight).mean(-1)
    shares = edges / edges.sum()
    return activation * edges.sum() - entropy * (shares * np.log(shares)).sum()


def layer(rng, O, G, K, grid, scaled=True):  # noqa: E741
    """Return a layer's state, inputs x, outputs y and the gradients of sum(y g)."""
    x = points(rng, grid, K)
    g = rng.standard_normal((len(x), O))
    state = {
        "base_weight": rng.standard_normal((O, len(grid))),
        "spline_weight": rng.standard_normal((O, len(grid), G + K)),
        "spline_scaler": rng.standard_normal((O, len(grid))),
        "grid": grid,
    }
    if not scaled:
        del state["spline_scaler"]
    scaler = state.get("spline_scaler", np.ones((O, len(grid))))
    weight = state["spline_weight"] * scaler[..., None]

    sigmoid = 1 / (1 + np.exp(-x))
    silu, silu_slope = x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))
    values, slopes = bases(x, grid, K), bases(x, grid, K, derivative=1)
    y = silu @ state["base_weight"].T + np.einsum("nim,oim->no", values, weight)
    by_weight = np.einsum("no,nim->oim", g, values)  # the gradient of the scaled spline_weight
    gradients = {
        "x": silu_slope * (g @ state["base_weight"]) + np.einsum("no,nim,oim->ni", g, slopes, weight),
        "base_weight": g.T @ silu,
        "spline_weight": by_weight * scaler[..., None],
        "spline_scaler": (by_weight * state["spline_weight"]).sum(-1),
    }
    if not scaled:
        del gradients["spline_scaler"]
    losses = [(a, e, regularization_loss(state["spline_weight"], a, e)) for a, e in ((1.0, 1.0), (2.0, 0.5))]
    sizes = {"grid_size": G, "spline_order": K}
    return sizes | {"state": state, "x": x, "g": g, "y": y, "gradients": gradients, "regularization_loss": losses}


def golden():
    """Return the contents of the file as dicts of numbers and arrays."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((57, 3))
    layers = {
        "cubic": layer(rng, 2, 5, 3, uniform_grid(3, 5, 3)),
        "quadratic, one feature": layer(rng, 7, 7, 2, uniform_grid(1, 7, 2)),
        "linear, no scaler": layer(rng, 3, 4, 1, uniform_grid(2, 4, 1), scaled=False),
        "cubic, adaptive knots": layer(rng, 2, 5, 3, data_grid(rng.standard_normal((40, 2)), 5, 3, 0.02, 0.01)),
    }
    grids = {str(grid_eps): data_grid(sample, 5, 3, grid_eps, 0.01) for grid_eps in (0.02, 0.3)}
    return {"layers": layers, "update_grid": {"grid_size": 5, "spline_order": 3, "x": sample, "grids": grids}}


def text(tree, indent=""):
    """Return JSON with a line for every array. It represents every float exactly."""
    if isinstance(tree, dict):
        lines = [f"{indent} {json.dumps(name)}: {text(value, indent + ' ')}" for name, value in tree.items()]
        return "{\n" + ",\n".join(lines) + "\n" + indent + "}"
    return json.dumps(np.asarray(tree).tolist())


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("efficient_kan.json")
    path.write_text(text(golden()) + "\n")
