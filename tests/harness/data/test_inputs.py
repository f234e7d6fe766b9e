"""Augmentation and point sampling: what they promise, and that they are reproducible."""

import math

import pytest
import torch

from harness.data.augment import augmentation, rotate, scale_translate
from harness.data.sampling import test_points as points_at_test
from harness.data.sampling import train_points


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


@pytest.mark.parametrize("name", ["none", "scale_translate", "rotate"])
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
