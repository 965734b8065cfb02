"""Records as they stand in a journal."""

from typing import Any

import msgspec

from meter_proxy.ledger.journal import JournalRecord
from tests.support.records import usage_record


def journal_record(model_label: str = "m1", *, cut_by: str | None = None, **members: Any) -> JournalRecord:
    """A completed chat of alice under the label `model_label`; `cut_by`: the rule that ended it."""
    fields = msgspec.structs.asdict(usage_record(**members))
    return JournalRecord(**fields, model_label=model_label, cut_by=cut_by)
