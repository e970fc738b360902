"""Blocks of known shape are patched wherever they are defined, and none that differs from them in one thing is."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm
from tests.support import mutant_attention, mutants, plain_vits
from tests.support.contract import trace
from tests.support.plain_vits import KINDS

REFUSED = {**mutants.JOINED, **mutants.INSIDE, **mutant_attention.ATTENTION}
HARMLESS = {**mutants.HARMLESS, **mutant_attention.HARMLESS}
EQUAL: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "tau": 0.9999, "gbm_tau": 0.9999}  # merges what is equal
OF_ITS_OWN = "torch's layer"  # whose attention is looked for by its class
ANYWHERE = [kind for kind in KINDS if kind != OF_ITS_OWN]


@torch.no_grad()
def assert_patched(model):
    """Merge equal tokens alone, which must change nothing."""
    image = plain_vits.image_of_equal_patches()
    expected = model(image)
    apply_algm(model, **EQUAL)
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
    assert model.algm.tokens_per_layer == [10, 10, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_block_under_any_path_is_patched(kind):
    assert_patched(plain_vits.build(KINDS[kind]))


@pytest.mark.parametrize("mutant", HARMLESS)
@pytest.mark.parametrize("kind", ANYWHERE)
def test_a_change_that_the_halves_have_too_is_patched(kind, mutant):
    if mutant.startswith("a gate") and kind == "torchvision-like":
        pytest.skip("the class of attention is how it is known")
    assert_patched(plain_vits.build(HARMLESS[mutant](KINDS[kind])))


@pytest.mark.parametrize("mutant", REFUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_mutant_is_refused(kind, mutant):
    model = plain_vits.build(REFUSED[mutant](KINDS[kind]))
    before = trace(model)
    with pytest.raises(ValueError, match=r"cannot be patched|proportional_attention"):
        apply_algm(model, gbm_layers=[2])
    assert trace(model) == before


@pytest.mark.parametrize("mutant", [name for name in REFUSED if name not in mutant_attention.OF_SIZES])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mutant_is_refused_without_the_weights_of_merged_keys_too(kind, mutant):
    model = plain_vits.build(REFUSED[mutant](KINDS[kind]))
    with pytest.raises(ValueError, match="cannot be patched"):
        apply_algm(model, gbm_layers=[2], proportional_attention=False)


@pytest.mark.parametrize("drop", [0.05, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_is_proved_in_training(kind, drop):
    assert_patched(plain_vits.build(KINDS[kind], drop=drop))


@pytest.mark.parametrize("drop", [0.05, 0.3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("own names", "torchvision-like")])
def test_other_stochastic_depth_in_training_is_refused(kind, drop):
    (mutation,) = mutants.DEPTH.values()
    with pytest.raises(ValueError, match=r"the halves differ from its forward by .* in training"):
        apply_algm(plain_vits.build(mutation(KINDS[kind]), drop=drop), gbm_layers=[2])


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        ("post-norm", r"the halves differ from its forward by [\d.e-]+ of its output\."),
        ("noise in training", r"the halves differ from its forward by [\d.e-]+ of its output in training\."),
        ("causal attention", "a permutation of the patches does not permute its output: it depends on places"),
        ("talking heads", "merged tokens differ from the copies that they hold by .*: it depends on their number"),
        ("the value of an earlier call", "its forward leaves attn.value behind"),
        ("windows of many tokens", "one of its modules has a window of 576 tokens: attention may see part"),
    ],
)
def test_the_refusal_says_what_differs(mutant, message):
    with pytest.raises(ValueError, match=f"has the parts of a block that ALGM knows, but {message}"):
        apply_algm(plain_vits.build(REFUSED[mutant](KINDS["MAE-like"])), gbm_layers=[2])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_that_reads_the_first_token_does_not_read_that_of_another_image(kind):
    """It is refused, or runs on one image after the other."""
    model = plain_vits.build(mutants.FIRST_IN_NORM(KINDS[kind]))
    images = torch.cat([plain_vits.image_of_equal_patches(), torch.rand_like(plain_vits.image_of_equal_patches())])
    try:
        apply_algm(model, **EQUAL)
    except ValueError:
        return
    alone = torch.cat([model(image) for image in images.split(1)])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-4)
