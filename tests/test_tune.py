"""The search for settings: what it promises, and what it leaves behind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import ALL, build, photo
from torch import nn

from algm_patch import Settings, apply_algm, calibrate, remove_algm, tune
from algm_patch.settings.record import Trial
from algm_patch.tuning.judges import judge_of, predict_dense, token_shapes
from algm_patch.tuning.measure import Outcome, negative
from algm_patch.tuning.search import Candidate, beginnings, neighbours, search

IMAGES = photo(batch=3, seed=7)
QUICK = {"budget": "60s"}


class Classes(nn.Module):
    """A trunk and a head of five classes: [B, 5, 6, 5]."""

    def __init__(self, family: str = "ViT") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = build(family, depth=3)
        self.head = nn.Linear(self.trunk.embed_dim, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.trunk.forward_features(images)[:, self.trunk.num_prefix_tokens :]
        return self.head(tokens).mT.unflatten(2, (6, 5))


@pytest.fixture
def model():
    return Classes().eval()


@torch.no_grad()
def classes(model):
    return torch.cat([model(image[None]) for image in IMAGES]).argmax(1)


def test_it_keeps_what_it_says_and_costs_less(model):
    before = classes(model)
    settings = tune(model, IMAGES, keep=0.8, **QUICK)
    measured = settings.record
    assert model.trunk.algm.settings == settings
    assert measured.kept >= 0.8
    assert measured.cost < measured.unpatched_cost
    assert (classes(model) == before).double().mean().item() == pytest.approx(measured.kept)
    assert (measured.judge, measured.unit, measured.images) == ("agreement", "GFLOPs", 3)
    assert measured.cost == min(trial.cost for trial in measured.trials if trial.kept >= 0.8)


def test_the_same_seed_gives_the_same(model):
    first = tune(model, IMAGES, keep=0.9, seed=3, **QUICK)
    remove_algm(model)
    assert tune(model, list(IMAGES), keep=0.9, seed=3, **QUICK) == first


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_the_model_is_as_it_was(model, patched, error):
    if patched:
        apply_algm(model, clap_layer=2, gbm_layers=[3], tau=0.4)
    before, settings = traces(model), patched and model.algm.settings
    calls = 0

    def predict(model, images):
        nonlocal calls
        calls += 1
        if calls > 8:
            raise error("from predict")
        return model(images)

    with pytest.raises(error, match="from predict"):
        tune(model, IMAGES, keep=0.8, predict=predict, **QUICK)
    assert traces(model) == before
    assert not patched or model.algm.settings == settings


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_nothing_keeps_enough(model, patched):
    before = traces(model)
    if patched:
        apply_algm(model, gbm_layers=[2])
    with pytest.raises(RuntimeError, match=r"nothing that was tried in 2s keeps 1 of what Classes answers \(metric\)"):
        tune(model, IMAGES, keep=1, metric=lambda model: 1 - hasattr(model, "algm") * merged(model), budget="2s")
    assert traces(model) == before


def merged(model):
    """Whether the model would merge anything."""
    return model.algm.clap_layer is not None or bool(model.algm.gbm_layers)


def traces(model):
    return {name: (type(part), sorted(vars(part))) for name, part in model.named_modules()}


def test_other_settings_stay(model):
    apply_algm(model, gbm_layers=[3], window=(2, 1), proportional_attention=False)
    settings = tune(model, IMAGES, keep=0.8, **QUICK)
    assert (settings.window, settings.proportional_attention) == ((2, 1), False)
    assert model.algm.settings == settings


@pytest.mark.parametrize("tokens", [0.6, [0.7, 0.8]])
def test_fixed_counts_and_what_was_calibrated_give_way(model, tokens):
    apply_algm(model, gbm_layers=[3], window=(2, 1))
    calibrate(model, IMAGES)
    model.algm.merge_to = tokens
    before = model.algm.settings
    with pytest.raises(RuntimeError, match="is over"):
        tune(model, IMAGES, metric=over, **QUICK)
    assert model.algm.settings == before
    with pytest.raises(ValueError, match=r"calibrate: merge_to=.* keeps fixed counts, which use no threshold"):
        calibrate(model, IMAGES)
    assert model.algm.settings == before
    settings = tune(model, IMAGES, keep=0.5, budget="3s")
    assert (settings.tokens, settings.calibrated, settings.window) == (None, (), (2, 1))
    assert dict(settings.record.others)["window"] == (2, 1)


def over(model):
    raise RuntimeError("is over")


def test_modes_and_gradients_stay(model):
    model.train()
    model.head.eval()
    tune(model, IMAGES, keep=0.8, budget="3s")
    assert (model.training, model.trunk.training, model.head.training) == (True, True, False)
    assert torch.is_grad_enabled()
    assert model(IMAGES).requires_grad


def test_a_metric_decides(model):
    before, asked = classes(model), []

    def metric(model):
        asked.append((classes(model) == before).double().mean().item() + 1)
        return asked[-1]

    settings = tune(model, IMAGES, keep=0.9, metric=metric, **QUICK)
    assert settings.record.judge == "metric"
    assert asked[0] == 2
    assert settings.record.kept == pytest.approx(metric(model) / asked[0])
    assert settings.record.kept >= 0.9


@pytest.mark.parametrize("windows", [1, 3])
def test_an_answer_costs_every_forward_pass_that_it_takes(model, windows):
    """As sliding windows do, in batches or one after the other."""

    def predict(model, images):
        return sum(model(images.roll(shift, 3)) for shift in range(windows)) + model(images.repeat(2, 1, 1, 1))[:1]

    settings = tune(model, IMAGES[:1], keep=0.5, predict=predict, budget="3s")
    predict(model, IMAGES[:1])
    assert settings.record.unpatched_cost == pytest.approx((windows + 2) * model.algm.unpatched_gflops)
    assert settings.record.cost < settings.record.unpatched_cost


def test_the_cost_is_that_of_the_handle(model):
    settings = tune(model, IMAGES, keep=0.5, budget="3s")
    costs = []
    with torch.no_grad():
        for image in IMAGES.split(1):
            model.eval()(image)
            costs.append(model.algm.gflops)
    assert settings.record.cost == pytest.approx(sum(costs) / len(costs))


def test_time(model):
    settings = tune(model, IMAGES, keep=0.5, cost="time", budget="5s")
    assert settings.record.unit == "seconds"
    assert 0 < settings.record.cost < 10


def test_tokens_are_compared_where_there_is_no_head():
    settings = tune(build("ViT"), IMAGES, keep=0.9, budget="5s")
    assert settings.record.judge == "cosine"


def test_a_block_without_keys_to_compare():
    settings = tune(build("ParallelThingsBlock"), IMAGES, keep=0.9, budget="5s")
    assert {trial.metric for trial in settings.record.trials} == {"token"}


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"keep": 0}, ValueError, "above 0 and at most 1; got 0"),
        ({"keep": 98}, ValueError, "got 98"),
        ({"cost": "flops"}, ValueError, "cost is one of 'gflops', 'time'; got 'flops'"),
        ({"budget": "10"}, ValueError, "such as '90s', '10min' or '1h'; got '10'"),
        ({"budget": 0}, ValueError, "got 0"),
        ({"budget": "1.2.3s"}, ValueError, r"such as '90s', '10min' or '1h'; got '1\.2\.3s'"),
        ({"budget": ".s"}, ValueError, r"got '\.s'"),
        ({"budget": None}, ValueError, "budget is a number of seconds, .*; got None"),
        ({"budget": float("inf")}, ValueError, "got inf"),
        ({"keep": "much"}, ValueError, "keep is the part .*; got 'much'"),
        ({"cost": ["time"]}, ValueError, "cost is one of"),
        ({"budget": 1e-6}, RuntimeError, "1e-06 was over before the unpatched model had answered 3 images"),
        ({"images": []}, ValueError, "tune got no images"),
        ({"images": ["a.png"]}, TypeError, "image tensors"),
        (
            {"predict": lambda model, images: [model(images)]},
            TypeError,
            "predict returned list, which is no dense answer",
        ),
        ({"predict": lambda model, images: model(images).mean((2, 3))}, ValueError, r"predict returned \[1, 5\]"),
        ({"predict": lambda model, images: images[:, 0]}, ValueError, "predict did not run the ViT of Classes"),
        (
            {"predict": lambda model, images: images[:, 0], "metric": lambda model: 1.0},
            ValueError,
            "predict did not run the ViT of Classes",
        ),
        ({"metric": lambda model: float("nan")}, ValueError, "metric returned nan"),
        ({"metric": lambda model: 0.0}, ValueError, "metric returned 0.0 for the unpatched model"),
    ],
)
def test_what_is_wrong_is_said(model, given_, error, message):
    before = traces(model)
    with pytest.raises(error, match=message):
        tune(model, **{"images": IMAGES, **QUICK, **given_})
    assert traces(model) == before


# -- judges


@pytest.mark.parametrize(
    ("answer", "other", "name", "kept"),
    [
        (torch.eye(4).expand(1, 4, 4, 4) * torch.arange(4.0).view(1, 4, 1, 1), None, "agreement", 1),
        (torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 1], [1, 0]]]), "agreement", 0.75),
        (torch.tensor([[[0.0, 1], [2, 3]]]), torch.tensor([[[5.0, 7], [9, 11]]]), "correlation", 1),
        (torch.tensor([[[[0.0, 1], [2, 3]]]]), -torch.tensor([[[[0.0, 1], [2, 3]]]]), "correlation", -1),
        (torch.ones(1, 3, 3), torch.ones(1, 3, 3), "correlation", 1),
        (torch.ones(1, 3, 3), torch.zeros(1, 3, 3), "correlation", 0),
        (torch.ones(1, 30, 8), 2 * torch.ones(1, 30, 8), "cosine", 1),
        (torch.ones(1, 31, 8), -torch.ones(1, 31, 8), "cosine", -1),
        (torch.ones(1, 5, 6, 8), -torch.ones(1, 5, 6, 8), "cosine", -1),
    ],
)
def test_judges(answer, other, name, kept):
    judge = judge_of(answer, token_shapes((5, 6), 1, 8))
    assert judge.name == name
    other = answer if other is None else other
    assert judge.compare(judge.read(answer), judge.read(other)) == pytest.approx(kept)


# A ViT's tokens: patches a side, prefix, width (of Ti, S, B, L, g and small ones, which answers' sides often equal).
GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.sampled_from([(14, 14), (24, 16), (24, 24), (37, 37)])
WIDTHS = st.integers(1, 40) | st.sampled_from([192, 384, 768, 1024, 1536])


@given(GRIDS, st.integers(0, 8), WIDTHS, st.data())
def test_every_answer_is_judged_by_what_it_is(grid, prefix, width, data):
    """Draw an answer of any shape and type; its sides are the tokens' own as often as not."""
    high, wide = grid
    own = st.sampled_from([high, wide, width, prefix + high * wide, high * wide, 14 * high, 14 * wide])
    shape = data.draw(st.lists(own | st.integers(1, 512), min_size=2, max_size=3).map(tuple))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]))
    answer = torch.zeros((), dtype=dtype).expand(1, *shape)
    one = len(shape) == 2 or shape[0] == 1
    tokens = shape in [(prefix + high * wide, width), (high * wide, width)] or (shape == (*grid, width) and not one)
    expected = (
        "cosine" if tokens and dtype.is_floating_point
        else "agreement" if not one or not dtype.is_floating_point
        else "correlation"
    )  # fmt: skip
    assert judge_of(answer, token_shapes(grid, prefix, width)).name == expected


