"""Apple GPUs: no float64, and no operation that torch has not there, in any stage of any kind of model.

Nothing here runs on one. What a patched model does beyond the unpatched one is watched on a CPU, and held against
torch's own list of the operations that its MPS backend has.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchgen.gen import get_grouped_native_functions, parse_native_yaml
from torchgen.model import DispatchKey, NativeFunctionsGroup

from algm_patch import apply_algm, calibrate, remove_algm, tune
from tests.support.batches import unlike
from tests.support.cases import CASES
from tests.support.models import build, photo

BY_THRESHOLD: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "tau": "auto"}
BY_COUNT = {"clap_layer": 1, "gbm_layers": [2], "merge_to": 0.6}


@cache
def missing():
    """Return the names, with overload, of the operations that the installed torch has on a CPU and not on MPS."""
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    kernels = {key: parsed.backend_indices[key] for key in (DispatchKey.CPU, DispatchKey.MPS)}
    found = set()
    for group in get_grouped_native_functions(parsed.native_functions):
        functions = list(group.functions()) if isinstance(group, NativeFunctionsGroup) else [group]
        there = {key: any(index.has_kernel(function) for function in functions) for key, index in kernels.items()}
        if there[DispatchKey.CPU] and not there[DispatchKey.MPS]:
            found |= {str(function.func.name) for function in functions}
    return {name for name in found if "for_cpu" not in name}  # what fused attention calls on a CPU


class Watch(TorchDispatchMode):
    """Notes the operations, and refuses those that Apple GPUs do not do.

    Args:
        usual: operations to accept all the same; None: refuse none.
    """

    def __init__(self, usual=()):
        super().__init__()
        self.seen, self.usual = set(), usual

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        dtypes = [x.dtype for x in tree_leaves((args, kwargs, output)) if isinstance(x, Tensor)]
        name, overload = function._schema.name.removeprefix("aten::"), function._schema.overload_name
        name = f"{name}.{overload}" if overload else name
        self.seen |= {name, f"{name} in float64"} if torch.float64 in dtypes else {name}
        if self.usual is not None and name not in self.usual:
            assert name not in missing(), f"{name} is not on MPS"
        if self.usual is not None:
            assert torch.float64 not in dtypes or f"{name} in float64" in self.usual, f"float64 in {name}"
            least = name.startswith(("scatter_reduce", "index_reduce")) and {"amin", "amax"} & {*map(str, args)}
            assert not least or not {torch.int64, torch.int32} & {dtypes[0]}, f"{name} of {dtypes[0]}"
        return output


def operations_of(run):
    """Return the operations of an unpatched model. Those are not the library's affair."""
    with Watch(usual=None) as watch:
        run()
    return watch.seen


def test_the_list_knows_what_is_there_and_what_is_not():
    assert "_adaptive_avg_pool3d" in missing()
    assert not {"add.Tensor", "index_add", "index_select", "gather", "topk", "sort.stable", "cumsum"} & missing()


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.ones(2).double(),
        lambda: torch.zeros(2, dtype=torch.int64).scatter_reduce(0, torch.tensor([0]), torch.tensor([1]), "amin"),
        lambda: torch.nn.functional.adaptive_avg_pool3d(torch.ones(1, 4, 4, 4), 2),
    ],
)
def test_the_watch_refuses(function):
    with pytest.raises(AssertionError), Watch():
        function()


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Match all images of a batch at once, as on every device but the CPU."""
    monkeypatch.setattr("algm_patch.core.plan.is_faster_alone", lambda x: False)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_model(name):
    """Run inference and a training step."""
    case = CASES[name]
    model = case.build()
    images = unlike(case.image())

    def infer():
        model.eval()
        with torch.no_grad():
            case.tokens(model, images)

    def train():
        model.train()
        case.tokens(model, images).square().sum().backward()

    usual = operations_of(lambda: (infer(), train()))
    for settings in (BY_THRESHOLD, BY_COUNT):
        apply_algm(model, **settings)
        for run in (infer, train):
            with Watch(usual):
                run()
        assert "->" in str(model.algm)
        remove_algm(model)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    "settings",
    [
        {"tau": 0.5, "batch": "min"},
        {"tau": "paper", "gbm_tau": "tau"},
        {"reduce": "pick", "compare": "key", "place": "after_mlp"},
        {"window": (3, 2)},
        {"proportional_attention": False},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:tau='paper' merges no windows")
def test_other_settings(settings):
    model, images = build("ViT"), unlike(photo())
    usual = operations_of(lambda: model(images).sum().backward())
    apply_algm(model, **{**BY_THRESHOLD, **settings})
    with Watch(usual):
        model(images).sum().backward()
        model.algm.unmerge(model.algm.token_map.take(model.forward_features(images)))


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("tau", ["auto", "paper"])
def test_calibrate(tau):
    model, images = build("ViT"), unlike(photo())
    usual = operations_of(lambda: model(images))
    apply_algm(model, tau=tau)
    with Watch(usual):
        calibrate(model, images)


@pytest.mark.usefixtures("on_a_gpu")
def test_tune():
    """Watch everything that runs on the device of the images. Answers are compared on the CPU, in float64."""
    model, images = build("ViT"), unlike(photo())
    usual = operations_of(lambda: model.forward_features(images))

    def predict(model, image):
        with Watch(usual):
            return model.forward_features(image).cpu()

    settings = tune(model, images, keep=0.5, predict=predict, budget="60s")
    assert len(settings.record.trials) > 1
