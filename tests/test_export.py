"""Programs from torch.compile, torch.export, AOTInductor and ONNX compute the layer's values."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.export import Dim

import kan_kernels as kk

ROWS = (1, 7, 63, 129)
LIBRARY = next(iter(sorted(Path(kk.__file__).parent.glob("_C*.so"))), None)


@pytest.fixture
def net():
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
    return kk.KAN([3, 5, 2])


@pytest.fixture
def exported(net):
    return torch.export.export(net, (torch.randn(7, 3),), dynamic_shapes=({0: Dim("rows")},), strict=True)


def inputs(rows):
    return 1.5 * torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))


def test_one_graph_for_all_batch_sizes(net):
    """Inductor compiles one graph without breaks for all batch sizes, and its gradients equal the eager ones."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for rows in (7, 33, 64, 129, 8):
        x = inputs(rows).requires_grad_()
        leaves = [x, *net.parameters()]
        for value, expected in zip(
            [compiled(x), *torch.autograd.grad(compiled(x).sin().sum(), leaves)],
            [net(x), *torch.autograd.grad(net(x).sin().sum(), leaves)],
            strict=True,
        ):
            torch.testing.assert_close(value, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [True, False])
def test_export(net, strict):
    program = torch.export.export(net, (inputs(7),), dynamic_shapes=({0: Dim("rows")},), strict=strict)
    assert torch.ops.kan_kernels.spline_forward.default in {
        node.target for module in program.graph_module.modules() for node in module.graph.nodes
    }
    for rows in ROWS:
        torch.testing.assert_close(program.module()(inputs(rows)), net(inputs(rows)))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_trains(net, strict):
    """The gradients of an exported program equal the eager ones, also before and beside the KAN layers."""
    model = nn.ModuleDict({"before": nn.Linear(3, 3), "net": net, "after": nn.Linear(2, 1)})

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            h = self.parts["before"](x)
            return self.parts["after"](self.parts["net"](h) + h[:, :2])

    module = Residual()
    program = torch.export.export(module, (inputs(7),), strict=strict).module()
    for rebuilt in (program, torch.compile(program, backend="aot_eager")):
        module.zero_grad()
        module(inputs(7)).square().sum().backward()
        expected = {name: p.grad.clone() for name, p in module.named_parameters()}
        module.zero_grad()
        rebuilt(inputs(7)).square().sum().backward()
        for name, parameter in program.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name])
            parameter.grad = None


@pytest.mark.filterwarnings("ignore")
def test_jit_trace(net, tmp_path):
    """torch.jit.trace is deprecated, but still common in deployments."""
    torch.jit.save(torch.jit.trace(net, inputs(7)), tmp_path / "net.pt")
    loaded = torch.jit.load(tmp_path / "net.pt")
    for rows in ROWS:
        torch.testing.assert_close(loaded(inputs(rows)), net(inputs(rows)))
    loaded(inputs(7)).sum().backward()
    net(inputs(7)).sum().backward()
    for own, theirs in zip(loaded.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad)


def test_compiled_training_is_on_the_operators(net):
    """One operator computes all gradients of a layer, as in eager mode."""
    torch.compiler.reset()
    graphs = []

    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if "kan_kernels" in str(node.target)])
        return make_boxed_func(graph)

    x = inputs(7).requires_grad_()
    y = torch.compile(net, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(x)
    loss = y.square().sum() + torch.compile(
        lambda x: net.layers[0].edge_norms(x).sum() + net.layers[0].edge_norms(x, "std").sum(),
        backend=aot_autograd(fw_compiler=keep),
        fullgraph=True,
    )(x)
    loss.backward()
    counts = {name: sum(graph.count(name) for graph in graphs) for graph in graphs for name in graph}
    assert counts == {
        "kan_kernels.spline_forward.default": 2,
        "kan_kernels.spline_backward.default": 2,
        "kan_kernels.edge_l1.default": 1,
        "kan_kernels.edge_l1_backward.default": 1,
        "kan_kernels.basis_moments.default": 1,
        "kan_kernels.basis_moments_backward.default": 1,
        "kan_kernels.edge_std.default": 1,
        "kan_kernels.edge_std_backward.default": 1,
    }


ALONE = """
import sys, torch
torch.ops.load_library(sys.argv[1])  # all that is needed: it defines the operators too
model = torch._inductor.aoti_load_package(sys.argv[2])
for x, y in torch.load(sys.argv[3]):
    torch.testing.assert_close(model(x), y)
assert not any(name.startswith("kan_kernels") for name in sys.modules)
print("agreed")
"""


@pytest.mark.skipif(LIBRARY is None, reason="built without C++: the operators are then Python's")
@pytest.mark.filterwarnings("ignore")
def test_a_package_runs_without_this_one(net, exported, tmp_path):
    """An AOTInductor package runs in a process that loads the C++ library but not the Python package."""
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "net.pt2"))
    with torch.no_grad():
        torch.save([(inputs(rows), net(inputs(rows))) for rows in ROWS], tmp_path / "values.pt")
    command = [sys.executable, "-I", "-c", ALONE, str(LIBRARY), package, str(tmp_path / "values.pt")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout == "agreed\n", run.stderr


def check_onnx(path, net):
    """Check that the file has only standard operators and gives the net's values for several numbers of rows."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = runtime.InferenceSession(path)
    for rows in ROWS:
        (y,) = session.run(None, {session.get_inputs()[0].name: inputs(rows).numpy()})
        torch.testing.assert_close(torch.from_numpy(y), net(inputs(rows)), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", [torch.nn.SiLU, torch.nn.Identity, torch.nn.Tanh, None])
def test_onnx(tmp_path, base):
    net = kk.KAN([3, 5, 2], base_activation=base)
    program = torch.onnx.export(net, (inputs(7),), dynamo=True, dynamic_shapes=({0: Dim("rows")},), verbose=False)
    program.save(tmp_path / "net.onnx")
    check_onnx(tmp_path / "net.onnx", net)
    assert "dense formula" in kk.info().fallbacks["export to ONNX"]


@pytest.mark.filterwarnings("ignore")
def test_onnx_by_tracing(net, tmp_path):
    """The exporter that uses torch.jit is deprecated, but still common in deployments."""
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "rows"}}}
    torch.onnx.export(net, (inputs(7),), tmp_path / "net.onnx", dynamo=False, **names)
    check_onnx(tmp_path / "net.onnx", net)


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_an_exported_program(net, exported, tmp_path):
    """The reference's definition replaces the operators, as docs/export.md describes."""
    operators = torch.ops.kan_kernels
    dense = exported.run_decompositions({operators.spline_forward.default: kk.reference.spline_forward})
    torch.onnx.export(dense, dynamo=True, verbose=False).save(tmp_path / "net.onnx")
    check_onnx(tmp_path / "net.onnx", net)


@pytest.mark.filterwarnings("ignore")
def test_an_export_to_onnx_leaves_nothing_behind(net):
    """A program that is exported or traced after an export to ONNX calls the operators again."""
    torch.onnx.export(net, (inputs(7),), dynamo=True, verbose=False)
    program = torch.export.export(net, (inputs(7),))
    assert torch.ops.kan_kernels.spline_forward.default in {node.target for node in program.graph.nodes}
    assert "kan_kernels::spline_forward" in str(torch.jit.trace(net, inputs(7)).inlined_graph)
