"""Settings with a record, as ``tune`` would have found them."""

from dataclasses import replace

from algm_patch import Settings, __version__
from algm_patch.settings.record import Record, Trial, weight_sample

TRIALS = (
    Trial(1, 0.9, (2, 4), (0.8, 0.7), "key", kept=0.97, cost=30.5),
    Trial(None, 1.0, (), "adaptive", "token", kept=0.96, cost=31.0),
)


def measured_on(model, /, **changes):
    sample = weight_sample(model.patch_embed.proj)
    known = Record(
        "VisionTransformer", 5, sample, __version__, 8, "agreement", 0.95, 0.97, "GFLOPs", 30.5, 63.4, TRIALS
    )
    return replace(known, **changes)


def settings_on(model, /, **changes):
    trial = TRIALS[0].settings
    return Settings(**trial, record=measured_on(model, **changes))
