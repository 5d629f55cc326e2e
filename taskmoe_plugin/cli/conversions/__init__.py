"""The conversions of ``taskmoe convert``, each with its flags."""
