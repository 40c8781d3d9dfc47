"""The teachers that a model learned from, and what their licences ask of its release."""

import re
from dataclasses import dataclass

from shard.data.settings import TeacherSource
from shard.errors import ShardError
from shard.recipe import Recipe

BINDING = {
    "gemma": "Gemma's terms count a model trained on its outputs as a derivative, which stays under them",
    "llama": "Llama's licence wants a model trained on its outputs to keep its terms, and Llama in its name",
}
"""Families of licences that bind students, by how their names begin."""


@dataclass(frozen=True, kw_only=True)
class TeacherLicence:
    """One teacher of a recipe."""

    table: str
    """Of the recipe."""
    name: str
    licence: str

    @property
    def binding(self) -> str | None:
        """Why it binds its students; None where it does not."""
        plain = re.sub(r"[^a-z0-9]", "", self.licence.lower()).removeprefix("meta")
        return next((reason for family, reason in BINDING.items() if plain.startswith(family)), None)


def teachers_of(recipe: Recipe) -> list[TeacherLicence]:
    """The teachers whose distributions or texts a stage of the recipe trains on."""
    found = []
    if (settings := recipe.distillation) is not None:
        name = settings.gguf_file or settings.teacher.rstrip("/").rpartition("/")[2]
        found.append(TeacherLicence(table="distillation", name=name, licence=settings.licence))
    for name, source in recipe.sources.items():
        is_used = any(stage.mix.get(name, 0) > 0 for stage in (recipe.pretrain, recipe.anneal))
        if isinstance(source, TeacherSource) and is_used:
            found.append(TeacherLicence(table=f"sources.{name}", name=source.model, licence=source.licence))
    return found


def check_teacher_licences(recipe: Recipe) -> None:
    """ShardError where a teacher's licence binds the model, and it is to be released under another one."""
    accepted = {licence.lower() for licence in recipe.release.teacher_licences}
    for teacher in teachers_of(recipe):
        same = teacher.licence.lower() == recipe.release.license.lower()
        if teacher.binding and not same and teacher.licence.lower() not in accepted:
            raise ShardError(
                f"release.license is {recipe.release.license!r}, but {teacher.name} ({teacher.table}) taught this "
                f"model under {teacher.licence!r}: {teacher.binding}: branch with --fork NEW and --set "
                f'release.license={teacher.licence}, or with release.teacher_licences=["{teacher.licence}"] if you '
                "know that you may"
            )
