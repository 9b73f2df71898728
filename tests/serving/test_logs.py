"""What a turn of the event loop logs is written together; nothing is lost or out of order, whoever logs."""

import asyncio
import io
import logging
import logging.config
import threading

import pytest

from onerec.serving.logs import TurnHandler, log_config
from onerec.serving.server import LogFormat


class Stream(io.StringIO):
    """Remembers what was written at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def logger(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """That of the requests, which others use too."""
    logger = logging.getLogger("onerec.serving.observe")
    monkeypatch.setattr(logger, "handlers", [TurnHandler(stream)])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # levels are remembered
    return logger


def test_a_turn_of_the_loop_is_written_once(logger: logging.Logger, stream: Stream) -> None:
    async def answer(number: int) -> None:
        logger.info("request %d", number)

    async def main() -> None:
        for first in (0, 3):
            await asyncio.gather(*(answer(first + number) for number in range(3)))
            await asyncio.sleep(0)

    asyncio.run(main())
    turns = ["request 0\nrequest 1\nrequest 2\n", "request 3\nrequest 4\nrequest 5\n"]
    assert stream.written == turns


def test_another_thread_is_written_at_once_behind_what_came_before(logger: logging.Logger, stream: Stream) -> None:
    async def main() -> None:
        logger.info("of the loop")
        thread = threading.Thread(target=logger.info, args=("of a thread",))
        thread.start()
        thread.join()
        assert stream.getvalue() == "of the loop\nof a thread\n"

    asyncio.run(main())
    logger.info("after it")
    assert stream.getvalue() == "of the loop\nof a thread\nafter it\n"


def test_what_cannot_be_written_stops_nothing(
    logger: logging.Logger, stream: Stream, capsys: pytest.CaptureFixture[str]
) -> None:
    troubles, unfit = [], logging.makeLogRecord({"msg": "a number: %d", "args": ("none",)})

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        logger.handlers[0].handle(unfit)
        stream.close()
        logger.info("nobody reads this")
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert not troubles
    assert capsys.readouterr().err.count("--- Logging error ---") == 2


def test_what_is_no_requests_is_written_at_once_behind_what_came_before(
    logger: logging.Logger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = logging.getLogger("uvicorn.error")
    monkeypatch.setattr(server, "handlers", logger.handlers)
    monkeypatch.setattr(server, "level", logging.INFO)
    server.manager._clear_cache()

    async def main() -> None:
        logger.info("a request")
        assert not stream.getvalue()
        server.info("the end")  # after which no turn may come
        assert stream.getvalue() == "a request\nthe end\n"

    asyncio.run(main())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_form_of_the_log_writes_by_turns(log_format: LogFormat) -> None:
    handlers = log_config(log_format)["handlers"].values()
    assert [handler["class"] for handler in handlers] == ["onerec.serving.logs.TurnHandler"] * len(handlers)
    assert handlers
