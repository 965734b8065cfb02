"""Which models have totals of their own."""

import fcntl
import threading
from pathlib import Path

import pytest

from meter_proxy.ledger.labels import MAX_NAME_CHARS, MAX_NAMES, OTHER, ModelLabels


def test_configured_name_needs_no_answer(tmp_path: Path) -> None:
    """A configured model has its own label from its first request on, whatever the answer."""
    labels = ModelLabels(tmp_path / "models", ["gpt-4o", "*"])
    assert labels.label("gpt-4o", None) == "gpt-4o"
    assert labels.label("*", 500) == OTHER
    labels.close()


@pytest.mark.parametrize(
    ("status", "label"), [(200, "llama"), (299, "llama"), (300, OTHER), (404, OTHER), (None, OTHER)]
)
def test_only_a_2xx_registers_a_name(tmp_path: Path, status: int | None, label: str) -> None:
    """A name through `*` gets its label with its first 2xx, not by being asked for."""
    labels = ModelLabels(tmp_path / "models")
    assert labels.label("llama", status) == label
    labels.close()


def test_a_registered_name_keeps_its_label_when_requests_fail(tmp_path: Path) -> None:
    """A 500 of a known name is counted under that name, also in a worker that never saw its 2xx."""
    first, second = ModelLabels(tmp_path / "models"), ModelLabels(tmp_path / "models")
    first.label("llama", 200)
    assert second.label("llama", 500) == "llama"
    first.close()
    second.close()


def test_the_hundred_names_are_shared_by_all_workers_and_survive_a_restart(tmp_path: Path) -> None:
    """Two workers that see 200 names in turn agree on the first 100, and so does the next incarnation."""
    workers = [ModelLabels(tmp_path / "models"), ModelLabels(tmp_path / "models")]
    names = [f"m{number}" for number in range(2 * MAX_NAMES)]
    given = [workers[number % 2].label(name, 200) for number, name in enumerate(names)]
    assert given == names[:MAX_NAMES] + [OTHER] * MAX_NAMES
    later = ModelLabels(tmp_path / "models")
    for labels in (*workers, later):
        assert [labels.label(name, 200) for name in names] == given
        labels.close()


def test_one_worker_registers_at_a_time(tmp_path: Path) -> None:
    """While another worker registers a name, a new one waits, and then takes its place after it."""
    path = tmp_path / "models"
    labels = ModelLabels(path)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=labels.label, args=("second", 200))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        other.write(b'"first"\n')
    waiting.join()
    assert path.read_bytes() == b'"first"\n"second"\n'
    labels.close()


def test_a_torn_line_in_the_register_is_replaced(tmp_path: Path) -> None:
    """A worker killed while registering leaves half a name; the next name does not grow out of it."""
    path = tmp_path / "models"
    path.write_bytes(b'"m1"\n"m2')
    labels = ModelLabels(path)
    assert [labels.label(name, 200) for name in ("m1", "m3")] == ["m1", "m3"]
    assert path.read_bytes() == b'"m1"\n"m3"\n'
    labels.close()


def test_a_damaged_line_does_not_stop_metering(tmp_path: Path) -> None:
    """Rubbish in the register costs its own place only."""
    path = tmp_path / "models"
    path.write_bytes(b"rubbish\n17\n")
    labels = ModelLabels(path)
    assert labels.label("m1", 200) == "m1"
    labels.close()


def test_names_of_any_kind_come_back_as_they_are(tmp_path: Path) -> None:
    """Newlines, quotes and separators in a name are part of the name."""
    names = ["a\nb", 'q"uote', "pipe|d", "模型", ""]
    first = ModelLabels(tmp_path / "models")
    assert [first.label(name, 200) for name in names] == names
    second = ModelLabels(tmp_path / "models")
    assert [second.label(name, None) for name in names] == names
    first.close()
    second.close()


def test_an_endless_name_is_other(tmp_path: Path) -> None:
    """A name longer than any model's takes no room in Redis."""
    labels = ModelLabels(tmp_path / "models")
    assert labels.label("x" * MAX_NAME_CHARS, 200) == "x" * MAX_NAME_CHARS
    assert labels.label("x" * (MAX_NAME_CHARS + 1), 200) == OTHER
    labels.close()


def test_a_register_that_cannot_be_written_makes_it_other(tmp_path: Path) -> None:
    """A full disk costs the label, not the record."""
    labels = ModelLabels(Path("/dev/full"))
    assert labels.label("m1", 200) == OTHER
    labels.close()
