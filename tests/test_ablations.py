"""The supplement's ablations as settings: metric (Tab. 4f), reduce (4c) and place (4b)."""

import copy

import cases_eva01
import cases_hub
import cases_huggingface
import cases_mmseg
import cases_segmenter
import cases_timm
import models
import pytest
import torch
from models import build, photo, read_every_block
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm, calibrate, remove_algm
from algm_patch.core.matching import best_matches, window_similarity
from algm_patch.functional import clap, gbm
from algm_patch.patching.find_vit import find_vit
from algm_patch.settings.settings import Settings

CASES = {
    **cases_timm.CASES,
    **cases_huggingface.CASES,
    **cases_segmenter.CASES,
    **cases_mmseg.CASES,
    **cases_eva01.CASES,
    **cases_hub.CASES,
}
SETTINGS = {"clap_layer": 2, "gbm_layers": [2, 4], "tau": 0.3, "gbm_tau": 0.0}
COMBINATIONS = [
    {"compare": "key"},
    {"compare": "value", "proportional_attention": False},
    {"reduce": "pick"},
    {"place": "after_mlp"},
    {"compare": "query", "reduce": "pick", "place": "after_mlp"},
]
FAMILIES = [
    "timm ViT",
    "timm DINOv3",
    "timm relative positions",
    "transformers DINOv2",
    "transformers DINOv3",
    "transformers Data2Vec, bias per layer",
    "Segmenter mask transformer",
    "hub DINOv2",
]
METRICS = ["query", "key", "value"]


def case_of(family):
    if family not in CASES:
        pytest.skip(f"the installed libraries have no {family}")
    return CASES[family]


@pytest.fixture(params=FAMILIES)
def case(request):
    return case_of(request.param)


@pytest.fixture(params=COMBINATIONS, ids=lambda options: " ".join(map(str, options.values())))
def options(request):
    return request.param


def run(case, model, image):
    """The final tokens, with the same random numbers every time."""
    torch.manual_seed(7)
    with torch.no_grad():
        return case.tokens(model, image)


# -- the adapter contract holds for all of them


def test_taps_do_not_change_the_output(case, options):
    model, image = case.build(), case.image()
    length = run(case, model, image).shape[1]
    apply_algm(model, **SETTINGS, **options)
    last = run(case, model, image)
    counts = model.algm.tokens_per_layer
    assert counts[0] == length > counts[1] == counts[2] > counts[3]
    assert [len(step.plans) for step in model.algm._past().steps.values()] == [0, 2, 0, 1, 0]
    read_every_block(model)
    assert torch.equal(run(case, model, image), last)


def test_merging_nothing_is_the_original_and_remove_leaves_no_trace(case, options):
    model, image = case.build(), case.image()
    before = [(name, type(part), list(part.__dict__)) for name, part in model.named_modules()]
    hooks = [len(part._forward_hooks) for part in model.modules()]
    expected = run(case, model, image)
    # planned, and nothing passes
    apply_algm(model, clap_layer=1, gbm_layers=[1, 3], tau=1.0, gbm_tau=1.0, **options)
    assert torch.equal(run(case, model, image), expected)
    model.algm.tau = model.algm.gbm_tau = 0.3
    assert not torch.equal(run(case, model, image), expected)
    assert [len(part._forward_hooks) for part in model.modules()] == hooks
    remove_algm(model)
    assert [(name, type(part), list(part.__dict__)) for name, part in model.named_modules()] == before
    assert torch.equal(run(case, model, image), expected)


