"""Sampling and neighbours against plain, slow re-statements of the official rules."""

import numpy as np
import pytest
import torch

from harness.geometry import all_points, farthest_points, gather_points, group, nearest


def kernel(points: np.ndarray, count: int) -> list[int]:
    """The CUDA kernel's rules, thread by thread: near-origin points skipped, ties to the lower thread."""
    total = len(points)
    block = min(2 ** int(np.log2(total)), 512)
    distance = np.full(total, 1e10, dtype=np.float32)
    picks = [0]
    for _ in range(count - 1):
        last, best, best_distance = points[picks[-1]], 0, np.float32(-1)
        for k in sorted(range(total), key=lambda k: (k % block, k)):
            if np.float32((points[k] ** 2).sum(dtype=np.float32)) <= 1e-3:
                continue
            gap = points[k] - last
            distance[k] = min(distance[k], np.float32(gap[0] ** 2) + np.float32(gap[1] ** 2) + np.float32(gap[2] ** 2))
            if distance[k] > best_distance:
                best, best_distance = k, distance[k]
        picks.append(best)
    return picks


@pytest.mark.parametrize("total", [7, 64, 100])
def test_farthest_points_follow_the_kernel(total: int) -> None:
    clouds = torch.randn(3, total, 3, generator=torch.Generator().manual_seed(total))
    clouds[:, 3] *= 1e-3  # near the origin: never picked
    clouds[:, 5] = clouds[:, 4]  # a tie
    picks = farthest_points(clouds, 7)
    assert picks.tolist() == [kernel(cloud.numpy(), 7) for cloud in clouds]
    assert not (picks == 3).any()


def test_ties_go_to_the_lower_thread_and_exhausted_clouds_repeat() -> None:
    cloud = torch.zeros(1, 6, 3)
    cloud[0, :, 0] = torch.tensor([1.0, 2, 3, 3, 2, 3])
    assert farthest_points(cloud, 6)[0].tolist() == kernel(cloud[0].numpy(), 6)
    assert farthest_points(torch.zeros(1, 4, 3), 3)[0].tolist() == [0, 0, 0]


def test_fewer_picks_are_the_first_of_more() -> None:
    cloud = torch.rand(2, 50, 3)
    assert torch.equal(farthest_points(cloud, 20)[:, :8], farthest_points(cloud, 8))


def awkward_clouds(batch: int, total: int) -> torch.Tensor:
    """Near-origin points, copies, and near-origin copies, at position 0 too; coordinates on a coarse grid."""
    clouds = torch.randint(-6, 7, (batch, total, 3), generator=torch.Generator().manual_seed(total)) / 8
    clouds[::3, 0] = torch.tensor([0.01, -0.01, 0.0])
    clouds[1::3, -1] = clouds[1::3, 0]
    clouds[::4, total // 2] = -0.0
    return clouds


@pytest.mark.parametrize("total", [1, 2, 7, 64, 700])
def test_all_points_are_those_of_the_loop_equally_often(total: int) -> None:
    for clouds in (awkward_clouds(8, total), torch.randn(8, total, 3, generator=torch.Generator().manual_seed(1)) / 9):
        found, looped = all_points(clouds), farthest_points(clouds, total)
        assert torch.equal(found.sort(1).values, looped.sort(1).values)
        kept = found == torch.arange(total)
        assert kept[:, 0].all(), "the encoder's own sampling starts here"
        assert (kept.sum(1) == torch.tensor([len(row.unique()) for row in looped])).all(), "kept where they are"


def test_all_points_where_none_is_eligible() -> None:
    assert all_points(torch.zeros(1, 4, 3))[0].tolist() == farthest_points(torch.zeros(1, 4, 3), 4)[0].tolist()


def test_start_can_be_chosen() -> None:
    cloud = torch.rand(2, 50, 3) + 1
    picks = farthest_points(cloud, 4, start=torch.tensor([7, 9]))
    assert picks[:, 0].tolist() == [7, 9]
    assert len(set(picks[0].tolist())) == 4


def test_nearest_is_brute_force() -> None:
    cloud, queries = torch.rand(2, 40, 3), torch.rand(2, 5, 3)
    expected = ((queries[:, :, None] - cloud[:, None]) ** 2).sum(-1).argsort(-1)[..., :6]
    assert torch.equal(nearest(cloud, queries, 6), expected)


def test_group_is_relative_to_its_centres() -> None:
    cloud = torch.rand(2, 40, 3)
    patches = group(cloud, 4, 8)
    assert patches.neighbourhoods.shape == (2, 4, 8, 3)
    assert torch.equal(patches.members[..., 0], patches.picks)  # a centre is its own nearest point
    absolute = patches.neighbourhoods + patches.centers[:, :, None]
    assert torch.allclose(absolute, gather_points(cloud, patches.members))
