"""The card's account of the teachers: which models, under which licences, and what was taken from them."""

from shard.data.settings import TeacherSource
from shard.data.teacher_text import LEDGER
from shard.release.card.facts import Facts, read_table
from shard.release.card.markdown import bullets, table
from shard.release.teachers import TeacherLicence, teachers_of
from shard.units import format_count


def teachers_section(facts: Facts) -> str:
    """Empty for a model without a teacher."""
    teachers = teachers_of(facts.run.recipe)
    if not teachers:
        return ""
    rows = [[teacher.name, teacher.licence, _checked(facts, teacher), _use(facts, teacher)] for teacher in teachers]
    notes = [
        f"{teacher.binding}; the recipe says that this release under {facts.run.recipe.release.license} may be."
        for teacher in teachers
        if teacher.binding and teacher.licence.lower() != facts.run.recipe.release.license.lower()
    ]
    about = "## Teachers\n\n" + table(["model", "licence", "checked", "what it taught"], rows)
    return about + ("\n" + bullets(notes) if notes else "")


def _checked(facts: Facts, teacher: TeacherLicence) -> str:
    if teacher.table != "distillation":
        return "as the recipe says"
    known = facts.manifest.get("teacher", {})
    return "against its own card" if known.get("licence_checked") else "as the recipe says: it has no card"


def _use(facts: Facts, teacher: TeacherLicence) -> str:
    recipe = facts.run.recipe
    if teacher.table != "distillation":
        name = teacher.table.removeprefix("sources.")
        source, ledger = recipe.sources[name], read_table(facts.run.data / name / LEDGER)
        assert isinstance(source, TeacherSource)
        tokens = sum(ledger["tokens"].values()) if ledger else 0
        return f"{ledger.get('answers', 0):,} texts of the source {name} ({format_count(tokens)} tokens of its own)"
    settings, sha256 = recipe.distillation, str(facts.manifest.get("teacher", {}).get("sha256", ""))
    assert settings is not None
    weight = (
        f"{settings.weight:g}" if settings.weight_end is None else f"{settings.weight:g} to {settings.weight_end:g}"
    )
    how = "all of its distribution"
    if settings.is_cached:
        how = f"{settings.width} draws a token" if settings.form == "sampled" else f"its {settings.width} likeliest ids"
    return f"pretrain: {weight} of the loss, at temperature {settings.temperature:g}, by {how} (weights {sha256})"
