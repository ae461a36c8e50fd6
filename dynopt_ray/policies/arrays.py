"""The arrays that policies work on."""

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


ActionMask = NDArray[np.int8]
