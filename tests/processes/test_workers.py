"""Worker processes of data loaders leave Ctrl-C to their parent."""

import os
import signal
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from featuretap.support.workers import block_sigint, ignore_sigint


class Told(Dataset[Any]):
    """Samples that report whether the reading process ignores Ctrl-C and has the default SIGTERM handler."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[bool, bool]:
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return blocked or ignored, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.fixture
def terminable() -> Any:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


def test_forked_workers_ignore_ctrl_c_and_end_at_sigterm(terminable: None) -> None:
    loader = DataLoader(
        Told(), batch_size=None, num_workers=2, worker_init_fn=ignore_sigint, multiprocessing_context="fork"
    )
    assert list(loader) == [[True, True]] * 4


def test_workers_without_it_hear_ctrl_c() -> None:
    loader = DataLoader(Told(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == [[False, True]] * 4


def test_spawned_workers_ignore_ctrl_c_from_the_start() -> None:
    with block_sigint():
        told = iter(DataLoader(Told(), batch_size=None, num_workers=2, multiprocessing_context="spawn"))
    assert list(told) == [[True, True]] * 4


def test_ctrl_c_while_they_start_is_not_lost() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    try:
        with block_sigint():
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGINT]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == mask
    finally:
        signal.signal(signal.SIGINT, before)
