"""The house's rules of who may import whom, read off the source (ARCHITECTURE.md)."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "feddgm_flwr"

FORBIDDEN_IN_CORE = {
    *("flwr", "ray", "diffusers", "mlxtend", "sklearn", "PIL", "safetensors", "matplotlib"),
    *("pathlib", "json", "csv", "tempfile", "shutil", "pickle", "sqlite3", "io"),
    *("feddgm_flwr.config", "feddgm_flwr.priors", "feddgm_flwr.methods", "feddgm_flwr.data"),
    *("feddgm_flwr.federation", "feddgm_flwr.monitoring", "feddgm_flwr.build"),
    *("feddgm_flwr.cluster", "client_app", "server_app"),
}

FORBIDDEN_ON_A_DEVICE = {
    "feddgm_flwr.core.algorithm",
    *(f"feddgm_flwr.core.distillation.{m}" for m in ("engine", "distill", "matching")),
    *(f"feddgm_flwr.federation.{m}" for m in ("keeper", "server", "screening", "checkpoint")),
    *("feddgm_flwr.federation.roster", "feddgm_flwr.federation.flower_strategies"),
    *("feddgm_flwr.build", "feddgm_flwr.cluster", "feddgm_flwr.priors.autoencoder"),
    *("diffusers", "torchvision", "ray", "matplotlib", "sklearn", "mlxtend", "flwr_dashboard"),
    *("opacus", "feddgm_flwr.core.accounting", "feddgm_flwr.auditing"),
    *("torch._dynamo", "sympy"),
}

ON_A_DEVICE = """
import sys
import client_app
from feddgm_flwr import methods
from feddgm_flwr.config import RunConfig
from feddgm_flwr.methods.halves import method_of

for name in methods.names():
    method_of(name).client(RunConfig(method=name))

import torch
from feddgm_flwr.core.training import TrainConfig, train

images, labels, rng = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.Generator()
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
train(model, images, labels, TrainConfig(momentum=0.5), rng=rng)
print(*sys.modules)
"""
"""All that a device does before its first image, for every method, and a first epoch."""


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(f): f for f in (*PACKAGE.rglob("*.py"), ROOT / "client_app.py", ROOT / "server_app.py")
}
CORE = sorted(name for name in FILES if name.split(".")[:2] == ["feddgm_flwr", "core"])
PARSED = {name: ast.parse(file.read_text()) for name, file in FILES.items()}


def imports(name: str, *, lazy: bool) -> set[str]:
    """Return every module that ``name`` imports; ``lazy`` counts those inside functions."""
    tree = PARSED[name]
    found: set[str] = set()
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in inside and not lazy:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def touches(name: str, package: str, *, lazy: bool = True) -> bool:
    modules = imports(name, lazy=lazy)
    return any(m == package or m.startswith(package + ".") for m in modules)


def under(*prefixes: str) -> set[str]:
    return {name for name in FILES if any(name == p or name.startswith(p + ".") for p in prefixes)}


def users(package: str) -> set[str]:
    return {name for name in FILES if touches(name, package)}


@pytest.mark.parametrize("module", CORE)
def test_the_core_knows_no_flower_no_data_set_and_no_file(module):
    assert {p for p in FORBIDDEN_IN_CORE if touches(module, p)} == set()
    calls = {
        node.func.id
        for node in ast.walk(PARSED[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print"}


def test_flower_is_known_to_the_apps_and_the_federation_alone():
    allowed = under("client_app", "server_app", "feddgm_flwr.federation")
    assert users("flwr") <= allowed
    assert users("flwr")


def test_diffusers_is_known_to_the_generators_alone():
    assert users("diffusers") <= under("feddgm_flwr.priors")


def test_torchvision_is_known_to_models_augmentation_and_data_alone():
    allowed = under("feddgm_flwr.core.models", "feddgm_flwr.core.augment", "feddgm_flwr.data")
    assert users("torchvision") <= allowed


def test_ray_is_known_to_the_cluster_engine_alone():
    assert users("ray") <= under("feddgm_flwr.cluster")


def test_the_federation_is_known_to_the_apps_alone():
    """But for its settings, for Flower's own arithmetic, and for an audit, which reads a folder."""
    allowed = under("client_app", "server_app", "feddgm_flwr.federation")
    assert users("feddgm_flwr.federation") - allowed == {
        "feddgm_flwr.config",
        "feddgm_flwr.methods.flowers",
        "feddgm_flwr.auditing.subject",
    }
    for name, module in (("config", "settings"), ("methods.flowers", "flower_strategies")):
        used = imports(f"feddgm_flwr.{name}", lazy=True)
        known = {m for m in used if m in under("feddgm_flwr.federation")}
        assert known == {f"feddgm_flwr.federation.{module}"}
    assert not touches("feddgm_flwr.methods.flowers", "feddgm_flwr.federation", lazy=False)


