"""Two processes train one model: gradients, collectives, and ranks that merge different numbers of tokens."""

import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from algm_patch import apply_algm
from tests.support.models import build, photo

THRESHOLDS: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5}
FIXED: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3], "merge_to": 0.6}
STUCK = 60  # seconds until a collective that waits for the other process is an error
FAR_TOO_LONG = 240


def images():
    """Return four unlike images; each of two ranks gets two."""
    return photo(batch=4)


def twice_the_same():
    return photo(batch=2).repeat(2, 1, 1, 1)


def smooth_and_noisy():
    """Return images of which the first half merges and the second half does not."""
    return torch.cat([photo(batch=2), torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))])


# Settings and images with which all of a batch merges like its halves.
EQUAL = {
    "fixed counts": (FIXED, images),
    "thresholds, the same images": (THRESHOLDS, twice_the_same),
    "each image by itself": ({**THRESHOLDS, "batch": "image"}, images),
}
UNLIKE: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5, "gbm_tau": 0.8}


def sharded(model):
    mesh = init_device_mesh("cpu", (2,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    return model


WRAPPERS = {"DDP": DistributedDataParallel, "FSDP2": sharded}


def loss_of(model, images):
    return model(images).square().mean()


def gradients(model):
    return [getattr(parameter.grad, "full_tensor", parameter.grad.clone)() for parameter in model.parameters()]


def wrapped(wrapper, settings, patched="before", **options):
    """Return a patched model in its wrapper, and the model."""
    model = build("ViT", **options).train()
    if patched == "before":
        return WRAPPERS[wrapper](apply_algm(model, **settings)), model
    return apply_algm(WRAPPERS[wrapper](model), **settings), model


def steps(wrapper, settings, batch, patched="before", recompute=False, times=1):
    """Return the gradients and the token counts of each training step on one half of the batch."""
    whole, model = wrapped(wrapper, settings, patched)
    model.set_grad_checkpointing(recompute)
    found = []
    for _ in range(times):
        whole.zero_grad()
        loss_of(whole, batch).backward()
        found.append((gradients(model), model.algm.tokens_per_layer))
    return found


def collectives(wrapper, settings, batch):
    """Count the collectives of a third forward pass, which sets up nothing: of a patched and of a plain model."""
    counts = []
    for patched in (True, False):
        whole = wrapped(wrapper, settings)[0] if patched else WRAPPERS[wrapper](build("ViT").train())
        for _ in range(2):
            loss_of(whole, batch).backward()
        with CommDebugMode() as counter:
            loss_of(whole, batch)
        counts.append({str(name): count for name, count in counter.get_comm_counts().items()})
    return counts


def trained_weights(wrapper, settings, batch):
    """Return the weights after three steps of an optimizer."""
    whole, model = wrapped(wrapper, settings)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(whole, batch).backward()
        optimizer.step()
    return [getattr(parameter, "full_tensor", parameter.clone)().detach() for parameter in model.parameters()]


HOW = [("before", False), ("before", True), ("after", False)]
CHECKS: dict[tuple[Any, ...], Callable[..., Any]] = {}
for wrapper in WRAPPERS:
    for name, (settings, batch) in EQUAL.items():
        for patched, recompute in HOW:
            case = wrapper, name, patched, recompute
            CHECKS[case] = lambda mine, case=case, settings=settings, batch=batch: steps(
                case[0], settings, mine(batch()), *case[2:]
            )
    CHECKS[wrapper, "unlike"] = lambda mine, wrapper=wrapper: steps(wrapper, UNLIKE, mine(smooth_and_noisy()), times=3)
    CHECKS[wrapper, "collectives"] = lambda mine, wrapper=wrapper: collectives(
        wrapper, UNLIKE, mine(smooth_and_noisy())
    )
    CHECKS[wrapper, "weights"] = lambda mine, wrapper=wrapper: trained_weights(
        wrapper, UNLIKE, mine(smooth_and_noisy())
    )


def work(rank, folder):
    """Run all checks in one process, and write what they found, or their error, to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2, timeout=timedelta(seconds=STUCK)
    )
    found = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(lambda batch: batch[2 * rank : 2 * rank + 2])
        except Exception:
            found[name] = traceback.format_exc()
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what each of two processes found in each check."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = spawn(work, (folder,), nprocs=2, join=False)
    end = time.monotonic() + FAR_TOO_LONG
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < end, "the two processes wait for each other"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def found_in(ranks, *name):
    for rank in ranks:
        if isinstance(rank[name], str):
            pytest.fail(rank[name])
    return [rank[name] for rank in ranks]


def alone(settings, batch):
    """Return the gradients of a batch in this process, and the token counts."""
    model = apply_algm(build("ViT").train(), **settings)
    loss_of(model, batch).backward()
    return gradients(model), model.algm.tokens_per_layer


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("case", EQUAL)
@pytest.mark.parametrize(("patched", "recompute"), HOW, ids=["before", "before, recomputed", "after"])
def test_gradients_are_those_of_the_whole_batch_in_one_process(wrapper, case, patched, recompute, ranks):
    settings, batch = EQUAL[case]
    expected, counts = alone(settings, batch())
    each = found_in(ranks, wrapper, case, patched, recompute)
    for ((found, own),) in each:
        assert_close(found, expected)
        assert own[-1] < own[1] < 31
    assert [max(own) for own in zip(*(own for ((_, own),) in each), strict=True)] == counts


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_ranks_may_merge_different_numbers(wrapper, ranks):
    """One rank merges nothing. At every step the gradients are the mean of those of the two halves alone."""
    halves = [alone(UNLIKE, half) for half in smooth_and_noisy().split(2)]
    assert halves[0][1][-1] < halves[1][1][-1] == 31
    expected = [(one + other) / 2 for one, other in zip(halves[0][0], halves[1][0], strict=True)]
    for (_, counts), found in zip(halves, found_in(ranks, wrapper, "unlike"), strict=True):
        assert len(found) == 3
        for step, own in found:
            assert_close(step, expected)
            assert own == counts


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_ranks_that_merge_different_numbers_keep_the_same_weights(wrapper, ranks):
    model = apply_algm(build("ViT").train(), **UNLIKE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(loss_of(model, half) for half in smooth_and_noisy().split(2)).div(2).backward()
        optimizer.step()
    first, second = found_in(ranks, wrapper, "weights")
    assert all(map(torch.equal, first, second))
    torch.testing.assert_close(first, [parameter.detach() for parameter in model.parameters()], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_merging_adds_no_collective_to_the_forward_pass(wrapper, ranks):
    for patched, plain in found_in(ranks, wrapper, "collectives"):
        assert patched == plain
        assert sum(plain.values()) == (6 if wrapper == "FSDP2" else 0)
