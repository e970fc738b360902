"""Training scripts as they are, each in its library's own loop, with one line more: the patch."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import training_loops
from loops.common import BATCH, EPOCHS, HALF, PATCH, SIDE, STEPS, VAL, LinearSegmentor, Patch
from loops.huggingface import beit, dpt, load_pretrained
from loops.in_lightning import LightningSegmentor
from loops.in_mmengine import linear_encoder_decoder
from safetensors.torch import load_file
from torch import Tensor, nn

from algm_patch import apply_algm, remove_algm
from tests.support.models_mmseg import mmseg

IMAGES = torch.stack([sample["pixel_values"] for sample in VAL])


@contextmanager
def on_mmcv_lite_and_new_torch() -> Iterator[None]:
    mmseg()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.model.utils.mmcv_full_available", lambda: False)  # the stand-in for its ops is none
        patch.setattr("mmengine.runner.runner.get_device", lambda: "cpu")
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # mmengine's checkpoints hold its history of losses
        yield


# -- what holds for each of them


@dataclass(frozen=True)
class Loop:
    """A training script.

    Attributes:
        script: trains, and returns the model and the losses.
        build: makes the model.
        half, end: names of the files with the state after half of the steps, and at the end.
        load: loads weights into a model.
    """

    script: Callable[..., tuple[nn.Module, list[float]]]
    build: Callable[[], nn.Module]
    half: str
    end: str
    load: Callable[[nn.Module, Path], Any]


def load_safetensors(model: nn.Module, place: Path) -> None:
    model.load_state_dict(load_file(place / "model.safetensors"))


def load_lightning(model: nn.Module, place: Path) -> None:
    LightningSegmentor(model).load_state_dict(torch.load(place)["state_dict"])


@on_mmcv_lite_and_new_torch()
def load_mmengine(model: nn.Module, place: Path) -> None:
    from mmengine.runner import load_checkpoint

    load_checkpoint(model, str(place), strict=True)


EPOCH = (f"epoch-{EPOCHS // 2}", f"epoch-{EPOCHS}")
TRAINER = (f"checkpoint-{HALF}", f"checkpoint-{STEPS}")
LIGHTNING = (f"epoch={EPOCHS // 2 - 1}.ckpt", f"epoch={EPOCHS - 1}.ckpt")
RUNNER = (f"iter_{HALF}.pth", f"iter_{STEPS}.pth")
SCRIPTS = training_loops.SCRIPTS
LOOPS = {
    "plain PyTorch": Loop(SCRIPTS["plain"], LinearSegmentor, *EPOCH, load_safetensors),
    "transformers Trainer, BEiT": Loop(SCRIPTS["trainer-beit"], beit, *TRAINER, load_pretrained),
    "transformers Trainer, DPT": Loop(SCRIPTS["trainer-dpt"], dpt, *TRAINER, load_pretrained),
    "Lightning": Loop(SCRIPTS["lightning"], LinearSegmentor, *LIGHTNING, load_lightning),
    "accelerate": Loop(SCRIPTS["accelerate"], LinearSegmentor, *EPOCH, load_safetensors),
    "mmengine Runner": Loop(
        on_mmcv_lite_and_new_torch()(SCRIPTS["mmengine"]), linear_encoder_decoder, *RUNNER, load_mmengine
    ),
}
SETTINGS: dict[str, Any] = {"gbm_layers": [2], "tau": 0.9, "gbm_tau": "tau"}


@dataclass(frozen=True)
class Run:
    model: nn.Module
    losses: list[float]
    folder: Path


@dataclass(frozen=True)
class Forward:
    """The tokens that each layer of a forward pass left, and the sizes of the last ones."""

    training: bool
    layers: list[int]
    sizes: Tensor

    @property
    def counts(self) -> list[int]:
        return (self.sizes > 0).sum(1).tolist()


def merging(model: nn.Module) -> None:
    apply_algm(model, **SETTINGS)


def merging_nothing(model: nn.Module) -> None:
    apply_algm(model, gbm_layers=[], tau=1.05)


def unpatched(model: nn.Module) -> None:
    pass


def run(loop: Loop, patch: Patch, folder: Path, resume: str | None = None, seed: int = 0) -> Run:
    torch.manual_seed(seed)
    return Run(*loop.script(patch, folder, resume), folder)


def reloaded(loop: Loop, place: Path, patch: Patch = unpatched) -> nn.Module:
    torch.manual_seed(1)
    model = loop.build()
    patch(model)
    loop.load(model, place)
    return model


@torch.no_grad()
def answer(model: nn.Module) -> Tensor:
    output = model.eval()(IMAGES)
    return getattr(output, "logits", output)


@torch.no_grad()
def tokens_alone(model: Any, image: Tensor) -> int:
    model.eval()(image[None])
    return model.algm.token_map.sizes.shape[1]


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    weights, wanted = found.state_dict(), expected.state_dict()
    assert list(weights) == list(wanted)
    assert [name for name in weights if not torch.equal(weights[name], wanted[name])] == []


@pytest.fixture(scope="module", params=LOOPS.values(), ids=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> Loop:
    return request.param


@pytest.fixture(scope="module")
def trained_and_watched(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Forward]]:
    seen: list[Forward] = []
    hooks: list[Any] = []

    def watch(model: Any, *_: Any) -> None:
        seen.append(Forward(model.training, model.algm.tokens_per_layer, model.algm.token_map.sizes))

    def merging_and_watched(model: nn.Module) -> None:
        merging(model)
        hooks.append(model.register_forward_hook(watch))

    found = run(loop, merging_and_watched, tmp_path_factory.mktemp("trained"))
    hooks.pop().remove()
    return found, seen


@pytest.fixture(scope="module")
def trained(trained_and_watched: tuple[Run, list[Forward]]) -> Run:
    return trained_and_watched[0]


@pytest.fixture(scope="module")
def watched(trained_and_watched: tuple[Run, list[Forward]]) -> list[Forward]:
    return trained_and_watched[1]


def mean_tokens(forwards: list[Forward]) -> tuple[float, float]:
    """Return how many tokens the first layer and the last leave, on average."""
    first, last = (sum(forward.layers[layer] for forward in forwards) for layer in (0, -1))
    return first / len(forwards), last / len(forwards)


def test_every_training_step_merges_as_many_tokens_in_each_image(watched):
    training = [forward for forward in watched if forward.training]
    assert len(training) == STEPS
    for forward in training:
        assert len(forward.sizes) == BATCH
        assert (forward.sizes > 0).all()
        assert forward.layers[-1] == forward.sizes.shape[1]
    at_first, after_clap, at_last = (1 + (SIDE // PATCH) ** 2, *mean_tokens(training))
    assert at_last < 0.8 * after_clap < 0.64 * at_first


def test_the_librarys_own_evaluation_merges_each_image_by_its_content(trained, watched):
    evaluation = [forward for forward in watched if not forward.training]
    assert len(evaluation) >= 2
    for forward in evaluation:
        assert len(forward.counts) == BATCH
        assert max(forward.counts) == forward.sizes.shape[1] == forward.layers[-1]
    assert len(set(evaluation[-1].counts)) > 1
    assert evaluation[-1] is watched[-1]
    assert evaluation[-1].counts == [tokens_alone(trained.model, image) for image in IMAGES]


def test_the_loss_falls(trained):
    losses, third = trained.losses, STEPS // 3
    assert len(losses) == STEPS
    assert sum(losses[-third:]) < 0.7 * sum(losses[:third])


def test_what_the_loop_saved_loads_into_a_patched_and_an_unpatched_model(loop, trained):
    place = trained.folder / loop.end
    plain = reloaded(loop, place)
    assert_same_weights(plain, trained.model)
    assert torch.equal(answer(plain), answer(remove_algm(copy.deepcopy(trained.model))))
    assert not torch.equal(answer(plain), answer(trained.model))
    assert torch.equal(answer(reloaded(loop, place, merging)), answer(trained.model))


def test_resumed_training_goes_on_exactly(loop, trained, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns(loop.end))
    halfway = reloaded(loop, folder / loop.half).state_dict()
    assert any(not torch.equal(weight, halfway[name]) for name, weight in trained.model.state_dict().items())
    resumed = run(loop, merging, folder, resume=loop.half, seed=2)
    assert_same_weights(resumed.model, trained.model)
    assert resumed.losses[-HALF:] == trained.losses[-HALF:]
    assert torch.equal(answer(resumed.model), answer(trained.model))


def test_a_patch_that_merges_nothing_trains_the_weights_of_the_unpatched_model(loop, trained, tmp_path):
    plain, patched = (run(loop, patch, tmp_path / patch.__name__) for patch in (unpatched, merging_nothing))
    assert_same_weights(patched.model, plain.model)
    assert patched.losses == plain.losses != trained.losses
