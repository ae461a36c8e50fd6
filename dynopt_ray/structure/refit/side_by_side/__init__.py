"""Forward passes of one network that take turns, each as if it ran alone.

A pass that another piece of code should be able to hold up in the middle has to keep its whole call
stack, including that of the modules' own `forward`. Python can keep it in two ways: rewrite these
methods, or run them in a thread of their own. So each pass runs in a thread (`pausing`), but never
two at a time: this is not for speed. All passes use the same modules, so what a pass leaves in them
is taken away when it pauses and put back when it continues (`versions`). `Turns` does both.
"""

from dynopt_ray.structure.refit.side_by_side.pausing import Pausable
from dynopt_ray.structure.refit.side_by_side.turns import NetworkPass, Turns
from dynopt_ray.structure.refit.side_by_side.versions import NetworkVersion

__all__ = ["NetworkPass", "NetworkVersion", "Pausable", "Turns"]
