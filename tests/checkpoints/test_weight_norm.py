import torch
from torch import nn

from indextts2.checkpoints.weight_norm import fold, magnitude_shape


def test_fold_equals_torch_for_convolutions_and_transposed_ones() -> None:
    torch.manual_seed(0)
    for layer in (nn.Conv1d(6, 4, 3), nn.ConvTranspose1d(6, 4, 8, 4), nn.Linear(5, 7)):
        normed = nn.utils.parametrizations.weight_norm(layer)
        parts = normed.parametrizations.weight
        with torch.no_grad():
            parts.original0.mul_(torch.rand_like(parts.original0) + 0.5)
        weight = fold(parts.original0, parts.original1)
        assert parts.original0.shape == magnitude_shape(tuple(weight.shape))
        torch.testing.assert_close(weight, layer.weight, rtol=1e-6, atol=1e-7)


def test_fold_of_half_precision_is_computed_in_float32() -> None:
    g, v = torch.rand(3, 1).half(), torch.randn(3, 500).half()
    expected = g.float() * v.float() / v.float().norm(dim=1, keepdim=True)
    assert fold(g, v).dtype is torch.float32
    torch.testing.assert_close(fold(g, v), expected)
