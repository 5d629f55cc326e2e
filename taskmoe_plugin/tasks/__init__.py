"""The ``taskmoe_translation`` task: multilingual translation in which every sentence knows its languages."""

from taskmoe_plugin.tasks.taskmoe_translation import TaskMoETranslationTask

__all__ = ["TaskMoETranslationTask"]
