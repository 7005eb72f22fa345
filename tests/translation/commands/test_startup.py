"""What each command loads: modules, not seconds (those: benchmarks/startup.py)."""


def test_texts_load_no_torch(loaded_after, tmp_path):
    text, reference = tmp_path / "text.de", tmp_path / "text.en"
    text.write_text("".join(f"ein Haus und {number} Häuser\n" for number in range(40)))
    reference.write_text(text.read_text())
    model = tmp_path / "joint.model"
    calls = [
        ["--help"],
        ["--version"],
        ["user-dir"],
        ["check", text, reference],
        ["vocabulary", text, "--size", 30, "--out", model],
        ["encode", text, "--model", model, "--out", tmp_path / "pieces"],
        ["score", text, "-r", reference],
    ]
    assert loaded_after("translation", calls) == [set()] * len(calls)
