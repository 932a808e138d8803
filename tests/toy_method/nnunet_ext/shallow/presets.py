"""Named settings for `nnunet_ext plan --preset shallow/NAME`."""

PRESETS = {"wide": {"width": 32}}
