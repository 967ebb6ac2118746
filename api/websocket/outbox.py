"""What a consumer is told, on its way out.

What is said in one turn of the loop leaves as one frame, without a task or a timer. Only when the
network takes no more does a task wait for it, and what is said meanwhile gathers here. A consumer
that takes nothing for too long is stuck: there is no use in telling it more. One that takes what
it is told, however slowly, lives, though it may not come to a ping and its answer for long.

Sessions can be large. They are kept as they are, sharing their bytes with the state, and encoded
one by one when there is room for them; how much of them waits is known, for who may ask for more.
"""

import asyncio
import fcntl
import sys
import termios
from collections.abc import Callable
from typing import Any

from aiohttp import web

from api.answers import SessionAnswer, SessionsAnswer
from api.tracing import ConnectionTrace
from api.websocket.frames import Codec, ErrorAnswer, SessionPush, frame_head
from api.websocket.meters import WebSocketMeters

_ROOM_BYTES = 256 * 1024  # of the network's buffer: beyond it nothing more is put there
_TOGETHER_BYTES = 64 * 1024  # of sessions that are still encoded with whatever else there is
_TEXT, _BINARY, _PING, _PONG = 1, 2, 9, 10  # RFC 6455, 11.8
_LOOKS = 4  # within the time in which something has to be taken
# tcp(7) has TIOCOUTQ, what is not acknowledged; this is what of it has not been sent (Linux,
# include/uapi/linux/sockios.h, SIOCOUTQNSD). Elsewhere the call fails.
_UNSENT = 0x894B


