"""``python -m prefetch_compiler.bench e2e ...``, for a checkout that is not installed."""

from .cli import app

app(prog_name="python -m prefetch_compiler.bench")
