"""The modules that nnU-Net asks first for a class or function by its name."""

TRAINER_MODULE = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
PLANNER_MODULE = "nnunetv2.experiment_planning.plan_and_preprocess_api"
RESAMPLING_MODULE = "nnunetv2.preprocessing.resampling.default_resampling"
