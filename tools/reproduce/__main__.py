"""``python -m tools.reproduce``, in a checkout."""

from tools.reproduce.command import app

app()
