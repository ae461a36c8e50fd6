"""Settings for all tests."""

import torch

# The networks here are tiny: a second thread costs more in waiting than it saves.
torch.set_num_threads(1)
