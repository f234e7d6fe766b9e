"""Tests run one thread per process, as trials do: two threads on two cores that others use only wait for each other."""

import torch

torch.set_num_threads(1)
