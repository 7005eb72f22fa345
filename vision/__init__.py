"""Collaboration of Experts for images: timm's and torchvision's classifiers over coe_core.

The command line is ``coe-vision`` (`vision.commands.cli`); a recipe (`vision.recipe`) is trained
(`vision.training.train`) into a run (`vision.run`), which is evaluated, calibrated and used for prediction.
"""
