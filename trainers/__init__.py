"""How each method trains inside nnU-Net. Installed as `nnunet_ext.trainers`; nnU-Net finds the classes by name."""
