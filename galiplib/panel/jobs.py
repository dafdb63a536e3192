"""Long work behind a panel: a step at a time, so that clicks, the cancel button's above all, get through.

A notebook's callbacks run in the kernel's event loop; as long as one computes, no other click is heard. So a job is a
generator whose steps run in a thread, and between two steps the event loop has its turn. All widgets are touched in
the event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Job = Generator[tuple[int, int], None, Any]  # yields (done, total), returns the result


class Jobs:
    """Runs one job at a time; of requests that come meanwhile the last one of each kind waits.

    Without a running event loop (a script, a test) a job runs to its end at once.

    Args:
        progress: called with (done, total) after every step.
        changed: called with True when a job starts, with False when none is left.
    """

    def __init__(self, progress: Callable[[int, int], None], changed: Callable[[bool], None]) -> None:
        self._progress, self._changed = progress, changed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="panel")
        self._waiting: dict[str, tuple] = {}
        self._task: asyncio.Task | None = None
        self.busy = self._cancelled = False

    def start(
        self, kind: str, job: Callable[[], Job], finished: Callable[[Any], None], failed: Callable[[Exception], None],
        cancelled: Callable[[], None],
    ) -> None:  # fmt: skip
        """Run `job()`; then one of the three is called. While one runs, this waits, in place of any of its kind."""
        request = (job, finished, failed, cancelled)
        if self.busy:
            self._waiting[kind] = request
            return
        self.busy = True
        self._changed(True)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._run(request))
        else:
            self._task = loop.create_task(self._run(request))  # kept: the loop itself holds tasks weakly

    def cancel(self) -> None:
        """End the running job after its current step, and those that wait."""
        waiting, self._waiting = self._waiting, {}
        for *_, cancelled in waiting.values():
            cancelled()
        self._cancelled = self.busy

    async def _run(self, request: tuple) -> None:
        try:
            while True:
                self._cancelled = False
                await self._run_one(*request)
                if not self._waiting:
                    return
                request = self._waiting.pop(next(iter(self._waiting)))
        finally:
            self.busy = False
            self._changed(False)

    async def _run_one(self, job: Callable, finished: Callable, failed: Callable, cancelled: Callable) -> None:
        loop = asyncio.get_running_loop()
        try:
            steps = job()
            while True:
                over, value = await loop.run_in_executor(self._thread, _next, steps)
                if over:
                    return finished(value)
                self._progress(*value)
                if self._cancelled:
                    await loop.run_in_executor(self._thread, steps.close)
                    return cancelled()
        except Exception as error:  # whatever it is, it must be seen: nothing above this shows it
            failed(error)


def _next(steps: Job) -> tuple[bool, Any]:
    """(whether it is over, what it yielded or returned); a StopIteration can't leave a thread."""
    try:
        return False, next(steps)
    except StopIteration as stop:
        return True, stop.value
