"""What a very large position counts."""

import torch

from hybridkit.massive import MOST, balanced, relative_error


def test_positions_of_like_size_count_one():
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(balanced(x, x), torch.ones(50, 1))


def test_a_massive_position_counts_as_ten_of_median_size():
    x = torch.ones(9, 4)
    x[3] *= 200
    counted = balanced(x, x) * x.square().sum(1, keepdim=True)
    torch.testing.assert_close(counted[3], torch.tensor([MOST * 4.0]))
    assert (counted[:3] == 4).all()


def test_one_that_is_massive_in_the_wrong_place_is_no_more_than_ten_others():
    target = torch.ones(9, 4)
    ours = target.clone()
    ours[3] *= 200
    error = balanced(ours, target) * (ours - target).square().sum(1, keepdim=True)
    assert 0.9 * MOST * 4 < error.sum() < MOST * 4


def test_an_error_of_ordinary_positions_is_seen_beside_a_massive_one():
    target = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
    target[:, 0] *= 200
    ours = target.clone()
    ours[:, 1:] = 0
    plain = (ours - target).square().sum() / (target - target.mean()).square().sum()
    assert plain < 0.01
    assert relative_error(ours, target) > 0.5


def test_nothing_and_zeros_are_no_error():
    for x in (torch.zeros(0, 4), torch.zeros(3, 4), torch.cat([torch.zeros(3, 4), torch.ones(1, 4)])):
        assert balanced(x, x).isfinite().all()
        assert relative_error(x, x) == 0


def test_of_images_a_sample_is_a_position():
    target = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    target[:, :, 0] = 0  # rows of nothing
    ours = target + 0.1
    assert relative_error(ours, target) == relative_error(ours.flatten(1), target.flatten(1))
