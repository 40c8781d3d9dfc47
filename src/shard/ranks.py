"""One command in several processes, as torchrun starts it.

The first rank does all that the command says, and the others wait until it calls them to a stage of training. However
it ends, it ends for all, and one of them says why.
"""

import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from shard.signals import InterruptedRunError
from shard.train import train_along
from shard.training import distributed

SAVING_SECONDS = 15.0
"""How long the others leave it to the first rank to say that it was interrupted: it may be saving."""


def work_together(command: Callable[[], Any]) -> NoReturn:
    """Run the command on the first rank, and what it calls for on the others. Raises what a rank is to report, else
    SystemExit.
    """
    code: Any = 0
    ranks = distributed.ALONE
    try:
        ranks = distributed.together = distributed.Ranks.join()
        if ranks.is_first:
            try:
                command()
            except SystemExit as ended:  # how the command line ends, well or not
                code = ended.code
            ranks.broadcast({"end": code or 0})
        else:
            while "end" not in (task := ranks.broadcast()):
                train_along(task)
            code = task["end"]
        ranks.part()
        ranks.leave()
    except BaseException as error:
        # Whatever launched the ranks now stops them all, and must not interrupt the one that says why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        reason = _reason(error)
        was_interrupted = isinstance(reason, InterruptedRunError | KeyboardInterrupt)
        patience = SAVING_SECONDS if was_interrupted else 2.0
        if ranks.is_first_to_fail(patience) if ranks.size > 1 else os.environ["RANK"] == "0":
            raise reason from None
        os._exit(1)  # at once: what still waits for another rank would wait in vain
    raise SystemExit(code)


def _reason(error: BaseException) -> BaseException:
    """Where a rank is lost the launcher soon stops the others: that signal may come before they could say so."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, distributed.LostRankError):
            return found
        found = found.__context__
    return error
