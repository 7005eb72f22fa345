"""Pieces over the machines of a Ray cluster: Ray Data maps them onto one actor per core, or per GPU."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from coe_core.errors import CoEError
from vision.errors import RunError
from vision.prediction.pieces import Job, Piece, Predicted, predict_piece

_REACH_SECONDS = 10.0  # that a cluster has to answer
_STORE = 2**27  # bytes that a local cluster keeps names and counts in
_BLOCKS = 8  # parcels of pieces for each worker, so that none waits long for the last


class _Worker:
    """An actor that holds a predictor of its own."""

    def __init__(self, job: Job, threads: int):
        import torch

        os.chdir(job.start)
        torch.set_num_threads(threads)
        self.job = job
        self.predictor = job.predictor()
        self.budget = self.predictor.resolve(job.at, job.threshold)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        found: list[Predicted] = []
        errors: list[str] = []
        for packed in rows["piece"]:
            piece: Piece = pickle.loads(packed)
            done, error = Predicted(piece.number, 0, 0), ""
            try:
                done = predict_piece(self.predictor, self.budget, piece, self.job)
            except (CoEError, OSError, ValueError) as reason:  # a line, not a cluster's traceback
                error = str(reason) or type(reason).__name__
            found.append(done)
            errors.append(error)
        columns = dict(zip(Predicted._fields, map(list, zip(*found, strict=True)), strict=True))
        return {**columns, "error": errors}


@contextlib.contextmanager
def cluster(address: str | None, workers: int) -> Iterator[int]:
    """A Ray cluster that is joined, or one on this machine that ends with the block; gives its GPUs.

    Args:
        address: of a running cluster ("auto", "ray://host:port", "host:port"); None: start a local one.
        workers: processes that will be asked for.

    Raises:
        RunError: Ray is not installed, the cluster cannot be reached, or has fewer cores than that.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RunError(
            "--workers needs Ray: pip install 'collaboration-of-experts[scale]'"
        ) from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:  # nothing of it can be reached from another machine
        options |= {
            "num_cpus": workers,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
        options["object_store_memory"] = _STORE
    try:
        _reach(address)
        ray.init(address=address or "local", **options)
    except Exception as error:  # Ray's are of no particular kind
        reason = " ".join(str(error).split())[:200]
        if address is None:
            raise RunError(f"Ray did not start on this machine: {reason}") from error
        raise RunError(
            f"no Ray cluster at {address}: {reason}; `ray start --head` begins one"
        ) from error
    try:
        found = ray.cluster_resources()
        if found.get("CPU", 0) < workers:
            raise RunError(
                f"{workers} workers, but the cluster has {found.get('CPU', 0):g} cores: a worker takes one"
            )
        yield int(found.get("GPU", 0))
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Raise OSError where nobody listens: Ray itself would try for minutes."""
    host, colon, port = (address or "").rpartition("//")[2].rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS):
            pass


def predict_pieces(
    pieces: Sequence[Piece], job: Job, workers: int, num_gpus: int = 0
) -> Iterator[Predicted]:
    """What became of each piece, as they are finished; results are written by the workers.

    Args:
        pieces: still to be predicted.
        job: how.
        workers: actors; each takes a core, or a GPU where there are as many.
        num_gpus: of the cluster.

    Raises:
        RunError: a piece that could not be predicted or written; the others are.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    on_gpu = {"num_gpus": 1} if num_gpus >= workers else {"num_cpus": 1}
    rows = ray.data.from_items(
        [{"piece": pickle.dumps(piece)} for piece in pieces],
        override_num_blocks=min(len(pieces), _BLOCKS * workers),
    )
    done = rows.map_batches(
        _Worker,
        batch_size=1,
        batch_format="numpy",
        concurrency=min(workers, len(pieces)),
        fn_constructor_kwargs={"job": job, "threads": 1},
        **on_gpu,
    )
    failed: list[str] = []
    for row in done.iter_rows():
        if row["error"]:
            failed.append(row["error"])
        else:
            yield Predicted(*(row[name] for name in Predicted._fields))
    if failed:
        raise RunError(f"{len(failed)} of {len(pieces)} pieces failed; the first: {failed[0]}")