class Outbox:
    """The outgoing half of a connection."""

    def __init__(
        self,
        request: web.BaseRequest,
        socket: web.WebSocketResponse,
        codec: Codec,
        meters: WebSocketMeters,
        *,
        frame_bytes: int,
        timeout_s: float,
        on_left: Callable[[int], None],
        on_stuck: Callable[[], None],
    ) -> None:
        """`on_left` is told when anything has left, and how many answers were in it."""
        if request.transport is None:
            raise ConnectionResetError("the connection is gone")
        self._transport: asyncio.Transport = request.transport
        self._writer = request.writer
        self._socket = socket
        self._codec = codec
        self._meters = meters
        self._frame_bytes = frame_bytes
        self._timeout_s = timeout_s
        self._on_left = on_left
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self._opcode = _TEXT if codec.is_text else _BINARY
        self._out: list[Any] = []
        self._answers = 0  # among them
        self._is_due = False
        self._waiting: asyncio.Task[None] | None = None  # for the network
        self._pinged: bytes | None = None  # the last ping that came meanwhile
        self.session_bytes = 0  # of sessions that wait
        self._raw_socket = request.transport.get_extra_info("socket")
        self._written_bytes = 0
        # As it was at the last `mark`.
        self._marked_taken_bytes = 0
        self._marked_unsent_bytes = 0
        self._marked_sent_bytes = 0
        self.trace: ConnectionTrace | None = None

    def answer(self, answer: Any) -> None:  # noqa: ANN401 - any of them
        """Answer a request."""
        self._answers += 1
        if self.trace is not None:
            code = answer.error["code"] if isinstance(answer, ErrorAnswer) else None
            self.trace.answered(answer.seq, code)
        self.push(answer)

    def answer_session(self, answer: SessionAnswer | SessionsAnswer) -> None:
        """Answer with what may be large."""
        self._answers += 1
        if self.trace is not None and isinstance(answer.seq, int):
            self.trace.answered(answer.seq)
        self.push_session(answer)

    def push(self, push: Any) -> None:  # noqa: ANN401 - any of them
        """Say something that was not asked for."""
        self._out.append(push)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.flush)

    def push_session(self, push: SessionAnswer | SessionsAnswer | SessionPush) -> None:
        """Say what may be large."""
        self.session_bytes += _session_bytes(push)
        self.push(push)

    def ping(self) -> bool:
        """Ask for a sign of life, and answer whether that was possible."""
        return self._control(_PING, b"")

    def pong(self, data: bytes) -> None:
        """Give a sign of life; while the network takes no more, wait with one for the last ping.

        To answer that one is enough (RFC 6455, 5.5.3): so a flood of pings gathers nothing here.
        """
        if not self._control(_PONG, data):
            self._pinged = data

    def _control(self, opcode: int, data: bytes) -> bool:
        if self._waiting is None and not self._socket.closed and not self._transport.is_closing():
            frame = frame_head(opcode, len(data)) + data
            self._transport.write(frame)
            self._written_bytes += len(frame)
            self._look_for_room()  # small as it is: many are not
            return True
        return False

    @property
    def is_blocked(self) -> bool:
        """Whether the network takes no more at present."""
        return self._waiting is not None

    # What the other side has taken, of which its network tells before its program does

    def mark(self) -> None:
        """Look how far it is, for `takes` and `has_all`."""
        self._marked_taken_bytes = self._written_bytes - self._left_bytes
        self._marked_unsent_bytes = self._unsent_bytes
        self._marked_sent_bytes = self._written_bytes - self._marked_unsent_bytes

    @property
    def takes(self) -> bool:
        """Whether it has gone on, since the mark, with what its network had no room for by then.

        That takes a program that reads. What there was room for, its network acknowledges alone,
        and lets that wait a little (RFC 9293, 3.8.6.3).
        """
        sent_bytes = self._written_bytes - self._unsent_bytes
        return self._marked_unsent_bytes > 0 and sent_bytes > self._marked_sent_bytes

    @property
    def has_all(self) -> bool:
        """Whether its network has all that was sent, or has at least gone on since the mark."""
        left_bytes = self._left_bytes
        return not left_bytes or self._written_bytes - left_bytes > self._marked_taken_bytes

    @property
    def _left_bytes(self) -> int:
        """What its network has not acknowledged, here and in the system's buffer."""
        return self._transport.get_write_buffer_size() + self._in_system(termios.TIOCOUTQ)

    @property
    def _unsent_bytes(self) -> int:
        """What could not be sent, as its network has no room."""
        return self._transport.get_write_buffer_size() + self._in_system(_UNSENT)

    def _in_system(self, question: int) -> int:
        if self._raw_socket is not None:
            try:
                answer = fcntl.ioctl(self._raw_socket.fileno(), question, bytes(4))
            except (OSError, ValueError):
                pass  # it is closed, or the system does not tell
            else:
                return int.from_bytes(answer, sys.byteorder)
        return 0

    def flush(self) -> None:
        """Send what there is."""
        self._is_due = False
        if self._waiting is not None:
            return
        out, answers = self._out, self._answers
        if not out:
            return
        if self._socket.closed or self._transport.is_closing():
            self.drop()
            return
        if self.session_bytes > _TOGETHER_BYTES:
            self._send_in_parts()
            return
        self._out, self._answers, self.session_bytes = [], 0, 0
        self._send(out)
        self._look_for_room()
        self._on_left(answers)

    def drop(self) -> None:
        """Say nothing of what waits: nobody is there to hear it."""
        answers = self._answers
        self._out, self._answers, self.session_bytes = [], 0, 0
        if self._waiting is not None:
            self._waiting.cancel()
        self._on_left(answers)

    def _send_in_parts(self) -> None:
        """Send what is large alone, and no more than there is room for."""
        out, place, answers = self._out, 0, 0
        while place < len(out) and self._waiting is None:
            part, size_bytes = [out[place]], _session_bytes(out[place])
            while place + len(part) < len(out):
                more_bytes = _session_bytes(out[place + len(part)])
                if size_bytes + more_bytes > _TOGETHER_BYTES:
                    break
                part.append(out[place + len(part)])
                size_bytes += more_bytes
            place += len(part)
            answers += sum(1 for one in part if hasattr(one, "seq"))
            self.session_bytes -= size_bytes
            self._send(part)
            self._look_for_room()
        self._out = out[place:]
        self._answers -= answers
        self._on_left(answers)

    def _send(self, out: list[Any]) -> None:
        for frame in self._codec.encode(out, self._frame_bytes):
            head = frame_head(self._opcode, len(frame))
            if len(frame) < _TOGETHER_BYTES:
                self._transport.write(head + frame)
            else:
                self._transport.write(head)
                self._transport.write(frame)
            self._written_bytes += len(head) + len(frame)
            self._meters.frames_out += 1
            self._meters.bytes_out += len(frame)

    def _look_for_room(self) -> None:
        if self._transport.get_write_buffer_size() > _ROOM_BYTES:
            self._waiting = self._loop.create_task(self._wait())

    async def _wait(self) -> None:
        """Wait until the network has taken what it has; give up if it does not take anything."""
        # Never cancelled: whoever else waits for the network would be, too.
        draining = asyncio.ensure_future(self._drain())
        draining.add_done_callback(_retrieve)
        try:
            if not await self._is_taken(draining):
                self._on_stuck()
                return
        except ConnectionError:
            return  # the reader finds out
        finally:
            self._waiting = None
        pinged, self._pinged = self._pinged, None
        if pinged is not None:
            self.pong(pinged)
        self.flush()

    async def _is_taken(self, draining: asyncio.Future[None]) -> bool:
        """Whether all is taken in the end. To take a little is enough, if that goes on."""
        patience = _LOOKS
        left_bytes = self._left_bytes
        while patience:
            await asyncio.wait([draining], timeout=self._timeout_s / (_LOOKS + 1))
            if draining.done():
                draining.result()
                return True
            now_bytes = self._left_bytes
            patience = _LOOKS if now_bytes < left_bytes else patience - 1
            left_bytes = now_bytes
        return False

    async def _drain(self) -> None:
        transport = self._transport
        while not transport.is_closing() and transport.get_write_buffer_size() > _ROOM_BYTES:
            await self._writer.drain()
            await asyncio.sleep(0.001)  # the loop may not have looked at its buffer yet

    def abort(self) -> None:
        """End the connection at once, whatever has not left yet."""
        self._transport.abort()


def _retrieve(done: "asyncio.Future[None]") -> None:
    """Take note of how it ended, so that nobody is warned that nobody did."""
    if not done.cancelled():
        done.exception()


def _session_bytes(out: Any) -> int:  # noqa: ANN401 - whatever is said
    match out:
        case SessionAnswer() | SessionPush():
            return out.session.size_bytes
        case SessionsAnswer():
            return sum(one.size_bytes for one in out.sessions)
        case _:
            return 0
