"""`import meter_proxy` is light: what it needs, it takes when it is used."""

import subprocess
import sys


def test_import_pulls_in_neither_store_nor_metrics_nor_yaml() -> None:
    """Nor the server, nor the validation of configurations."""
    heavy = "redis prometheus_client yaml aiohttp pydantic msgspec typer uvloop"
    code = f"import sys, meter_proxy; sys.exit(', '.join(m for m in '{heavy}'.split() if m in sys.modules) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_public_names_are_there() -> None:
    """Every name of `__all__` can be had, and no other."""
    import meter_proxy

    for name in meter_proxy.__all__:
        assert getattr(meter_proxy, name)
    assert not hasattr(meter_proxy, "nothing_of_that_name")
