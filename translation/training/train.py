"""Train a recipe into a run folder: every stage from raw text to the table, skipped once it is finished."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import yaml

from coe_core.support.command import Interrupted
from coe_core.support.files import read_json, write_json, write_text
from coe_core.support.locks import locked
from coe_core.support.plain_values import read_yaml
from coe_core.support.progress import ProgressLine, duration
from coe_core.support.provenance import provenance
from coe_core.support.recipes import differences
from translation.recipe import TEAM, Recipe, recipe_from_dict
from translation.run import Run, RunError
from translation.training import calls, texts, watch
from translation.training.programs import Program, ProgramError, run_all, stop_all, warm

# Where the texts lie and what is asked for afterwards does not change what is learned.
MAY_DIFFER = ("texts.path", "aims", "generation.timed", "training.workers")
_PACKAGES = ("torch", "fairseq-fixed", "sacrebleu", "sentencepiece")
Say = Callable[[str], None]


def train(
    recipe: Recipe, folder: Path, *, resume: bool = False, parallel: int = 1, say: Say = print
) -> Run:
    """Everything from raw text to the table and the curve.

    Args:
        recipe: what to train.
        folder: of the run; made if missing. One that holds a run is only touched with ``resume``.
        resume: skip the stages that are finished, and continue inside a training that was stopped.
        parallel: trainings that run side by side.
        say: told a line at a time.

    Raises:
        LockedError: another process trains into the folder.
        RunError: the folder holds a run, or one with other settings; or a stage failed, with its last line.
        ValueError: texts that do not serve.
        Interrupted: stopped by a signal; all that was saved is kept.
    """
    run = Run(folder, recipe)
    changed = _check_folder(run, resume)
    _check_device(recipe)
    if recipe.texts.corpus != "numbers" and recipe.texts.path is None:
        raise ValueError("this recipe's texts are yours: say where they are, texts.path=FOLDER")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, "wait for it, stop it, or choose another --out"), _stopped_by_signals():
            _Stages(run, parallel, say).all(changed)
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return run


def _check_folder(run: Run, resume: bool) -> set[str]:
    """Dotted keys, of those that may, that differ from the run that is there.

    Raises:
        RunError: there is a run that is not to be continued, or another recipe's.
    """
    if not run.recipe_file.is_file():
        return set()
    if not resume:
        raise RunError(
            f"{run.folder} already holds a run; continue it with --resume, or choose another --out"
        )
    stored = read_yaml(run.recipe_file)
    try:
        old = recipe_from_dict(stored, str(run.recipe_file)).to_dict()
    except ValueError as error:
        raise RunError(f"{error}; the run is damaged, choose another --out") from error
    new = run.recipe.to_dict()
    if changed := differences(old, new, MAY_DIFFER):
        raise RunError(
            f"{run.folder} was made with other settings: {'; '.join(changed)}. "
            "Resume with the same settings, or choose another --out"
        )
    return {line.partition(" was ")[0] for line in differences(old, new)}


def _check_device(recipe: Recipe) -> None:
    if not recipe.training.fp16:
        return
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asks, and leaves CUDA to the copies
    import torch

    if recipe.training.device == "cpu" or not torch.cuda.is_available():
        raise ValueError("training.fp16 needs a GPU; on a CPU give training.fp16=false")


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the programs that run, and then the run."""

    def stop(number: int, frame: object) -> None:
        stop_all()
        raise Interrupted(
            number, "stopped; what was saved is kept, and --resume continues from there"
        )

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stages:
    """The stages of a run, one after another."""

    def __init__(self, run: Run, parallel: int, say: Say):
        self.run, self.parallel, self.say = run, parallel, say
        self.threads: int | None = None

    def all(self, changed: set[str]) -> None:
        """Those that are not finished; results are made again where what is asked for has changed."""
        run = self.run
        if "aims" in changed:
            for stage in ("calibrate", *(f"curve-{name}" for name in run.recipe.texts.tests)):
                run.stage(stage).unlink(missing_ok=True)
        self._once("text", lambda: texts.prepare(run, self.say))
        write_text(run.recipe_file, yaml.safe_dump(run.recipe.to_dict(), sort_keys=False))
        self._provenance()
        self._once("vocabulary", partial(self._call, "vocabulary", calls.vocabulary(run)))
        self._once("encode", partial(self._call, "encode", calls.encode(run)))
        if not self._is_finished():
            warm(trains=not all(run.stage(f"train-{s}").exists() for s in self._systems()))
        self._once("preprocess", self._preprocess)
        self._trainings()
        self.results()

    def results(self) -> None:
        """Translations by every network, thresholds, table and curve."""
        run, names = self.run, self.run.recipe.texts
        self._once(f"decode-{names.valid}", partial(self._decode, names.valid))
        self._once("calibrate", partial(self._call, "calibrate", calls.calibrate(run), True))
        for name in names.tests:
            self._once(f"decode-{name}", partial(self._decode, name))
            for aim in run.recipe.generation.timed:
                self._timed(name, aim)
            self._once(
                f"curve-{name}", partial(self._call, f"curve-{name}", calls.curve(run, name), True)
            )

    def _is_finished(self) -> bool:
        last = self.run.recipe.texts.tests[-1]
        return self.run.stage(f"curve-{last}").exists()

    def _once(self, stage: str, work: Callable[[], object]) -> None:
        mark = self.run.stage(stage)
        if mark.exists():
            return
        start = time.monotonic()
        work()
        mark.parent.mkdir(exist_ok=True)
        write_text(mark, f"{time.monotonic() - start:.1f} s\n")

    def _provenance(self) -> None:
        """What the run was made with; each resumption is added to the first record."""
        path = self.run.provenance
        record = provenance(_PACKAGES, threads=_threads(self.parallel))
        if path.is_file():
            first = read_json(path)
            record = {**first, "resumed": [*first.get("resumed", []), record]}
        threads = record.get("threads")
        if type(threads) is int and 1 <= threads <= 1024:
            self.threads = threads
        write_json(path, record)

    def _call(self, stage: str, words: Sequence[str], show: bool = False) -> None:
        """Run one program to its end."""
        self.say(f"$ {calls.shown(words)}")
        start = lambda: Program(  # noqa: E731
            words, self.run.log(stage), self.say if show else _silent, threads=self.threads
        )
        try:
            run_all([start])
        except ProgramError as error:
            raise RunError(f"{stage}: {error}") from error

    def _preprocess(self) -> None:
        shutil.rmtree(self.run.data(), ignore_errors=True)
        self._call("preprocess", calls.preprocess(self.run))
        if self.run.controls_by_direction:
            for direction in self.run.recipe.languages.directions:
                texts.select(self.run, direction)
                self._call("preprocess", calls.preprocess(self.run, direction))

    def _systems(self) -> dict[str, list[str]]:
        """The calls of all trainings."""
        run = self.run
        systems = {TEAM: calls.train_team(run)}
        return systems | {n: calls.train_plain(run, n, net) for n, net in run.recipe.trained()}

    def _trainings(self) -> None:
        """The team and every other network, so many side by side."""
        run, systems = self.run, self._systems()
        left = {s: words for s, words in systems.items() if not run.stage(f"train-{s}").exists()}
        new = [s for s in systems if not run.stage(f"average-{s}").exists()]
        if left:
            done = {system: _last_state(run.training(system)) for system in left}
            updates = run.recipe.training.updates
            title = "training" if len(left) > 1 else f"training {next(iter(left))}"
            total = sum(updates - n for n in done.values())
            with ProgressLine(total, title, "updates") as line:
                shown = watch.Trainings(line, done)
                starts = [partial(self._training, s, words, shown) for s, words in left.items()]
                try:
                    run_all(starts, self.parallel)
                except ProgramError as error:
                    raise RunError(f"training: {error}") from error
        for system in new:
            words = calls.average(run, system)
            self._once(f"average-{system}", partial(self._call, f"average-{system}", words))
        if new or not (run.folder / "training.png").exists():
            logs = {system: run.log(f"train-{system}") for system in systems}
            histories = {system: watch.history(log) for system, log in logs.items()}
            watch.write_metrics(run.metrics, histories)
            watch.draw(run.folder / "training.png", histories, TEAM)

    def _training(self, system: str, words: Sequence[str], shown: watch.Trainings) -> Program:
        self.say(f"$ {calls.shown(words)}")
        log = self.run.log(f"train-{system}")
        start = time.monotonic()

        def watched(line: str) -> None:
            shown.told(system, line)
            if " | done training in " in line:
                seconds = time.monotonic() - start
                self.say(f"{shown.of(system)}, trained in {duration(seconds)}")
                shown.ended(system)
                self._once(f"train-{system}", lambda: None)

        return Program(words, log, watched, threads=self.threads)

    def _decode(self, name: str) -> None:
        self.run.decoded(name).parent.mkdir(exist_ok=True)
        self._call(f"decode-{name}", calls.decode(self.run, name))

    def _timed(self, name: str, aim: str) -> None:
        """fairseq-generate itself, timed whole; not where the aim could not be met, which calibrate said."""
        run = self.run
        out = run.folder / "generated" / f"{name}.{aim.replace('=', '-').replace('%', '')}"
        if out.exists() or aim not in _fitted(run.points):
            return
        words = calls.generate(run, name, aim)
        self.say(f"$ {calls.shown(words)} > {out}")
        out.parent.mkdir(exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        log = run.log(f"generate-{out.name}")
        try:
            run_all([lambda: Program(words, log, output=part, threads=self.threads)])
        except ProgramError as error:
            part.unlink(missing_ok=True)
            raise RunError(f"generate: {error}") from error
        part.replace(out)


def _fitted(path: Path) -> set[str]:
    """Aims that the team has a threshold for."""
    return {point.get("name") for point in read_json(path)["points"].get("CoE", [])}


def _silent(line: str) -> None:
    """Only the log keeps it."""


def _threads(parallel: int) -> int:
    """Of each program: what the user gave, else the cores of all that run at once."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // parallel)


def _last_state(folder: Path) -> int:
    """Updates of the state that a training continues from; a state that is cut short is replaced.

    fairseq copies checkpoint_last.pt into place, so that a stop may leave a part of it.
    """
    last = folder / "checkpoint_last.pt"
    saved = sorted(folder.glob("checkpoint_*_*.pt"), key=calls.updates_of, reverse=True)
    if last.exists() and not zipfile.is_zipfile(last):
        last.unlink()
    for part in folder.glob("*.tmp"):
        part.unlink()
    whole = [path for path in saved if zipfile.is_zipfile(path)]
    for path in set(saved) - set(whole):
        path.unlink()
    if not last.exists():
        if not whole:
            return 0
        shutil.copyfile(whole[0], last)
    from translation.plugin.checkpoints import load_state, num_updates

    return num_updates(load_state(last, only_look=True))
