"""Augmentation and point sampling: what they promise, and that they are reproducible."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from harness.data.augment import augmentation, rotate, scale_rotate, scale_translate
from harness.data.sampling import test_points as points_at_test
from harness.data.sampling import train_points
from harness.geometry import farthest_points, gather_points
from harness.models.point_mae import PointMAE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_scale_and_translate_stay_in_their_ranges() -> None:
    first = torch.rand(500, 1, 3) + 1
    clouds = torch.cat([first, first + 1], dim=1)
    moved = scale_translate(clouds, generator())
    scale = (moved[:, 0] - moved[:, 1]) / (clouds[:, 0] - clouds[:, 1])
    shift = moved[:, 0] - scale * clouds[:, 0]
    assert 2 / 3 - 1e-3 < scale.min() < 0.68 and 1.48 < scale.max() < 3 / 2 + 1e-3
    assert shift.abs().max() < 0.21
    assert scale.std(dim=1).mean() > 0.05, "each axis has a scale of its own"


@pytest.mark.parametrize(("up", "axis"), [("z", 2), ("y", 1)])
def test_rotation_turns_about_the_vertical(up, axis: int) -> None:  # type: ignore[no-untyped-def]
    clouds = torch.rand(200, 5, 3)
    turned = rotate(clouds, generator(), up=up)
    assert torch.allclose(turned[..., axis], clouds[..., axis])
    assert torch.allclose(turned.norm(dim=-1), clouds.norm(dim=-1), atol=1e-5)
    flat = [index for index in range(3) if index != axis]
    angles = torch.atan2(turned[:, 0, flat[1]], turned[:, 0, flat[0]])
    assert angles.min() < -0.9 * math.pi and angles.max() > 0.9 * math.pi


def test_point_pefts_augmentation_scales_each_cloud_and_turns_all_by_one_angle() -> None:
    angles = []
    for seed in range(100):
        corner = torch.ones(30, 1, 3)
        turned = scale_rotate(torch.cat([corner, corner * torch.tensor([1.0, 1, 0])], dim=1), generator(seed), up="y")
        assert turned[..., 1].min() > 0.9 - 1e-5 and turned[..., 1].max() < 1.1 + 1e-5, "no shift"
        assert turned[:, 0, 1].std() > 0.01, "each cloud has a scale of its own"
        heading = torch.atan2(turned[:, 1, 2], turned[:, 1, 0])  # where the first axis points to
        assert torch.allclose(heading.cos(), heading[0].cos(), atol=1e-5), "one turn for the batch"
        angles.append(float(heading[0]))
    assert min(angles) < -0.9 * math.pi and max(angles) > 0.9 * math.pi


@pytest.mark.parametrize("name", ["none", "scale_translate", "rotate", "scale_rotate"])
def test_the_same_seed_gives_the_same_clouds(name: str) -> None:
    clouds = torch.rand(3, 7, 3)
    transform = augmentation(name, up="z")
    assert torch.equal(transform(clouds, generator(1)), transform(clouds, generator(1)))


def test_points_in_training_are_one_random_subset_per_batch() -> None:
    clouds = torch.arange(40.0).view(1, 40, 1).expand(2, 40, 3)
    first = train_points(clouds, 10, "random", generator(0))
    assert first.shape == (2, 10, 3) and torch.equal(first[0], first[1])
    assert len(first[0, :, 0].unique()) == 10
    assert not torch.equal(first, train_points(clouds, 10, "random", generator(1)))


def test_points_at_test_are_fixed_and_not_the_first_ones() -> None:
    clouds = torch.arange(40.0).view(1, 40, 1).expand(2, 40, 3)
    chosen = points_at_test(clouds, 10, "random")
    assert torch.equal(chosen, points_at_test(clouds, 10, "random"))
    assert chosen[0, :, 0].tolist() != list(range(10))


def test_the_papers_point_rule() -> None:
    clouds = torch.rand(2, 1500, 3, generator=generator()) + 1
    assert train_points(clouds, 1024, "fps", generator()).shape == (2, 1024, 3)
    spread = points_at_test(clouds, 16, "fps")
    assert torch.equal(spread[:, 0], clouds[:, 0])
    assert torch.pdist(spread[0]).min() > torch.pdist(points_at_test(clouds, 16, "random")[0]).min()


@pytest.mark.parametrize("total", [2048, 1500, 1100])
def test_papers_points_in_training_are_the_loops(total: int) -> None:
    """Shuffle, farthest points, one random subset of ranks: step by step as the official runners have it."""
    clouds = torch.randn(3, total, 3, generator=generator()) / 4
    clouds[:, ::50] = 0.001  # near the origin, and copies of one another
    count = 2048 if total == 2048 else 1024
    found = train_points(clouds, count, "fps", generator(5))
    replay = generator(5)
    shuffled = gather_points(clouds, torch.rand(3, total, generator=replay).argsort(1))
    keep = min({1024: 1200, 2048: 2400}[count], total)
    ranked = gather_points(shuffled, farthest_points(shuffled, keep))
    official = ranked[:, torch.randperm(keep, generator=replay)[:count]]
    if keep < total:
        assert torch.equal(found, official)
    elif count == total:  # all points: the same ones, equally often, in another and equally likely order
        assert [sorted(cloud) for cloud in found.tolist()] == [sorted(cloud) for cloud in official.tolist()]
    else:
        everything = [set(map(tuple, cloud)) for cloud in ranked.tolist()]
        assert all(set(map(tuple, cloud)) <= known for cloud, known in zip(found.tolist(), everything, strict=True))


def test_in_training_every_epoch_starts_elsewhere() -> None:
    clouds = torch.rand(4, 300, 3, generator=generator()) + 1
    draws = generator()
    starts = torch.stack([train_points(clouds, 300, "fps", draws)[:, 0] for _ in range(40)])
    assert len(starts[:, 0].unique(dim=0)) > 30
    assert not torch.equal(starts[:, 0], starts[:, 1]), "each cloud is shuffled for itself"


def test_all_points_at_test_mean_to_the_encoder_what_farthest_points_do() -> None:
    torch.manual_seed(0)
    encoder = PointMAE(preset="tiny", depth=1, groups=16, group_size=8).build(drop_path=0).eval()
    clouds = torch.randn(4, 512, 3, generator=generator()) / 3
    clouds[:, 5::60] = 0.01
    seen = points_at_test(clouds, 512, "fps")
    looped = gather_points(clouds, farthest_points(clouds, 512))
    assert not torch.equal(seen, looped)
    with torch.no_grad():
        found, expected = encoder(seen).patches, encoder(looped).patches
        assert torch.equal(found, expected)
        assert not torch.allclose(found, encoder(clouds).patches), "leaving the sampling out is something else"


def test_orders_in_training_are_as_likely_as_the_loops() -> None:
    """Three points, one of them near the origin: every arrangement as often as by shuffle, loop and subset of ranks."""
    cloud = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]])
    runs, draws = 1500, generator()

    def looped() -> torch.Tensor:
        shuffled = cloud[:, torch.randperm(3, generator=draws)]
        return gather_points(shuffled, farthest_points(shuffled, 3))[:, torch.randperm(3, generator=draws)]

    def frequencies(draw: Callable[[], torch.Tensor]) -> Counter[str]:
        return Counter(str(draw().sum(-1)[0].int().tolist()) for _ in range(runs))

    ours, theirs = frequencies(lambda: train_points(cloud, 3, "fps", draws)), frequencies(looped)
    assert set(ours) == set(theirs)
    assert max(abs(ours[order] - theirs[order]) for order in theirs) < 4 * math.sqrt(max(theirs.values()))