def test_a_permutation_of_the_tokens_changes_nothing(case, options, monkeypatch):
    from test_contract import permute

    model, image = case.build(), case.image()
    expected = run(case, model, image)
    monkeypatch.setattr("algm_patch.patching.forward_pass.plan_clap", permute)
    apply_algm(model, clap_layer=2, gbm_layers=[], **options)
    torch.testing.assert_close(run(case, model, image), expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(model.algm.token_map.labels[0], torch.arange(expected.shape[1]))


# -- metric


class FusedAttention(TorchFunctionMode):
    """Notes what fused attention is given, all heads together."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.calls.append([part.transpose(1, 2).flatten(2) for part in args[:3]])
        return function(*args, **kwargs or {})


FUSED = [
    ("timm ViT", METRICS),
    ("timm relative positions", ["key", "value"]),
    ("timm DINOv3", ["value"]),  # the others are turned there
    ("timm NaFlex, RoPE", ["value"]),
    ("transformers ViT", METRICS),
    ("transformers DINOv2", METRICS),
    ("transformers DINOv3", ["value"]),
    ("transformers BEiT, bias per layer", METRICS),
    ("transformers Data2Vec, bias per layer", METRICS),
    ("transformers CLIP", METRICS),
    ("transformers ViT-MAE", METRICS),
    ("transformers DPT", METRICS),
]


@pytest.mark.parametrize(("family", "metric"), [(family, metric) for family, metrics in FUSED for metric in metrics])
def test_what_is_compared_is_what_fused_attention_is_given(family, metric):
    case = case_of(family)
    model, image = case.build(), case.image()
    with FusedAttention() as attention:
        length = run(case, model, image).shape[1]
    assert len(attention.calls) >= 5
    features = attention.calls[1][METRICS.index(metric)][:, -30:]
    apply_algm(model, clap_layer=2, gbm_layers=[], compare=metric, tau=0.0)
    assert run(case, model, image).shape[1] == length
    found = model.algm.window_similarity
    # relpos scales its queries before: cosines do not mind
    torch.testing.assert_close(found, window_similarity(features, models.GRID, (2, 2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", ["timm DINOv3", "Segmenter mask transformer", "hub DINOv2", "timm DeepSeek"])
def test_what_is_compared_is_the_projections_own_output_before_any_turn(family, metric):
    case = case_of(family)
    model, image = case.build(), case.image()
    block, inputs = find_vit(model)[1].blocks[1], []
    hook = block.norm1.register_forward_hook(lambda _, args, output: inputs.append(output))
    run(case, model, image)
    hook.remove()
    part = slice(*(64 * (METRICS.index(metric) + i) for i in (0, 1)))
    bias = block.attn.qkv.bias
    features = linear(inputs[0], block.attn.qkv.weight[part], None if bias is None else bias[part])
    apply_algm(model, clap_layer=2, gbm_layers=[], compare=metric, tau=0.0)
    run(case, model, image)
    patches = model.algm._past().grid
    expected = window_similarity(features[:, -patches[0] * patches[1] :].detach(), patches, (2, 2))
    torch.testing.assert_close(model.algm.window_similarity, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "pick"])
def test_in_one_layer_global_matching_compares_the_features_of_windows_merged(reduce):
    model, image = build("ViT"), photo()
    seen = []
    apply_algm(model, clap_layer=2, gbm_layers=[2], tau=0.3, compare="key", reduce=reduce)
    model.blocks[1].attn.qkv.register_forward_hook(lambda _, args, output: seen.append(output.detach()))
    model.forward_features(image)
    plans = model.algm._past().steps[1].plans
    features = plans["CLAP"](seen[0].chunk(3, -1)[1])
    assert features.shape[1] < 31
    assert torch.equal(plans["GBM"].similarity, best_matches(features, 1)[0])
    assert len(seen) == 1  # no second computation


def test_keys_merge_other_tokens_than_the_tokens_themselves():
    model, image = build("ViT"), photo()
    labels = []
    for metric in ("token", *METRICS):
        apply_algm(model, **SETTINGS, compare=metric)
        model.forward_features(image)
        labels.append(model.algm.token_map.labels)
    assert not any(a.equal(b) for i, a in enumerate(labels) for b in labels[:i])


REFUSED = [
    ("timm EVA", "EvaBlock"),
    ("timm BEiT", "Block"),
    ("timm ParallelThingsBlock", "ParallelThingsBlock"),
    ("mmseg ViT", "TransformerEncoderLayer"),
    ("open_clip", "ResidualAttentionBlock"),
    ("open_clip, custom blocks", "CustomResidualAttentionBlock"),
]


@pytest.mark.parametrize(("family", "block"), REFUSED)
def test_attention_whose_projection_is_not_called_is_refused(family, block):
    model = case_of(family).build()
    before = [list(part.__dict__) for part in model.modules()]
    message = rf"compare='key': in block 1 of \w+ \({block}\) there is no one module .* Pass compare='token'"
    with pytest.raises(ValueError, match=message):
        apply_algm(model, compare="key", gbm_layers=[3])
    assert [list(part.__dict__) for part in model.modules()] == before
    apply_algm(model, compare="key", clap_layer=None, gbm_layers=[])  # nothing merges
    with pytest.raises(ValueError, match="in block 3"):
        model.algm.gbm_layers = [3]
    assert model.algm.gbm_layers == ()


@pytest.mark.parametrize("name", CASES)
def test_every_family_compares_values_or_is_refused_before_it_runs(name):
    """A wrong declaration would fail in the first forward pass."""
    case = CASES[name]
    model, image = case.build(), case.image()
    try:
        apply_algm(model, clap_layer=1, gbm_layers=[3], compare="value", tau=0.3, gbm_tau=0.3)
    except ValueError as error:
        assert "Pass compare='token'" in str(error)  # noqa: PT017
        return
    length = run(case, model, image).shape[1]
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < length


def test_attention_of_another_library_is_refused():
    class HeadsFirst(torch.nn.Module):
        """Whose projection orders its outputs by head, then by query, key and value."""

        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(64, 192)

        def forward(self, x, attn_mask=None):
            return x

    model = build("ViT")
    model.blocks[0].attn = HeadsFirst()
    with pytest.raises(ValueError, match="of another library"):
        apply_algm(model, compare="key")


def test_attention_that_leaves_fewer_images_is_refused_where_it_does():
    model = cases_hub.dino(drop_path_rate=0.5, drop_path_uniform=True)
    apply_algm(model, compare="key", tau=0.3)
    image = photo("DINOv2")
    model.eval()(image)
    with pytest.raises(ValueError, match=r"attn.qkv, which left \[\[1, 31, 192\]\] where ALGM expected \[2, 31, D\]"):
        model.train()(image)


def test_hooks_on_the_projection_still_fire_and_may_change_what_is_compared():
    model, image = build("ViT"), photo()
    apply_algm(model, clap_layer=2, gbm_layers=[], compare="key", tau=0.0)
    model.blocks[1].attn.qkv.register_forward_hook(lambda _, args, output: torch.ones_like(output))
    model.forward_features(image)
    torch.testing.assert_close(model.algm.window_similarity, torch.ones(2, 3, 2))


def test_a_calibrated_threshold_is_that_of_its_metric_and_place():
    model, image = build("ViT"), photo(batch=4)
    apply_algm(model, gbm_layers=[])
    taus = {}
    for metric in ("token", "key"):
        for place in ("before_mlp", "after_mlp"):
            model.algm.compare, model.algm.place = metric, place
            taus[metric, place] = calibrate(model, image)
    assert len(set(taus.values())) == 3  # the MLP does not move the keys
    for (metric, place), tau in taus.items():
        model.algm.compare, model.algm.place = metric, place
        model.forward_features(image)
        assert model.algm._past().tau == tau


# -- reduce


def test_a_picked_token_is_one_of_its_group_and_sizes_add_up():
    model, image = build("ViT", depth=1), photo()
    apply_algm(model, clap_layer=1, gbm_layers=[1], tau=0.3, reduce="pick", place="after_mlp")
    unpatched = remove_algm(copy.deepcopy(model))
    model.norm = unpatched.norm = torch.nn.Identity()
    with torch.no_grad():
        full, found = unpatched.forward_features(image), model.forward_features(image)
    token_map = model.algm.token_map
    assert token_map.sizes.shape[1] < 31
    assert (token_map.sizes.sum(1) == 31).all()
    for tokens, merged, labels in zip(full, found, token_map.labels, strict=True):
        same = (tokens == merged[:, None]).all(-1)  # [output position, original position]
        assert same.any(1).all()
        assert (labels[same.nonzero()[:, 0]] == labels[same.nonzero()[:, 1]]).all()
    assert not torch.equal(found, full)


def test_every_member_is_picked_about_as_often():
    model = apply_algm(build("ViT", depth=1), clap_layer=1, gbm_layers=[], tau=-1.0, reduce="pick", place="after_mlp")
    picks = []
    for _ in range(400):
        model.forward_features(photo(batch=1))
        picks.append(model.algm._past().steps[0].plans["CLAP"].picked[0])
    first = torch.stack(picks)[:, 1]  # of the grid's first window: patches 0, 1, 5, 6 behind the class token
    counts = [int((first == position).sum()) for position in (1, 2, 6, 7)]
    assert sum(counts) == 400
    assert min(counts) > 60  # of 100 expected, with a deviation of 9


def test_picks_follow_the_seed_and_means_draw_no_numbers():
    model, image = build("ViT"), photo()
    apply_algm(model, **SETTINGS, reduce="pick")

    def output(seed):
        torch.manual_seed(seed)
        return model.forward_features(image)

    assert torch.equal(output(1), output(1))
    assert not torch.equal(output(1), output(2))
    model.algm.reduce = "mean"
    before = torch.get_rng_state()
    model.forward_features(image)
    assert torch.equal(torch.get_rng_state(), before)


# -- place


def test_after_the_mlp_the_blocks_output_merges():
    model, image = build("ViT", depth=1), photo()
    model.norm = torch.nn.Identity()
    with torch.no_grad():
        x = model.forward_features(image)
        apply_algm(model, clap_layer=1, gbm_layers=[1], tau=0.3, gbm_tau=0.0, place="after_mlp")
        found = model.forward_features(image)
    merged, local = clap(x, models.GRID, 0.3)
    merged, token_map = gbm(merged, local, layer=1, tau=0.0)
    assert merged.shape[1] < local.sizes.shape[1] < 31
    assert torch.equal(model.algm.token_map.labels, token_map.labels)
    assert torch.equal(found, token_map.unmerge(merged))


def test_after_the_mlp_that_mlp_runs_on_all_tokens():
    model = build("ViT")
    lengths = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, args, output: lengths.append(output.shape[1]))
    apply_algm(model, **SETTINGS, place="after_mlp")
    model.forward_features(photo())
    counts = model.algm.tokens_per_layer
    assert lengths == [31, *counts[:-1]]
    assert counts[1] < 31


# -- all of them: recomputation, threads, passes in turns, copies


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("how", ["blocks", "whole model", "halves of the model"])
def test_recomputation_gives_the_same_gradients(options, how):
    """With dropout in every part, whose numbers must be those of the forward pass; two forwards before the backward."""
    model = build("ViT", drop_path_rate=0.3, proj_drop_rate=0.1).train()
    apply_algm(model, **SETTINGS, **options)

    def halves(image):
        x = model._pos_embed(model.patch_embed(image))
        for part in (model.blocks[:3], model.blocks[3:]):
            x = checkpoint(part, x, use_reentrant=False)
        return model.norm(x)

    def loss(forward):
        torch.manual_seed(0)
        total = forward(photo(seed=1)).square().mean() + forward(photo(seed=2)).pow(3).mean()
        with torch.no_grad():
            model.forward_features(photo(seed=3, batch=1))
        return total

    expected = gradients(model, loss(model.forward_features))
    model.set_grad_checkpointing(how == "blocks")
    forward = {
        "blocks": model.forward_features,
        "whole model": lambda image: checkpoint(model.forward_features, image, use_reentrant=False),
        "halves of the model": halves,
    }[how]
    found = gradients(model, loss(forward))
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_gradients_of_a_picked_token_reach_it_alone():
    model, image = build("ViT", depth=1), photo(batch=1)
    inputs = []
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=-1.0, reduce="pick", place="after_mlp")
    model.blocks[0].mlp.register_forward_hook(lambda _, args, output: (output.retain_grad(), inputs.append(output))[0])
    model.forward_features(image).square().sum().backward()
    reached = inputs[0].grad[0].abs().sum(-1) > 0
    picked = model.algm._past().steps[0].plans["CLAP"].picked[0]
    assert sorted(picked.tolist()) == reached.nonzero()[:, 0].tolist()
    assert len(picked) < 31


def test_two_passes_in_turns_each_compare_their_own(options):
    model = build("ViT", dynamic_img_size=True)
    images = [photo(batch=1), photo(batch=2, grid=(8, 3), seed=1)]
    apply_algm(model, **SETTINGS, **options)
    read_every_block(model)

    def begun(image):
        torch.manual_seed(3)
        return model._pos_embed(model.patch_embed(image))

    with torch.no_grad():
        expected = []
        for image in images:
            x = begun(image)
            for block in model.blocks:
                x = block(x)
            expected.append(x)
        first = model.blocks[0](begun(images[0]))
        second = model.blocks[0](begun(images[1]))
        for block in model.blocks[1:]:
            first, second = block(first), block(second)
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


def test_threads_do_not_see_each_others_keys():
    from test_training import run_in_threads

    model = apply_algm(build("ViT", dynamic_img_size=True), **SETTINGS, compare="key", place="after_mlp")
    images = [photo(batch=1), photo(batch=2, grid=(8, 3), seed=1)]

    def job(image):
        with torch.no_grad():
            output = model.forward_features(image)
        return output, model.algm.token_map.labels

    expected = [job(image) for image in images]
    for found, (output, labels) in zip(
        run_in_threads([lambda: job(images[0]), lambda: job(images[1])]), expected, strict=True
    ):
        for one, its_labels in found:
            torch.testing.assert_close(one, output)
            assert torch.equal(its_labels, labels)


def test_copies_keep_the_settings(options):
    model = apply_algm(build("ViT"), **SETTINGS, **options)
    twin = copy.deepcopy(model)
    for name, value in options.items():
        assert getattr(twin.algm, name) == value
    case = CASES["timm ViT"]
    assert torch.equal(run(case, twin, photo()), run(case, model, photo()))
    twin.algm.compare, twin.algm.reduce, twin.algm.place = "token", "mean", "before_mlp"
    assert not torch.equal(run(case, twin, photo()), run(case, model, photo()))


def test_the_handle_says_what_is_not_the_default():
    model = apply_algm(build("ViT"))
    assert "compare" not in repr(model.algm)
    model.algm.compare, model.algm.reduce, model.algm.place = "key", "pick", "after_mlp"
    assert "proportional attention on, compare key, reduce pick, place after_mlp" in repr(model.algm)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"compare": "keys"}, "compare is 'token', 'key', 'query' or 'value', got 'keys'"),
        ({"compare": None}, "got None"),
        ({"reduce": "max"}, "reduce is 'mean' or 'pick', got 'max'"),
        ({"place": "before_attention"}, "place is 'before_mlp' or 'after_mlp', got 'before_attention'"),
    ],
)
def test_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)
    model = build("ViT")
    with pytest.raises(ValueError, match=message):
        apply_algm(model, **given)
    assert not hasattr(model, "algm")


def test_the_defaults_are_the_published_ones():
    assert (Settings.metric, Settings.reduce, Settings.place) == ("token", "mean", "before_mlp")
