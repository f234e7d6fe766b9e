"""Fair, fast comparison of parameter-efficient fine-tuning methods for pre-trained point-cloud models."""

__version__ = "0.1.0"