def test_a_depth_map_of_a_small_vit_is_a_map():
    """384x384 pixels and 577 tokens of width 384."""
    assert judge_of(torch.rand(1, 384, 384), token_shapes((24, 24), 1, 384)).name == "correlation"


@pytest.mark.parametrize("channel", [False, True])
def test_a_map_of_the_tokens_own_shape_is_told_by_its_channel(channel):
    answer = torch.rand(1, 30, 8)
    judge = judge_of(answer[:, None] if channel else answer, token_shapes((5, 6), 1, 8))
    assert judge.name == ("correlation" if channel else "cosine")


@pytest.mark.parametrize("family", sorted(ALL))
def test_the_tokens_of_every_family_are_tokens(family):
    model = apply_algm(build(family, grid=(6, 4), depth=1), gbm_layers=[])
    with torch.no_grad():
        answer = predict_dense(model, photo(family, 1, (6, 4)))
    past = model.algm._past()
    shapes = token_shapes(past.grid, past.num_prefix_tokens, past.width)
    assert judge_of(answer, shapes).name == "cosine"


# -- what is searched


@given(st.integers(1, 40), st.data())
def test_every_candidate_is_one_that_the_model_has(depth, data):
    layers = st.lists(st.integers(1, depth), unique=True).map(sorted).map(tuple)
    gbm_layers = data.draw(layers)
    clap_layer = data.draw(st.integers(1, min((depth, *gbm_layers))))
    at = Candidate(clap_layer, data.draw(st.integers(0, 19)), gbm_layers, data.draw(st.integers(1, 19)), "token")
    for candidate in (
        *beginnings(data.draw(st.integers(0, 5)), depth, ["token"]),
        *neighbours(at, depth, ["token", "key"]),
    ):
        Settings(clap_layer=candidate.clap_layer, gbm_layers=candidate.gbm_layers)
        assert all(1 <= layer <= depth for layer in (candidate.clap_layer, *candidate.gbm_layers))
        assert list(candidate.gbm_layers) == sorted(candidate.gbm_layers)
        assert 0 <= candidate.clap < 20


