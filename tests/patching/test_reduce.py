"""The setting ``reduce`` (supplement, Tab. 4c): a member of each group in place of the mean."""

import copy

import torch

from algm_patch import apply_algm, remove_algm
from tests.support.ablations import SETTINGS
from tests.support.batches import patched, unlike
from tests.support.models import build, photo


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
        picks.append(model.algm.last_pass.blocks[0].plans["CLAP"].picked[0])
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


def test_gradients_of_a_picked_token_reach_it_alone():
    model, image = build("ViT", depth=1), photo(batch=1)
    inputs = []
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=-1.0, reduce="pick", place="after_mlp")
    model.blocks[0].mlp.register_forward_hook(lambda _, args, output: (output.retain_grad(), inputs.append(output))[0])
    model.forward_features(image).square().sum().backward()
    reached = inputs[0].grad[0].abs().sum(-1) > 0
    picked = model.algm.last_pass.blocks[0].plans["CLAP"].picked[0]
    assert sorted(picked.tolist()) == reached.nonzero()[:, 0].tolist()
    assert len(picked) < 31


@torch.no_grad()
def test_each_picked_token_is_a_member_of_its_group():
    model, images = build("ViT"), unlike(photo())
    parts: dict[str, torch.Tensor] = {}
    patched(model, model.forward_features, images, gbm_layers=[])
    model(images)
    labels, sizes = model.algm.token_map.labels, model.algm.token_map.sizes
    model.algm.reduce = "pick"
    block = model.blocks[0]
    block.register_forward_pre_hook(lambda _, inputs: parts.update(x=inputs[0]))
    block.attn.register_forward_hook(lambda _, inputs, output: parts.update(attended=output))
    block.norm2.register_forward_pre_hook(lambda _, inputs: parts.update(merged=inputs[0]))
    unlike_first = 0
    for _ in range(3):
        model(images)
        token_map = model.algm.token_map
        assert torch.equal(token_map.labels, labels)
        assert torch.equal(token_map.sizes, sizes)
        before, merged = parts["x"] + parts["attended"], token_map.packing.split(parts["merged"])
        for i, tokens in enumerate(merged):
            for group, token in enumerate(tokens[0]):
                members = before[i, labels[i] == group]
                assert (members == token).all(1).any()
                unlike_first += not torch.equal(members[0], token)
    assert unlike_first


@torch.no_grad()
def test_picking_in_every_merge_of_unlike_images():
    model, images = build("ViT"), unlike(photo())
    patched(model, model.forward_features, images, gbm_layers=[2, 4], reduce="pick", gbm_tau=0.5)
    output, token_map = model.forward_features(images), model.algm.token_map
    assert output.isfinite().all()
    counts = (token_map.sizes > 0).sum(1)
    assert len(counts.unique()) > 1
    assert (token_map.labels.amax(1) + 1 == counts).all()
    assert (token_map.sizes.sum(1) == 31).all()
