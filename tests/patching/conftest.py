"""Models of every kind, deterministic algorithms, and a process group of one."""

import pytest
import torch

from tests.support.batches import ATTENTION_KINDS, prepare
from tests.support.cases import CASES


@pytest.fixture(params=CASES)
def every_model(request):
    with torch.no_grad():
        yield prepare(request.param)


@pytest.fixture(params=ATTENTION_KINDS)
def prepared(request):
    with torch.no_grad():
        yield prepare(request.param)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
