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
        ["vocabulary", text, "--size", 28, "--out", model],
        ["encode", text, "--model", model, "--out", tmp_path / "pieces"],
        ["score", text, "-r", reference],
    ]
    assert loaded_after("translation", calls) == [set()] * len(calls)


def test_what_translates(loaded_after, warm, trained_run, tmp_path):
    """Of fairseq what translates: scikit-learn and pandas, as long to import as torch, are of other tasks."""
    line = tmp_path / "line.de"
    line.write_text("drei Meter\n")
    valid, points = trained_run / "decoded/valid.json", tmp_path / "points.json"
    fairseq = {"torch", "fairseq", "tensorboard"}
    assert loaded_after(
        "translation",
        [
            ["calibrate", valid, "best", "--out", points],
            ["translate", trained_run, line, "--out", tmp_path / "line.en"],
            ["export", trained_run, "--check", 0, "--out", tmp_path / "export"],
            ["curve", valid, "--out", tmp_path / "curve"],
        ],
        warm("torch") / "python",
    ) == [{"torch"}, fairseq, fairseq, fairseq | {"matplotlib"}]
