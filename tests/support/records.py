"""Settings with a record, as ``tune`` would have found them."""

from dataclasses import replace

from algm_patch import Settings, __version__
from algm_patch.settings.record import Record, weight_sample
from algm_patch.settings.trial import Rival, Trial

TRIALS = (
    Trial(1, 0.9, (2, 4), (0.8, 0.7), "key", {"pixels": 0.97, "classes": 0.9}, 30.5, {"pixels": 0.96, "classes": 0.86}),
    Trial(
        None, 1.0, (), "adaptive", "token", {"pixels": 0.96, "classes": 0.92}, 31.0, {"pixels": 0.94, "classes": 0.9}
    ),
)


def measured_on(model, /, **changes):
    sample = weight_sample(model.patch_embed.proj)
    known = Record(
        model="VisionTransformer",
        blocks=5,
        weights=sample,
        version=__version__,
        images=12,
        held_back=6,
        keep={"pixels": 0.95},
        kept=TRIALS[0].kept,
        low=TRIALS[0].low,
        unit="GFLOPs",
        cost=30.5,
        unpatched_cost=63.4,
        trials=TRIALS,
        rivals=(Rival("ToMe, r = 4", {"pixels": 0.95, "classes": 0.8}, 32.0, {"pixels": 0.93, "classes": 0.7}),),
        sensitivity=(("CLAP 1", 0.01), ("GBM 2", 0.02)),
    )
    return replace(known, **changes)


def settings_on(model, /, **changes):
    trial = TRIALS[0].settings
    return Settings(**trial, record=measured_on(model, **changes))
