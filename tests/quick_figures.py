"""Reports of whole runs whose figures take no time: with all of them drawn, half of a tiny run is the drawing."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure


def quick_methods(drawn: set | None) -> dict[str, Callable[..., Any]]:
    """Methods for `Figure` that do without the search for room between its parts, and save most figures blank.

    Args:
        drawn: the shapes of what has been drawn; a figure of another shape is drawn and added. None: all are blank.
    """
    save = Figure.savefig

    def keep_layout(self, layout=None, **options) -> None:
        pass

    def save_quickly(self, *arguments, **options) -> None:
        shape = (*self.get_size_inches(), len(self.axes))
        if drawn is None or shape in drawn:
            self.clear()
        else:
            drawn.add(shape)
        save(self, *arguments, **options)

    return {"set_layout_engine": keep_layout, "savefig": save_quickly}
