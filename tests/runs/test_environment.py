"""The list behind `retailkit check`."""

from retailkit import runs
from retailkit.config import UserError
from retailkit.models import weights


def test_what_is_missing_stands_with_its_cure(monkeypatch):
    def missing(name):
        raise UserError(f"{name} is not here; install the extra `offline`")

    monkeypatch.setattr(weights, "find_folder", missing)
    rows = runs.environment().set_index("what")
    assert not rows.loc["weights minilm", "fine"] and "install the extra" in rows.loc["weights minilm", "cure"]
    fine = rows.loc[["Python", "torch", "papermill", "weights efficientnet_lite0", "OCR engine"]]
    assert fine["fine"].all() and (fine["cure"] == "").all()
