"""Every kind of model that the library patches, by library and family."""

from __future__ import annotations

from tests.support import (
    cases_eva01,
    cases_hub,
    cases_huggingface,
    cases_mmseg,
    cases_positions,
    cases_proved,
    cases_segmenter,
    cases_timm,
    cases_vendored,
)
from tests.support.contract import Case

CASES: dict[str, Case] = {
    **cases_timm.CASES,
    **cases_huggingface.CASES,
    **cases_segmenter.CASES,
    **cases_mmseg.CASES,
    **cases_eva01.CASES,
    **cases_hub.CASES,
    **cases_positions.CASES,
    **cases_vendored.CASES,
    **cases_proved.CASES,
}
