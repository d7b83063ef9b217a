"""Functions that run once a module is imported, without importing it now."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Completion = Callable[[ModuleType], object]


def after_import(name: str, completion: Completion) -> Callable[[], None]:
    """Call a function with a module: now if it is imported, else right after its first import.

    Parameters
    ----------
    name : str
        Full name of the module.
    completion : callable
        Given the module.

    Returns
    -------
    callable
        Withdraws the function if it was not called yet.
    """
    if name in sys.modules:
        completion(sys.modules[name])
        return lambda: None
    _finder.waiting.setdefault(name, []).append(completion)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)

    def withdraw() -> None:
        waiting = _finder.waiting.get(name, [])
        if completion in waiting:
            waiting.remove(completion)
        _finder.leave()

    return withdraw


class _Finder(MetaPathFinder):
    """Finds a module as the other finders do, and lets its loader complete it.

    The loader stays the one that Python chose, so `module.__loader__` and `module.__spec__` are as usual. The finder
    removes itself when nothing waits any more.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, list[Completion]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.waiting.get(fullname):
            return None
        for finder in list(sys.meta_path):
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    self._complete_after(spec.loader, fullname)
                return spec
        return None

    def _complete_after(self, loader: Loader, name: str) -> None:
        attributes: dict[str, Any] = vars(loader)
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            attributes.pop("exec_module", None)  # the loader is Python's own again
            execute(module)
            for completion in self.waiting.pop(name, []):
                completion(module)
            self.leave()

        attributes["exec_module"] = exec_module

    def leave(self) -> None:
        """Go from ``sys.meta_path`` if nothing waits."""
        if not any(self.waiting.values()) and self in sys.meta_path:
            sys.meta_path.remove(self)


_finder = _Finder()
