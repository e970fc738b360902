"""Threads do not meet, a merge waits once for the device, and a batch merges the smallest number of its images."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm
from tests.support.counting import Synchronisations
from tests.support.models import build, photo
from tests.support.threads import run_in_threads

SETTINGS: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5}


def test_a_batch_merges_the_smallest_number_of_its_images():
    """Each image merges its own most similar windows, as many as pass in the image where the fewest do."""
    model = apply_algm(build("ViT").train(), clap_layer=1, gbm_layers=[], tau=0.8)
    images = photo(batch=4)
    alone = []
    for image in images:
        model(image[None])
        alone.append(model.algm.token_map.sizes.shape[1])
    assert len(set(alone)) > 1
    model(images)
    sizes, labels = model.algm.token_map.sizes, model.algm.token_map.labels
    assert sizes.shape == (4, max(alone))
    assert (sizes > 0).all()
    assert all(len(row.unique()) == max(alone) for row in labels)


@pytest.mark.parametrize("shared", [False, True], ids=["two models", "one model"])
def test_threads_do_not_meet(shared):
    trunks = [apply_algm(build("ViT", dynamic_img_size=True), **SETTINGS) for _ in range(2)]
    if shared:
        trunks[1] = trunks[0]
    images = [photo(batch=1, grid=(6, 5)), photo(batch=2, grid=(8, 3), seed=1)]

    def job(i):
        def run():
            with torch.no_grad():
                output = trunks[i].forward_features(images[i])
            return output, trunks[i].algm.token_map.labels

        return run

    expected = [job(i)() for i in range(2)]
    for found, wanted in zip(run_in_threads([job(0), job(1)]), expected, strict=True):
        for output, labels in found:
            torch.testing.assert_close(output, wanted[0])
            assert torch.equal(labels, wanted[1])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("settings", [{"tau": "auto"}, {"tau": 0.5, "gbm_tau": "tau"}, {"tau": 1.05}, {"batch": "min"}])
def test_one_synchronisation_a_merge(batch, settings):
    model = build("ViT")
    with torch.no_grad(), Synchronisations() as plain:
        model(photo(batch=batch))
    apply_algm(model, clap_layer=1, gbm_layers=[2, 4], **settings)
    with torch.no_grad(), Synchronisations() as patched:
        model(photo(batch=batch))
    merges = settings.get("tau") != 1.05
    assert patched.count - plain.count == merges + 2
