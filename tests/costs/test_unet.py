"""The multiply-adds of nnU-Net's own 2D network, by hand."""

from nnunet_ext.costs.unet import unet_macs


def test_nnunets_2d_network_is_counted_as_planned():
    assert unet_macs([[1, 1, 1], [1, 2, 2]], 1, 2, (8, 8)) == (
        64 * 9 * (1 * 32 + 32 * 32)  # the first stage
        + 16 * 9 * (32 * 64 + 64 * 64)
        + 16 * 4 * 64 * 32  # transposed
        + 64 * 9 * (64 * 32 + 32 * 32)
        + 64 * 32 * 2  # head
    )
    assert unet_macs([[1, 1, 1], [1, 2, 2]], 1, 2, (7, 8)) == unet_macs([[1, 1], [2, 2]], 1, 2, (8, 8))
