"""Which points of clouds with parts are seen: by either rule, in training and at test."""

import numpy as np
import pytest
import torch

from harness.data.augment import scale_shift
from harness.data.dataset import PartClouds
from harness.data.parts import PartSplit, at_test, on_device, positions
from harness.data.parts import test_batches as batches

LENGTHS = [5, 40, 300]


def split() -> PartSplit:
    total = sum(LENGTHS)
    points = np.arange(3 * total, dtype=np.float32).reshape(total, 3)
    offsets = np.cumsum([0, *LENGTHS]).astype(np.int64)
    parts = np.arange(total, dtype=np.int64) % 50
    return on_device(PartClouds(points, parts, offsets, np.array([2, 0, 1]), "digest"), torch.device("cpu"))


def seen(rule: str, *, count: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return positions(torch.tensor(LENGTHS), count, rule, generator, longest=max(LENGTHS))


def test_random_takes_no_point_twice_unless_it_must() -> None:
    small, exact, large = seen("random")
    assert set(small[:5].tolist()) == set(range(5)) and set(small.tolist()) == set(range(5))
    assert sorted(exact.tolist()) == list(range(40))
    assert len(set(large.tolist())) == 40 and large.max() < 300
    assert not torch.equal(large, seen("random", seed=1)[2])
    many = torch.stack([seen("random", seed=seed)[2] for seed in range(400)]).flatten().bincount(minlength=300)
    assert many.min() > 20 and many.max() < 95, "every point is as likely as any other: 53 on average"


def test_resample_draws_every_point_anew() -> None:
    counts = [len(set(row.tolist())) for row in seen("resample", count=300)]
    assert counts[0] == 5 and counts[1] == 40
    assert counts[2] == pytest.approx(300 * (1 - np.exp(-1)), abs=25), "as many as drawing with replacement leaves"
    assert [int(row.max()) < length for row, length in zip(seen("resample"), LENGTHS, strict=True)] == [True] * 3


@pytest.mark.parametrize("rule", ["random", "resample"])
def test_what_is_drawn_does_not_depend_on_the_clouds(rule: str) -> None:
    """Or one method's order of clouds would shift the randomness of all that follows."""
    after = []
    for lengths in ([5, 40, 300], [300, 300, 1]):
        generator = torch.Generator().manual_seed(0)
        positions(torch.tensor(lengths), 40, rule, generator, longest=300)
        after.append(torch.rand(1, generator=generator))
    assert after[0] == after[1]


def test_points_keep_their_parts() -> None:
    whole = split()
    points, parts = whole.take(torch.tensor([2, 0]), torch.tensor([[0, 299], [4, 0]]))
    assert parts.dtype == torch.int64 and points[1, 0].tolist() == [12, 13, 14]
    assert parts.tolist() == [[45, 344 % 50], [4, 0]]
    some = whole.rows(torch.tensor([False, True, True]))
    assert len(some) == 2 and some.categories.tolist() == [0, 1] and some.points is whole.points
    assert torch.equal(
        some.take(torch.tensor([1]), torch.tensor([[7]]))[0], whole.take(torch.tensor([2]), torch.tensor([[7]]))[0]
    )


@pytest.mark.parametrize("rule", ["random", "resample"])
def test_a_split_is_sampled_once_and_alike(rule: str) -> None:
    whole = split()
    once = at_test(whole, 64, rule)
    assert at_test(once, 64, rule) is once and once.points.shape == (3 * 64, 3) and once.parts.dtype == torch.uint8
    (rows, points, parts), (_, again, _) = next(batches(whole, 64, rule)), next(batches(once, 64, rule))
    assert rows.tolist() == [0, 1, 2] and torch.equal(points, again)
    assert torch.equal(parts, (points[..., 0] / 3).long() % 50)


def test_scale_shift_is_one_scale_per_cloud() -> None:
    clouds = torch.rand(200, 9, 3) - 0.5
    moved = scale_shift(clouds, torch.Generator().manual_seed(0))
    scale = (moved - moved.mean(1, keepdim=True)) / (clouds - clouds.mean(1, keepdim=True))
    assert torch.allclose(scale, scale[:, :1, :1].expand_as(scale), rtol=1e-2)
    assert 0.8 <= scale[:, 0, 0].min() < 0.82 and 1.23 < scale[:, 0, 0].max() <= 1.2501
    shift = (moved - clouds * scale[:, :1, :1]).mean(1)
    assert 0.095 < shift.abs().max() < 0.101 and shift.std(0).min() > 0.05
