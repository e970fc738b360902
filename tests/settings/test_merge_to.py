"""The setting ``merge_to``: what is refused, saved and loaded."""

import pytest
from safetensors.torch import save_file

from algm_patch import Settings, apply_algm
from tests.support.models import build


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"merge_to": 0.1}, ValueError, "merge_to=0.1: CLAP leaves a share of its patches between 0.25 and 1"),
        ({"merge_to": 0.4}, ValueError, "merge_to=0.4: GBM leaves a share of its patches between 0.5 and 1"),
        ({"merge_to": 0.1, "window": (3, 2)}, ValueError, "merge_to=0.1: CLAP .* between 0.166667 and 1"),
        ({"merge_to": [0.6, 0.4]}, ValueError, "merge_to=0.4: GBM"),
        ({"merge_to": 1.2}, ValueError, "merge_to=1.2: CLAP"),
        ({"merge_to": float("nan")}, ValueError, "merge_to=nan: CLAP"),
        ({"merge_to": 400}, TypeError, "a list with one share or whole number of patches for each merge; got 400"),
        ({"merge_to": 1}, TypeError, "merge_to is the share of the patches that each merge leaves, such as 0.6.*got 1"),
        ({"merge_to": True}, TypeError, "got True"),
        ({"merge_to": "0.6"}, TypeError, "got '0.6'"),
        ({"merge_to": [0.6]}, ValueError, r"merge_to=\[0.6\] for 2 merges: .*\(CLAP, GBM\), or one share for all"),
        ({"merge_to": [0.6] * 3}, ValueError, "for 2 merges"),
        ({"merge_to": [0.6], "clap_layer": None, "gbm_layers": []}, ValueError, "for 0 merges: .*there is none"),
        ({"merge_to": [True, 0.6]}, TypeError, "shares such as 0.6 and whole numbers of patches; got True"),
        ({"merge_to": [0.6, None]}, TypeError, "got None"),
        ({"merge_to": [0, 0.5]}, ValueError, "merge_to names 0 patches to leave: at least 1"),
        ({"merge_to": [0.5, -3]}, ValueError, "merge_to names -3 patches"),
        (
            {"merge_to": 0.6, "tau": 0.9},
            ValueError,
            "tau=0.9 by threshold. Give up one of them: merge_to=None",
        ),
        ({"merge_to": 0.6, "gbm_tau": 0.5}, ValueError, "gbm_tau=0.5 by threshold. Give up one of them"),
        ({"merge_to": 0.6, "tau": "paper"}, ValueError, "Give up one of them"),
        ({"merge_to": 0.6, "gbm_tau": "tau"}, ValueError, "Give up one of them"),
        ({"gbm_layers": [4, 2], "merge_to": [1.0, 0.5, 0.9]}, ValueError, r"for gbm_layers=\[4, 2\]: .* rising order"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused(settings, error, message):
    model = build("ViT")
    with pytest.raises(error, match=message):
        apply_algm(model, **settings)
    assert not hasattr(model, "algm")


@pytest.mark.parametrize("merge_to", [0.6, [0.7, 400], (27, 0.5), None])
def test_saved_and_loaded(merge_to, tmp_path):
    settings = Settings(clap_layer=1, gbm_layers=[3], merge_to=merge_to)
    settings.save(tmp_path / "settings.json")
    save_file(build("ViT", depth=3).state_dict(), tmp_path / "weights.safetensors", metadata=settings.metadata())
    for path in ("settings.json", "weights.safetensors"):
        loaded = Settings.load(tmp_path / path)
        assert loaded == settings
        assert loaded.merge_to == (tuple(merge_to) if isinstance(merge_to, list) else merge_to)
        model = apply_algm(build("ViT"), **loaded)
        assert model.algm.settings == settings
