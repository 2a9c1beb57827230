#!/usr/bin/env python3
"""What hostile clients cost: slow handshakes and endless headers beside a proper client, then bombs of every kind.

    cargo build --release && python3 loadtest/attack.py target/release/fanwire

Needs nothing but Python 3.9. Starts a server of its own in development mode and ends it. Each line gives a figure and the
bound that docs/benchmarks.md holds it to; the exit code is 1 where one is broken.
"""

import asyncio
import json
import multiprocessing
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib

MIB = 1 << 20
HANDSHAKE = (
    "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extra}\r\n"
)
broken = []


def hold(what, value, bound, unit):
    fits = value <= bound
    print(f"{what:<62} {value:9.1f} {unit:<4} (at most {bound:g}){'' if fits else '  BROKEN'}", flush=True)
    if not fits:
        broken.append(what)


class Server:
    def __init__(self, binary):
        environment = {"FANWIRE_METRICS_LISTEN": "", "FANWIRE_LISTEN": "127.0.0.1:0"}
        self.process = subprocess.Popen([binary], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for line in self.process.stdout:
            if line.startswith(b"listening on http://"):
                host, port = line.split(b"//")[1].strip().decode().rsplit(":", 1)
                self.address = (host, int(port))
                return
        sys.exit("the server did not start")

    def memory(self, key):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

    def forget_peak(self):
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as clear:
            clear.write("5")


def frame(first, payload, length=None):
    """One masked frame; the mask is zero, so that the payload stands as it is."""
    length = len(payload) if length is None else length
    head = bytes([first])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 1 << 16:
        head += struct.pack(">BH", 0x80 | 126, length)
    else:
        head += struct.pack(">BQ", 0x80 | 127, length)
    return head + bytes(4) + payload


# The proper client: a process of its own, so that only the server's time is measured.


def exactly(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("the server hung up")
        data += piece
    return data


def next_text(sock):
    while True:
        first, length = exactly(sock, 2)
        if length == 126:
            length = struct.unpack(">H", exactly(sock, 2))[0]
        payload = exactly(sock, length)
        if first == 0x81:
            return json.loads(payload)
        if first == 0x89:
            sock.sendall(frame(0x8A, payload))


def greet(address, extra=""):
    sock = socket.create_connection(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(HANDSHAKE.format(extra=extra).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(sock, 1)
    assert b" 101 " in head, head
    return sock


def be_proper(address, stop, results):
    """Pings on one connection and opens new ones; both times in ms."""
    sock = greet(address)
    next_text(sock)
    pings, connects = [], []
    while not stop.is_set():
        since = time.perf_counter()
        sock.sendall(frame(0x81, b'{"type":"ping"}'))
        next_text(sock)
        pings.append((time.perf_counter() - since) * 1000)
        since = time.perf_counter()
        other = greet(address)
        next_text(other)
        connects.append((time.perf_counter() - since) * 1000)
        other.close()
        time.sleep(0.02)
    results.put((pings, connects))


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# The hostile ones.


async def until_dropped(address, pieces, pause):
    """Sends pieces until the server ends it; how long that took."""
    reader, writer = await asyncio.open_connection(*address)
    since = time.perf_counter()

    async def send():
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    try:
        while await asyncio.wait_for(reader.read(65536), 30):
            pass
    except ConnectionError:
        pass
    except asyncio.TimeoutError:
        return 30.0
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    return time.perf_counter() - since


def drip():
    for byte in (HANDSHAKE.format(extra="") * 4).encode():
        yield bytes([byte])


def endless_header():
    yield b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nX: "
    while True:
        yield b"x" * 1024


def many_headers():
    yield b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\n"
    for n in range(100_000):
        yield b"X-%d: x\r\n" % n


async def slow_handshakes(server):
    before, peak = server.memory("VmRSS"), [0.0]

    async def watch():
        while True:
            peak[0] = max(peak[0], server.memory("VmRSS"))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    kinds = [
        ("700 that say nothing", 700, lambda: iter(()), 1),
        ("700 that say a byte a second", 700, drip, 1),
        ("300 with a header without an end", 300, endless_header, 0.01),
        ("300 with headers without an end", 300, many_headers, 0.001),
    ]
    tasks = [[until_dropped(server.address, pieces(), pause) for _ in range(count)] for _, count, pieces, pause in kinds]
    times = await asyncio.gather(*(asyncio.gather(*task) for task in tasks))
    watching.cancel()
    for (what, *_), took in zip(kinds, times):
        hold(f"{what}: the last is dropped after", max(took), 10.5, "s")
    hold("resident memory grew by at most", peak[0] - before, 50, "MiB")


def deflated(payload):
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


BOMBS = [
    ("a frame that announces 1 GiB", "", lambda: frame(0x81, b"x" * 65536, 1 << 30)),
    ("a message of 64 KiB in 1,024 pieces that does not end", "", lambda: pieces(64)),
    ("a message in more than 1,024 pieces", "", lambda: pieces(1) + frame(0x00, b"")),
    ("a compressed message of 64 MiB", "deflate", lambda: frame(0xC1, ZEROES)),
    ("brackets 60,000 deep", "", lambda: frame(0x81, b"[" * 60_000)),
]
ZEROES = deflated(bytes(64 * MIB))


def pieces(size):
    return frame(0x01, b" " * size) + b"".join(frame(0x00, b" " * size) for _ in range(1022)) + frame(0x00, b"")


def throw(address, extra, bomb, count):
    """Throws all of them at once, and hears what is said to each."""
    extra = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if extra else ""
    socks = [greet(address, extra) for _ in range(count)]
    for sock in socks:
        sock.settimeout(10)
        try:
            sock.sendall(bomb)
        except OSError:
            pass
    time.sleep(0.5)
    heard = set()
    for sock in socks:
        sock.setblocking(False)
        data = b""
        try:
            while piece := sock.recv(65536):
                data += piece
        except OSError:
            pass
        at = data.rfind(b"\x88")
        heard.add(str(struct.unpack(">H", data[at + 2 : at + 4])[0]) if 0 <= at <= len(data) - 4 else "no close")
    return socks, heard


def bombs(server):
    for what, extra, make in BOMBS:
        bomb = make()
        for count, bound in ((1, 16), (100, 64)):
            server.forget_peak()
            before = server.memory("VmRSS")
            socks, heard = throw(server.address, extra, bomb, count)
            hold(f"{what}, {count} ({', '.join(sorted(heard))}): memory", server.memory("VmHWM") - before, bound, "MiB")
            for sock in socks:
                sock.close()
            time.sleep(0.3)


def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    server = Server(sys.argv[1])
    try:
        stop, results = multiprocessing.Event(), multiprocessing.Queue()
        proper = multiprocessing.Process(target=be_proper, args=(server.address, stop, results))
        proper.start()
        asyncio.run(slow_handshakes(server))
        stop.set()
        pings, connects = results.get()
        proper.join()
        hold(f"a proper client's ping meanwhile, p99 of {len(pings)}", percentile(pings, 0.99), 100, "ms")
        hold(f"its new connections, p99 of {len(connects)}", percentile(connects, 0.99), 100, "ms")
        bombs(server)
    finally:
        server.process.terminate()
        server.process.wait()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