class Made:
    """A bench whose losses are made up: so much for each twentieth of a stage."""

    depth, metrics = 12, ("token", "key")

    def __init__(self, keep, clap, gbm):
        self.keep, self.losses, self.trials = keep, (clap, gbm), []

    def measure(self, candidate, best):
        merged = candidate.clap, candidate.gbm * len(candidate.gbm_layers)
        kept = 1 - sum(loss * share for loss, share in zip(self.losses, merged, strict=True))
        if kept >= self.keep:
            self.trials.append(candidate)
        cost = 1 / (1 + sum(merged))
        return Outcome(kept >= self.keep, [cost], Trial(1, 0.9, (), 0.9, "token", kept, cost))


@given(st.floats(0.5, 0.999), st.floats(0, 0.01), st.floats(0, 0.01))
def test_whatever_keeps_enough_is_found(keep, clap, gbm):
    bench = Made(keep, clap, gbm)
    search(bench)
    if 1 - gbm >= keep:  # GBM in one layer, of the least share
        assert bench.trials


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=30))
def test_all_margins_known_decide(margins):
    assert negative(margins, len(margins)) == (sum(margins) / len(margins) < 0) or abs(sum(margins)) < 1e-9


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=30), st.integers(30, 64))
def test_what_never_fell_short_is_not_given_up(margins, count):
    assert not negative(margins, count)