def test_no_method_knows_flower():
    methods = under("feddgm_flwr.methods")
    assert len(methods) > 4
    assert not users("flwr") & methods


def test_a_whole_config_never_reaches_the_core():
    for name in CORE:
        said = {n.id for n in ast.walk(PARSED[name]) if isinstance(n, ast.Name)}
        assert "RunConfig" not in said, name


def test_events_know_the_standard_library_alone():
    used = {m.split(".")[0] for m in imports("feddgm_flwr.events", lazy=True)}
    assert used <= set(sys.stdlib_module_names)


def test_a_device_loads_neither_the_servers_half_nor_anything_heavy():
    command = [sys.executable, "-c", ON_A_DEVICE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    ours = {m for m in loaded if m.split(".")[0] == "feddgm_flwr"}
    print(f"a device loads {len(ours)} modules of feddgm_flwr")
    assert "client_app" in loaded
    assert "feddgm_flwr.methods.scaffold" in ours
    assert not loaded & FORBIDDEN_ON_A_DEVICE
    assert not {m for m in ours if m.startswith("feddgm_flwr.monitoring")}


def test_the_dashboard_only_reads_what_events_wrote():
    for name in under("feddgm_flwr.monitoring"):
        used = {m for m in CORE if m != "feddgm_flwr.core" and touches(name, m)}
        values = ("synthetic", "images", "distillation", "distillation.glimpse")
        assert used <= {f"feddgm_flwr.core.{value}" for value in values}, name


@pytest.mark.parametrize("lazy", [False, True])
def test_there_are_no_circles(lazy):
    graph = {
        name: {m for m in imports(name, lazy=lazy) if m in FILES and m != name} for name in FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {error.args[1]}")


def test_no_module_is_a_drawer():
    names = {file.name for file in FILES.values()}
    assert not names & {"utils.py", "util.py", "base.py", "common.py", "helpers.py", "misc.py"}


def test_every_module_says_what_it_is():
    assert [name for name, tree in PARSED.items() if not ast.get_docstring(tree)] == []


@pytest.mark.parametrize("heavy", ["diffusers", "torchvision", "matplotlib", "sklearn", "ray"])
def test_heavy_packages_are_imported_when_they_are_used(heavy):
    always = {name for name in FILES if touches(name, heavy, lazy=False)}
    allowed = under("feddgm_flwr.priors", "feddgm_flwr.monitoring", "feddgm_flwr.cluster")
    assert always <= allowed


def test_the_package_root_imports_nothing_of_weight():
    modules = imports("feddgm_flwr", lazy=False)
    assert {m.split(".")[0] for m in modules} <= {*sys.stdlib_module_names, "feddgm_flwr"}


def test_nothing_that_runs_in_a_round_uses_global_randomness():
    """No ``torch.manual_seed(...)``, ``np.random.rand(...)``, ``random.choice(...)``."""
    makers = {"default_rng", "SeedSequence", "Generator", "Random", "SystemRandom"}
    said = [
        f"{name}:{node.lineno}"
        for name in set(FILES) - under("feddgm_flwr.priors.pretraining")
        for node in ast.walk(PARSED[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) in {"np.random", "random", "torch.random"}
        | ({"torch"} if node.func.attr in {"manual_seed", "seed"} else set())
        and node.func.attr not in makers
    ]  # fmt: skip
    assert said == []


def test_every_draw_of_torch_names_its_generator():
    draws = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"}
    said = [
        f"{name}:{node.lineno}"
        for name, tree in PARSED.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {f"torch.{d}" for d in draws}
        and not any(k.arg == "generator" for k in node.keywords)
    ]
    assert said == []
