"""The mini-suite: frozen tasks that need no network and no other package; docs/evaluation.md describes each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shard.console import Reporter
from shard.evaluation.tasks import arc, arithmetic, code, passkey, position
from shard.evaluation.tasks.form import Subject, Task, run_task

TASKS: dict[str, Task] = {
    task.name: task for task in (*arc.TASKS, arithmetic.TASK, passkey.TASK, position.TASK, code.TASK)
}


def run_suite(subject: Subject, names: Sequence[str], max_items: int | None, reporter: Reporter) -> dict[str, Any]:
    """By task: version, sha256 of its items, and results, each a metric with value, standard_error, chance and items;
    or version and not_measured, the reason.
    """
    results: dict[str, Any] = {}
    for name in names:
        reporter.progress(f"evaluate: {name}")
        results[name] = run_task(TASKS[name], subject, max_items)
    reporter.end_progress()
    show(results, reporter)
    return results


def can_measure_more(evaluation: Mapping[str, Any], question_folders: Sequence[Path]) -> bool:
    """Whether a task of an evaluation was not measured for want of files that are at hand now."""
    lacking = {name for name, task in evaluation["tasks"].items() if task.get("not_measured") == arc.NOT_AT_HAND}
    return any(
        f"{name}_{form}" in lacking and arc.find_questions(question_folders, subset) is not None
        for name, subset in arc.SUBSETS.items()
        for form in arc.FORMS
    )


def show(results: dict[str, Any], reporter: Reporter) -> None:
    """The results as a table; below it what was not measured."""
    rows = [
        [
            f"{name}: {score['metric']}" if i == 0 else f"  {score['metric']}",
            f"{score['value']:.4f}",
            f"{score['standard_error']:.4f}",
            f"{score['chance']:.4g}",
            f"{score['items']:,}",
        ]
        for name, result in results.items()
        for i, score in enumerate(result.get("results", ()))
    ]
    if rows:
        reporter.table("Tasks", ["task", "value", "s.e.", "chance", "items"], rows)
    for name, result in results.items():
        if "not_measured" in result:
            reporter.line(f"{name}: not measured: {result['not_measured']}")
